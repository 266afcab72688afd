"""Scores of predictions: loss and accuracy."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Scores:
    """Scores over exactly `count` images."""

    loss: float
    accuracy: float
    correct: int
    count: int
    per_class_accuracy: list[float]


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Mean cross-entropy and accuracy of logits (N, C) against labels (N,), in float64."""
    logits = logits.double()
    correct = logits.argmax(1) == labels
    totals = torch.bincount(labels, minlength=logits.shape[1])
    per_class = torch.bincount(labels[correct], minlength=logits.shape[1]).double() / totals.clamp(min=1)
    return Scores(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=correct.double().mean().item(),
        correct=int(correct.sum()),
        count=len(labels),
        per_class_accuracy=per_class.tolist(),
    )


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of an accuracy of `correct` of `count` images (Wilson 1927), on a scale of 0 to 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
