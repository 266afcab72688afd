"""How an image is shown: as the model sees it or, with `whole`, the whole photo with that part framed."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from data.images import Images
from data.photo import Photo, reduction_for
from data.preprocessing import Geometry
from utils.analysis.cam.maps import Box, enlarge, overlay

WHOLE_SIDE = 320  # pixels that the longer side of a whole photo has at most
FRAME_SHARE = 100  # of the longer side is the width of a line; a frame has a white one within a black one


class Pictures(Protocol):
    """Images by position, uint8 (H, W, 3) each, of one size or of several."""

    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class View:
    """An image as it is shown.

    Attributes:
        image: uint8 (H, W, 3).
        seen: what the model sees of it, in its pixels; None: all.
    """

    image: np.ndarray
    seen: Box | None = None

    @property
    def picture(self) -> np.ndarray:
        """The image, uint8 (H, W, 3), enlarged and with a frame around what the model sees if that is not all."""
        if self.seen is None:
            return self.image
        image = enlarge(self.image)
        factor = image.shape[0] // self.image.shape[0]
        left, top, right, bottom = (factor * edge for edge in self.seen)
        return framed(image, (left, top, right, bottom))

    def overlay(self, cam: np.ndarray) -> np.ndarray | None:
        """A map of what the model sees, drawn over the image at its place; None without positive evidence."""
        return overlay(self.image, cam, self.seen)


def whole_view(photo: Photo, geometry: Geometry, side: int = WHOLE_SIDE) -> View:
    """A whole photo, scaled down so that its longer side has at most `side` pixels."""
    scale = min(1.0, side / max(photo.height, photo.width))
    width, height = (max(1, round(length * scale)) for length in (photo.width, photo.height))
    image = photo.decode(reduction_for((0, 0, photo.height, photo.width), (height, width)))
    across, down = width / photo.width, height / photo.height
    left, top, right, bottom = geometry.region(photo.width, photo.height)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return View(pixels, (left * across, top * down, right * across, bottom * down))


class Views:
    """The images of a split as they are shown.

    Args:
        geometry: that the images are fitted by; set: whole photos, if the images were fitted at all.
    """

    def __init__(self, images: Images, geometry: Geometry | None = None):
        self.images = images
        self.geometry = geometry if images.fitted else None

    def view(self, index: int) -> View:
        if self.geometry is None:
            return View(self.images[index])
        return whole_view(self.images.photos([index])[0], self.geometry)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.view(index).picture


def framed(image: np.ndarray, box: Box) -> np.ndarray:
    """The image with a frame around what a box covers of it; a box that reaches over the border is cut there."""
    result, (height, width) = image.copy(), image.shape[:2]
    line = max(1, round(max(height, width) / FRAME_SHARE))
    left, top, right, bottom = (round(edge) for edge in box)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    for inset, colour in ((0, 0), (line, 255)):
        outer = result[top + inset : max(top, bottom - inset), left + inset : max(left, right - inset)]
        inner = outer[line : max(line, outer.shape[0] - line), line : max(line, outer.shape[1] - line)]
        kept = inner.copy()
        outer[:] = colour
        inner[:] = kept
    return result
