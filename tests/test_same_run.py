"""Promises 1 and 3: the same run on any number of processes, workers and micro-batches; every image counts once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.images import InMemory
from data.loaders import EvaluationLoader
from data.preprocessing import to_input
from data.splits import Split
from tests.processes import run, tiny_config, train_script
from utils.config import TrainConfig
from utils.system.errors import EnvironmentFault
from utils.training.micro_batch import fit_micro_batch_size, largest_that_fits, micro_batches

pytestmark = pytest.mark.slow

# Rounding differs between divisions of a batch, and a unit at the kink of its ReLU turns a difference of 1e-8 into
# another gradient: in float32 losses drift apart after some steps. In float64 hardly a unit is that near to a kink, so
# whole runs at the usual learning rates show whether they are the same computation; in float32 the first two steps do.
# Coloured noise, since many units meet at their kinks on images with large areas of one value.
NOISE = {"dataset": "imagefolder", "norm": "group", "batch_size": 32, "epochs": 2, "lr": 0.05, "momentum": 0.9}
WHOLE_RUN, FIRST_STEPS = 1e-10, 1e-6  # relative differences of a loss


def train_in_float64(config: TrainConfig) -> None:
    """train_accelerate.py with a model of float64 weights, which computes in float64."""
    from models import create_model
    from utils.training import build

    def create(*arguments: Any, **named: Any) -> nn.Module:
        model = create_model(*arguments, **named).double()
        model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        return model

    build.create_model = create
    train_script(config)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """566 training images of coloured noise in ten classes: 18 steps an epoch, the last one short."""
    root, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for split, count in (("train", 566), ("test", 37)):
        for position in range(count):
            label = position % 10
            image = random.normal(128, 40, (16, 16, 3))
            image[..., label % 3] += 12 * (label - 5)
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{position}.png")
    return root


KINDS = {
    "tensor": {"augment_backend": "tensor", "horizontal_flip": "alternating"},
    "albumentations": {"augment_backend": "albumentations"},
    "policies": {"augment_backend": "tensor", "policy": "rand:2,9", "rotate": 15.0},
    "policies by albumentations": {"augment_backend": "albumentations", "policy": "auto:cifar10", "rotate": 15.0},
    "mixed": {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
    "mixed by albumentations": {"augment_backend": "albumentations", "cutmix": 1.0},
    "muon": {"optimizer": "muon", "lr": 0.02, "momentum": 0.8, "weight_decay": 0.5},
    "record policies": {
        "resolution": "8@0.3,12@0.6,16", "ema_decay": 0.99, "lookahead_steps": 5, "norm_bias_lr_factor": 4.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def one_process(noise, tmp_path_factory):
    """The run of a kind on one process, made when it is first asked for."""
    folders = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("same") / "one"
            config = tiny_config(folders[kind], **{**NOISE, **KINDS[kind]}, data_dir=str(noise))
            assert run(train_in_float64, config) == [0]
        return folders[kind]

    return folder


@pytest.mark.parametrize(
    ("kind", "world_size", "changes"),
    [
        ("tensor", 4, {"micro_batch_size": 2}),
        ("albumentations", 3, {"num_workers": 2, "micro_batch_size": 5, "memory_fraction": 0.0}),  # from disk
        ("policies", 2, {"micro_batch_size": 5}),
        ("policies by albumentations", 2, {"num_workers": 1}),
        ("mixed", 3, {"micro_batch_size": 5}),
        ("mixed by albumentations", 2, {"num_workers": 1}),
        ("muon", 2, {"micro_batch_size": 8}),
        ("record policies", 2, {"micro_batch_size": 8}),
    ],
)
def test_loss_at_every_step_is_the_same(noise, one_process, tmp_path, kind, world_size, changes):
    config = tiny_config(tmp_path / "run", **{**NOISE, **KINDS[kind]}, data_dir=str(noise), **changes)
    assert run(train_in_float64, config, world_size=world_size) == [0] * world_size
    expected, found = rows(one_process(kind)), rows(tmp_path / "run")
    assert [(row["step"], row["split"]) for row in found] == [(row["step"], row["split"]) for row in expected]
    assert sum(row["split"] == "train" for row in expected) == 36
    np.testing.assert_allclose(
        [row["loss"] for row in found], [row["loss"] for row in expected], rtol=WHOLE_RUN, err_msg=str(changes)
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["world_size"] == world_size


@pytest.mark.parametrize("kind", ["tensor", "muon"])
def test_first_steps_in_float32_are_the_same_to_rounding(noise, tmp_path, kind):
    losses = []
    for world_size in (1, 3):
        folder = tmp_path / str(world_size)
        config = tiny_config(folder, **{**NOISE, **KINDS[kind], "batch_size": 25}, data_dir=str(noise), max_steps=2)
        assert run(train_script, config, world_size=world_size) == [0] * world_size
        losses.append([row["loss"] for row in rows(folder) if row["split"] == "train"])
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=FIRST_STEPS)


def test_pieces_are_equally_many_on_every_rank_and_hold_each_image_once():
    for global_count in (1, 2, 3, 7, 64, 500):
        for world_size in (1, 2, 3, 4):
            for size in (None, 1, 3, 64):
                parts = np.array_split(np.arange(global_count), world_size)
                counts, seen = set(), []
                for part in parts:
                    labels = torch.from_numpy(part) if len(part) else torch.zeros(1, dtype=torch.long)  # a filler
                    images = torch.zeros(len(labels), 3)
                    pieces = micro_batches(images, labels, len(part), global_count, size, world_size)
                    counts.add(len(pieces))
                    assert all(len(piece.inputs) == len(piece.targets) >= 1 for piece in pieces)
                    assert size is None or all(len(piece.targets) <= size for piece in pieces)
                    seen += [int(label) for piece in pieces if piece.weight for label in piece.targets]
                assert len(counts) == 1
                assert sorted(seen) == list(range(global_count))


class RunsOutOfMemory(nn.Module):
    """Raises torch's own error for more images at once than fit."""

    def __init__(self, fits: int):
        super().__init__()
        self.fits, self.layer = fits, nn.Linear(3 * 8 * 8, 10)
        self.norm = nn.BatchNorm1d(10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.norm(self.layer(images.flatten(1)))


def fit_on_this_rank(folder: Path, limits: list[int]) -> None:
    from utils.system.runtime import create_accelerator

    accelerator = create_accelerator()
    model = RunsOutOfMemory(limits[accelerator.process_index])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    size = fit_micro_batch_size(accelerator, model, 128, (8, 8))
    untouched = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (folder / f"rank{accelerator.process_index}").write_text(f"{size} {untouched}")


def test_micro_batch_is_halved_until_it_fits_on_every_rank(tmp_path):
    assert run(fit_on_this_rank, tmp_path, [1000, 40], world_size=2) == [0, 0]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"32 True"}


def test_other_errors_are_no_reason_for_smaller_micro_batches():
    def broken(size: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(broken, 64)


def test_not_even_one_image_fits_is_one_clear_error():
    def too_big(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(EnvironmentFault, match="not even one image"):
        largest_that_fits(too_big, 64)


def predict_on_this_rank(folder: Path, counts: list[int]) -> None:
    from models import create_model
    from utils.evaluation.predict import predict
    from utils.system.runtime import create_accelerator

    accelerator = create_accelerator()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    torch.set_num_threads(1)
    for count in counts:
        images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        torch.manual_seed(rank)  # the ranks' weights are made equal below, their statistics by predict
        model = create_model("resnet18", 10, width=16)
        source = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=source) * 0.1
        for rank_dependent in (module.running_mean for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            rank_dependent += 0.1 * rank
        split = Split(InMemory(images), np.zeros(count, dtype=np.int64))
        loader = EvaluationLoader(split, rank, ranks, batch_size=8)
        logits = predict(
            accelerator, model, loader, lambda images: to_input(images, torch.full((3,), 0.5), torch.full((3,), 0.25))
        )
        np.save(folder / f"{count}-{ranks}-{rank}.npy", logits.numpy())


def test_predictions_are_the_same_on_any_number_of_processes(tmp_path):
    counts = [37, 3, 1]
    for world_size in (1, 2, 4):
        assert run(predict_on_this_rank, tmp_path, counts, world_size=world_size) == [0] * world_size
    for count in counts:
        found = {path.name: np.load(path) for path in tmp_path.glob(f"{count}-*.npy")}
        assert len(found) == 7
        for name, logits in found.items():
            assert logits.shape == (count, 10)
            np.testing.assert_array_equal(logits, found[f"{count}-1-0.npy"], err_msg=name)
