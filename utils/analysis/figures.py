"""The pictures of an analysis, as matplotlib figures without global state. Colours tell apart for the colour-blind
(Okabe and Ito 2008) and mean the same everywhere."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from utils.analysis.calibration import Reliability
from utils.analysis.curves import Point
from utils.analysis.gradcam import CamLayer
from utils.analysis.misclassified import Example

DPI = 200
COLOURS = {"train": "#0072B2", "validation": "#009E73", "test": "#D55E00"}
GREY = "0.45"
MOST_NUMBERED_CLASSES = 20  # more cells than this squared are too small for numbers
LOG_SCALE_FROM = 20.0  # a loss that varies by more is drawn on a log scale


def curves_figure(curves: dict[str, list[Point]]) -> Figure:
    """Loss and accuracy per epoch, one line per split."""
    figure = _figure(5.4, 5.8)
    loss, accuracy = figure.subplots(2, sharex=True)
    for split, points in curves.items():
        epochs = [point.epoch for point in points]
        style = {"color": COLOURS[split], "marker": "o", "markersize": 3}
        loss.plot(epochs, [point.loss for point in points], label=f"{split} ({points[-1].loss:.3f})", **style)
        accuracy.plot(
            epochs, [point.accuracy for point in points], label=f"{split} ({points[-1].accuracy:.1%})", **style
        )
    losses = [point.loss for points in curves.values() for point in points]
    if losses and 0 < min(losses) < max(losses) / LOG_SCALE_FROM:
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter("{x:g}")
    loss.set(title="Loss", ylabel="cross-entropy per image" + (", log scale" if loss.get_yscale() == "log" else ""))
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="share of images classified right")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    accuracy.set_xlim(0.5, max((point.epoch for points in curves.values() for point in points), default=1) + 0.5)
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(title="split (last value)")
    return figure


def learning_rate_figure(steps: Sequence[int], rates: Sequence[float]) -> Figure:
    """The learning rate over the optimizer steps."""
    figure = _figure(5.4, 2.9)
    axes = figure.subplots()
    axes.plot(steps, rates, color=COLOURS["train"], marker="o" if len(steps) < 100 else "", markersize=3)
    axes.set(title="Learning rate", xlabel="optimizer step", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure


def confusion_matrix_figure(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Counts (classes, classes) as cells, coloured by their share of the true class; the root scale shows rare ones."""
    classes = len(class_names)
    numbered = classes <= MOST_NUMBERED_CLASSES
    side = 2 + classes * (0.36 if numbered else 0.11)
    figure = _figure(side + 1.2, side)
    axes = figure.subplots()
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    size = 9 if numbered else 5
    axes.set_xticks(range(classes), [_text(name) for name in class_names], rotation=90, fontsize=size)
    axes.set_yticks(range(classes), [_text(name) for name in class_names], fontsize=size)
    axes.set(title="Confusion matrix", xlabel="predicted class", ylabel="true class")
    if numbered:
        for (true, predicted), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[true, predicted] > 0.35 else "black"
                axes.text(predicted, true, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(picture, ax=axes, label="share of the true class (root scale)", shrink=0.8)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def calibration_figure(reliability: Reliability) -> Figure:
    """The reliability diagram, and how many predictions have which confidence."""
    figure = _figure(5.4, 5.8)
    diagram, histogram = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    width = np.diff(reliability.edges)
    filled = reliability.counts > 0
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    diagram.bar(
        reliability.edges[:-1][filled],
        reliability.accuracy[filled],
        width[filled],
        align="edge",
        color=COLOURS["test"],
        alpha=0.35,
        edgecolor=COLOURS["test"],
        label="accuracy of the predictions in a bin",
    )
    diagram.plot(
        reliability.confidence[filled],
        reliability.accuracy[filled],
        "o",
        color=COLOURS["test"],
        markersize=4,
        clip_on=False,
        zorder=3,
        label="at their mean confidence",
    )
    diagram.set(
        title=f"Calibration: expected error {reliability.expected_calibration_error:.3f}",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    figure.legend(loc="outside lower center")
    histogram.bar(reliability.edges[:-1], reliability.counts, width, align="edge", color=COLOURS["test"])
    histogram.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    histogram.xaxis.set_major_formatter(PercentFormatter(1))
    diagram.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (diagram, histogram):
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
    return figure


def misclassified_figure(examples: Sequence[Example], total: int, class_names: Sequence[str]) -> Figure:
    """A gallery of images with true and predicted class; `total` mistakes exist."""
    if not examples:
        return _message("No image of the test set is misclassified.")
    columns = 5
    rows = -(-len(examples) // columns)
    figure = _figure(2.1 * columns, 2.45 * rows + 0.6)
    figure.suptitle(gallery_title(len(examples), total))
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, example in zip(cells, examples, strict=False):
        mistake = example.mistake
        axes.imshow(example.image, interpolation="nearest")
        axes.set_title(
            f"true: {_label(class_names, mistake.true, mistake.true_confidence)}\n"
            f"predicted: {_label(class_names, mistake.predicted, mistake.predicted_confidence)}",
            fontsize=8,
        )
    _hide_axes(cells)
    return figure


def gradcam_figure(examples: Sequence[Example], class_names: Sequence[str], method: str, layer: CamLayer) -> Figure:
    """Each misclassified image beside what speaks for its predicted and for its true class."""
    if not examples:
        return _message("No image of the test set is misclassified: there is nothing to explain.")
    pairs = 2
    rows = -(-len(examples) // pairs)
    figure = _figure(11, 2.2 * rows + 0.8)
    height, width = layer.size
    figure.suptitle(
        f"{method} at {layer.name} ({height}x{width} pixels): what speaks for the predicted and for the true class\n"
        "orange to yellow = more; each map has its own scale"
    )
    cells = figure.subplots(rows, 3 * pairs, squeeze=False).reshape(rows * pairs, 3)
    for (original, predicted, true), example in zip(cells, examples, strict=False):
        mistake = example.mistake
        original.imshow(example.image, interpolation="nearest")
        original.set_title(f"image {mistake.index}", fontsize=8)
        _draw_map(predicted, example.predicted_map)
        predicted.set_title(
            f"predicted:\n{_label(class_names, mistake.predicted, mistake.predicted_confidence)}", fontsize=8
        )
        _draw_map(true, example.true_map)
        true.set_title(f"true:\n{_label(class_names, mistake.true, mistake.true_confidence)}", fontsize=8)
    _hide_axes(cells.ravel())
    return figure


def gallery_title(shown: int, total: int) -> str:
    return f"All {total} misclassified images" if shown == total else f"The {shown} most confident of {total} mistakes"


def _draw_map(axes: Axes, picture: np.ndarray | None) -> None:
    if picture is None:
        axes.imshow([[[0.85] * 3]])
        axes.text(0, 0, "no positive\nevidence", ha="center", va="center", fontsize=8)
    else:
        axes.imshow(picture, interpolation="nearest")


def _hide_axes(cells: Iterable[Axes]) -> None:
    for axes in cells:
        axes.set_axis_off()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _message(text: str) -> Figure:
    figure = _figure(6.4, 1.6)
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def _label(class_names: Sequence[str], index: int, confidence: float) -> str:
    return f"{_text(class_names[index])} ({confidence:.0%})"


def _text(name: str, longest: int = 18) -> str:
    """A class name as matplotlib draws it as it is: no formula between dollar signs, shortened in its middle."""
    short = name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"
    return short.replace("$", r"\$")
