"""Is a model with a confidence of 80 % correct in 80 % of the cases? Reliability diagram and expected calibration
error, without and with temperature scaling, fitted to the validation split."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.analysis.inference import predict_cached
from utils.analysis.predictions import Predictions, stratified_choice
from utils.analysis.scores import Reliability, reliability
from utils.analysis.section import Analysis, Section
from utils.plots.figures import COLOURS, GREY, new_figure

LABEL = "Calibration"
COST = "quick"
NEEDS = ("validation images",)

TEMPERATURES = (0.05, 20.0)  # bounds of the fit
FITTED_ON = 2000  # validation images at most: they fix T to about 2 %, and the default report must be quick


def find(analysis: Analysis, predictions: Predictions) -> Predictions | None:
    """Predictions of images that training held out: enough of them to fit one number. None if it held none out."""
    if not len(analysis.held_out):
        return None
    chosen = analysis.held_out[stratified_choice(analysis.train.labels[analysis.held_out], FITTED_ON)]
    return predict_cached(analysis, analysis.train.subset(chosen), "validation", "validation images")


def section(analysis: Analysis, predictions: Predictions, validation: Predictions | None) -> Section:
    """The reliability diagram and, if there is a validation split, the one after temperature scaling beside it."""
    found = reliability(predictions.probabilities, predictions.labels)
    diagrams = {"without temperature scaling": found}
    if validation is None:
        missing = "Training held out no images (validation_fraction 0), and the test set must not choose a temperature."
    elif (validation.classes == validation.labels).all():
        missing = (
            f"All {len(validation.labels)} validation images are classified correctly: the lower the temperature, the "
            "better it fits."
        )
    else:
        temperature = fit_temperature(validation.logits, validation.labels)
        scaled = predictions.at_temperature(temperature)
        after = reliability(scaled.probabilities, scaled.labels)
        diagrams[f"at temperature {temperature:.2f}"] = after
        return Section(
            summary={"temperature": temperature, "expected_calibration_error_scaled": after.expected_calibration_error},
            page={
                "missing": "",
                "fitted_on": len(validation.labels),
                "loss": negative_log_likelihood(predictions.logits, predictions.labels),
                "loss_scaled": negative_log_likelihood(scaled.logits, scaled.labels),
            },
            figures={"calibration": calibration_figure(diagrams)},
        )
    return Section(page={"missing": missing}, figures={"calibration": calibration_figure(diagrams)})


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T for which softmax(logits / T) has the least cross-entropy (Guo et al. 2017, arXiv:1706.04599).

    Above 1 the model was overconfident, below 1 underconfident. It changes no prediction.

    Args:
        logits: (images, classes), of images that are not the test set.
        labels: (images,), the true classes.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits / math.exp(log_temperature), labels)

    bounds = [math.log(temperature) for temperature in TEMPERATURES]
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy per image of logits (images, classes)."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def calibration_figure(diagrams: Mapping[str, Reliability]) -> Figure:
    """Reliability diagrams side by side, each above the histogram of confidences."""
    figure = new_figure(0.6 + 4.8 * len(diagrams), 5.8)
    rows = figure.subplots(2, len(diagrams), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
    colour = COLOURS["test"]
    for column, (name, found) in enumerate(diagrams.items()):
        diagram, histogram = rows[:, column]
        left, width = found.edges[:-1], np.diff(found.edges)
        filled = found.counts > 0
        style_panels(diagram, histogram, "--")
        bars = left[filled], found.accuracy[filled], width[filled]
        label = "accuracy of the predictions in a bin"
        diagram.bar(*bars, align="edge", color=colour, edgecolor=colour, alpha=0.35, label=label)
        plot_bins(diagram, found, color=colour, linestyle="", label="at their mean confidence")
        error = found.expected_calibration_error
        diagram.set_title(f"Calibration {name}: expected error {error:.3f}", fontsize="medium")
        histogram.bar(left, found.counts, width, align="edge", color=colour)
    figure.get_layout_engine().set(wspace=0.06)
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(diagrams) - 1)
    return figure


def plot_bins(diagram: Axes, found: Reliability, **style: Any) -> None:
    """The accuracy of each bin that is not empty over its mean confidence, as dots."""
    filled = found.counts > 0
    dots = {"marker": "o", "markersize": 4, "clip_on": False, "zorder": 3}
    diagram.plot(found.confidence[filled], found.accuracy[filled], **dots, **style)


def style_panels(diagram: Axes, histogram: Axes, linestyle: str) -> None:
    """The scales, labels and grid of a reliability diagram above a histogram, and the line of perfect calibration."""
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle=linestyle, label="perfectly calibrated")
    diagram.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    histogram.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    for axes, axis in ((diagram, diagram.yaxis), (histogram, histogram.xaxis)):
        axis.set_major_formatter("{x:.0%}")
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
        axes.label_outer()
