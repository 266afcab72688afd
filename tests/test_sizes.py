"""Images that are not square: trained, evaluated, explained, exported and predicted end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import analyze
import train_accelerate
from data.files import decode_file
from data.preprocessing import fit
from data.sources import load_split
from models import create_model
from models.saved import load_model
from utils.analysis.cam.layers import choose_layer, feature_maps
from utils.analysis.cam.maps import choose_cams, class_maps
from utils.analysis.cam.methods import cam_methods
from utils.config import AnalyzeConfig, TrainConfig
from utils.release.classifier import ImageClassifier

HEIGHT, WIDTH = 16, 24


def options(folder: Path, **changes) -> TrainConfig:
    values = {
        "dataset": "digits", "width": 16, "image_size": f"{HEIGHT}x{WIDTH}", "epochs": 2, "batch_size": 256,
        "optimizer": "sgd", "lr": 0.1, "cutout": 4, "crop_padding": 2, "trackers": ["none"], "output_dir": str(folder),
    }  # fmt: skip
    return TrainConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory) -> Path:
    """Digits of 16x24 pixels, smaller ones first, with shifted views in the evaluation."""
    folder = tmp_path_factory.mktemp("wide") / "run"
    changes = {"resolution": "8x12@0.5,16x24", "tta": "flip_translate", "mixup": 0.2, "cutmix": 1.0}
    train_accelerate.main(options(folder, **changes))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of portraits of 2:3, each with a digit at its upper or its lower end."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 60), ("test", 30)):
        found, _ = load_split("digits", "", split, 32)
        for index in range(count):
            path = folder / split / str(found.labels[index] % 3) / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.pad(found.images[index], ((0, 16) if index % 2 else (16, 0), (0, 0), (0, 0)))
            Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(path, quality=95)
    return folder


def test_what_was_trained_is_saved_and_scored_at_its_size(wide_run):
    config = json.loads((wide_run / "model/config.json").read_text())
    assert (config["image_size"], config["resolution"]) == ([HEIGHT, WIDTH], [HEIGHT, WIDTH])
    rows = [json.loads(line) for line in (wide_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["resolution"] for row in rows if row["split"] == "test"] == [8, HEIGHT]
    assert f"in images of {HEIGHT}×{WIDTH} pixels" in (wide_run / "model/README.md").read_text()


def test_the_analysis_scores_it_as_training_did_and_every_section_takes_it(wide_run, tmp_path):
    run = Path(shutil.copytree(wide_run, tmp_path / "run"))
    summary = analyze.main(AnalyzeConfig(run=str(run), images=10, full=True, cam_layer="layer2"))
    assert summary["accuracy"] == json.loads((run / "summary.json").read_text())["test_accuracy"]
    assert summary["cam_layer_size"] == [8, 12]
    assert summary["cam_refused_layers"]["layer4"] == [2, 3]
    assert f"{HEIGHT}×{WIDTH} pixels" in (run / "analysis/report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("fitted", ["crop", "squash", "pad"])
def test_photos_are_trained_explained_exported_and_predicted_alike(photos, tmp_path, fitted):
    """From memory and from disk; the size of the photos is not the model's, nor is their shape."""
    pytest.importorskip("onnxruntime")
    run, values = tmp_path / "run", []
    for name, memory_fraction in (("disk", 0.0), ("run", 0.25)):
        config = options(
            tmp_path / name, dataset="imagefolder", data_dir=str(photos), fit=fitted, tta="flip", batch_size=20,
            memory_fraction=memory_fraction, augment_backend="albumentations", export=["onnx", "torch"],
        )  # fmt: skip
        values.append(train_accelerate.main(config)["test_loss"])
    assert values[0] == values[1]
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("disk", "run")]
    assert weights[0] == weights[1]

    summary = analyze.main(AnalyzeConfig(run=str(run), whole=fitted != "squash"))
    assert summary["loss"] == pytest.approx(values[0], rel=1e-5)
    paths = sorted((photos / "test").rglob("*.jpg"))
    by_script = analyze.main(AnalyzeConfig(run=str(run), predict=[str(path) for path in paths]))
    classifier = ImageClassifier.from_pretrained(run / "model")
    raw = np.stack([np.asarray(decode_file(path)) for path in paths])
    assert raw.shape[1:] == (192, 128, 3)
    session = pytest.importorskip("onnxruntime").InferenceSession(run / "model/model.onnx")
    logits = torch.from_numpy(session.run(["logits"], {"images": raw})[0])
    program = torch.export.load(run / "model/model.pt2").module()
    for path, said, by_onnx, by_torch in zip(
        paths, classifier.predict(paths), logits.softmax(1), program(torch.from_numpy(raw)).softmax(1), strict=True
    ):
        names = classifier.model_config.class_names
        expected = pytest.approx([said[name] for name in names], abs=1e-5)
        assert [by_script[str(path)][name] for name in names] == expected
        assert by_onnx.tolist() == expected
        assert by_torch.tolist() == expected


def test_bars_have_the_mean_colour_and_the_model_knows_it(photos, tmp_path):
    config = options(
        tmp_path / "run", dataset="imagefolder", data_dir=str(photos), fit="pad", image_size="16x24", max_steps=1
    )
    train_accelerate.main(config)
    saved = load_model(tmp_path / "run/model")[1]
    image = fit(decode_file(next((photos / "test").rglob("*.jpg"))), saved.geometry)
    normalised = (image[:, 0] / 255 - np.array(saved.mean)) / np.array(saved.std)
    assert np.abs(normalised).max() < 0.02
    assert image[:, 12].std() > 10


# -- where it looks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("resnet18", 10, width=16).eval()


@pytest.mark.parametrize("size", [(16, 24), (40, 16), (33, 50), (48, 20)])
def test_layers_are_found_in_the_shape_of_the_image(model, size):
    layers = feature_maps(model, size)
    for stage, stride in enumerate((1, 2, 4, 8), 1):
        assert layers[f"layer{stage}"].size == (-(-size[0] // stride), -(-size[1] // stride))
    assert min(choose_layer(model, size).size) >= 5


@pytest.mark.parametrize("size", [(16, 24), (24, 16)])
@pytest.mark.parametrize("name", list(cam_methods()))
def test_every_method_makes_maps_in_the_shape_of_the_image(model, name, size):
    inputs = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    cam = choose_cams(model, size, name, "layer2.1" if name == "SESS" else None).chosen[0]
    maps = class_maps(model, cam, inputs, [1, 2])
    assert maps.shape == (2, *size)
    assert np.isfinite(maps).all()
    assert 0.5 < maps.max() <= 1
