"""Augmentation of whole batches as tensor operations on their device: no Python work and no memory copy per image.

The same distributions as data/augmentation.py. What an image gets is a function of (seed, epoch, image index) alone:
the choices of an epoch are drawn for all images at once, on the CPU, so that they are the same on every device.
"""

import numpy as np
import torch
from torch import Tensor


class TensorAugmentation:
    """Random crop, horizontal flip and CutOut of a batch of uint8 images (n, size, size, 3), and so is the result.

    The arguments are those of data.augmentation.Augmentation.
    """

    def __init__(
        self,
        image_size: int,
        crop_padding: int = 0,
        horizontal_flip: str = "none",
        cutout: int = 0,
        fill: tuple[float, float, float] = (0.0, 0.0, 0.0),
        seed: int = 0,
        padding_mode: str = "zeros",
    ):
        self.image_size, self.crop_padding, self.padding_mode = image_size, crop_padding, padding_mode
        self.horizontal_flip, self.cutout, self.seed = horizontal_flip, cutout, seed
        self.fill = torch.tensor([round(255 * value) for value in fill], dtype=torch.uint8)

    def draw(self, epoch: int, count: int) -> Tensor:
        """The choices for images 0 to count - 1 in an epoch, int64 (count, 5): crop row and column, whether mirrored,
        row and column of the hole's corner, each counted from its lowest possible value."""
        positions, corners = 2 * self.crop_padding + 1, self.image_size
        choices = np.zeros((5, count), dtype=np.int64)
        for row, high in enumerate((positions, positions, 2, corners, corners)):
            if row == 2 and self.horizontal_flip == "alternating":
                choices[row] = (self._generator(0, row).integers(high, size=count) + epoch) % 2
            elif row != 2 or self.horizontal_flip == "random":
                choices[row] = self._generator(epoch, row).integers(high, size=count)
        return torch.from_numpy(choices.T.copy())

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        """One stream for each choice: an image's draw does not depend on how many there are."""
        return np.random.default_rng([self.seed, epoch, 1 + stream])  # 0 at the end would be the stream of the order

    def __call__(self, images: Tensor, choices: Tensor) -> Tensor:
        """Augments images by the rows of `draw` that belong to them, on the same device."""
        row, column, mirrored, hole_row, hole_column = choices.unbind(1)
        if self.horizontal_flip != "none":
            images = torch.where(mirrored.bool()[:, None, None, None], images.flip(2), images)
        if not self.crop_padding and not self.cutout:
            return images
        # A canvas with room for every crop and, around that, for a hole that hangs over the crop's border.
        room = self.cutout // 2
        canvas = self._canvas(images, room)
        item = torch.arange(len(images), device=images.device)
        if self.cutout:
            fill = self.fill.to(images.device, non_blocking=True).repeat(self.cutout)
            _windows(canvas, self.cutout)[item, row + hole_row, column + hole_column] = fill
        crops = _windows(canvas, self.image_size)[item, row + room, column + room]
        return crops.unflatten(2, (self.image_size, 3))

    def _canvas(self, images: Tensor, room: int) -> Tensor:
        """The images with crop_padding pixels of border, and `room` more without meaning."""
        size, padding = self.image_size, self.crop_padding
        side, start = size + 2 * (padding + room), padding + room
        end = start + size
        canvas = images.new_zeros(len(images), side, side, 3)
        canvas[:, start:end, start:end] = images
        if self.padding_mode == "reflect" and padding:
            low, high = start - padding, end + padding
            canvas[:, low:start, start:end] = canvas[:, start + 1 : start + 1 + padding, start:end].flip(1)
            canvas[:, end:high, start:end] = canvas[:, end - 1 - padding : end - 1, start:end].flip(1)
            canvas[:, low:high, low:start] = canvas[:, low:high, start + 1 : start + 1 + padding].flip(2)
            canvas[:, low:high, end:high] = canvas[:, low:high, end - 1 - padding : end - 1].flip(2)
        return canvas


def _windows(canvas: Tensor, size: int) -> Tensor:
    """Every square window of (n, side, side, 3) as a view: (n, side - size + 1, side - size + 1, size, 3 * size)."""
    count, side = canvas.shape[:2]
    places = side - size + 1
    return canvas.as_strided(
        (count, places, places, size, 3 * size), (3 * side * side, 3 * side, 3, 3 * side, 1), canvas.storage_offset()
    )
