"""Trains with the main.py of a checkout of kuangliu/pytorch-cifar on our data, and times its steps.

    git clone https://github.com/kuangliu/pytorch-cifar /tmp/pytorch-cifar
    python benchmarks/peer_cifar.py /tmp/pytorch-cifar --dataset digits --seconds 20
    python benchmarks/peer_cifar.py /tmp/pytorch-cifar --dataset digits --epochs 1   # and its losses

Its code stays as it is: the optimizer, batch of 128, fp32, two loader processes and every line of its loop are its own.
What is put in place before its main.py runs, in this process alone:

- torchvision's CIFAR10 holds our images and serves them as it serves its own;
- `SimpleDLA`, the one model that main.py does not comment out, is its `ResNet18`;
- `stty size`, which its progress bar asks for the width of the terminal, is answered without a terminal;
- its training loader takes the time, its progress bar notes what it shows last, and either ends the program when enough
  is known.

It works in a temporary folder, since main.py writes ./checkpoint.
"""

import argparse
import importlib
import json
import math
import multiprocessing
import os
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torchvision
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.sources import load_split
from data.splits import Split
from utils.system.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SIZE = 32  # main.py crops to it
CLASSES = 10  # of its models
WARM_UP = 2  # steps that are not counted
FEWEST = 3  # steps that are, however long they take


def main() -> int:
    arguments = parse_arguments()
    try:
        splits = {split: load(arguments.dataset, arguments.data_dir, split) for split in ("train", "test")}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    clock = StepClock(math.inf if arguments.epochs else arguments.seconds)
    shown = LastShown(arguments.epochs)
    leave_suite()
    serve_as_cifar10(splits["train"], splits["test"])
    time_training_batches(clock)
    with tempfile.TemporaryDirectory() as folder:
        answer_stty(Path(folder))
        run_main(arguments.peer.resolve(), Path(folder), shown)
    for epoch, (train, test) in enumerate(zip(shown.passes[::2], shown.passes[1::2], strict=False), 1):
        print(f"\nepoch {epoch}: train {train}; test {test}", end="")
    print(f"\n{statistics.median(clock.speeds()):.1f} images/s over {len(clock.speeds())} steps")
    if arguments.json:
        result = {"images_per_second": clock.speeds(), "batch_size": clock.batch_size, "passes": shown.passes}
        arguments.json.write_text(json.dumps(result) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path, help="folder of the checkout")
    parser.add_argument("--dataset", default="digits", help="data set of ours, with at most ten classes")
    parser.add_argument("--data_dir", default="datasets", help="its folder")
    parser.add_argument("--seconds", type=float, default=20.0, help="least time that is measured, after the warm-up")
    parser.add_argument("--epochs", type=int, default=0, help="instead of --seconds: so many epochs with their tests")
    parser.add_argument("--json", type=Path, help="file for the images/s of each step")
    return parser.parse_args()


def load(dataset: str, data_dir: str, split: str) -> Split:
    """One of our splits, in memory at 32 pixels. Raises UserError where the peer's models have too few outputs."""
    found, class_names = load_split(dataset, data_dir, split, IMAGE_SIZE, memory_fraction=1.0)
    if len(class_names) > CLASSES:
        raise UserError(f"dataset: {dataset} has {len(class_names)} classes; the peer's models have {CLASSES} outputs")
    return found


def leave_suite() -> None:
    """Makes the names data, models and utils free: the peer has modules of its own under them."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("data", "models", "utils"):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def serve_as_cifar10(train: Split, test: Split) -> None:
    """Has torchvision's CIFAR10 hold these images; how it turns them into samples stays torchvision's."""
    splits = {True: train, False: test}

    def initialise(self: Any, root: str, train: bool = True, transform: Any = None, **_: Any) -> None:
        self.root, self.train, self.transform, self.target_transform = root, train, transform, None
        self.data, self.targets = splits[train].images[:], splits[train].labels.tolist()

    torchvision.datasets.CIFAR10.__init__ = initialise


class StepClock:
    """Images and seconds of each training step; knows when it is enough."""

    def __init__(self, seconds: float):
        self.seconds, self.steps = seconds, []

    def add(self, images: int, seconds: float) -> None:
        self.steps.append((images, seconds))

    @property
    def batch_size(self) -> int:
        return max(images for images, _ in self.steps)

    def speeds(self) -> list[float]:
        """Images/s of the steps after the warm-up; an epoch's short last batch is skipped."""
        return [images / seconds for images, seconds in self.steps[WARM_UP:] if images == self.batch_size]

    def enough(self) -> bool:
        counted = self.steps[WARM_UP:]
        return len(counted) >= FEWEST and sum(seconds for _, seconds in counted) >= self.seconds


class LastShown:
    """What the progress bar shows at the end of each pass: training and test in turn."""

    def __init__(self, epochs: int):
        self.epochs, self.passes = epochs, []

    def watch(self, progress_bar: Callable[..., None]) -> Callable[..., None]:
        def watched(current: int, total: int, message: str = "") -> None:
            progress_bar(current, total, message)
            if current == total - 1:
                self.passes.append(message)
            if self.epochs and len(self.passes) == 2 * self.epochs:
                raise SystemExit

        return watched


def time_training_batches(clock: StepClock) -> None:
    """Measures from one request for a training batch to the next: the wait for it, and all that is done with it.

    On a GPU too: main.py reads the loss of every step before it asks for the next batch.
    """
    batches = DataLoader.__iter__

    def timed(loader: DataLoader) -> Iterator:
        if not loader.dataset.train:
            yield from batches(loader)
            return
        asked = time.perf_counter()
        for images, labels in batches(loader):
            yield images, labels
            now = time.perf_counter()
            clock.add(len(images), now - asked)
            asked = now
            if clock.enough():
                raise SystemExit

    DataLoader.__iter__ = timed


def answer_stty(folder: Path) -> None:
    """Puts a program `stty` before all others that says 24 rows and 80 columns."""
    stty = folder / "stty"
    stty.write_text("#!/bin/sh\necho 24 80\n")
    stty.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def run_main(peer: Path, folder: Path, shown: LastShown) -> None:
    """Runs main.py as `python main.py` in the checkout would, in another folder and with ResNet-18."""
    os.chdir(folder)
    sys.dont_write_bytecode = True  # nothing is left in the checkout
    sys.argv = ["main.py"]
    sys.path.insert(0, str(peer))
    multiprocessing.set_start_method("fork")  # main.py has no __main__ guard: it cannot be imported by its own workers
    models = importlib.import_module("models")
    models.SimpleDLA = models.ResNet18
    utils = importlib.import_module("utils")
    utils.progress_bar = shown.watch(utils.progress_bar)
    try:
        runpy.run_path(str(peer / "main.py"), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        os.chdir(ROOT)  # the temporary folder is about to go


if __name__ == "__main__":
    sys.exit(main())
