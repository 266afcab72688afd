"""How long the default report of a run takes, beside a bare forward pass over the same test images.

    python benchmarks/analysis.py runs/resnet18

In turns, since a machine's speed drifts: the bare pass (the model in bf16 on batches that lie normalised in memory,
with its test-time augmentation), analyze.py into an empty folder, and analyze.py once more, which finds the predictions
cached and makes everything else again. Prints the medians over the rounds, with the lowest and the highest, and from
them

- predicting: the first call less the second, over the bare pass;
- everything else: the first call less 1.15 bare passes, which for 10,000 images is to be at most 20 seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.loaders import EvaluationLoader
from data.preprocessing import to_input
from utils.evaluation.tta import tta_logits
from utils.runs.saved_run import open_run
from utils.system.errors import UserError
from utils.system.runtime import create_accelerator

ROOT = Path(__file__).resolve().parents[1]
PRECISION = "bf16"
ALLOWED = 1.15  # bare passes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="as for analyze.py")
    parser.add_argument("--dataset", help="as for analyze.py")
    parser.add_argument("--data_dir", help="as for analyze.py")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    settings = parser.parse_args()
    try:
        times = [take_turn(settings) for _ in range(settings.rounds)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    bare, first, second = zip(*times, strict=True)
    print(line("bare forward pass", bare, "s"))
    print(line("first call", first, "s"))
    print(line("second call", second, "s"))
    print(line("predicting", [(one - two) / alone for alone, one, two in times], "bare passes"))
    print(line("everything else", [one - ALLOWED * alone for alone, one, _ in times], "s"))
    return 0


def line(name: str, values: Sequence[float], unit: str) -> str:
    return f"{name:<18}{statistics.median(values):7.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


def take_turn(settings: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds of the bare pass, of a first call and of a second one."""
    with tempfile.TemporaryDirectory() as folder:
        return bare_pass(settings), analyze(settings, folder), analyze(settings, folder)


@torch.inference_mode()
def bare_pass(settings: argparse.Namespace) -> float:
    """Seconds in the model, after one batch to warm up."""
    accelerator = create_accelerator(default_precision=PRECISION)
    run = open_run(Path(settings.run), "run", settings.dataset, settings.data_dir)
    model, config = run.load_model()
    statistics_of_inputs = [torch.tensor(values, device=accelerator.device) for values in (config.mean, config.std)]
    batches = [
        to_input(images, *statistics_of_inputs, size=config.input_size)
        for images, _ in EvaluationLoader(run.split("test", config))
    ]
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    with accelerator.autocast():
        tta_logits(model, batches[0], config.tta)
        started = time.perf_counter()
        for batch in batches:
            logits = tta_logits(model, batch, config.tta)
        logits.sum().item()  # waits for the device
        return time.perf_counter() - started


def analyze(settings: argparse.Namespace, folder: str) -> float:
    """Seconds of a call of analyze.py, start to end."""
    options = {"output_dir": folder, "track": "false", "dataset": settings.dataset, "data_dir": settings.data_dir}
    words = [f"--{name}={value}" for name, value in options.items() if value]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "analyze.py", str(Path(settings.run).resolve()), *words],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_MIXED_PRECISION": PRECISION},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:  # it has said why
        sys.exit(done.returncode)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
