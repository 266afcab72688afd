"""What several test files share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Tests that run side by side keep to a core each, with all processes that they start: a training takes one thread
    for each core that it may use, and two trainings on the same cores are many times slower than one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A finished run of a narrow ResNet-18 on the digits at 16 pixels, two epochs. Copy it before writing into it."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    options = (
        "--dataset digits --width 16 --image_size 16 --epochs 2 --batch_size 64 --optimizer sgd --lr 0.1 "
        "--schedule onecycle --warmup_fraction 0.25 --horizontal_flip random --trackers none"
    )
    command = [sys.executable, "train_accelerate.py", *options.split(), "--output_dir", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def analysed(digits_run, tmp_path_factory) -> Path:
    """A copy of the run with its analysis."""
    import analyze
    from utils.config import AnalyzeConfig

    path = tmp_path_factory.mktemp("analysed") / "digits"
    shutil.copytree(digits_run, path)
    analyze.main(AnalyzeConfig(run=str(path)))
    return path


@pytest.fixture
def run(digits_run, tmp_path) -> Path:
    """A copy of the run to change."""
    return Path(shutil.copytree(digits_run, tmp_path / "run"))
