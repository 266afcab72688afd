"""The mistakes of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from data.splits import Split
from utils.analysis.atlas import tiles_of
from utils.analysis.predictions import Predictions
from utils.analysis.section import Section
from utils.plots.figures import class_label, image_grid, message_figure


def section(predictions: Predictions, test: Split, class_names: tuple[str, ...], shown: int) -> Section:
    """The gallery of all mistakes; the `shown` most confident of them in misclassified.png, all in mistakes.csv."""
    mistakes = find_mistakes(predictions.probabilities, predictions.labels)
    images = [test.images[mistake.index] for mistake in mistakes[:shown]]
    rows = [
        {
            "index": mistake.index,
            "true": class_names[mistake.true],
            "predicted": class_names[mistake.predicted],
            "true_probability": mistake.true_confidence,
            "predicted_probability": mistake.predicted_confidence,
            **({"path": test.paths[mistake.index]} if test.paths else {}),
        }
        for mistake in mistakes
    ]
    return Section(
        "gallery",
        page={"tiles": tiles_of(test, predictions, [mistake.index for mistake in mistakes])},
        figures={"misclassified": misclassified_figure(mistakes[:shown], images, len(mistakes), class_names)},
        tables={"mistakes": rows},
    )


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


def misclassified_figure(
    mistakes: Sequence[Mistake], images: Sequence[np.ndarray], total: int, class_names: Sequence[str]
) -> Figure:
    """A gallery of images with true and predicted class; `total` mistakes exist."""
    if not mistakes:
        return message_figure("No image of the test set is misclassified.")
    titles = [
        f"true: {class_label(class_names, mistake.true, mistake.true_confidence)}\n"
        f"predicted: {class_label(class_names, mistake.predicted, mistake.predicted_confidence)}"
        for mistake in mistakes
    ]
    figure = image_grid(images, titles, columns=5)
    figure.suptitle(gallery_title(len(mistakes), total))
    return figure


def gallery_title(shown: int, total: int) -> str:
    return f"All {total} misclassified images" if shown == total else f"The {shown} most confident of {total} mistakes"
