"""Programs for other runtimes: ONNX and torch.export."""

import ast
import contextlib
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import models
import train_accelerate
from data.sources import load_split
from models.saved import ModelConfig, export_model
from tests.processes import run as run_ranks
from tests.test_hub import code_blocks
from utils.config import TrainConfig
from utils.config.files import load_config
from utils.release import export
from utils.release.classifier import ImageClassifier
from utils.release.export import check_packages, export_programs
from utils.system.errors import SuiteError, UserError


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.fixture
def awkward_model(tmp_path) -> Path:
    """With everything that a program must have inside: another resolution and test-time augmentation."""
    torch.manual_seed(0)
    config = ModelConfig(
        "resnet18", {"width": 16}, ("a", "b"), 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 12, "flip_translate"
    )
    export_model(tmp_path / "model", config, config.create_model().state_dict())
    return tmp_path / "model"


def test_programs_take_raw_images_of_any_number_and_size_and_agree_with_the_model(awkward_model, onnxruntime):
    images = torch.randint(256, (9, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = export_programs(awkward_model, ["onnx", "torch"], images[:4])
    assert [(program.kind, program.count) for program in found] == [("onnx", 4), ("torch", 4)]
    assert all(program.difference < 1e-5 for program in found)
    session = onnxruntime.InferenceSession(awkward_model / "model.onnx")
    program = torch.export.load(awkward_model / "model.pt2").module()
    classifier = ImageClassifier.from_pretrained(awkward_model)
    for count, height, width in ((1, 16, 16), (9, 16, 16), (1, 40, 1), (3, 333, 500)):
        images = torch.randint(256, (count, height, width, 3), dtype=torch.uint8)
        with torch.no_grad():
            expected = classifier(images)
            (logits,) = session.run(["logits"], {"images": images.numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["class_names"] == '["a", "b"]'


def run_code(code: str, folder: Path, printed: Path) -> None:
    """As a script in a folder."""
    os.chdir(folder)
    with open(printed, "w") as file, contextlib.redirect_stdout(file):
        exec(code, {"__name__": "__main__"})


def test_finished_run_is_exported_without_training_again(run, tmp_path, capsys, onnxruntime):
    before = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "model/model.safetensors")}
    config = dataclasses.replace(load_config(TrainConfig, run / "config.yaml"), output_dir=str(run))
    train_accelerate.main(dataclasses.replace(config, export=["onnx", "torch"]))
    out = capsys.readouterr().out
    told = re.findall(r"^exported (.*): logits within \d\.\de[-+]\d+ of the checkpoint's", out, re.MULTILINE)
    assert told == [str(run / "model/model.onnx"), str(run / "model/model.pt2")]
    assert before == {name: (run / name).read_bytes() for name in before}

    card = (run / "model/README.md").read_text()
    assert re.search(r"^\| `model.onnx` \| ONNX \| \d\.\de[-+]\d+ over 256 test images \|$", card, re.MULTILINE)
    split, _ = load_split("digits", "", "test", 16)
    Image.fromarray(split.images[0]).save(run / "photo.png")
    said, log = [], tmp_path / "log"
    for code in code_blocks(card):
        assert run_ranks(run_code, code, run, tmp_path / "printed", log=log) == [0], log.read_text()
        said.append((tmp_path / "printed").read_text().strip())
    likeliest = next(iter(ast.literal_eval(said[0])))
    assert said[1:] == [likeliest] * 2

    train_accelerate.main(config)
    assert not list((run / "model").glob("model.[op]*"))  # not asked for again: they could be of other weights


def test_a_program_that_differs_from_the_checkpoint_is_not_written(digits_run, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(digits_run / "model", tmp_path / "model"))
    monkeypatch.setattr(export, "TOLERANCE", -1.0)  # no program agrees that well
    with pytest.raises(SuiteError, match=r"^export: the logits of model.pt2 differ from the checkpoint's by up to"):
        export_programs(folder, ["torch"], torch.zeros(3, 16, 16, 3, dtype=torch.uint8))
    assert not (folder / "model.pt2").exists()


@pytest.mark.parametrize("version", [1, 2])
def test_models_of_earlier_versions_are_exported_as_they_were_meant(awkward_model, version):
    """They know no fit: images were cropped to a square."""
    images = torch.randint(256, (2, 30, 20, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = ImageClassifier.from_pretrained(awkward_model)(images)
    values = json.loads((awkward_model / "config.json").read_text()) | {"format_version": version}
    old = {name: value for name, value in values.items() if name not in ("fit", "crop_pct", "interpolation")}
    (awkward_model / "config.json").write_text(json.dumps(old))
    export_programs(awkward_model, ["torch"], torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    with torch.no_grad():
        assert torch.equal(ImageClassifier.from_pretrained(awkward_model)(images), expected)
        program = torch.export.load(awkward_model / "model.pt2").module()
        torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)


class Stubborn(nn.Module):
    """Decides by its input which way to go, which no exporter can write down."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = inputs.mean((2, 3))
        return self.fc(features if features.sum() > 0 else -features)


def test_a_model_that_cannot_be_exported_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "stubborn", Stubborn)
    config = ModelConfig("stubborn", {}, ("a", "b"), 16, (0.5,) * 3, (0.2,) * 3)
    export_model(tmp_path / "model", config, config.create_model().state_dict())
    with pytest.raises(SuiteError, match=r"^export: torch.export failed \(") as error:
        export_programs(tmp_path / "model", ["torch"], torch.zeros(3, 16, 16, 3, dtype=torch.uint8))
    assert error.value.exit_code == 1


def test_a_missing_package_is_named_before_training(monkeypatch):
    monkeypatch.setitem(export.PACKAGES, "onnx", ("torch", "no_such_package"))
    with pytest.raises(UserError, match=r"^export: onnx needs no_such_package; pip install -r \S+$"):
        check_packages(["onnx"])


def test_export_options_are_read_from_their_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text("export: [onnx, torch]\npush_to_hub: ada/digits\n")
    config = load_config(TrainConfig, tmp_path / "r.yaml")
    assert (config.export, config.push_to_hub) == (["onnx", "torch"], "ada/digits")
