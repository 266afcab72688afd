"""The learning curves of a run."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from utils.analysis.section import Section
from utils.plots.curves import curves_figure, epoch_curves
from utils.plots.figures import COLOURS, new_figure
from utils.runs.saved_run import SavedRun
from utils.system.errors import UserError
from utils.system.reading import read_file

# Of lr_finder.png, which training has drawn.
MOST_BYTES = 2 * 2**20
LARGEST_SIDE = 4096  # pixels


def section(run: SavedRun) -> Section:
    """Loss and accuracy per epoch, the learning rate, and the range test where there was one."""
    curves = epoch_curves(run.rows)
    figures = {}
    if curves:
        figures = {"curves": curves_figure(curves), "lr": learning_rate_figure(*learning_rates(run.rows))}
    range_test = run.directory / "lr_finder.png"
    page = {
        "last": {split: points[-1] for split, points in curves.items()},
        "range_test": range_test if is_picture(range_test) else None,
    }
    return Section("curves", page=page, figures=figures)


def is_picture(path: Path) -> bool:
    """Whether a file, which may come from a stranger, is a PNG that a page can show."""
    try:
        with Image.open(io.BytesIO(read_file(path, MOST_BYTES))) as picture:
            return picture.format == "PNG" and max(picture.size) <= LARGEST_SIDE
    except (OSError, ValueError, SyntaxError, UserError, Image.DecompressionBombError):
        return False


def learning_rates(rows: Iterable[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Optimizer steps and the learning rates they were taken with, at the training lines."""
    pairs = [(row["step"], row["lr"]) for row in rows if row["split"] == "train"]
    return [step for step, _ in pairs], [rate for _, rate in pairs]


def learning_rate_figure(steps: Sequence[int], rates: Sequence[float]) -> Figure:
    """The learning rate over the optimizer steps."""
    figure = new_figure(5.4, 2.9)
    axes = figure.subplots()
    axes.plot(steps, rates, color=COLOURS["train"], marker="o" if len(steps) < 100 else "", markersize=3)
    axes.set(title="Learning rate", xlabel="optimizer step", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure
