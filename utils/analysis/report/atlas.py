"""The images of data sets that the page shows, each stored once, on sheets of many."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data.images import Images
from data.splits import Split
from utils.analysis.predictions import Predictions

LONGEST_SIDE = 64  # pixels: larger images are scaled down
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
    images: Images
    true: int
    probabilities: np.ndarray | None = None
    caption: str = ""


def tiles_of(
    test: Split, predictions: Predictions, indices: Iterable[int], captions: Sequence[str] | None = None
) -> list[Tile]:
    """Images of the test split, in the given order, with the model's probabilities."""
    positions = [int(index) for index in indices]
    return [
        Tile("test", index, test.images, int(test.labels[index]), predictions.probabilities[index], caption)
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
        with `columns` x `columns` cells. A cell is `cell` pixels wide and high, of which the first `side` belong to the
        image. Positions that are not in `order` found no room. `lossless`: the pixels are those of the data set.
        """
        order = sorted(range(len(self._tiles)), key=lambda position: position in self._last)
        if not order:
            return {"order": [], "sources": []}
        first = self._tiles[order[0]]
        side = min(LONGEST_SIDE, first.images[first.index].shape[0])
        cell = 8 * math.ceil(side / 8)
        layout = {"side": side, "cell": cell, "columns": SHEET_SIDE // cell}
        sample = self._pixels(order[:: math.ceil(len(order) / SAMPLE)], side)
        for quality in QUALITIES:
            each = _bytes(_encode(sample, quality, **layout)) / len(sample)
            if each * len(order) <= most_bytes:
                sources = _encode(self._pixels(order, side), quality, **layout)
                if _bytes(sources) <= most_bytes:
                    return {"order": order, "sources": sources, "lossless": quality is None, **layout}
        while order := order[: min(int(most_bytes / each), int(0.95 * len(order)))]:
            sources = _encode(self._pixels(order, side), quality, **layout)
            if _bytes(sources) <= most_bytes:
                break
        return {"order": order, "sources": sources if order else [], "lossless": False, **layout}

    def _pixels(self, positions: Sequence[int], side: int) -> np.ndarray:
        """uint8 (n, side, side, 3)."""
        tiles = (self._tiles[position] for position in positions)
        return np.stack([_scaled(tile.images[tile.index], side) for tile in tiles])


def _opinion(tile: Tile) -> list[Any]:
    """The probability of the true class, and the most probable classes as [class, probability], most probable first."""
    if tile.probabilities is None:
        return []
    classes = np.argsort(-tile.probabilities, kind="stable")[:TOP]
    shown = [[int(index), round(float(tile.probabilities[index]), DIGITS)] for index in classes]
    return [round(float(tile.probabilities[tile.true]), DIGITS), shown]


def _scaled(image: np.ndarray, side: int) -> np.ndarray:
    if image.shape[0] == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def _encode(images: np.ndarray, quality: int | None, side: int, cell: int, columns: int) -> list[str]:
    """Sheets of the images (n, side, side, 3), as data URIs."""
    margin = cell - side
    images = np.pad(images, ((0, 0), (0, margin), (0, margin), (0, 0)), mode="edge")
    sources = []
    for start in range(0, len(images), columns**2):
        part = images[start : start + columns**2]
        rows = math.ceil(len(part) / columns)
        cells = np.zeros((rows * columns, cell, cell, 3), np.uint8)
        cells[: len(part)] = part
        sheet = cells.reshape(rows, columns, cell, cell, 3).transpose(0, 2, 1, 3, 4)
        image, buffer = Image.fromarray(sheet.reshape(rows * cell, columns * cell, 3)), io.BytesIO()
        if quality is None:
            image.save(buffer, "WEBP", lossless=True, quality=0)
        else:
            image.save(buffer, "JPEG", quality=quality, subsampling=0)
        kind = "webp" if quality is None else "jpeg"
        sources.append(f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode())
    return sources


def _bytes(sources: Sequence[str]) -> int:
    return sum(map(len, sources))
