"""What an augmentation is, for both backends.

What an image gets is a function of (seed, epoch, image index) alone, whatever process, worker or order it is loaded in.
The two backends draw differently, so a run keeps the one that it began with:

- tensor: the choices of an epoch are drawn for all images at once, on the CPU, from numbered streams of random numbers;
  whole batches are augmented on their device.
- albumentations: images are augmented one by one, each with a generator of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from utils.config import TrainConfig


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

    @classmethod
    def from_config(
        cls, config: TrainConfig, image_size: int, mean: tuple[float, float, float]
    ) -> "Augmentation | None":
        """As the options ask for it, for images of `image_size` pixels a side; None if it is off, as it is by default.

        Args:
            mean: of the training images per channel, on a scale of 0 to 1.
        """
        return None

    @abstractmethod
    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        """Choices for images 0 to count - 1, int64 (rows, count); those of an image do not depend on `count`."""

    @abstractmethod
    def apply(self, canvas: "Canvas", *choices: Tensor) -> None:
        """Augments a batch of n images; of each row of `draw`, `choices` has the n that belong to them."""

    def transforms(self) -> Sequence[A.BasicTransform]:
        """The augmentation of single images, drawn and applied by albumentations."""
        return ()

    def prepare(self, image: np.ndarray, seed: int, epoch: int, index: int) -> np.ndarray:
        """What happens to a single image before any transform, if it depends on more than a random generator."""
        return image


class SingleImage(A.ImageOnlyTransform):
    """An augmentation of single images that albumentations does not have.

    Args:
        augment: (image, this transform) to the augmented image, drawn from the transform's generators `py_random` and
            `random_generator`.
    """

    def __init__(self, augment: Callable[[np.ndarray, "SingleImage"], np.ndarray]):
        super().__init__(p=1.0)
        self.augment = augment

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        return self.augment(img, self)


def stream(seed: int, epoch: int, number: int) -> np.random.Generator:
    """A stream of random numbers, independent of those of the data order."""
    return np.random.default_rng([seed, epoch, 1 + number])  # 0 at the end would be the stream of the order


class Canvas:
    """The images of a batch, and around each of them a margin for crops and for what hangs over the border.

    The margin is laid out when it is first needed, and the images are cut out when they are read: one memory copy each
    and no Python work per image.

    Args:
        images: uint8 (n, size, size, 3).
        margin: pixels on each side, enough for all augmentations together.
    """

    def __init__(self, images: Tensor, margin: int):
        self.images, self._margin = images, margin
        # Once laid out, the corner of image i is at (corner + row[i], corner + column[i]).
        self._corner = 0
        self._row: Tensor | int = 0
        self._column: Tensor | int = 0

    @property
    def images(self) -> Tensor:
        """uint8 (n, size, size, 3)."""
        if self._pixels is not None:
            size = self._images.shape[1]
            crops = self._windows(size, self._corner)[self._item, self._row, self._column]
            self.images = crops.unflatten(2, (size, 3))
        return self._images

    @images.setter
    def images(self, images: Tensor) -> None:
        self._images = images
        self._pixels: Tensor | None = None

    def crop(self, padding: int, mode: Literal["zeros", "reflect"], row: Tensor, column: Tensor) -> None:
        """Pads every image and cuts it out anew, its corner int64 (n,) pixels from that of the padded image."""
        self._lay_out()
        if mode == "reflect":
            self._reflect(padding)
        self._corner -= padding
        self._row, self._column = self._row + row, self._column + column

    def fill(self, side: int, row: Tensor, column: Tensor, value: Tensor) -> None:
        """Fills a square of every image, its corner int64 (n,) pixels from one `side // 2` above and left of its own.

        Args:
            value: uint8 (3,), on the device.
        """
        self._lay_out()
        windows = self._windows(side, self._corner - side // 2)
        windows[self._item, self._row + row, self._column + column] = value.repeat(side)

    def _lay_out(self) -> None:
        if self._pixels is not None:
            return
        count, size, margin = len(self._images), self._images.shape[1], self._margin
        self._pixels = self._images.new_zeros(count, size + 2 * margin, size + 2 * margin, 3)
        self._pixels[:, margin : margin + size, margin : margin + size] = self._images
        self._item = torch.arange(count, device=self._images.device)
        self._corner, self._row, self._column = margin, 0, 0

    def _reflect(self, padding: int) -> None:
        """Mirrors the images at their borders, which they must not have left yet."""
        pixels, start = self._pixels, self._corner
        assert pixels is not None
        end = start + self._images.shape[1]
        low, high = start - padding, end + padding
        pixels[:, low:start, start:end] = pixels[:, start + 1 : start + 1 + padding, start:end].flip(1)
        pixels[:, end:high, start:end] = pixels[:, end - 1 - padding : end - 1, start:end].flip(1)
        pixels[:, low:high, low:start] = pixels[:, low:high, start + 1 : start + 1 + padding].flip(2)
        pixels[:, low:high, end:high] = pixels[:, low:high, end - 1 - padding : end - 1].flip(2)

    def _windows(self, size: int, start: int) -> Tensor:
        """The square windows whose corners are at least `start` pixels from the canvas's, as a view (n, places, places,
        size, 3 * size)."""
        pixels = self._pixels
        assert pixels is not None
        count, side = pixels.shape[:2]
        places = side - size + 1 - start
        shape, strides = (count, places, places, size, 3 * size), (3 * side * side, 3 * side, 3, 3 * side, 1)
        return pixels.as_strided(shape, strides, pixels.storage_offset() + start * (3 * side + 3))
