"""Does a confidence of 80 % mean right in 80 % of the cases? Reliability diagram and expected calibration error."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from utils.analysis.figures import COLOURS, GREY, new_figure
from utils.analysis.predictions import Predictions
from utils.analysis.section import Section


def section(predictions: Predictions) -> Section:
    """The reliability diagram and the expected calibration error."""
    found = reliability(predictions.probabilities, predictions.labels)
    return Section(
        "calibration",
        figures={"calibration": calibration_figure(found)},
    )


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
    hits = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    positions = np.digitize(confidences, edges[1:-1], right=True)
    counts = np.bincount(positions, minlength=bins)
    filled = counts.clip(min=1)
    return Reliability(
        edges,
        counts,
        np.bincount(positions, confidences, bins) / filled,
        np.bincount(positions, hits, bins) / filled,
    )


def calibration_figure(reliability: Reliability) -> Figure:
    """The reliability diagram, and how many predictions have which confidence."""
    figure = new_figure(5.4, 5.8)
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
