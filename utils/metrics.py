"""Sums that are exact over images, scores of predictions, and the file metrics.jsonl."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.files import naming
from utils.memory import check_memory
from utils.reading import check_size

SPLITS = ("train", "validation", "test")
LARGEST_COUNT = 10**15  # of steps, epochs or images
LONGEST_LINE = 64 * 1024  # bytes of metrics.jsonl
MEMORY_PER_BYTE = 20  # of metrics.jsonl, when its lines are values


class RunningMean:
    """Loss and accuracy over the images since the last reset, summed on the device without waiting for it.

    Sums, not means, cross the processes: batches and ranks may hold different numbers of images. A batch whose loss is
    not finite is left out, its images too.
    """

    def __init__(self, device: torch.device):
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=kind, device=device)  # loss, correct, images

    def add(self, loss_sum: Tensor, correct: Tensor, count: int) -> None:
        batch = torch.stack([loss_sum.detach(), correct, torch.full_like(loss_sum, count)])
        self.sums += torch.where(loss_sum.isfinite(), batch, 0)

    def reset(self) -> None:
        self.sums.zero_()

    def merge(self, other: "RunningMean") -> None:
        self.sums += other.sums

    def mean(self, accelerator: Any) -> tuple[float, float, int]:
        """(loss, accuracy, images) over all processes. Waits for the device."""
        loss, correct, count = accelerator.reduce(self.sums, "sum").tolist()
        return loss / max(count, 1), correct / max(count, 1), int(count)

    def state(self, accelerator: Any) -> list[list[float]]:
        """One row of sums per rank, for a checkpoint."""
        return accelerator.gather(self.sums[None]).tolist()

    def restore(self, rows: list[list[float]], rank: int, world_size: int) -> None:
        """Takes this rank's row; with another number of processes, rank 0 takes the sum of all. No rows: nothing."""
        if not rows:
            return
        table = torch.tensor(rows, dtype=self.sums.dtype)
        mine = table[rank] if len(table) == world_size else table.sum(0) * (rank == 0)
        self.sums.copy_(mine)


@dataclass(frozen=True)
class Scores:
    """What predictions are worth: over exactly `count` images."""

    loss: float
    accuracy: float
    correct: int
    count: int
    per_class_accuracy: list[float]


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Mean cross-entropy and accuracy of logits (N, C) against labels (N,), in float64."""
    logits = logits.double()
    hits = logits.argmax(1) == labels
    totals = torch.bincount(labels, minlength=logits.shape[1])
    per_class = torch.bincount(labels[hits], minlength=logits.shape[1]).double() / totals.clamp(min=1)
    return Scores(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=hits.double().mean().item(),
        correct=int(hits.sum()),
        count=len(labels),
        per_class_accuracy=per_class.tolist(),
    )


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of an accuracy of `correct` of `count` images (Wilson 1927), on a scale of 0 to 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


class MetricsFile:
    """metrics.jsonl: one JSON object a line, append-only; only a resume cuts off what its checkpoint does not know.

    What a full or lost disk does not take is kept, and written as soon as it does.
    """

    def __init__(self, path: Path):
        self.path = path
        self._unwritten = b""

    def append(self, row: dict[str, Any]) -> None:
        """Raises OSError where the line could not be written yet."""
        self._unwritten += json.dumps(row).encode() + b"\n"
        with self._file() as file:
            self._write(file)

    def size(self) -> int:
        """Bytes on the disk, after waiting for all lines to be there. Raises OSError where one is not."""
        with self._file() as file:
            self._write(file)
            os.fsync(file.fileno())
            return file.tell()

    @contextlib.contextmanager
    def _file(self) -> Iterator[FileIO]:
        with naming(self.path), open(self.path, "ab", buffering=0) as file:
            yield file

    def _write(self, file: FileIO) -> None:
        while self._unwritten:  # a disk that fills up takes a part of a line, and the rest later
            self._unwritten = self._unwritten[file.write(self._unwritten) :]

    def take(self, origin: Path, size: int) -> None:
        """Begins with the first `size` bytes of another run's file."""
        check_memory(MEMORY_PER_BYTE * size, str(origin))
        with open(origin, "rb") as source, open(self.path, "wb") as file:
            while block := source.read(min(size - file.tell(), 2**20)):
                file.write(block)

    def truncate(self, size: int) -> None:
        """Cuts off what is beyond `size` bytes; a shorter file stays as it is."""
        with open(self.path, "ab") as file:
            file.truncate(min(size, file.tell()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows; a line that a crash left unfinished, or that is none of this suite's, is skipped."""
        if not self.path.exists():
            return
        check_memory(MEMORY_PER_BYTE * check_size(self.path, most=None), str(self.path))
        with open(self.path, "rb") as file:
            while line := file.readline(LONGEST_LINE):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if _is_row(row):
                    yield row


def _is_row(row: Any) -> bool:
    """Whether a line is of metrics.jsonl: every value is a number but the split, and those that all lines have are."""
    if not isinstance(row, dict) or row.get("split") not in SPLITS:
        return False
    numbers = {name: value for name, value in row.items() if name != "split"}
    if not all(type(value) in (int, float) and 0 <= value <= 1e30 for value in numbers.values()):
        return False
    counts = [numbers.get("step"), numbers.get("epoch"), numbers.get("images", 1)]
    needed = {"loss", "accuracy"} | ({"lr"} if row["split"] == "train" else set())
    return (
        all(type(count) is int and 1 <= count <= LARGEST_COUNT for count in counts)
        and needed <= numbers.keys()
        and numbers["accuracy"] <= 1
    )
