"""Two models on the same test images, in numbers: which mistakes are fixed, which are new, is the difference chance?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.analysis.predictions import Predictions
from utils.analysis.section import Row
from utils.plots.curves import epoch_curves


@dataclass(frozen=True)
class Outcomes:
    """Which of the two is correct, for every image: booleans (images,), of the first four exactly one is true.

    fixed: this run is correct, the other wrong. broken: this run is wrong, the other correct.
    shared: both are wrong; of these, same: with the same predicted class.
    """

    both_right: np.ndarray
    fixed: np.ndarray
    broken: np.ndarray
    shared: np.ndarray
    same: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Counts, the difference of the accuracies (this run minus the other) and whether it may be chance."""
        counts = {name: int(flags.sum()) for name, flags in vars(self).items()}
        fixed, broken, same = counts["fixed"], counts["broken"], counts.pop("same")
        return {
            **counts,
            "shared_with_the_same_prediction": same,
            "accuracy_difference": (fixed - broken) / len(self.fixed),
            "accuracy_difference_interval_95": list(paired_interval(fixed, broken, len(self.fixed))),
            "mcnemar_p_value": mcnemar(fixed, broken),
        }


def compare(predictions: Predictions, other: Predictions) -> Outcomes:
    """Compares the predictions of two models for the same images."""
    mine, theirs = (each.classes == each.labels for each in (predictions, other))
    shared = ~mine & ~theirs
    same = shared & (predictions.classes == other.classes)
    return Outcomes(mine & theirs, mine & ~theirs, ~mine & theirs, shared, same)


def mcnemar(fixed: int, broken: int) -> float:
    """The two-sided p-value of McNemar's test (1947), exact: if both models are equally good, each image on which they
    differ is fixed or broken with a probability of one half."""
    from scipy.stats import binomtest

    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def paired_interval(fixed: int, broken: int, count: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same `count` images, (fixed - broken) / count.

    The adjusted Wald interval of Bonett and Price 2012 (doi:10.3102/1076998611411915), which Fagerland et al. 2014
    (doi:10.1002/sim.6148) recommend: one image is added to each of the two counts.
    """
    from scipy.stats import norm

    gained, lost = (fixed + 1) / (count + 2), (broken + 1) / (count + 2)
    half = norm.ppf(0.975) * math.sqrt((gained + lost - (gained - lost) ** 2) / (count + 2))
    return max(-1.0, gained - lost - half), min(1.0, gained - lost + half)


def per_class(outcomes: Outcomes, labels: np.ndarray, class_names: Sequence[str]) -> list[Row]:
    """Recall of both runs on each class and the difference (this run minus the other), with its interval.

    A class without test images has no recall: None.
    """
    counts = {
        name: np.bincount(labels[flags], minlength=len(class_names)).tolist() for name, flags in vars(outcomes).items()
    }
    rows: list[Row] = []
    for index, name in enumerate(class_names):
        right, fixed, broken, shared, _ = (column[index] for column in counts.values())
        images = right + fixed + broken + shared
        low, high = paired_interval(fixed, broken, images) if images else (None, None)
        rows.append(
            {
                "class": name,
                "images": images,
                "recall": (right + fixed) / images if images else None,
                "other_recall": (right + broken) / images if images else None,
                "recall_difference": (fixed - broken) / images if images else None,
                "low_95": low,
                "high_95": high,
                "fixed": fixed,
                "broken": broken,
                "shared": shared,
            }
        )
    return rows


def most_confident_first(chosen: np.ndarray, predictions: Predictions) -> np.ndarray:
    """Positions of the chosen images, the most confident predictions first."""
    positions = np.flatnonzero(chosen)
    return positions[np.argsort(-predictions.probabilities[positions].max(axis=1), kind="stable")]


def image_rows(outcomes: Outcomes, both: tuple[Predictions, Predictions], class_names: Sequence[str]) -> list[Row]:
    """Every image that at least one of the two misclassifies."""
    rows: list[Row] = []
    for index in np.flatnonzero(~outcomes.both_right).tolist():
        answers = [class_names[each.classes[index]] for each in both]
        outcome = next(name for name in ("fixed", "broken", "shared") if getattr(outcomes, name)[index])
        rows.append(
            {
                "index": index,
                "outcome": outcome,
                "true": class_names[both[0].labels[index]],
                "predicted": answers[0],
                "predicted_probability": float(both[0].probabilities[index].max()),
                "other_predicted": answers[1],
                "other_predicted_probability": float(both[1].probabilities[index].max()),
            }
        )
    return rows


@dataclass(frozen=True)
class History:
    """Test accuracy (0 to 1) after each epoch, and the seconds of training until then (None: not recorded)."""

    epochs: list[int]
    accuracy: list[float]
    seconds: list[float] | None


def history(rows: Sequence[Row]) -> History | None:
    """The test lines of metrics.jsonl; None if it has no such line.

    Time is that of training alone: images over images per second of the training lines. The first runs did not record
    how many images a line covers.
    """
    points = epoch_curves(rows).get("test")
    if not points:
        return None
    seconds, passed = {}, 0.0
    for row in rows:
        if row["split"] == "train":
            known = "images" in row and row.get("images_per_second")  # rounded: 0 is slower than can be said
            passed += row["images"] / row["images_per_second"] if known else math.nan
        elif row["split"] == "test":
            seconds[row["epoch"]] = passed
    epochs, accuracy = [point.epoch for point in points], [point.accuracy for point in points]
    timed = [seconds[epoch] for epoch in epochs]
    return History(epochs, accuracy, timed if all(map(math.isfinite, timed)) else None)
