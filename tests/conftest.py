"""What several test files share."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A finished run of a narrow ResNet-18 on the digits at 16 pixels, two epochs. Copy it before writing into it."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    options = "--dataset digits --width 16 --image_size 16 --epochs 2 --batch_size 64 --lr 0.1 --trackers none"
    command = [sys.executable, "train_accelerate.py", *options.split(), "--output_dir", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path
