"""Scores beyond accuracy: its interval, per-class precision and recall, what is confused with what."""

import csv
from pathlib import Path
from typing import Any

import numpy as np


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of an accuracy of `correct` of `count` images (Wilson 1927), on a scale of 0 to 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def per_class_scores(
    labels: np.ndarray, predictions: np.ndarray, class_names: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Precision, recall (the accuracy on the class's own images), F1 and number of images (support) of each class.

    What has no denominator, such as the precision of a class that is never predicted, is 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predictions, labels=range(len(class_names)), zero_division=0)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in zip(class_names, *columns, strict=True)
    }


def write_per_class(scores: dict[str, dict[str, Any]], path: Path) -> None:
    """per_class.csv: one row per class."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["class", "precision", "recall", "f1", "support"])
        writer.writeheader()
        writer.writerows({"class": name, **values} for name, values in scores.items())


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
