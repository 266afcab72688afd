"""What several test files share."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from filelock import FileLock

from data.augment import create_augmentations
from data.augment.augmentation import Augmentation
from data.preprocessing import square
from tests.processes import run as run_processes
from tests.processes import train_script
from utils.config import AnalyzeConfig, TrainConfig

ROOT = Path(__file__).parents[1]


def augmentations(
    size: int,
    crop_padding: int = 0,
    horizontal_flip: Literal["none", "random", "alternating"] = "none",
    cutout: int = 0,
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0),
    padding_mode: Literal["zeros", "reflect"] = "zeros",
) -> list[Augmentation]:
    """Those that are named and no others, of images of `size` pixels a side with the mean `fill`."""
    config = TrainConfig(
        crop_padding=crop_padding, horizontal_flip=horizontal_flip, cutout=cutout, padding_mode=padding_mode
    )
    return create_augmentations(config, square(size), fill, (0.25, 0.25, 0.25))


def pytest_configure(config: pytest.Config) -> None:
    """Tests that run side by side keep to a core each, with all processes that they start: a training takes one thread
    for each core that it may use, and two trainings on the same cores are many times slower than one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none of them is left over for the end, when the other cores are idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`/digits: `make` is called by the first process of tests that needs it, for all side by side."""
    root = factory.getbasetemp()
    place = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    place.mkdir(exist_ok=True)
    with FileLock(place / "lock"):
        if not (place / "made").exists():
            shutil.rmtree(place / "digits", ignore_errors=True)
            make(place / "digits")
            (place / "made").touch()
    return place / "digits"


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A finished run of a narrow ResNet-18 on the digits at 16 pixels, two epochs. Copy it before writing into it."""

    def train(path: Path) -> None:
        config = TrainConfig(
            dataset="digits", width=16, image_size=16, epochs=2, batch_size=64, optimizer="sgd", lr=0.1,
            schedule="onecycle", warmup_fraction=0.25, horizontal_flip="random", trackers=["none"],
            output_dir=str(path),
        )  # fmt: skip
        log = path.with_name("log")
        assert run_processes(train_script, config, log=log) == [0], log.read_text()

    return made_once(tmp_path_factory, "trained", train)


@pytest.fixture(scope="session")
def analysed(digits_run, tmp_path_factory) -> Path:
    """A copy of the run with its analysis. Copy it before writing into it."""
    import analyze

    def copy_and_analyse(path: Path) -> None:
        shutil.copytree(digits_run, path)
        analyze.main(AnalyzeConfig(run=str(path)))

    return made_once(tmp_path_factory, "analysed", copy_and_analyse)


@pytest.fixture
def run(digits_run, tmp_path) -> Path:
    """A copy of the run to change."""
    return Path(shutil.copytree(digits_run, tmp_path / "run"))
