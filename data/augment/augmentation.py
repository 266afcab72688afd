"""What an augmentation is, for both backends.

What an image gets is a function of (seed, epoch, image index) alone, whatever process, worker or order it is loaded in.
The two backends draw differently, so a run keeps the one that it began with:

- tensor: the choices of an epoch are drawn for all images at once, on the CPU, from numbered streams of random numbers;
  whole batches are augmented on their device.
- albumentations: images are augmented one by one, each with a generator of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import albumentations as A
import numpy as np
from torch import Tensor

from data.augment.canvas import Canvas


class Augmentation(ABC):
    """One augmentation of uint8 RGB images, whose result is uint8 RGB too.

    Attributes:
        streams: the numbers of its streams for the tensor backend; no two augmentations share one.
        on_canvas: whether it moves or paints on a batch's canvas; those that do come last in a batch.
        margin: pixels around the image that it needs on the canvas.
        needs_original: whether it takes the image before it is fitted to the model's size, and fits it itself.
    """

    streams: ClassVar[tuple[int, ...]]
    on_canvas: ClassVar[bool] = False
    needs_original: ClassVar[bool] = False
    margin: int = 0

    @abstractmethod
    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        """Choices for images 0 to count - 1, int64 (rows, count); those of an image do not depend on `count`."""

    @abstractmethod
    def apply(self, canvas: Canvas, *choices: Tensor) -> None:
        """Augments a batch of n images; of each row of `draw`, `choices` has the n that belong to them."""

    def transforms(self) -> Sequence[A.BasicTransform]:
        """The augmentation of single images, drawn and applied by albumentations."""
        return ()

    def prepare(self, image: np.ndarray, seed: int, epoch: int, index: int) -> np.ndarray:
        """What happens to a single image before any transform, if it depends on more than a random generator."""
        return image


def stream(seed: int, epoch: int, number: int) -> np.random.Generator:
    """A stream of random numbers, independent of those of the data order."""
    return np.random.default_rng([seed, epoch, 1 + number])  # 0 at the end would be the stream of the order
