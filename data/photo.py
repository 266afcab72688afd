"""A photo before it is fitted to the model: its size is known before it is decoded, and any part can be cut out."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from data.jpeg import Box, reduced
from utils.config.resolution import Size

# What torch scales as Pillow does, in a quarter of the time: of 100 values one at most differs, by 1 (seldom by more in
# bicubic).
TORCH_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


class Photo(ABC):
    """An RGB image of its own size."""

    @property
    @abstractmethod
    def height(self) -> int:
        """In pixels, of the upright photo."""

    @property
    @abstractmethod
    def width(self) -> int:
        """In pixels, of the upright photo."""

    @abstractmethod
    def decode(self, reduction: int = 1) -> Image.Image:
        """The whole photo in RGB, upright; its sides may be those of the photo divided by `reduction`, rounded up.

        Args:
            reduction: 1, 2, 4 or 8.
        """

    def whole(self) -> np.ndarray:
        """uint8 (height, width, 3)."""
        return np.asarray(self.decode())

    def cut(self, box: Box, size: Size, method: Image.Resampling, exact: bool = False) -> np.ndarray:
        """A part of the photo scaled to `size`, with antialiasing: uint8 (height, width, 3).

        Args:
            box: top, left, height and width of the part.
            size: height and width of the result.
            exact: decode at full size; otherwise at 1/2, 1/4 or 1/8, if the part keeps at least `size` pixels. Its
                edges are then rounded to multiples of 2, 4 or 8 pixels.
        """
        return scaled(self._part(box, 1 if exact else reduction_for(box, size)), size, method)

    def _part(self, box: Box, reduction: int) -> np.ndarray:
        """A part of the photo, at 1/reduction of its size or as it is."""
        image = self.decode(reduction)
        if image.size == (self.width, self.height):
            reduction = 1
        (top, bottom), (left, right) = reduced(box[0], box[2], reduction), reduced(box[1], box[3], reduction)
        return np.array(image.crop((left, top, right, bottom)))


class ArrayPhoto(Photo):
    """A photo that is an array, uint8 (height, width, 3)."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    def decode(self, reduction: int = 1) -> Image.Image:
        return Image.fromarray(self.pixels)

    def whole(self) -> np.ndarray:
        return self.pixels

    def _part(self, box: Box, reduction: int) -> np.ndarray:
        top, left, height, width = box
        return self.pixels[top : top + height, left : left + width]


def reduction_for(box: Box, size: Size) -> int:
    """The largest of 1, 2, 4 and 8 at which a part still has at least `size` pixels."""
    most = min(box[2] // size[0], box[3] // size[1])
    return 8 if most >= 8 else 4 if most >= 4 else 2 if most >= 2 else 1


def scaled(pixels: np.ndarray, size: Size, method: Image.Resampling) -> np.ndarray:
    """uint8 (height, width, 3) scaled to `size`, with antialiasing: a new array of that shape."""
    if pixels.shape[:2] == size:
        return pixels.copy()
    if method not in TORCH_MODES:
        return np.array(Image.fromarray(pixels).resize((size[1], size[0]), method))
    if not pixels.flags.writeable:  # torch warns of an array that it could not write to
        pixels = pixels.copy()
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # channels last, which is what its fast path needs
    result = F.interpolate(images, size, mode=TORCH_MODES[method], antialias=True)
    return np.ascontiguousarray(result.permute(0, 2, 3, 1)[0].numpy())
