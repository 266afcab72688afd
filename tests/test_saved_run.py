"""What analyze.py takes as a run: a run directory, a checkpoint, a model alone, and those of older versions."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import analyze
from data.sources import load_split
from models.saved import FORMAT_VERSION
from tests.saved_runs import change, refusal
from utils.analysis import setup
from utils.analysis.inference import predict_test
from utils.config import AnalyzeConfig
from utils.config.parser import parse_config
from utils.release.classifier import ImageClassifier
from utils.runs.saved_run import open_run, trained_precision
from utils.system.errors import UserError
from utils.system.files import check_writable
from utils.system.runtime import create_accelerator

# What version 1 did not have.
OPTIONS_SINCE_VERSION_1 = {
    *("padding_mode", "mixup", "cutmix", "augment_backend", "tta", "norm_bias_lr_factor", "resolution"),
    *("ema_decay", "lookahead_steps", "lookahead_decay", "peer_timeout"),
}
MODEL_KEYS_SINCE_VERSION_1 = {"resolution", "tta"}
LINE_KEYS_SINCE_VERSION_1 = {"images", "resolution"}


@pytest.fixture
def model_alone(digits_run, tmp_path) -> Path:
    """config.json and model.safetensors, copied away from their run."""
    return Path(shutil.copytree(digits_run / "model", tmp_path / "downloaded"))


def set_up(run: Path, **options):
    return setup.set_up(AnalyzeConfig(run=str(run), **options), create_accelerator())


def without(values: dict, names: set[str]) -> dict:
    return {name: value for name, value in values.items() if name not in names}


def as_version_1(run: Path) -> None:
    """Rewrites a run directory as the first version wrote it."""
    options = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(without(options, OPTIONS_SINCE_VERSION_1)))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(without(row, LINE_KEYS_SINCE_VERSION_1)) + "\n" for row in rows]
    (run / "metrics.jsonl").write_text("".join(lines))
    for folder in (run / "model", *(run / "checkpoints").iterdir()):
        config = without(json.loads((folder / "config.json").read_text()), MODEL_KEYS_SINCE_VERSION_1)
        content = json.dumps(config | {"format_version": 1}).encode()
        (folder / "config.json").write_bytes(content)
        if (manifest := folder / "MANIFEST.json").exists():
            files = json.loads(manifest.read_text())["files"]
            files["config.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            change(manifest, format_version=1, files=files)


# -- a run and its parts ----------------------------------------------------------------------------------------------


def test_a_mistyped_run_suggests_its_neighbour(tmp_path):
    (tmp_path / "resnet18").mkdir()
    with pytest.raises(UserError, match=rf"^run: {tmp_path}/resnet81 .*; did you mean {tmp_path}/resnet18\?$"):
        open_run(tmp_path / "resnet81")
    with pytest.raises(UserError, match=r"is not a folder$"):
        open_run(tmp_path / "zzz")


def test_a_stopped_run_is_analysed_from_its_newest_checkpoint(run, capsys):
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    analyze.main(AnalyzeConfig(run=str(run), only=["classes"]))
    newest = max((run / "checkpoints").iterdir()).name
    assert newest in capsys.readouterr().out
    assert newest in (run / "analysis/report.html").read_text()


def test_a_checkpoint_can_be_analysed(digits_run, tmp_path):
    oldest = min((digits_run / "checkpoints").iterdir())
    analysis = set_up(oldest, output_dir=str(tmp_path))
    assert oldest.name in analysis.run.note
    assert analysis.run.recorded
    predictions = predict_test(analysis).classes
    tested = [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    first = next(row["accuracy"] for row in tested if row["split"] == "test")
    assert (predictions == analysis.test.labels).mean() == first


def test_the_model_folder_of_a_run_knows_its_run(run):
    analysis = set_up(run / "model")
    assert analysis.run.directory == run
    assert analysis.run.note == ""
    assert analysis.folder == run / "model/analysis"


def test_a_model_put_into_the_folder_of_another_run_is_not_taken_for_a_part_of_it(run, model_alone):
    moved = shutil.copytree(model_alone, run / "downloaded")
    assert not set_up(moved, dataset="digits").run.recorded


def test_class_names_with_html_and_a_moved_data_set(run, tmp_path, capsys):
    split, names = load_split("digits", "", "test", 16)
    names = [f"{name}<i>&$x$" for name in names]
    for part in ("train", "test"):
        for index in range(60):
            folder = tmp_path / "moved" / part / names[split.labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[index]).save(folder / f"{index}.png")
    change(run / "config.yaml", dataset="imagefolder", data_dir=str(tmp_path / "before"))
    assert "--data_dir" in refusal(capsys, run=str(run))
    assert "classes" in refusal(capsys, run=str(run), data_dir=str(tmp_path / "moved"))
    change(run / "model/config.json", class_names=names)
    summary = analyze.main(AnalyzeConfig(run=str(run), data_dir=str(tmp_path / "moved")))
    page = (run / "analysis/report.html").read_text()
    assert set(summary["per_class"]) == set(names)
    assert "<i>" not in page
    assert "3&lt;i&gt;&amp;$x$" in page


def test_another_data_set_than_the_runs_is_taken_where_it_is_named(run, tmp_path, capsys):
    change(run / "config.yaml", dataset="imagefolder", data_dir=str(tmp_path / "before"))
    assert len(set_up(run, dataset="digits").test) == 360
    assert "data_dir: the run does not say where the images are" in refusal(capsys, run=str(run), dataset="cifar10")


def test_the_precision_of_the_run_is_known_before_the_start(run, model_alone):
    change(run / "environment.json", mixed_precision="bf16")
    assert trained_precision(run) == "bf16"
    assert trained_precision(run / "model") == "bf16"
    assert trained_precision(min((run / "checkpoints").iterdir())) == "bf16"
    assert trained_precision(run / "missing") is None
    assert trained_precision(model_alone) is None


# -- a model without its run ------------------------------------------------------------------------------------------


def test_a_model_alone_is_analysed_on_the_images_that_are_named(analysed, model_alone):
    summary = analyze.main(AnalyzeConfig(run=str(model_alone), dataset="digits", only=["curves", "classes"]))
    expected = json.loads((analysed / "analysis/summary.json").read_text())
    assert summary["accuracy"] == expected["accuracy"]
    assert summary["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    page = (model_alone / "analysis/report.html").read_text()
    assert "no record of the training" in page
    assert not (model_alone / "analysis/curves.png").exists()
    one, two = (np.load(folder / "analysis/predictions.npz") for folder in (analysed, model_alone))
    np.testing.assert_array_equal(one["logits"], two["logits"])


def test_a_checkpoint_alone_is_analysed_too(digits_run, tmp_path):
    oldest = min((digits_run / "checkpoints").iterdir())
    run = set_up(Path(shutil.copytree(oldest, tmp_path / oldest.name)), dataset="digits").run
    assert oldest.name in run.note
    assert not run.recorded


def test_a_model_alone_asks_for_its_images(model_alone, capsys):
    line = refusal(capsys, run=str(model_alone))
    assert "--dataset (cifar10, cifar100, digits, imagefolder)" in line
    assert "--data_dir" in line
    assert "--dataset" in refusal(capsys, run=str(model_alone), data_dir=str(model_alone))
    assert "--data_dir" in refusal(capsys, run=str(model_alone), dataset="cifar10")
    change(model_alone / "config.json", class_names=[f"digit {index}" for index in range(10)])
    line = refusal(capsys, run=str(model_alone), dataset="digits")
    assert "the classes of digits (0, 1, 2, 3, 4 and 5 more) are not those of the model (digit 0, digit 1" in line


def test_the_image_size_of_a_model_alone_is_its_own(model_alone):
    change(model_alone / "config.json", image_size=24)
    analysis = set_up(model_alone, dataset="digits")
    assert analysis.test.images[0].shape == (24, 24, 3)


def test_an_unknown_data_set_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(AnalyzeConfig, ["folder", "--dataset", "imagenet"])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: dataset: 'imagenet' is not allowed; ")
    assert "one of cifar10, cifar100, digits, imagefolder" in line


# -- older and newer versions -----------------------------------------------------------------------------------------


def test_a_run_of_version_1_is_analysed_as_before(analysed, run):
    as_version_1(run)
    summary = analyze.main(AnalyzeConfig(run=str(run), only=["curves", "classes"]))
    expected = json.loads((analysed / "analysis/summary.json").read_text())
    assert summary["accuracy"] == expected["accuracy"]
    assert summary["loss"] == expected["loss"]
    assert (run / "analysis/curves.png").exists()


def test_a_checkpoint_and_a_model_of_version_1_are_read(run):
    as_version_1(run)
    assert set_up(max((run / "checkpoints").iterdir())).model_config.input_size == (16, 16)
    assert set_up(shutil.copytree(run / "model", run.parent / "alone"), dataset="digits").model_config.tta == "none"


def test_a_model_of_version_2_is_read(model_alone):
    change(model_alone / "config.json", format_version=2, resolution=12, tta="flip")
    config = set_up(model_alone, dataset="digits").model_config
    assert (config.image_size, config.input_size, config.tta) == (16, (12, 12), "flip")


def test_a_newer_version_is_refused(model_alone, capsys):
    change(model_alone / "config.json", format_version=FORMAT_VERSION + 1, whatever="comes then")
    line = refusal(capsys, run=str(model_alone), dataset="digits")
    assert f"format version {FORMAT_VERSION + 1} is newer than this program's {FORMAT_VERSION}" in line


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "resnet34"}, ["layer1.2.conv1.weight is missing", "more"]),
        ({"arguments": {"norm": "batch", "width": 32}}, ["conv1.weight is 16x3x3x3, in the model 32x3x3x3"]),
        ({"arguments": {"norm": "group", "width": 16}}, ["the model has no", "running_mean"]),
        ({"class_names": list("012345678")}, ["fc.weight is 10x128, in the model 9x128"]),
        ({"format_version": FORMAT_VERSION + 1}, [f"version {FORMAT_VERSION + 1} is newer than this program's"]),
        ({"format_version": 0}, ["format version 0"]),
    ],
    ids=str,
)
def test_a_model_that_is_not_that_of_its_config_is_named_with_what_differs(digits_run, run, capsys, changes, words):
    change(run / "model/config.json", **changes)
    lines = [refusal(capsys, run=str(run)), refusal(capsys, run=str(digits_run), compare=str(run))]
    with pytest.raises(UserError) as refused:
        ImageClassifier.from_pretrained(run / "model")
    for line in (*lines, str(refused.value)):
        assert str(run / "model") in line
        for word in words:
            assert word in line


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert "neither a run directory" in refusal(capsys, run=str(tmp_path))
    assert "not a folder" in refusal(capsys, run=str(tmp_path / "missing"))


def test_another_programs_model_is_refused(model_alone, capsys):
    (model_alone / "config.json").write_text('{"model_type": "resnet", "transformers_version": "4.40.0"}')
    assert "not a model config" in refusal(capsys, run=str(model_alone), dataset="digits")


def test_a_run_without_any_model_is_refused(run, capsys):
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints")
    assert "neither a model/ nor a valid checkpoint" in refusal(capsys, run=str(run))


def test_a_damaged_checkpoint_is_refused(run, capsys):
    newest = max((run / "checkpoints").iterdir())
    with open(newest / "model.safetensors", "ab") as file:
        file.write(b"x")
    assert "not a valid checkpoint" in refusal(capsys, run=str(newest))


def test_a_folder_that_cannot_be_written_to_asks_for_another(model_alone, tmp_path, capsys):
    (model_alone / "analysis").write_text("a file is in the way")
    assert "--output_dir" in refusal(capsys, run=str(model_alone), dataset="digits")
    set_up(model_alone, dataset="digits", output_dir=str(tmp_path / "elsewhere"))


def test_a_read_only_folder_asks_for_another(model_alone):
    model_alone.chmod(0o555)
    root = os.geteuid() == 0  # who may write everywhere
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"analysis cannot be written to \(Permission denied\).* --output_dir"):
            check_writable(model_alone / "analysis")
    finally:
        if root:
            os.seteuid(0)
