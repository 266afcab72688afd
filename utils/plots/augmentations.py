"""Training images before and after their augmentation, pixel for pixel."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST_CELL = 96  # pixels: images of fewer are enlarged by a whole number
GAP, MARGIN, LINE = 4, 12, 18  # pixels between images, around everything, and of a line of text
LETTERS = 14  # pixels
INK, PAPER = (40, 40, 40), (255, 255, 255)


def augmentation_grid(
    images: np.ndarray, rows: Sequence[str], columns: Sequence[str], lines: Sequence[str], most: int | None = None
) -> Image.Image:
    """A row for each image and a column for each draw, with names of both, under lines of text.

    Args:
        images: uint8 (rows, columns, H, W, 3). Every pixel is drawn as it is, in a square of as many as fit.
        most: pixels of an image's longer side; images of more are scaled down to it.
    """
    height, width = images.shape[2:4]
    zoom = max(1, SMALLEST_CELL // max(height, width))
    scale = min(1.0, (most or max(height, width)) / max(height, width))
    cell_width, cell_height = max(1, round(zoom * scale * width)), max(1, round(zoom * scale * height))
    top = MARGIN + LINE * (len(lines) + 1) + GAP
    left = MARGIN + LINE
    step_x, step_y = cell_width + GAP, cell_height + GAP
    grid_width = left + len(columns) * step_x - GAP + MARGIN
    text_width = max((_width(line) for line in lines), default=0) + 2 * MARGIN
    size = max(grid_width, text_width), top + len(rows) * step_y - GAP + MARGIN
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * LINE), line, INK, _font())
    for column, name in enumerate(columns):
        pen.text((left + column * step_x, top - GAP - LINE), _cut(name, cell_width), INK, _font())
    for row, name in enumerate(rows):
        label = Image.new("RGB", (cell_height, LINE), PAPER)
        ImageDraw.Draw(label).text((0, 0), _cut(name, cell_height), INK, _font())
        page.paste(label.rotate(90, expand=True), (MARGIN - GAP, top + row * step_y))
        for column in range(len(columns)):
            image = Image.fromarray(images[row, column])
            method = Image.Resampling.NEAREST if scale == 1 else Image.Resampling.LANCZOS
            image = image.resize((cell_width, cell_height), method)
            page.paste(image, (left + column * step_x, top + row * step_y))
    return page


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all figures, which comes with matplotlib; nothing else of it is loaded."""
    found = find_spec("matplotlib")
    path = Path(str(found.origin)).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf" if found else None
    return ImageFont.truetype(path, LETTERS) if path and path.is_file() else ImageFont.load_default(LETTERS)


def _width(text: str) -> int:
    return round(_font().getlength(text))


def _cut(text: str, width: int) -> str:
    """As much of a text as fits in so many pixels."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    while text and _width(text) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text
