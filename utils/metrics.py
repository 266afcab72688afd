"""Sums that are exact over images, scores of predictions, and the file metrics.jsonl."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class RunningMean:
    """Loss and accuracy over the images since the last reset, summed on the device without waiting for it.

    Sums, not means, cross the processes: batches and ranks may hold different numbers of images.
    """

    def __init__(self, device: torch.device):
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=kind, device=device)  # loss, correct, images

    def add(self, loss_sum: Tensor, correct: Tensor, count: int) -> None:
        self.sums += torch.stack([loss_sum.detach(), correct, torch.full_like(loss_sum, count)])

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
    """metrics.jsonl: one JSON object a line, append-only; only a resume cuts off what its checkpoint does not know."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def size(self) -> int:
        """Bytes on the disk, after waiting for them to be there."""
        if not self.path.exists():
            return 0
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Cuts off what is beyond `size` bytes; a shorter file stays as it is."""
        with open(self.path, "ab") as file:
            file.truncate(min(size, file.tell()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows; a line that a crash left unfinished is skipped."""
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
