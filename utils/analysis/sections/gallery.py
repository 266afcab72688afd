"""The gallery of all mistakes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from utils.analysis.predictions import Mistake, Predictions, find_mistakes, shown_of
from utils.analysis.report.atlas import tiles_of
from utils.analysis.section import Analysis, Section
from utils.plots.figures import image_grid, message_figure

LABEL = "Mistakes"
COST = "quick"
NEEDS = ()


def section(analysis: Analysis, predictions: Predictions) -> Section:
    """All mistakes on the page and in mistakes.csv, the `images` most confident of them in misclassified.png."""
    test, class_names, most = analysis.test, analysis.model_config.class_names, analysis.config.images
    mistakes, shown = find_mistakes(predictions.probabilities, predictions.labels), analysis.shown(test)
    images = [shown[mistake.index] for mistake in mistakes[:most]]
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
        page={
            "tiles": tiles_of(shown, predictions, [mistake.index for mistake in mistakes]),
            "whole": shown.geometry is not None,
        },
        figures={"misclassified": misclassified_figure(mistakes[:most], images, len(mistakes), class_names)},
        image_tables={"mistakes": rows},
    )


def misclassified_figure(
    mistakes: Sequence[Mistake], images: Sequence[np.ndarray], total: int, class_names: Sequence[str]
) -> Figure:
    """Images with true and predicted class, of `total` mistakes."""
    if not mistakes:
        return message_figure("No image of the test set is misclassified.")
    titles = ["true: {}\npredicted: {}".format(*mistake.labels(class_names)) for mistake in mistakes]
    figure = image_grid(images, titles, columns=5)
    figure.suptitle(shown_of(len(mistakes), total))
    return figure
