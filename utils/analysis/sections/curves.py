"""The learning curves of a run."""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure

from utils.analysis.predictions import Predictions
from utils.analysis.section import Analysis, Section
from utils.plots.curves import curves_figure, epoch_curves
from utils.plots.figures import COLOURS, new_figure

LABEL = "Training"
COST = "quick"
NEEDS = ()


def section(analysis: Analysis, predictions: Predictions) -> Section:
    """Loss and accuracy per epoch, the learning rate, the range test if training ran one, and what the model got."""
    run = analysis.run
    curves = epoch_curves(run.rows)
    figures: dict[str, Figure] = {}
    if curves:
        figures["curves"] = curves_figure(curves)
    steps, lrs = learning_rates(run.rows)
    if steps:
        figures["lr"] = lr_figure(steps, lrs)
    page = {
        "first": min((points[0].epoch for points in curves.values()), default=None),
        "last": {split: points[-1] for split, points in curves.items()},
        "range_test": run.figure("lr_finder.png"),
        "augmentations": run.figure("augmentations.png"),
    }
    return Section(page=page, figures=figures)


def learning_rates(rows: Iterable[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Optimizer steps and their learning rates, at the training lines of metrics.jsonl."""
    pairs = [(row["step"], row["lr"]) for row in rows if row["split"] == "train"]
    return [step for step, _ in pairs], [lr for _, lr in pairs]


def lr_figure(steps: Sequence[int], lrs: Sequence[float]) -> Figure:
    """The learning rate over the optimizer steps."""
    figure = new_figure(5.4, 2.9)
    axes = figure.subplots()
    axes.plot(steps, lrs, color=COLOURS["train"], marker="o" if len(steps) < 100 else "", markersize=3)
    axes.set(title="Learning rate", xlabel="optimizer step", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure
