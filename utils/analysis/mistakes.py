"""The mistakes of a model."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: its position in the test set, both classes, and the probability given to each."""

    index: int
    true: int
    predicted: int
    true_confidence: float
    predicted_confidence: float


def find_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> list[Mistake]:
    """All mistakes, the most confident first.

    Args:
        probabilities: (images, classes), rows sum to 1.
        labels: (images,), the true classes.
    """
    predictions = probabilities.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    order = np.argsort(-probabilities[wrong, predictions[wrong]], kind="stable")
    return [
        Mistake(
            int(index),
            int(labels[index]),
            int(predictions[index]),
            float(probabilities[index, labels[index]]),
            float(probabilities[index, predictions[index]]),
        )
        for index in wrong[order]
    ]


def shown_of(shown: int, total: int) -> str:
    """How many of all mistakes are shown, as a title."""
    return f"All {total} misclassified images" if shown == total else f"The {shown} most confident of {total} mistakes"
