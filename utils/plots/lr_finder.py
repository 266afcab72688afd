"""The figure of a learning-rate range test."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from utils.plots.figures import COLOURS, GREY, new_figure


def range_test_figure(
    lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float
) -> Figure:
    """Loss of each step and its running mean against the learning rate, with the suggestion.

    The scale shows the fall of the smoothed loss, not the divergence that ends the test.
    """
    figure = new_figure(7, 4)
    axes = figure.subplots()
    axes.plot(lrs, losses, color=GREY, alpha=0.5, linewidth=1, label="loss of each step")
    axes.plot(lrs, smoothed, color=COLOURS["train"], label="smoothed")
    axes.axvline(suggestion, color=COLOURS["test"], linestyle="--", label=f"suggestion {suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate (log scale)", ylabel="training loss", title="Learning-rate range test")
    low, high = min(smoothed), max(smoothed[: max(1, len(smoothed) // 3)])
    axes.set_ylim(low - 0.15 * (high - low), high + 0.6 * (high - low))
    axes.legend()
    axes.grid(alpha=0.3)
    return figure
