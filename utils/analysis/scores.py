"""The numbers of an analysis: accuracy and its interval, per-class precision and recall, confusions, calibration."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.analysis.predictions import Predictions
from utils.evaluation.scores import accuracy_interval, score


def headline(predictions: Predictions, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What summary.json holds whichever sections are chosen."""
    scores = score(torch.from_numpy(predictions.logits), torch.from_numpy(predictions.labels))
    matrix = confusion_matrix(predictions.labels, predictions.classes, len(class_names))
    calibration = reliability(predictions.probabilities, predictions.labels)
    return {
        "accuracy": scores.accuracy,
        "accuracy_interval_95": list(accuracy_interval(scores.correct, scores.count)),
        "count": scores.count,
        "loss": scores.loss,
        "expected_calibration_error": calibration.expected_calibration_error,
        "per_class": per_class_scores(predictions.labels, predictions.classes, class_names),
        "most_confused": most_confused(matrix, class_names),
        "misclassified_count": scores.count - scores.correct,
    }


def per_class_scores(
    labels: np.ndarray, predictions: np.ndarray, class_names: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Precision, recall (the accuracy on the class's own images), F1 and number of images (support) of each class.

    A ratio without a denominator, such as the precision of a class that is never predicted, is 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predictions, labels=range(len(class_names)), zero_division=0)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in zip(class_names, *columns, strict=True)
    }


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 (classes, classes): row = true class, column = predicted class."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, predictions, labels=range(classes))


def most_confused(matrix: np.ndarray, class_names: tuple[str, ...], limit: int = 10) -> list[dict[str, Any]]:
    """The pairs of classes with the most mistakes, most first: true class, predicted class, count."""
    mistakes = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = zip(*np.unravel_index(order, matrix.shape), strict=True)
    return [
        {"true": class_names[true], "predicted": class_names[predicted], "count": int(mistakes[true, predicted])}
        for true, predicted in pairs
        if mistakes[true, predicted]
    ]


@dataclass(frozen=True)
class Reliability:
    """Predictions in equally wide bins of confidence.

    `edges` (bins + 1,); per bin `counts`, mean `confidence` and `accuracy` (both 0 where a bin is empty).
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean gap between confidence and accuracy over all predictions (Guo et al. 2017, arXiv:1706.04599)."""
        return float(self.counts @ np.abs(self.confidence - self.accuracy) / self.counts.sum())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Bins the predicted classes' probabilities.

    Args:
        probabilities: (images, classes), rows sum to 1.
        labels: (images,), the true classes.
    """
    confidences = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    positions = np.digitize(confidences, edges[1:-1], right=True)
    counts = np.bincount(positions, minlength=bins)
    filled = counts.clip(min=1)
    return Reliability(
        edges,
        counts,
        np.bincount(positions, confidences, bins) / filled,
        np.bincount(positions, correct, bins) / filled,
    )
