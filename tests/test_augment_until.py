"""augment_until: from an epoch on, training sees images as evaluation does; until then, nothing is different."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.augment import BatchPipeline, ImagePipeline, create_augmentations
from data.loaders import DeviceLoader, EvaluationLoader, Steps, TrainLoader
from data.preprocessing import Geometry
from data.sources import load_dataset
from tests.processes import run, tiny_config, train_script
from utils.config import TrainConfig
from utils.training.plan import Plan

# All that changes images, in a training of seconds.
EVERYTHING = {"horizontal_flip": "alternating", "mixup": 0.4, "cutmix": 1.0, "cutout": 4, "crop_padding": 2}
NOTHING = {"horizontal_flip": "none", "mixup": 0.0, "cutmix": 0.0, "cutout": 0, "crop_padding": 0}
BACKENDS = ["tensor", "albumentations"]


def train(folder: Path, world_size: int = 1, **options) -> None:
    log = folder.with_suffix(".log")
    config = tiny_config(folder, image_size=8, overfit_batches=3, batch_size=24, norm="group", **options)
    assert run(train_script, config, world_size=world_size, log=log) == [0] * world_size, log.read_text()


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def lines(folder: Path, epochs: int) -> list[dict]:
    """What was written of the first epochs, without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "cpu_cores")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows if row["epoch"] <= epochs]


# -- which epochs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "epochs", "augmented"),
    [(0.0, 10, 0), (0.04, 10, 0), (0.06, 10, 1), (0.86, 10, 9), (0.9, 10, 9), (0.94, 10, 9), (0.96, 10, 10),
     (1.0, 10, 10), (0.9, 3, 3), (0.9, 1, 1), (0.4, 1, 0), (0.9, 300, 270)],
)  # fmt: skip
def test_a_fraction_of_the_epochs_is_augmented(tmp_path, until, epochs, augmented):
    plan = Plan(tiny_config(tmp_path, augment_until=until, epochs=epochs, batch_size=30), 100, (16, 16))
    assert plan.augmented_epochs == augmented
    found = [plan.augments(step) for step in range(1, plan.total_steps + 1)]
    assert found == [True] * 4 * augmented + [False] * 4 * (epochs - augmented)


# -- what the model gets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photos of several shapes and sizes."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (*generator.integers(20, 70, 2), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.jpg")
    return root


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize(("kind", "workers"), [(DeviceLoader, 0), (TrainLoader, 0), (TrainLoader, 2)])
@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_images_after_it_are_to_the_bit_what_evaluation_sees(folder, crop, kind, workers, fit):
    """On 1 and 2 ranks, with the images before each part that mixing takes, and as copies of fresh shapes after it."""
    config = TrainConfig(crop=crop, crop_padding=2, horizontal_flip="random", cutout=4)
    from_disk = kind is TrainLoader and crop == "resized"
    data = load_dataset("imagefolder", folder, Geometry((24, 16), fit), train_from_disk=from_disk)
    chosen = create_augmentations(config, data.geometry, data.mean, data.std)
    assert chosen
    seen = torch.cat([images for images, _ in EvaluationLoader(data.train)])
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        steps = Steps(len(data.train), 5, 0, rank, world_size, lead=True)
        if kind is DeviceLoader:
            loader = DeviceLoader(data.train, BatchPipeline(chosen), steps, torch.device("cpu"))
        else:
            loader = TrainLoader(data.train, ImagePipeline(chosen), steps, workers)
        for epoch, first_step in ((0, 0), (3, 2)):
            batches = list(loader.epoch(epoch, first_step, augmented=False))
            parts = list(steps.positions(epoch, first_step))
            for batch, part in zip(batches, parts, strict=True):
                assert torch.equal(batch.images, seen[part])
                assert batch.labels.tolist() == data.train.labels[part].tolist()
            augmented = list(loader.epoch(epoch, first_step))
            assert any(not torch.equal(*pair) for pair in zip(
                [batch.images for batch in batches], [batch.images for batch in augmented], strict=True
            ))  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_never_augments_is_one_without_augmentations_and_mixing(tmp_path, backend):
    """To the last bit of its weights, so that images, targets, order and dropout are the same."""
    train(tmp_path / "until", augment_until=0.0, augment_backend=backend, epochs=2, **EVERYTHING)
    train(tmp_path / "without", augment_backend=backend, epochs=2, **NOTHING)
    assert weights(tmp_path / "until") == weights(tmp_path / "without")
    assert lines(tmp_path / "until", 2) == lines(tmp_path / "without", 2)


@pytest.mark.parametrize(("backend", "world_size"), [("tensor", 1), ("albumentations", 1), ("albumentations", 2)])
def test_before_it_nothing_is_different_and_a_resume_across_it_gives_the_same_bits(tmp_path, backend, world_size):
    options = {"augment_backend": backend, "epochs": 4, "world_size": world_size, **EVERYTHING}
    train(tmp_path / "all", **options)
    train(tmp_path / "until", augment_until=0.6, **options)  # two epochs of three steps
    train(tmp_path / "same", augment_until=0.5, **options)
    assert lines(tmp_path / "until", 2) == lines(tmp_path / "all", 2)
    assert lines(tmp_path / "until", 3) != lines(tmp_path / "all", 3)
    assert weights(tmp_path / "same") == weights(tmp_path / "until") != weights(tmp_path / "all")
    for stop in (5, 7):  # inside the last epoch with augmentation, and the first without
        train(tmp_path / "resumed", augment_until=0.5, max_steps=stop, **options)
    train(tmp_path / "resumed", augment_until=0.5, **options)
    assert weights(tmp_path / "resumed") == weights(tmp_path / "same")


def test_the_range_test_sees_what_the_first_epoch_does(tmp_path):
    shared = {"epochs": 2, "lr": "auto", "augment_backend": "tensor"}
    found = {}
    for name, changes in {
        "all": EVERYTHING, "part": {**EVERYTHING, "augment_until": 0.5}, "none": {**EVERYTHING, "augment_until": 0.0},
    }.items():  # fmt: skip
        train(tmp_path / name, max_steps=1, **shared, **changes)
        found[name] = (tmp_path / name / "lr_finder.csv").read_text()
    assert found["all"] == found["part"] != found["none"]
