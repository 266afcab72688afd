"""Learning curves from the lines of metrics.jsonl, and the curve of a learning-rate range test."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from utils.plots.figures import COLOURS, GREY, new_figure

LOG_SCALE_FROM = 20.0  # a loss that varies by more is drawn on a log scale


class Point(NamedTuple):
    """Mean loss per image and accuracy (0 to 1) of one split in one epoch: from 1, or 0 before the first step."""

    epoch: int
    loss: float
    accuracy: float


def epoch_curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """One curve per split that was scored, in the order train, validation, test.

    A training line covers the images since the line before it, so an epoch's mean weights its lines by their images.
    Of several test lines in an epoch the last one counts. Lines without `images` (of early versions) weigh the same.
    """
    sums: dict[int, np.ndarray] = {}
    scored: dict[str, dict[int, Point]] = {"train": {}, "validation": {}, "test": {}}
    for row in rows:
        epoch = row["epoch"]
        if row["split"] != "train":
            scored[row["split"]][epoch] = Point(epoch, row["loss"], row["accuracy"])
            continue
        sums[epoch] = sums.get(epoch, 0) + row.get("images", 1) * np.array([row["loss"], row["accuracy"], 1.0])
        loss, accuracy, weight = sums[epoch].tolist()
        scored["train"][epoch] = Point(epoch, loss / weight, accuracy / weight)
    return {split: list(points.values()) for split, points in scored.items() if points}


def curves_figure(curves: dict[str, list[Point]]) -> Figure:
    """Loss and accuracy per epoch, one line per split."""
    figure = new_figure(5.4, 5.8)
    loss, accuracy = figure.subplots(2, sharex=True)
    for split, points in curves.items():
        epochs, losses, accuracies = zip(*points, strict=True)
        style = {"color": COLOURS[split], "marker": "o", "markersize": 3}
        loss.plot(epochs, losses, label=f"{split} ({losses[-1]:.3f})", **style)
        accuracy.plot(epochs, accuracies, label=f"{split} ({accuracies[-1]:.1%})", **style)
    every_loss = [point.loss for points in curves.values() for point in points]
    if every_loss and 0 < min(every_loss) < max(every_loss) / LOG_SCALE_FROM:
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_formatter(NullFormatter())
    loss.set(title="Loss", ylabel="cross-entropy per image" + (", log scale" if loss.get_yscale() == "log" else ""))
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="share of images classified correctly")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    every_epoch = [1, *(point.epoch for points in curves.values() for point in points)]
    accuracy.set_xlim(min(every_epoch) - 0.5, max(every_epoch) + 0.5)
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(title="split (last value)")
    return figure


def range_test_figure(
    lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float
) -> Figure:
    """Loss of each step and its running mean against the learning rate, with the suggestion.

    The scale shows the fall of the smoothed loss, not the divergence that ends the test.
    """
    figure = new_figure(7, 4)
    axes = figure.subplots()
    axes.plot(lrs, losses, color=GREY, alpha=0.5, linewidth=1, label="loss of each step")
    axes.plot(lrs, smoothed, color=COLOURS["train"], label="smoothed")
    axes.axvline(suggestion, color=COLOURS["test"], linestyle="--", label=f"suggestion {suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate (log scale)", ylabel="training loss", title="Learning-rate range test")
    low, high = min(smoothed), max(smoothed[: max(1, len(smoothed) // 3)])
    axes.set_ylim(low - 0.15 * (high - low), high + 0.6 * (high - low))
    axes.legend()
    axes.grid(alpha=0.3)
    return figure
