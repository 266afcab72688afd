"""How well each class is told apart, and what it is taken for."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from utils.analysis.figures import new_figure, shown_name
from utils.analysis.predictions import Predictions
from utils.analysis.scores import confusion_matrix, per_class_scores
from utils.analysis.section import Section

MOST_NUMBERED_CLASSES = 20  # more cells than this squared are too small for numbers


def section(predictions: Predictions, class_names: tuple[str, ...]) -> Section:
    """Precision, recall and F1 per class, and the confusion matrix."""
    scores = per_class_scores(predictions.labels, predictions.classes, class_names)
    matrix = confusion_matrix(predictions.labels, predictions.classes, len(class_names))
    return Section(
        "classes",
        page={"matrix": matrix.tolist()},
        figures={"confusion_matrix": confusion_matrix_figure(matrix, class_names)},
        tables={"per_class": [{"class": name, **values} for name, values in scores.items()]},
    )


def confusion_matrix_figure(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Counts (classes, classes) as cells, coloured by their share of the true class; the root scale shows rare ones."""
    classes = len(class_names)
    numbered = classes <= MOST_NUMBERED_CLASSES
    side = 2 + classes * (0.36 if numbered else 0.11)
    figure = new_figure(side + 1.2, side)
    axes = figure.subplots()
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    size = 9 if numbered else 5
    axes.set_xticks(range(classes), [shown_name(name) for name in class_names], rotation=90, fontsize=size)
    axes.set_yticks(range(classes), [shown_name(name) for name in class_names], fontsize=size)
    axes.set(title="Confusion matrix", xlabel="predicted class", ylabel="true class")
    if numbered:
        for (true, predicted), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[true, predicted] > 0.35 else "black"
                axes.text(predicted, true, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(picture, ax=axes, label="share of the true class (root scale)", shrink=0.8)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure
