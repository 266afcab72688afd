"""What holds on a CUDA device; skipped without one. benchmarks/gpu_check.sh runs these and whole trainings.

Every test sets up its training in this process, through the functions that train_accelerate.py is made of.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from data.augment import BatchPipeline, create_augmentations
from data.loaders import Batch, DeviceLoader, Steps
from data.preprocessing import Geometry
from data.sources import load_split
from tests.conftest import augmentations
from tests.processes import tiny_config
from train_accelerate import main, train_step
from utils.config import TrainConfig
from utils.runs.directory import RunDirectory
from utils.system.runtime import create_accelerator
from utils.training.build import build
from utils.training.run import Run
from utils.training.start import Start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _fresh_accelerate(monkeypatch) -> Iterator[None]:
    """Each test is a launch of its own: one process, fp32 unless it says otherwise, and leaves torch's flags alone."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = flags


@contextlib.contextmanager
def tiny_run(folder: Path, **changes) -> Iterator[Run]:
    """A narrow ResNet-18 on the digits at 16 pixels, set up as for training."""
    config, accelerator = tiny_config(folder, **changes), create_accelerator()
    with RunDirectory(config, accelerator) as directory:
        yield build(Start(config), accelerator, directory)


def batches(run: Run) -> Iterator[Batch]:
    return itertools.chain.from_iterable(run.loader.epoch(epoch) for epoch in itertools.count())


def losses(run: Run, steps: int, rate: float) -> list[float]:
    """Mean loss of each of the first training steps."""
    found = []
    for batch in itertools.islice(batches(run), steps):
        found.append(train_step(run, batch, rate)[0].item() / batch.global_count)
        run.state.step += 1
    return found


@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
@pytest.mark.parametrize(("padding", "mode"), [(0, "zeros"), (4, "zeros"), (4, "reflect")])
@pytest.mark.parametrize("cutout", [0, 7, 8])
def test_augmentation_on_the_gpu_gives_the_bytes_of_the_cpu(flip, padding, mode, cutout):
    augmentation = BatchPipeline(augmentations(32, padding, flip, cutout, (0.5, 0.4, 0.3), mode), seed=3)
    images = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8)
    choices = augmentation.draw(1, len(images))
    on_gpu = augmentation(images.to(DEVICE), choices.to(DEVICE))
    assert torch.equal(on_gpu.cpu(), augmentation(images, choices))


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"vertical_flip": True}, 0),
        ({"erase": 0.5}, 0),
        ({"erase": 0.5, "erase_mode": "constant"}, 0),
        ({"grayscale": 0.3}, 1),
        ({"blur": 0.5}, 1),
        ({"color_jitter": [0.4, 0.4, 0.4, 0.1]}, 4),
        ({"crop": "resized"}, 1),
    ],
)
def test_colour_and_noise_on_the_gpu_are_those_of_the_cpu_up_to_rounding(options, most):
    config = TrainConfig(**{"horizontal_flip": "none", "crop": "none", "cutout": 0, **options})
    steps = create_augmentations(config, Geometry((48, 32)), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    augmentation, images = BatchPipeline(steps, seed=3), torch.randint(256, (64, 48, 32, 3), dtype=torch.uint8)
    choices = augmentation.draw(1, len(images))
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = augmentation(images.to(DEVICE), choices.to(DEVICE), choices)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    off = (on_gpu.cpu().int() - augmentation(images, choices).int()).abs()
    assert off.max() <= most
    assert (off > 0).float().mean() < (0.05 if "crop" in options else 1e-3)


@pytest.mark.parametrize("word", ["trivial", "rand:3,20", "auto:svhn"])
def test_policies_on_the_gpu_give_the_pixels_of_the_cpu_and_the_host_never_waits(word):
    """To one level: a GPU adds up weighted colours with other roundings."""
    config = TrainConfig(policy=word, rotate=20.0, crop="none", horizontal_flip="none", cutout=0)
    steps = create_augmentations(config, Geometry((24, 40)), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    augmentation, images = BatchPipeline(steps, seed=3), torch.randint(256, (640, 24, 40, 3), dtype=torch.uint8)
    choices = augmentation.draw(1, len(images))
    there, drawn = images.to(DEVICE), choices.to(DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = augmentation(there, drawn, choices)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    differences = (on_gpu.cpu().int() - augmentation(images, choices).int()).abs()
    assert (differences > 1).float().mean() < 1e-3  # an operation after another may make more of one level
    assert (differences > 0).float().mean() < 1e-2


def test_loader_on_the_gpu_gives_the_batches_of_the_cpu():
    split, _ = load_split("digits", "datasets", "train", 16)
    augmentation = BatchPipeline(augmentations(16, 2, "random", 4, (0.5, 0.5, 0.5)))
    steps = Steps(len(split), 100, seed=0, rank=0, world_size=1)
    loaders = [DeviceLoader(split, augmentation, steps, torch.device(name)) for name in (DEVICE, "cpu")]
    for ours, theirs in zip(*(loader.epoch(2, first_step=3) for loader in loaders), strict=True):
        assert ours.images.device.type == ours.labels.device.type == DEVICE
        assert torch.equal(ours.images.cpu(), theirs.images)
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        assert (ours.count, ours.global_count) == (theirs.count, theirs.global_count)


def test_auto_keeps_the_images_on_the_gpu_and_the_optimizer_is_fused(tmp_path):
    with tiny_run(tmp_path) as run:
        assert run.accelerator.device.type == DEVICE
        assert run.directory.config.augment_backend == "tensor"
        assert isinstance(run.loader, DeviceLoader)
        assert run.loader.images.device.type == DEVICE
        assert run.optimizer.defaults["fused"]
        assert next(run.ddp_model.parameters()).device.type == DEVICE


@pytest.mark.parametrize(("precision", "optimizer"), [("no", "sgd"), ("bf16", "sgd"), ("bf16", "muon")])
def test_host_waits_for_the_gpu_in_no_training_step(tmp_path, monkeypatch, precision, optimizer):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    with tiny_run(tmp_path, optimizer=optimizer, lr=0.01) as run:
        stream = batches(run)

        def train() -> None:
            batch = next(stream)
            lr = run.state.learning_rate * run.plan.lr_factor(run.state.step + 1)
            run.meters.add(batch, *train_step(run, batch, lr))
            run.state.step += 1

        for _ in range(3):  # torch sets up its libraries, cuDNN times its kernels
            train()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(25):  # over the end of an epoch of 23
                train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert run.meters.window.mean(run.accelerator)[2] == 27 * 64 + 29


def test_fp16_learns_with_its_losses_scaled(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    summary = main(tiny_config(tmp_path))
    assert summary["mixed_precision"] == "fp16"
    assert summary["test_accuracy"] >= 0.9
    last = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    assert json.loads((last / "trainer.json").read_text())["scaler"]["scale"] > 1


def test_losses_on_the_gpu_follow_those_on_the_cpu(tmp_path, monkeypatch):
    found = {}
    for place, use_cpu in (("gpu", "0"), ("cpu", "1")):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu)
        with tiny_run(tmp_path / place) as run:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            assert (run.accelerator.device.type == "cpu") == (place == "cpu")
            found[place] = losses(run, steps=6, rate=0.01)
    assert found["gpu"] == pytest.approx(found["cpu"], rel=1e-3)
    assert found["gpu"][0] == pytest.approx(found["cpu"][0], rel=1e-5)
    assert found["gpu"][-1] < found["gpu"][0]
