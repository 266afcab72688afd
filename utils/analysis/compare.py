"""Two models on the same test images: which mistakes are gone, which are new, is the difference more than chance?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from data.splits import Split
from utils.analysis.atlas import tiles_of
from utils.analysis.calibration import reliability
from utils.analysis.predictions import Predictions
from utils.analysis.section import Row, Section
from utils.plots.curves import epoch_curves
from utils.plots.figures import COLOURS, GREY, new_figure, shown_name
from utils.runs.saved_run import SavedRun

# This run and the other one, apart in lightness and by the line too.
STYLES = ({"color": "0.15", "linestyle": "-"}, {"color": "#CC79A7", "linestyle": "--"})
BETTER, WORSE = COLOURS["train"], COLOURS["test"]  # blue and orange, as right and wrong on the page
MOST_CLASSES = 30  # in the figure; with more, those that differ most
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def section(
    run: SavedRun,
    predictions: Predictions,
    other: SavedRun,
    other_predictions: Predictions,
    test: Split,
    class_names: Sequence[str],
) -> Section:
    """What this run does better and worse than the other one, on the same images."""
    both = (predictions, other_predictions)
    outcomes = compare(predictions, other_predictions)
    names = (run.name, other.name) if run.name != other.name else (str(run.path), str(other.path))
    calibration = reliability(other_predictions.probabilities, other_predictions.labels)
    classes = per_class(outcomes, predictions.labels, class_names)
    figures = {
        "compare_classes": recall_figure(classes, names),
        "compare_calibration": calibration_figure(both, names),
    }
    histories = [history(each.rows) for each in (run, other)]
    if all(histories):
        figures["compare_curves"] = curves_figure(histories, names)
    tiles = {}
    for name in ("fixed", "broken", "shared"):
        positions = most_confident_first(getattr(outcomes, name), predictions)
        tiles[name] = tiles_of(test, predictions, positions, other_answers(other_predictions, positions, class_names))
    return Section(
        "compare",
        summary={
            "compare": {
                "other": names[1],
                "other_accuracy": float((outcomes.both_right.sum() + outcomes.broken.sum()) / len(test)),
                "other_expected_calibration_error": calibration.expected_calibration_error,
                **outcomes.summary(),
                "recall_difference": {row["class"]: row["recall_difference"] for row in classes},
            }
        },
        page={
            "names": names,
            "classes": classes,
            "last": [points.accuracy[-1] if points else None for points in histories],
            "unrecorded": [name for name, points in zip(names, histories, strict=True) if not points],
            "tiles": tiles,
        },
        figures=figures,
        tables={"compare": classes, "compare_images": image_rows(outcomes, both, class_names)},
    )


# -- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcomes:
    """Which of the two is right, for every image: booleans (images,), of the first four exactly one is true.

    fixed: this run is right where the other was wrong. broken: this run is wrong where the other was right.
    shared: both are wrong; of these, same: with the same predicted class.
    """

    both_right: np.ndarray
    fixed: np.ndarray
    broken: np.ndarray
    shared: np.ndarray
    same: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Counts, the difference of the accuracies (this run's less the other's) and whether it may be chance."""
        both_right, fixed, broken, shared, same = (int(flags.sum()) for flags in vars(self).values())
        return {
            "both_right": both_right,
            "fixed": fixed,
            "broken": broken,
            "shared": shared,
            "shared_with_the_same_prediction": same,
            "accuracy_difference": (fixed - broken) / len(self.fixed),
            "accuracy_difference_interval_95": list(paired_interval(fixed, broken, len(self.fixed))),
            "mcnemar_p_value": mcnemar(fixed, broken),
        }


def compare(predictions: Predictions, other: Predictions) -> Outcomes:
    """Sets two models' predictions of the same images against each other."""
    right, other_right = (each.classes == each.labels for each in (predictions, other))
    shared = ~right & ~other_right
    return Outcomes(
        right & other_right,
        right & ~other_right,
        ~right & other_right,
        shared,
        shared & (predictions.classes == other.classes),
    )


def mcnemar(fixed: int, broken: int) -> float:
    """The two-sided p-value of McNemar's test (1947), exact: were both models equally good, each image on which they
    differ would be fixed or broken with a probability of one half."""
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
    """Recall of both on each class's images and their difference (this run's less the other's), with its interval.

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
    """Positions of the chosen images, in the order in which the predictions are sure of themselves."""
    positions = np.flatnonzero(chosen)
    return positions[np.argsort(-predictions.probabilities[positions].max(axis=1), kind="stable")]


def other_answers(other: Predictions, positions: Iterable[int], class_names: Sequence[str]) -> list[str]:
    """What the other run says of each image, in words."""
    return [
        f"the other: {class_names[other.classes[index]]} {100 * other.probabilities[index].max():.1f} %"
        for index in positions
    ]


def image_rows(outcomes: Outcomes, both: tuple[Predictions, Predictions], class_names: Sequence[str]) -> list[Row]:
    """Every image that at least one of the two gets wrong."""
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
    """The test lines of metrics.jsonl; None where there are none.

    Time is that of training alone: images over images per second of the training lines. The first runs did not note how
    many images a line covers.
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
    timed = [seconds[point.epoch] for point in points]
    return History(
        [point.epoch for point in points],
        [point.accuracy for point in points],
        timed if all(map(math.isfinite, timed)) else None,
    )


# -- figures ----------------------------------------------------------------------------------------------------------


def recall_figure(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """The difference of the recalls of each class with its interval, the best for this run first."""
    known = [row for row in rows if row["images"]]
    shown = sorted(known, key=lambda row: -abs(row["recall_difference"]))[:MOST_CLASSES]
    shown.sort(key=lambda row: -row["recall_difference"])
    figure = new_figure(6.4, 1.5 + 0.26 * len(shown))
    axes = figure.subplots()
    places = range(len(shown))
    differences = [100 * row["recall_difference"] for row in shown]
    colours = [BETTER if difference >= 0 else WORSE for difference in differences]
    axes.barh(places, differences, color=colours, alpha=0.6, height=0.7)
    axes.hlines(
        places, *([100 * row[key] for row in shown] for key in ("low_95", "high_95")), color="0.15", linewidth=1
    )
    axes.axvline(0, color="0.15", linewidth=0.8)
    axes.set_yticks(places, [shown_name(row["class"]) for row in shown])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    chosen = f"the {len(shown)} of {len(known)} classes that differ most" if len(shown) < len(known) else "each class"
    figure.suptitle(f"Recall of {chosen}:\n{shown_name(names[0], 30)} less {shown_name(names[1], 30)}")
    axes.set_xlabel("percentage points, with 95 % interval; below 0 this run is worse")
    axes.grid(alpha=0.3, axis="x")
    return figure


def calibration_figure(both: Sequence[Predictions], names: Sequence[str]) -> Figure:
    """Accuracy over confidence of both, and how many of their predictions have which confidence."""
    figure = new_figure(5.4, 5.8)
    diagram, histogram = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    for predictions, label, style in zip(both, labels(names), STYLES, strict=True):
        found = reliability(predictions.probabilities, predictions.labels)
        filled = found.counts > 0
        error = found.expected_calibration_error
        diagram.plot(
            found.confidence[filled],
            found.accuracy[filled],
            **style,
            marker="o",
            markersize=4,
            clip_on=False,
            zorder=3,
            label=f"{label}: expected error {error:.3f}",
        )
        histogram.stairs(found.counts, found.edges, **style)
    diagram.set(title="Calibration of both", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    histogram.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    histogram.xaxis.set_major_formatter(PercentFormatter(1))
    diagram.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (diagram, histogram):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    return figure


def curves_figure(histories: Sequence[History], names: Sequence[str]) -> Figure:
    """Test accuracy over epochs, and over the time of training where both have it."""
    timed = all(each.seconds for each in histories)
    figure = new_figure(5.4, 5.8 if timed else 3.6)
    panels = figure.subplots(2 if timed else 1, sharey=True, squeeze=False)[:, 0]
    longest = max(each.seconds[-1] for each in histories) if timed else 0.0
    unit, length = next((unit for unit in TIME_UNITS if longest >= 2 * unit[1]), TIME_UNITS[-1])
    for each, label, style in zip(histories, labels(names), STYLES, strict=True):
        points = {**style, "marker": "o", "markersize": 3}
        panels[0].plot(each.epochs, each.accuracy, **points, label=f"{label}: {each.accuracy[-1]:.1%} at the end")
        if timed:
            panels[1].plot([seconds / length for seconds in each.seconds], each.accuracy, **points)
    panels[0].set(title="Test accuracy after each epoch", xlabel="epoch")
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if timed:
        panels[1].set(xlabel=f"{unit} of training", xlim=(0, None))
    for axes in panels:
        axes.set_ylabel("images classified right")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    return figure


def labels(names: Sequence[str]) -> list[str]:
    return [f"{role}, {shown_name(name, 30)}" for role, name in zip(("this run", "the other"), names, strict=True)]
