"""What the figures share: matplotlib without global state, and colours that the colour-blind can tell apart (Okabe and
Ito 2008) and that mean the same everywhere."""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# A glyph that the font lacks is visible in the figure; a warning for each would hide what matters.
warnings.filterwarnings("ignore", message="Glyph .* missing from font")
DPI = 200
COLOURS = {"train": "#0072B2", "validation": "#009E73", "test": "#D55E00"}
GREY = "0.45"
# Ten classes that stay apart for most colour-blind eyes too (Petroff 2021, arXiv:2107.02270).
CLASS_COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def class_colours(classes: int) -> list[str]:
    """A colour for each class. More than ten classes share them, so a figure must also show names."""
    return [CLASS_COLOURS[index % len(CLASS_COLOURS)] for index in range(classes)]


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int) -> Figure:
    """Images (uint8, H x W x 3) row by row, each under its two lines of title."""
    rows = -(-len(images) // columns)
    tallest = max(image.shape[0] / image.shape[1] for image in images)
    figure = new_figure(2.1 * columns, (2.1 * min(2.0, max(0.5, tallest)) + 0.35) * rows + 0.6)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, title in zip(cells, images, titles, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontsize=8)
    hide_axes(cells)
    return figure


def hide_axes(cells: Iterable[Axes]) -> None:
    for axes in cells:
        axes.set_axis_off()
        axes.set(xticks=[], yticks=[])  # matplotlib would lay out the hidden ones too


def message_figure(text: str) -> Figure:
    """A figure of text alone."""
    figure = new_figure(6.4, 1.6)
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def class_label(class_names: Sequence[str], index: int, confidence: float) -> str:
    """A class and its predicted probability."""
    return f"{shown_name(class_names[index])} ({confidence:.0%})"


def shown_name(name: str, longest: int = 18) -> str:
    """A name that matplotlib draws literally: no formula between dollar signs, shortened in its middle.

    Line breaks and unprintable characters become U+FFFD.
    """
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    short = name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"
    return short.replace("$", r"\$")
