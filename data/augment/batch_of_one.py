"""Augmentations whose single images are batches of one: both backends draw and compute by the same code."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from data.augment.augmentation import Augmentation, Canvas, SingleImage, stream


class BatchOfOne(Augmentation):
    """An augmentation by `choose` and `alter`, in place of `draw`, `apply` and `transforms`."""

    on_host = True

    @abstractmethod
    def choose(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Choices for `count` images, int64 (rows, count); those of an image do not depend on `count`."""

    @abstractmethod
    def alter(self, images: Tensor, *choices: Tensor) -> Tensor:
        """The augmented images of a batch, which stays as it is.

        Args:
            images: uint8 (n, height, width, 3), on any device.
            choices: int64 (n,) each, on the CPU.
        """

    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        return self.choose(stream(seed, epoch, *self.streams), count)

    def apply(self, canvas: Canvas, *choices: Tensor) -> None:
        canvas.images = self.alter(canvas.images, *choices)

    def transforms(self) -> Sequence[A.BasicTransform]:
        return (SingleImage(self._alter_one),)

    def _alter_one(self, image: np.ndarray, transform: SingleImage) -> np.ndarray:
        choices = torch.from_numpy(self.choose(transform.random_generator, 1))
        # A copy, since torch takes no array that is read-only or mirrored in memory.
        return self.alter(torch.from_numpy(image.copy())[None], *choices)[0].numpy()


def replace(images: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A batch in which those images that are chosen have become what `change` makes of them.

    Args:
        images: (n, ...), on any device.
        chosen: int64 (m,), their positions, on the CPU.
        change: m images to as many of the same shape.
    """
    if not len(chosen):
        return images
    if len(chosen) == len(images):
        return change(images)
    place = torch.arange(len(images))
    place[chosen] = torch.arange(len(images), len(images) + len(chosen))
    chosen, place = (index.to(images.device, non_blocking=True) for index in (chosen, place))
    # Whole images are copied like this; `index_copy` goes pixel by pixel on a CPU.
    return torch.cat([images, change(images.index_select(0, chosen))]).index_select(0, place)


def to_planes(images: Tensor) -> Tensor:
    """uint8 (n, height, width, 3) as float32 (3, n, height, width), one channel after the other in memory."""
    return images.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def from_planes(planes: Tensor) -> Tensor:
    """float32 (3, n, height, width), 0 to 255, as uint8 (n, height, width, 3), truncated."""
    # By way of int16 and by `stack`, which torch vectorises: three times as fast as a cast and a copy on a CPU.
    return torch.stack(planes.to(torch.int16).to(torch.uint8).unbind(), 3)


def luma(planes: Tensor) -> Tensor:
    """Grey values 0 to 254, truncated to integers as torchvision does: float32 (n, height, width)."""
    red, green, blue = planes
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()
