"""What predictions are worth."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


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
