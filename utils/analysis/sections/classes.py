"""How well each class is classified, and what it is confused with."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from utils.analysis.predictions import Predictions, find_mistakes
from utils.analysis.report.atlas import tiles_of
from utils.analysis.scores import confusion_matrix, most_confused, per_class_scores
from utils.analysis.section import Analysis, Section
from utils.plots.figures import new_figure, shown_name

LABEL = "Classes"
COST = "quick"
NEEDS = ()

MOST_NUMBERED_CLASSES = 20  # more cells than this squared are too small for numbers
MOST_PRESSED_CLASSES = 30  # more cells than this squared are too many to press; the page shows the figure and a list
LISTED_PAIRS = 10
CORRECT_PER_CLASS = 20  # correctly classified images, the least confident ones, behind a cell of the diagonal
SHADES = 10  # of a cell, from pale to deep; page.css has as many


def section(analysis: Analysis, predictions: Predictions) -> Section:
    """Precision, recall and F1 per class, the confusion matrix, and the images behind its cells."""
    class_names = analysis.model_config.class_names
    scores = per_class_scores(predictions.labels, predictions.classes, class_names)
    matrix = confusion_matrix(predictions.labels, predictions.classes, len(class_names))
    pressed = len(class_names) <= MOST_PRESSED_CLASSES
    shown = [mistake.index for mistake in find_mistakes(predictions.probabilities, predictions.labels)]
    if pressed:
        shown += least_confident_correct(predictions)
    page = {
        "matrix": matrix.tolist() if pressed else None,
        "shades": cell_shades(matrix).tolist(),
        "pairs": [
            {**pair, "labels": [class_names.index(pair["true"]), class_names.index(pair["predicted"])]}
            for pair in most_confused(matrix, class_names, LISTED_PAIRS if pressed else 3 * LISTED_PAIRS)
        ],
        "tiles": tiles_of(analysis.shown(analysis.test), predictions, shown),
        "correct_per_class": CORRECT_PER_CLASS,
    }
    return Section(
        page=page,
        figures={"confusion_matrix": confusion_matrix_figure(matrix, class_names)},
        tables={"per_class": [{"class": name, **values} for name, values in scores.items()]},
    )


def least_confident_correct(predictions: Predictions) -> list[int]:
    """The CORRECT_PER_CLASS correctly classified images of each class with the lowest probability, lowest first."""
    confidence = predictions.probabilities.max(axis=1)
    correct = np.flatnonzero(predictions.classes == predictions.labels)
    correct = correct[np.argsort(confidence[correct], kind="stable")]
    return [
        int(index)
        for label in range(predictions.probabilities.shape[1])
        for index in correct[predictions.labels[correct] == label][:CORRECT_PER_CLASS]
    ]


def cell_shades(matrix: np.ndarray) -> np.ndarray:
    """Shades of the cells of a confusion matrix (classes, classes), 0 (none) to SHADES.

    The share of the true class on a root scale, which shows rare mistakes; for a mistake, relative to the largest.
    """
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    mistakes = shares - np.diag(np.diag(shares))
    most = np.where(np.eye(len(matrix), dtype=bool), 1, mistakes.max() or 1)
    return np.ceil(SHADES * np.sqrt(shares / most)).astype(int)


def confusion_matrix_figure(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Counts (classes, classes) as cells, coloured by their share of the true class; the root scale shows rare ones."""
    classes = len(class_names)
    numbered = classes <= MOST_NUMBERED_CLASSES
    side = 2 + classes * (0.36 if numbered else 0.11)
    figure = new_figure(side + 1.2, side)
    axes = figure.subplots()
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    cells = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    size = 9 if numbered else 5
    names = [shown_name(name) for name in class_names]
    axes.set_xticks(range(classes), names, rotation=90, fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    axes.set(title="Confusion matrix", xlabel="predicted class", ylabel="true class")
    if numbered:
        for (true, predicted), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[true, predicted] > 0.35 else "black"
                axes.text(predicted, true, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(cells, ax=axes, label="share of the true class (root scale)", shrink=0.8)
    bar.ax.yaxis.set_major_formatter("{x:.0%}")
    return figure
