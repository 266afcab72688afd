"""CutOut (DeVries and Taylor 2017, arXiv:1708.04552)."""

from collections.abc import Sequence

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from data.augment.augmentation import Augmentation, Canvas, Channels, SingleImage, stream
from data.preprocessing import Geometry, mean_colour
from utils.config import TrainConfig
from utils.config.resolution import Size


class CutOut(Augmentation):
    """Fills a square whose centre is uniform over the image's pixels and which hangs over the border there.

    Args:
        size: height and width of the images in pixels.
        side: of the square in pixels.
        fill: value per channel, on a scale of 0 to 1, such as the mean of the data set.
    """

    streams = (3, 4)
    stage = 1

    def __init__(self, size: Size, side: int, fill: Channels):
        self.size, self.side = size, side
        self.margin = side // 2
        self.fill = mean_colour(fill)
        self._value = torch.tensor(self.fill, dtype=torch.uint8)

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        return cls(geometry.size, config.cutout, mean) if config.cutout else None

    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        """Row and column of the square's corner, counted from its lowest, which is outside of the image."""
        streams = zip(self.streams, self.size, strict=True)
        return np.stack([stream(seed, epoch, number).integers(side, size=count) for number, side in streams])

    def apply(self, canvas: Canvas, *choices: Tensor) -> None:
        row, column = choices
        canvas.fill(self.side, row, column, self._value.to(row.device, non_blocking=True))

    def transforms(self) -> Sequence[A.BasicTransform]:
        return (SingleImage(self._erase),)

    def _erase(self, image: np.ndarray, transform: SingleImage) -> np.ndarray:
        """A copy with the square erased.

        albumentations' CoarseDropout keeps its hole inside the image: it would always erase the whole square, and the
        centre of the image three times as often as the paper.
        """
        row, column = (transform.py_random.randrange(side) for side in image.shape[:2])
        top, left = row - self.side // 2, column - self.side // 2
        image = image.copy()
        image[max(top, 0) : top + self.side, max(left, 0) : left + self.side] = self.fill
        return image
