"""Learning curves from the lines of metrics.jsonl."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Point(NamedTuple):
    """Mean loss per image and accuracy (0 to 1) of one split in one epoch (from 1)."""

    epoch: int
    loss: float
    accuracy: float


def epoch_curves(rows: Iterable[dict[str, Any]]) -> dict[str, list[Point]]:
    """One curve per split that was scored, in the order train, validation, test.

    A training line covers the images since the line before it, so an epoch's mean weights its lines by their images.
    Of several test lines in an epoch the last one counts.
    """
    sums: dict[int, np.ndarray] = {}
    scored: dict[str, dict[int, Point]] = {"train": {}, "validation": {}, "test": {}}
    for row in rows:
        epoch = row["epoch"]
        if row["split"] != "train":
            scored[row["split"]][epoch] = Point(epoch, row["loss"], row["accuracy"])
            continue
        sums[epoch] = sums.get(epoch, 0) + row["images"] * np.array([row["loss"], row["accuracy"], 1.0])
        loss, accuracy, weight = sums[epoch].tolist()
        scored["train"][epoch] = Point(epoch, loss / weight, accuracy / weight)
    return {split: list(points.values()) for split, points in scored.items() if points}


def learning_rates(rows: Iterable[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Optimizer steps and the learning rates they were taken with, at the training lines."""
    pairs = [(row["step"], row["lr"]) for row in rows if row["split"] == "train"]
    return [step for step, _ in pairs], [rate for _, rate in pairs]
