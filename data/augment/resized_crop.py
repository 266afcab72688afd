"""RandomResizedCrop (Szegedy et al. 2014, arXiv:1409.4842, section 6), with torchvision's rules."""

from collections.abc import Sequence

import albumentations as A
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.augment.augmentation import Augmentation, Canvas, SingleImage, stream

TRIES = 10  # boxes that are drawn; if none lies in the image, the largest central one of an allowed ratio is taken


class ResizedCrop(Augmentation):
    """Cuts a random part out of the image and scales it to size x size pixels, with antialiasing.

    Args:
        size: side of the result in pixels.
        scale: range of the part's area, as shares of the image's.
        ratio: range of its width / height, whose logarithm is uniform.
    """

    streams = (5,)
    needs_original = True

    def __init__(
        self, size: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
    ):
        self.size, self.scale, self.ratio = size, scale, ratio

    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        """Top, left, height and width of the part; images of a batch have size x size pixels."""
        return self.draw_boxes(stream(seed, epoch, *self.streams), self.size, self.size, count)

    def draw_boxes(self, generator: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
        """Boxes in images of height x width pixels, int64 (4, count): top, left, height, width."""
        uniform = generator.random((count, 2 * TRIES + 2))
        area = height * width * (self.scale[0] + uniform[:, :TRIES] * (self.scale[1] - self.scale[0]))
        low, high = np.log(self.ratio)
        ratio = np.exp(low + uniform[:, TRIES:-2] * (high - low))
        widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        inside = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first, image = inside.argmax(1), np.arange(count)
        drawn = np.stack([heights[image, first], widths[image, first]])
        corner = np.floor(uniform[:, -2:].T * ([[height], [width]] - drawn + 1))
        box = np.where(inside.any(1), np.concatenate([corner, drawn]), np.array([self._central(height, width)]).T)
        return box.astype(np.int64)

    def _central(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The largest box of an allowed ratio, at the centre."""
        box_width = min(width, max(1, round(height * self.ratio[1])))
        box_height = min(height, max(1, round(width / self.ratio[0])))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width

    def apply(self, canvas: Canvas, *choices: Tensor) -> None:
        top, left, height, width = choices
        images = canvas.images
        rows = _weights(top, height, images.shape[1], self.size)
        columns = _weights(left, width, images.shape[2], self.size)
        scaled = torch.einsum("nih,nhwc,njw->nijc", rows, images.float(), columns)
        canvas.images = scaled.round().clamp(0, 255).to(torch.uint8)

    def transforms(self) -> Sequence[A.BasicTransform]:
        return (SingleImage(self._cut),)

    def _cut(self, image: np.ndarray, transform: SingleImage) -> np.ndarray:
        """As `apply`, of one image of any size, by Pillow."""
        boxes = self.draw_boxes(transform.random_generator, image.shape[0], image.shape[1], 1)
        top, left, height, width = boxes[:, 0].tolist()
        part = Image.fromarray(image[top : top + height, left : left + width])
        return np.array(part.resize((self.size, self.size), Image.Resampling.BILINEAR))


def _weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """How much each of `side` pixels counts in each of `size`, float32 (n, size, side): bilinear, antialiased.

    Pixels outside of the part, from `start` (n,) on and `length` (n,) long, count nothing.
    """
    start, length = start[:, None, None].float(), length[:, None, None].float()
    position = torch.arange(side, device=start.device) + 0.5
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * length / size
    distance = (position - centre).abs() / (length / size).clamp(min=1)
    weights = (1 - distance).clamp(min=0) * ((position > start) & (position < start + length))
    return weights / weights.sum(2, keepdim=True)
