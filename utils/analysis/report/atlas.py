"""The images of data sets that the page shows, each stored once, on sheets of many."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from utils.analysis.predictions import Predictions
from utils.analysis.views import Pictures
from utils.config.resolution import Size

LONGEST_SIDE = 64  # pixels of an image's longer side: larger ones are scaled down
SHEET_SIDE = 1024  # pixels that a sheet has at most in either direction
# Lossless, then JPEG of these qualities, until the sheets fit. JPEG codes blocks of 8x8 pixels by themselves, so that
# images do not run into each other; on CIFAR-10 a WebP of the same error is no smaller.
QUALITIES = (None, 95, 85)
SAMPLE = 256  # images that the bytes of all are estimated from
TOP = 3  # probabilities that are shown
DIGITS = 6  # of a probability: images are sorted by it


@dataclass(frozen=True)
class Tile:
    """An image of a data set on the page, with the model's probabilities.

    Attributes:
        split: "test" or "train"; with `index`, the position in it, the name of the image.
        images: `images[index]` is its pixels, read when the page is written and only if there is room for them.
        true: its class.
        probabilities: float (classes,); None if it has not been predicted.
        caption: plain text under the image, at this place on the page alone.
    """

    split: str
    index: int
    images: Pictures
    true: int
    probabilities: np.ndarray | None = None
    caption: str = ""


def tiles_of(
    images: Pictures, predictions: Predictions, indices: Iterable[int], captions: Sequence[str] | None = None
) -> list[Tile]:
    """Images of the test split, in the given order, with the model's probabilities."""
    positions = [int(index) for index in indices]
    return [
        Tile("test", index, images, int(predictions.labels[index]), predictions.probabilities[index], caption)
        for index, caption in zip(positions, captions or [""] * len(positions), strict=True)
    ]


class Atlas:
    """Gives each image of the page a position, and in the end the pixels of all within a number of bytes.

    Templates have it as `atlas`; report/tiles.html.jinja has the macro that they show images with.
    """

    def __init__(self) -> None:
        self._positions: dict[tuple[str, int], int] = {}
        self._tiles: list[Tile] = []
        self._last: set[int] = set()

    def place(self, tiles: Iterable[Tile], last: bool = False) -> list[int]:
        """The positions of these images; those that are new are added.

        If there is no room for all, those of `last` are dropped first, then those that came last.
        """
        positions = []
        for tile in tiles:
            key = (tile.split, tile.index)
            if key not in self._positions:
                self._positions[key] = len(self._tiles)
                self._tiles.append(tile)
                if last:
                    self._last.add(self._positions[key])
            elif not last:
                self._last.discard(self._positions[key])
            positions.append(self._positions[key])
        return positions

    def images(self) -> list[list[Any]]:
        """By position: split, index, true class, and if predicted, the probability of the true class and the TOP
        classes with theirs."""
        return [[tile.split, tile.index, tile.true, *_opinion(tile)] for tile in self._tiles]

    def sheets(self, most_bytes: float) -> dict[str, Any]:
        """The pixels as sheets of many images, whose data URIs have at most so many bytes together.

        `order` lists positions: the k-th image is in the k-th cell of the sheets, each of which is filled row by row
        with `rows` x `columns` cells. A cell is `cell` pixels high and wide, of which the first ones belong to the
        image, as many as `sizes` has for it (height, width), or for all images if that is a single pair. Positions that
        are not in `order` found no room. `lossless`: compressed without loss. `scaled`: some image was scaled down.
        """
        order = sorted(range(len(self._tiles)), key=lambda position: position in self._last)
        if not order:
            return {"order": [], "sources": []}
        images = _Scaled()
        for position in order:
            tile = self._tiles[position]
            images.add(tile.images[tile.index])
        sample = images.pixels[:: math.ceil(len(order) / SAMPLE)]
        for quality in QUALITIES:
            each = _bytes(_encode(sample, quality, images.cell)) / len(sample)
            if each * len(order) <= most_bytes:
                sources = _encode(images.pixels, quality, images.cell)
                if _bytes(sources) <= most_bytes:
                    return {
                        "order": order,
                        "sources": sources,
                        "lossless": quality is None,
                        **images.layout(len(order)),
                    }
        while order := order[: min(int(most_bytes / each), int(0.95 * len(order)))]:
            sources = _encode(images.pixels[: len(order)], quality, images.cell)
            if _bytes(sources) <= most_bytes:
                break
        return {
            "order": order, "sources": sources if order else [], "lossless": False, **images.layout(len(order))
        }  # fmt: skip


class _Scaled:
    """Images of one or of several sizes, scaled down to LONGEST_SIDE where they are larger."""

    def __init__(self) -> None:
        self.pixels: list[np.ndarray] = []
        self.scaled = False

    def add(self, image: np.ndarray) -> None:
        longer = max(image.shape[:2])
        if longer > LONGEST_SIDE:
            height, width = (max(1, round(side * LONGEST_SIDE / longer)) for side in image.shape[:2])
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
            self.scaled = True
        self.pixels.append(image)

    @property
    def cell(self) -> Size:
        """Height and width of the cells: those of the largest images, in whole blocks of JPEG."""
        height, width = (8 * math.ceil(max(image.shape[axis] for image in self.pixels) / 8) for axis in (0, 1))
        return height, width

    def layout(self, count: int) -> dict[str, Any]:
        """What Atlas.sheets says of the cells of the first `count` images."""
        sizes = [image.shape[:2] for image in self.pixels[:count]]
        rows, columns = _grid(self.cell)
        return {
            "cell": self.cell,
            "rows": rows,
            "columns": columns,
            "sizes": sizes[:1] if len(set(sizes)) == 1 else sizes,
            "scaled": self.scaled,
        }


def _grid(cell: Size) -> Size:
    return SHEET_SIDE // cell[0], SHEET_SIDE // cell[1]


def _opinion(tile: Tile) -> list[Any]:
    """The probability of the true class, and the most probable classes as [class, probability], most probable first."""
    if tile.probabilities is None:
        return []
    classes = np.argsort(-tile.probabilities, kind="stable")[:TOP]
    shown = [[int(index), round(float(tile.probabilities[index]), DIGITS)] for index in classes]
    return [round(float(tile.probabilities[tile.true]), DIGITS), shown]


def _encode(images: Sequence[np.ndarray], quality: int | None, cell: Size) -> list[str]:
    """Sheets of images, uint8 (H, W, 3) up to the size of a cell, as data URIs."""
    (height, width), (most_rows, columns) = cell, _grid(cell)
    sources = []
    for start in range(0, len(images), most_rows * columns):
        part = images[start : start + most_rows * columns]
        rows = math.ceil(len(part) / columns)
        cells = np.zeros((rows * columns, height, width, 3), np.uint8)
        for place, pixels in zip(cells, part, strict=False):
            margins = (0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)
            place[:] = np.pad(pixels, margins, mode="edge")
        sheet = cells.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
        image, buffer = Image.fromarray(sheet.reshape(rows * height, columns * width, 3)), io.BytesIO()
        if quality is None:
            image.save(buffer, "WEBP", lossless=True, quality=0)
        else:
            image.save(buffer, "JPEG", quality=quality, subsampling=0)
        kind = "webp" if quality is None else "jpeg"
        sources.append(f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode())
    return sources


def _bytes(sources: Sequence[str]) -> int:
    return sum(map(len, sources))
