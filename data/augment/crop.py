"""Random crop of the padded image (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from collections.abc import Sequence
from typing import Literal

import albumentations as A
import cv2
import numpy as np
from torch import Tensor

from data.augment.augmentation import Augmentation, Canvas, Channels, stream
from data.preprocessing import Geometry
from utils.config import TrainConfig
from utils.config.resolution import Size


class PaddedCrop(Augmentation):
    """Pads the image on each side and crops it to its size at a random place.

    Args:
        size: height and width of the images in pixels.
        padding: pixels on each side.
        mode: "zeros", or "reflect" for the image mirrored at its border.
    """

    streams = (0, 1)
    stage = 1

    def __init__(self, size: Size, padding: int, mode: Literal["zeros", "reflect"]):
        self.size, self.padding, self.mode = size, padding, mode
        self.margin = padding

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        asked = config.crop == "pad" and config.crop_padding
        return cls(geometry.size, config.crop_padding, config.padding_mode) if asked else None

    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        """Row and column of the crop's corner in the padded image."""
        places = 2 * self.padding + 1
        return np.stack([stream(seed, epoch, number).integers(places, size=count) for number in self.streams])

    def apply(self, canvas: Canvas, *choices: Tensor) -> None:
        canvas.crop(self.padding, self.mode, *choices)

    def transforms(self) -> Sequence[A.BasicTransform]:
        border = cv2.BORDER_REFLECT_101 if self.mode == "reflect" else cv2.BORDER_CONSTANT
        return A.Pad(padding=self.padding, fill=0, border_mode=border), A.RandomCrop(*self.size)
