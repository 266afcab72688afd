"""RandomResizedCrop (Szegedy et al. 2014, arXiv:1409.4842, section 6), with torchvision's rules."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.augment.augmentation import Augmentation, Canvas, Channels, image_stream, stream
from data.jpeg import Box
from data.photo import TORCH_MODES, Photo
from data.preprocessing import INTERPOLATIONS, Geometry
from data.resample import kernel, to_levels
from utils.config import TrainConfig
from utils.config.resolution import Size

TRIES = 10  # boxes that are drawn; if none lies in the image, the largest central one of an allowed ratio is taken


class ResizedCrop(Augmentation):
    """Cuts a random part out of the image and scales it to the geometry's size, with antialiasing.

    Args:
        geometry: size of the result, and its interpolation.
        scale: range of the part's area, as shares of the image's.
        ratio: range of its width / height, whose logarithm is uniform.
        exact: decode photos at their full size; otherwise at a fraction of it, if the part allows.
    """

    streams = (5,)
    needs_original = True

    def __init__(
        self,
        geometry: Geometry,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        exact: bool = False,
    ):
        self.geometry, self.scale, self.ratio, self.exact = geometry, scale, ratio, exact

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        if config.crop != "resized":
            return None
        smallest, largest = (*config.crop_scale, 1.0)[:2]
        return cls(geometry, (smallest, largest), exact=config.exact_decode)

    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        """Top, left, height and width of the part; images of a batch have the geometry's size already."""
        return self.draw_boxes(stream(seed, epoch, *self.streams), *self.geometry.size, count)

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

    def draw_box(self, generator: np.random.Generator, height: int, width: int) -> Box:
        """As draw_boxes, of one image, in a fifth of the time."""
        uniform = generator.random(2 * TRIES + 2).tolist()
        smallest, largest = self.scale
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for first, second in zip(uniform[:TRIES], uniform[TRIES:-2], strict=True):
            area = height * width * (smallest + first * (largest - smallest))
            ratio = math.exp(low + second * (high - low))
            box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                top, left = uniform[-2] * (height - box_height + 1), uniform[-1] * (width - box_width + 1)
                return int(top), int(left), box_height, box_width
        return self._central(height, width)

    def _central(self, height: int, width: int) -> Box:
        """The largest box of an allowed ratio, at the centre."""
        box_width = min(width, max(1, round(height * self.ratio[1])))
        box_height = min(height, max(1, round(width / self.ratio[0])))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width

    def apply(self, canvas: Canvas, *choices: Tensor) -> None:
        # One by one torch's own kernel for uint8 is ten times as fast on a CPU; elsewhere there is none.
        fast = canvas.images.device.type == "cpu" and INTERPOLATIONS[self.geometry.interpolation] in TORCH_MODES
        scale = scale_one_by_one if fast else scale_together
        canvas.images = scale(canvas.images, torch.stack(choices), self.geometry.size, self.geometry.interpolation)

    def cut(self, photo: Photo, seed: int, epoch: int, index: int) -> np.ndarray:
        """As `apply`, of one photo of any size: the part is drawn first and decoded then."""
        generator = image_stream(seed, epoch, index, *self.streams)
        box = self.draw_box(generator, photo.height, photo.width)
        return photo.cut(box, self.geometry.size, INTERPOLATIONS[self.geometry.interpolation], self.exact)


def scale_one_by_one(images: Tensor, boxes: Tensor, size: Size, interpolation: str = "bilinear") -> Tensor:
    """Cuts a box out of each image, int64 (4, n): top, left, height, width, and scales it with antialiasing.

    Args:
        images: uint8 (n, height, width, 3).
        size: height and width of the result.
        interpolation: bilinear or bicubic.
    """
    result = images.new_empty(len(images), *size, 3)
    planes, places = images.permute(0, 3, 1, 2), result.permute(0, 3, 1, 2)
    for i, (top, left, height, width) in enumerate(boxes.T.tolist()):
        part = planes[i : i + 1, :, top : top + height, left : left + width]  # a batch, whose layout torch recognises
        places[i : i + 1] = F.interpolate(part, size, mode=interpolation, antialias=True)
    return result


def scale_together(images: Tensor, boxes: Tensor, size: Size, interpolation: str = "bilinear") -> Tensor:
    """As `scale_one_by_one` to within rounding, as two matrix products for all images; lanczos too."""
    top, left, height, width = boxes
    rows = _weights(top, height, images.shape[1], size[0], interpolation)
    columns = _weights(left, width, images.shape[2], size[1], interpolation)
    across = to_levels(torch.einsum("nhwc,njw->nhjc", images.float(), columns))  # across first, rounded in between
    return to_levels(torch.einsum("nih,nhjc->nijc", rows, across)).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, side: int, size: int, interpolation: str) -> Tensor:
    """How much each of `side` pixels counts in each of `size`, float32 (n, size, side), with antialiasing.

    Pixels outside of the part, from `start` (n,) on and `length` (n,) long, count nothing.
    """
    start, length = start[:, None, None].float(), length[:, None, None].float()
    position = torch.arange(side, device=start.device) + 0.5
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * length / size
    distance = (position - centre) / (length / size).clamp(min=1)
    weights = kernel(distance, interpolation) * ((position > start) & (position < start + length))
    return weights / weights.sum(2, keepdim=True)
