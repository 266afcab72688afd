"""--preview_augment and augmentations.png: exactly what the model gets."""

import dataclasses
import json
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from data.sources import load_dataset
from data.splits import Dataset
from tests.processes import run, tiny_config, train_script
from utils.plots.augmentations import GAP, augmentation_grid
from utils.training.loading import create_train_loader
from utils.training.preview import DRAWS, FILE, IMAGES, preview, spread

KINDS = {
    "tensor": {"augment_backend": "tensor", "horizontal_flip": "random"},
    "albumentations": {"augment_backend": "albumentations", "horizontal_flip": "alternating"},
    "mixed": {"augment_backend": "tensor", "mixup": 0.4},
    "photos": {"augment_backend": "albumentations", "crop": "resized"},
    "a pipeline": {"augment_file": "pipeline.yaml", "augment_backend": "albumentations"},
}
PIPELINE = A.Compose([A.RandomResizedCrop((16, 16), p=1), A.SomeOf([A.HorizontalFlip(), A.GaussNoise(p=1)], n=1)])


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", "", 16)


def set_up(data: Dataset, tmp_path: Path, monkeypatch, **options):
    """A run's options and loader."""
    monkeypatch.chdir(tmp_path)
    A.save(PIPELINE, tmp_path / "pipeline.yaml", data_format="yaml")
    config = tiny_config(tmp_path / "run", **options)
    content = (tmp_path / "pipeline.yaml").read_bytes() if config.augment_file else b""
    return config, create_train_loader(config, data, Accelerator(cpu=True), content)


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_are_those_of_the_batches_to_the_bit(digits, tmp_path, monkeypatch, kind):
    config, loader = set_up(digits, tmp_path, monkeypatch, **KINDS[kind])
    found, positions = preview(config, digits, loader), spread(digits.train.labels, IMAGES)
    np.testing.assert_array_equal(found.images[:, 0], digits.train.images.take(positions))
    for epoch in range(3):
        order = np.concatenate(list(loader.steps.positions(epoch)))
        images = np.concatenate([batch.images.numpy() for batch in loader.epoch(epoch)])
        expected = images[[np.flatnonzero(order == position)[0] for position in positions]]
        np.testing.assert_array_equal(found.images[:, 1 + epoch], expected)
    assert found.images.shape == (IMAGES, 1 + DRAWS, 16, 16, 3)
    assert len({image.tobytes() for image in found.images[0]}) > DRAWS / 2


def test_further_draws_are_said_to_be_none_of_the_run(digits, tmp_path, monkeypatch):
    config, loader = set_up(digits, tmp_path, monkeypatch, epochs=4, augment_until=0.5)
    found = preview(config, digits, loader)
    assert found.columns == ["as evaluated", "epoch 1", "epoch 2", *(f"draw {number}" for number in range(3, 9))]
    assert "2 epochs are augmented; the other draws are what further ones would get." in found.lines
    same = dataclasses.replace(config, augment_until=1.0, epochs=8)
    longer = preview(same, digits, create_train_loader(same, digits, Accelerator(cpu=True)))
    np.testing.assert_array_equal(found.images, longer.images)
    assert longer.columns[-1] == "epoch 8"


def test_a_run_without_augmented_epochs_shows_plain_images(digits, tmp_path, monkeypatch):
    config, loader = set_up(digits, tmp_path, monkeypatch, augment_until=0.0)
    found = preview(config, digits, loader)
    np.testing.assert_array_equal(found.images, found.images[:, :1].repeat(1 + DRAWS, axis=1))
    assert "No epoch is augmented (augment_until)." in found.lines


def test_what_the_model_gets_besides_is_said(digits, tmp_path, monkeypatch):
    options = {"mixup": 0.2, "cutmix": 1.0, "resolution": "8@0.5,16", "augment_backend": "tensor"}
    config, loader = set_up(digits, tmp_path, monkeypatch, **options)
    lines = preview(config, digits, loader).lines
    assert "Not shown: mixup and cutmix, which mix images with each other after this." in lines
    assert "The model gets them scaled to 8 pixels first (resolution)." in lines


@pytest.mark.parametrize(
    ("labels", "positions"),
    [
        ([0] * 10, [0, 1, 3, 5, 7, 9]),
        ([0, 0, 0, 1, 1, 1], [0, 3, 1, 4, 2, 5]),
        (list(range(10)) * 2, [0, 1, 3, 5, 7, 9]),
        ([0, 1, 1], [0, 1, 2]),
        ([3], [0]),
    ],
)
def test_images_are_of_all_classes_first_then_spread(labels, positions):
    assert spread(np.array(labels), 6).tolist() == positions


# -- the figure -------------------------------------------------------------------------------------------------------


def corner_of(page: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """Where an image is on a page, pixel for pixel."""
    height, width, _ = image.shape
    windows = np.lib.stride_tricks.sliding_window_view(page, (height, width, 3))[:, :, 0]
    (place,) = np.argwhere((windows == image).all(axis=(2, 3, 4)))
    return tuple(place.tolist())


@pytest.mark.parametrize("size", [(16, 24), (120, 100)])
def test_every_pixel_is_drawn_as_it_is(size):
    images = np.random.default_rng(0).integers(256, size=(2, 3, *size, 3), dtype=np.uint8)
    page = np.asarray(augmentation_grid(images, ["cat", "a very long name of a class"], list("abc"), ["a line"]))
    zoom = max(1, 96 // max(size))
    large = images.repeat(zoom, axis=2).repeat(zoom, axis=3)
    top, left = corner_of(page, large[0, 0])
    for row in range(2):
        for column in range(3):
            y, x = top + row * (zoom * size[0] + GAP), left + column * (zoom * size[1] + GAP)
            np.testing.assert_array_equal(page[y : y + zoom * size[0], x : x + zoom * size[1]], large[row, column])


def test_large_images_are_scaled_down_on_request():
    images = np.zeros((6, 9, 300, 200, 3), np.uint8)
    page = augmentation_grid(images, ["x"] * 6, ["y"] * 9, ["line"], most=96)
    assert page.width < 9 * 70 + 60
    assert page.height < 6 * 101 + 90


def test_names_that_cannot_be_drawn_cost_nothing():
    images = np.zeros((2, 1, 16, 16, 3), np.uint8)
    augmentation_grid(images, ["\0\n\ud800 $x$", "類"], ["\N{REPLACEMENT CHARACTER}"], ["x" * 300])


# -- the script -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_option_draws_and_trains_nothing(tmp_path, world_size):
    path, log = tmp_path / "preview.png", tmp_path / "log"
    config = tiny_config(tmp_path / "run", preview_augment=str(path))
    assert run(train_script, config, world_size=world_size, log=log) == [0] * world_size, log.read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "preview.png"]
    lines = log.read_text().splitlines()
    first = f"{path}: Training images of 16 pixels as evaluated, and as the model gets them (augment_backend tensor)."
    assert lines.count(first) == 1
    assert "3 epochs are augmented; the other draws are what further ones would get." in lines
    with Image.open(path) as page:
        assert page.format == "PNG"
        assert page.width > 9 * 96


@pytest.mark.slow
def test_a_run_keeps_the_figure_and_a_resume_leaves_it(digits_run, tmp_path):
    config = tiny_config(tmp_path / "run", max_steps=2)
    assert run(train_script, config) == [0]
    path = tmp_path / "run" / FILE
    with Image.open(path) as page:
        assert page.format == "PNG"
    path.write_bytes(b"older")
    assert run(train_script, dataclasses.replace(config, max_steps=4)) == [0]
    assert path.read_bytes() == b"older"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
