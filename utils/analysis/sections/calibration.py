"""Is a model with a confidence of 80 % correct in 80 % of the cases? Reliability diagram and expected calibration
error, without and with temperature scaling, fitted to the validation split."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from utils.analysis.analysis import Analysis
from utils.analysis.inference import predict_cached
from utils.analysis.predictions import Predictions, stratified_choice
from utils.analysis.scores import Reliability, reliability
from utils.analysis.section import Section
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
    for column, (name, found) in enumerate(diagrams.items()):
        diagram, histogram = rows[:, column]
        width = np.diff(found.edges)
        filled = found.counts > 0
        diagram.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
        diagram.bar(
            found.edges[:-1][filled],
            found.accuracy[filled],
            width[filled],
            align="edge",
            color=COLOURS["test"],
            alpha=0.35,
            edgecolor=COLOURS["test"],
            label="accuracy of the predictions in a bin",
        )
        diagram.plot(
            found.confidence[filled],
            found.accuracy[filled],
            "o",
            color=COLOURS["test"],
            markersize=4,
            clip_on=False,
            zorder=3,
            label="at their mean confidence",
        )
        diagram.set(
            title=f"Calibration {name}: expected error {found.expected_calibration_error:.3f}", xlim=(0, 1), ylim=(0, 1)
        )
        diagram.title.set_fontsize("medium")
        histogram.bar(found.edges[:-1], found.counts, width, align="edge", color=COLOURS["test"])
        histogram.set(xlabel="confidence (probability of the predicted class)")
        histogram.xaxis.set_major_formatter(PercentFormatter(1))
        diagram.yaxis.set_major_formatter(PercentFormatter(1))
        for axes in (diagram, histogram):
            axes.set_axisbelow(True)
            axes.grid(alpha=0.3)
    figure.get_layout_engine().set(wspace=0.06)
    rows[0, 0].set_ylabel("accuracy")
    rows[1, 0].set_ylabel("images")
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(diagrams) - 1)
    return figure
