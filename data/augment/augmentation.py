"""What an augmentation is, for both backends.

What an image gets is a function of (seed, epoch, image index) alone, whatever process, worker or order it is loaded in.
The two backends draw differently, so a run keeps the one that it began with:

- tensor: the choices of an epoch are drawn for all images at once, on the CPU, from numbered streams of random numbers;
  whole batches are augmented on their device.
- albumentations: images are augmented one by one, each with a generator of its own.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from data.photo import Photo
from data.preprocessing import Channels, Geometry
from utils.config import TrainConfig

UNIT = 4096  # so that products of a factor and a pixel, below 2^24, are exact in float32


class Augmentation(ABC):
    """One augmentation of uint8 RGB images, whose result is uint8 RGB too.

    Attributes:
        streams: the numbers of its streams for the tensor backend; no two augmentations share one.
        stage: when a batch gets it: 0 before the canvas, 1 on the canvas, where it moves or paints, 2 after it.
        margin: pixels around the image that it needs on the canvas.
        on_host: whether `apply` gets its choices on the CPU, such as to group the images by what happens to them.
        needs_original: whether it takes the photo before it is fitted to the model's size, by `cut`.
    """

    streams: ClassVar[tuple[int, ...]]
    stage: ClassVar[Literal[0, 1, 2]] = 0
    on_host: ClassVar[bool] = False
    needs_original: ClassVar[bool] = False
    margin: int = 0

    @classmethod
    def from_config(
        cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels
    ) -> "Augmentation | None":
        """As the options ask for it, for images of the geometry's size; None if it is off, as it is by default.

        Args:
            mean, std: of the training images per channel, on a scale of 0 to 1.
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

    def cut(self, photo: Photo, seed: int, epoch: int, index: int) -> np.ndarray:
        """The image of the model's size that it makes of a photo, before all else, if it `needs_original`."""
        raise NotImplementedError


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


def image_stream(seed: int, epoch: int, index: int, number: int) -> np.random.Generator:
    """A stream of random numbers for a single image, independent of those that its transforms get."""
    return np.random.default_rng([seed, epoch, index, 1 + number])


def stream(seed: int, epoch: int, number: int) -> np.random.Generator:
    """A stream of random numbers, independent of those of the data order."""
    return np.random.default_rng([seed, epoch, 1 + number])  # 0 at the end would be the stream of the order


def to_fixed(values: np.ndarray) -> np.ndarray:
    """Real numbers as choices, int64: rounded to multiples of 1 / UNIT."""
    return np.rint(values * UNIT).astype(np.int64)


def from_fixed(choices: Tensor) -> Tensor:
    """The real numbers that `to_fixed` gave, float32 and exact below 2^12."""
    return choices.float() / UNIT


def generators(seed: int, epoch: int, index: int) -> tuple[np.random.Generator, random.Random]:
    """The two generators that albumentations draws from, for one image in one epoch."""
    entropy = np.random.SeedSequence([seed, epoch, index]).generate_state(2, np.uint64)
    return np.random.Generator(np.random.PCG64(int(entropy[0]))), random.Random(int(entropy[1]))


class Canvas:
    """The images of a batch, and around each of them a margin for crops and for what hangs over the border.

    The margin is laid out when it is first needed, and the images are cut out when they are read: one memory copy each
    and no Python work per image.

    Args:
        images: uint8 (n, height, width, 3).
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
        """uint8 (n, height, width, 3)."""
        if self._pixels is not None:
            height, width = self._images.shape[1:3]
            crops = self._windows(height, width, self._corner)[self._item, self._row, self._column]
            self.images = crops.unflatten(2, (width, 3))
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
        windows = self._windows(side, side, self._corner - side // 2)
        windows[self._item, self._row + row, self._column + column] = value.repeat(side)

    def _lay_out(self) -> None:
        if self._pixels is not None:
            return
        count, height, width, _ = self._images.shape
        margin = self._margin
        self._pixels = self._images.new_zeros(count, height + 2 * margin, width + 2 * margin, 3)
        self._pixels[:, margin : margin + height, margin : margin + width] = self._images
        self._item = torch.arange(count, device=self._images.device)
        self._corner, self._row, self._column = margin, 0, 0

    def _reflect(self, padding: int) -> None:
        """Mirrors the images at their borders, which they must not have left yet."""
        pixels, start = self._pixels, self._corner
        assert pixels is not None
        bottom, right = start + self._images.shape[1], start + self._images.shape[2]
        low, across = start - padding, slice(start, right)
        pixels[:, low:start, across] = pixels[:, start + 1 : start + 1 + padding, across].flip(1)
        pixels[:, bottom : bottom + padding, across] = pixels[:, bottom - 1 - padding : bottom - 1, across].flip(1)
        down = slice(low, bottom + padding)
        pixels[:, down, low:start] = pixels[:, down, start + 1 : start + 1 + padding].flip(2)
        pixels[:, down, right : right + padding] = pixels[:, down, right - 1 - padding : right - 1].flip(2)

    def _windows(self, height: int, width: int, start: int) -> Tensor:
        """The windows of that size whose corners are at least `start` pixels from the canvas's, as a view (n, rows,
        columns, height, 3 * width)."""
        pixels = self._pixels
        assert pixels is not None
        count, rows, columns, _ = pixels.shape
        shape = (count, rows - height + 1 - start, columns - width + 1 - start, height, 3 * width)
        strides = (3 * rows * columns, 3 * columns, 3, 3 * columns, 1)
        return pixels.as_strided(shape, strides, pixels.storage_offset() + start * (3 * columns + 3))
