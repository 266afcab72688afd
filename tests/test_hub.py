"""The model in the Hugging Face Hub's format: loading, the model card, and uploading to a Hub on this machine."""

import dataclasses
import html
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from data.sources import load_split
from models.saved import ModelConfig, export_model, load_model
from tests.hub_server import TOKEN, running_hub
from utils.config import TrainConfig
from utils.config.files import load_config
from utils.evaluation.tta import tta_logits
from utils.release import hub
from utils.release.classifier import ImageClassifier
from utils.release.model_card import CardData, model_card
from utils.system.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = "--dataset digits --width 16 --image_size 16 --epochs 1 --max_steps 2 --lr 0.1 --trackers none"


def python(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python with the suite on its path, and without the token of whoever runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    values = inherited | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")} | environment
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=values, capture_output=True, text=True)


def code_blocks(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)


# -- loading ----------------------------------------------------------------------------------------------------------


def test_model_folder_loads_with_the_mixin_and_scores_as_the_run_did(digits_run):
    classifier = ImageClassifier.from_pretrained(digits_run / "model")
    split, names = load_split("digits", "", "test", 16)
    said = classifier.predict(split.images[:])
    assert [set(named) for named in said] == [set(names)] * len(split)
    assert sum(said[0].values()) == pytest.approx(1)
    assert list(said[0].values()) == sorted(said[0].values(), reverse=True)
    hits = np.mean([next(iter(named)) == names[label] for named, label in zip(said, split.labels, strict=True)])
    assert hits == json.loads((digits_run / "summary.json").read_bytes())["test_accuracy"]


def test_paths_pil_images_and_arrays_of_any_size_say_the_same(digits_run, tmp_path):
    classifier = ImageClassifier.from_pretrained(str(digits_run / "model"))
    photo = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50)
    photo.save(tmp_path / "photo.png")
    pictures = [tmp_path / "photo.png", str(tmp_path / "photo.png"), photo, np.asarray(photo.convert("RGB"))]
    said = [classifier.predict(picture) for picture in pictures]
    assert [type(one) for one in said] == [dict] * 4
    assert said == said[:1] * 4
    together = [pytest.approx(one, rel=1e-4) for one in said]  # other sums in a larger batch
    assert classifier.predict(pictures) == together
    assert classifier.predict(picture for picture in pictures) == together
    (tmp_path / "text.png").write_text("no picture")
    for given in (tmp_path / "text.png", [photo, tmp_path / "text.png"]):
        with pytest.raises(UserError, match=r"^\S*text.png is not a readable image"):
            classifier.predict(given)


@pytest.mark.parametrize("channels", ["L", "RGB", "RGBA"])
def test_an_array_says_what_its_file_does_and_an_array_of_them_is_a_list(small_model, tmp_path, channels):
    """Grey and transparent ones too; a batch is one only with a dimension more."""
    classifier = ImageClassifier.from_pretrained(small_model)
    shape = (20, 30, *((len(channels),) if channels != "L" else ()))
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "photo.png")
    said = classifier.predict(tmp_path / "photo.png")
    batch = np.stack([array, array]).reshape(2, 20, 30, -1)
    assert classifier.predict(array) == said
    assert classifier.predict(batch[0]) == said
    assert classifier.predict([array]) == [said]
    assert classifier.predict(batch) == [pytest.approx(said, rel=1e-4)] * 2
    assert classifier.predict(batch[:0]) == classifier.predict([]) == []


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, "it got a float32 array (8, 8, 3)"),
        (np.zeros((8, 8, 3)), TypeError, "it got a float64 array (8, 8, 3)"),
        (np.zeros((2, 8, 8, 3), np.float32), TypeError, "image 0 is a float32 array (8, 8, 3)"),
        (np.zeros((3, 8, 9), np.uint8), ValueError, "it got a uint8 array (3, 8, 9)"),
        (np.zeros((2, 3, 8, 9), np.uint8), ValueError, "image 0 is a uint8 array (3, 8, 9)"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, "it got a uint8 array (8, 8, 2)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "it got a uint8 array (0, 8, 3)"),
        (np.zeros(8, np.uint8), ValueError, "it got a uint8 array (8,)"),
        (np.array(["a.png"]), TypeError, "it got a <U5 array (1,)"),
        (torch.zeros(3, 8, 8), TypeError, "it got a float32 torch tensor (3, 8, 8)"),
        ([torch.zeros(8, 8, 3, dtype=torch.uint8)], TypeError, "image 0 is a uint8 torch tensor (8, 8, 3)"),
        ([np.zeros((8, 8, 3), np.uint8), None], TypeError, "image 1 is an object of type NoneType"),
        ([[1, 2], [3, 4]], TypeError, "image 0 is an object of type list"),
        (
            b"photo.png",
            ValueError,
            "it got 9 bytes without a readable image (it begins like none of PNG, JPEG, WEBP, GIF, BMP, TIFF)",
        ),
        (
            b"",
            ValueError,
            "it got 0 bytes without a readable image (it begins like none of PNG, JPEG, WEBP, GIF, BMP, TIFF)",
        ),
        (
            [io.BytesIO(b"no photo")],
            ValueError,
            "image 0 is an open file without a readable image (it begins like none of PNG, JPEG, WEBP, GIF, BMP, TIFF)",
        ),
        (io.StringIO("photo"), TypeError, "it got a file that was opened as text"),
        ({"photo.png": 1}, TypeError, "it got an object of type dict"),
        (7, TypeError, "it got an object of type int"),
        (Image.new("F", (8, 8)), ValueError, "a PIL image that cannot be read (its pixels are floating-point numbers)"),
        (Image.new("RGB", (0, 8)), ValueError, "it got a PIL image of 0 x 8 pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_told_in_one_line_with_what_is_taken(small_model, given, error, told):
    with pytest.raises(error) as raised:
        ImageClassifier.from_pretrained(small_model).predict(given)
    assert str(raised.value).startswith("predict takes an image (a path, an open file, its bytes, a PIL image or")
    assert str(raised.value).endswith(told)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["missing.png", ""])
def test_a_path_is_one_image_not_its_letters(small_model, tmp_path, name):
    with pytest.raises(UserError, match=r"^\S+ is not a readable image"):
        ImageClassifier.from_pretrained(small_model).predict(str(tmp_path / name))


def test_test_time_augmentation_and_resolution_are_inside(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig("resnet18", {"width": 16}, ("a", "b"), 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 8, "flip")
    model = config.create_model().eval()
    images = torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8)
    scaled = (images / 255 - torch.tensor(config.mean)) / torch.tensor(config.std)
    smaller = scaled.view(3, 8, 2, 8, 2, 3).mean((2, 4)).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(ImageClassifier(model, config)(images), tta_logits(model, smaller, "flip"))


def test_saving_writes_the_same_model(digits_run, tmp_path):
    ImageClassifier.from_pretrained(digits_run / "model").save_pretrained(tmp_path / "copy")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / file).read_bytes() == (digits_run / "model" / file).read_bytes()


# -- the model card ---------------------------------------------------------------------------------------------------


def test_card_has_the_metrics_in_the_hubs_format(digits_run):
    summary = json.loads((digits_run / "summary.json").read_bytes())
    card = ModelCard.load(digits_run / "model" / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"accuracy": summary["test_accuracy"], "loss": summary["test_loss"]}
    assert all(result.dataset_split == "test" for result in card.data.eval_results)
    assert card.data.datasets is None  # scikit-learn's digits are not on the Hub


def test_card_says_accuracy_interval_and_classes_and_shows_the_curves(digits_run):
    summary = json.loads((digits_run / "summary.json").read_bytes())
    text = (digits_run / "model" / "README.md").read_text()
    correct = round(360 * summary["test_accuracy"])
    assert f"Test accuracy {correct}/360 ({correct / 360:.2%}, 95 % interval " in text
    for name, accuracy in summary["per_class_accuracy"].items():
        assert re.search(rf"^\| {name} \| \d+ \| {accuracy:.2%} \|$", text, re.MULTILINE)
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", text)
    with Image.open(digits_run / "model" / picture) as image:
        assert image.format == "PNG"


def test_recipe_in_the_card_repeats_the_run(digits_run, tmp_path):
    text = (digits_run / "model" / "README.md").read_text()
    recipe = re.search(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    (tmp_path / "recipe.yaml").write_text(recipe)
    read = load_config(TrainConfig, tmp_path / "recipe.yaml")
    assert read.identity() == load_config(TrainConfig, digits_run / "config.yaml").identity()


def test_card_names_no_folder_of_this_machine(digits_run):
    text = (digits_run / "model" / "README.md").read_text()
    assert str(digits_run.parent) not in text
    assert str(ROOT) not in text


def test_code_in_the_card_runs(digits_run, tmp_path):
    os.symlink(digits_run / "model", tmp_path / "model")
    Image.new("L", (30, 20), 200).save(tmp_path / "photo.png")
    (code,) = code_blocks((digits_run / "model" / "README.md").read_text())
    done = python("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'7': 0." in done.stdout


def test_card_is_honest_about_test_time_augmentation_and_the_choice_of_weights(digits_run):
    summary = json.loads((digits_run / "summary.json").read_bytes())
    chosen = {"test_accuracy_without_tta": 0.25, "best_validation_accuracy": 0.75}
    text = model_card(
        name="digits",
        location="model",
        config=dataclasses.replace(load_model(digits_run / "model")[1], tta="flip"),
        data=CardData("digits", Path("datasets"), 1400, 37, [36] * 10),
        summary=summary | chosen,
        recipe={},
        environment={"device_name": "CPU", "git_commit": "0123456789abcdef", "git_dirty": True},
    )
    assert "with test-time augmentation `flip`; without it 25.00%." in text
    assert "best accuracy on the validation images (75.00%). The test images were scored" in text
    assert "(commit 0123456789ab with changes)" in text


HOSTILE = ("a|b", "**bold**", "<script>", "{{ 7 * 7 }}", "---", "`x`", "two\nlines", "_è_", "[l](u)", "key: # !")


@pytest.fixture
def hostile_card(digits_run) -> str:
    summary = json.loads((digits_run / "summary.json").read_bytes())
    return model_card(
        name="a: *b*",
        location="model",
        config=dataclasses.replace(load_model(digits_run / "model")[1], class_names=HOSTILE),
        data=CardData("imagefolder", Path("/home/ada/key: #1|\n---"), 1437, 0, [36] * 10),
        summary=summary | {"per_class_accuracy": dict.fromkeys(HOSTILE, 0.5)},
        recipe={},
        environment={"device_name": "CPU"},
    )


def test_class_names_with_markup_stand_in_the_card_as_they_are(hostile_card):
    rows = re.findall(r"^\| (.*) \| 36 \| 50.00% \|$", hostile_card, re.MULTILINE)
    assert [html.unescape(row) for row in rows] == [" ".join(name.split()) for name in HOSTILE]
    assert not re.search(r"[|*<>{}`_\[\]#!](?!\d+;)", "".join(rows))


def test_names_with_markup_leave_the_metadata_whole(hostile_card):
    data = yaml.safe_load(hostile_card.split("---\n")[1])
    assert data["model-index"][0]["name"] == "a: *b*"
    assert "ada" not in hostile_card
    assert ModelCard(hostile_card).data.eval_results[0].metric_type == "accuracy"


# -- uploading --------------------------------------------------------------------------------------------------------


def test_training_uploads_its_model_folder_which_loads_by_its_name(tmp_path):
    with running_hub() as server:
        there = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
        options = [*TINY.split(), "--output_dir", str(tmp_path / "run"), "--push_to_hub", "ada/digits"]
        done = python("train_accelerate.py", *options, **there)
        assert (done.returncode, done.stderr) == (0, "")
        sent = {path.name: path.read_bytes() for path in (tmp_path / "run/model").iterdir()}
        assert server.files == {"ada/digits": sent}
        assert {"README.md", "config.json", "model.safetensors", "curves.png"} == set(sent)

        Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
        (code,) = code_blocks(sent["README.md"].decode())
        assert '"ada/digits"' in code
        loaded = python("-c", code, folder=tmp_path, **there)
        assert loaded.returncode == 0, loaded.stderr
        assert "'7': 0." in loaded.stdout
    assert not [
        path for path in (tmp_path / "run").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


@pytest.fixture
def small_model(tmp_path) -> Path:
    config = ModelConfig("resnet18", {"width": 16}, ("a", "b"), 16, (0.5,) * 3, (0.2,) * 3)
    export_model(tmp_path / "model", config, config.create_model().state_dict())
    return tmp_path / "model"


@pytest.fixture
def hub_at(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """Sends what huggingface_hub's processes ask to an address, with a token."""

    def set_environment(url: str, token: str) -> None:
        for name, value in {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "hf")}.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize(
    ("mood", "token", "seconds", "reason"),
    [
        ("fine", "hf_wrong", 20, "token|password"),
        ("broken", TOKEN, 20, "500|out of order"),
        ("silent", TOKEN, 2, r"\(the Hugging Face Hub did not answer within 2 s\)"),
    ],
)
def test_a_failed_upload_costs_one_line_with_the_command_for_later(
    small_model, hub_at, monkeypatch, capsys, mood, token, seconds, reason
):
    monkeypatch.setattr(hub, "ANSWER_SECONDS", seconds)
    with running_hub(mood) as server:
        hub_at(server.url, token)
        assert not hub.upload("ada/digits", small_model)
        assert server.files == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, line)
    assert f"this uploads it later: hf upload ada/digits {small_model}" in line
    assert token not in line


def test_an_upload_replaces_the_model_and_its_exports_and_leaves_other_files(small_model, hub_at):
    (small_model / "model.pt2").write_bytes(b"new")
    sent = {path.name: path.read_bytes() for path in small_model.iterdir()}
    with running_hub() as server:
        server.files["ada/digits"] = {"model.onnx": b"old", "model.pt2": b"old", "notes.md": b"mine"}
        hub_at(server.url, TOKEN)
        assert hub.upload("ada/digits", small_model)
        assert server.files == {"ada/digits": sent | {"notes.md": b"mine"}}


def test_an_unreachable_hub_costs_one_line(small_model, hub_at, capsys):
    hub_at("http://127.0.0.1:9", TOKEN)
    assert not hub.upload("ada/digits", small_model)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {small_model} was not uploaded (")


def test_a_refused_token_is_said_before_training(hub_at, capsys):
    with running_hub() as server:
        hub_at(server.url, "hf_wrong")
        hub.check_upload("ada/digits")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch("warning: push_to_hub: .*(token|password).*; the upload is tried at the end anyway", line)


@pytest.mark.parametrize("name", ["a/b/c", "with space", "a--b", "", "-a", "x" * 97])
def test_a_name_that_the_hub_does_not_take_is_refused(name):
    with pytest.raises(UserError, match=r"^push_to_hub: .* is not allowed; it must be NAME or USER/NAME"):
        hub.check_upload(name)


def test_without_a_token_training_does_not_start(tmp_path):
    options = [*TINY.split(), "--output_dir", str(tmp_path / "run"), "--push_to_hub", "ada/digits"]
    done = python("train_accelerate.py", *options, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 2
    assert re.fullmatch(r"error: push_to_hub: no token .*hf auth login.*HF_TOKEN\n", done.stderr)
    assert not (tmp_path / "run").exists()
