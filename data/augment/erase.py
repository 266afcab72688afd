"""Random erasing (Zhong et al. 2017, arXiv:1708.04896)."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.augment.augmentation import Augmentation, Channels
from data.augment.batch_of_one import BatchOfOne
from data.preprocessing import Geometry
from utils.config import TrainConfig
from utils.config.resolution import Size

AREA = (0.02, 1 / 3)  # share of the image's
RATIO = (0.3, 3.3)  # height / width
TRIES = 10  # boxes that are drawn; if none is smaller than the image, nothing is erased
LEVELS = 1 << 16  # quantiles of the noise


class Erase(BatchOfOne):
    """Replaces a random box of a random share of the images, with the rules of torchvision's RandomErasing.

    Args:
        size: height and width of the images in pixels.
        probability: of an image in an epoch, 0 to 1.
        mode: "pixel" for noise, timm's `pixel` mode: every value is drawn by itself from a normal distribution with its
            channel's mean and std, and clamped to 0 to 255; "constant" for the mean.
        mean: of the training images per channel, on a scale of 0 to 1.
        std: likewise.
    """

    streams = (12,)
    stage = 2

    def __init__(
        self,
        size: Size,
        probability: float,
        mode: Literal["pixel", "constant"],
        mean: Channels,
        std: Channels,
    ):
        self.size, self.probability = size, probability
        self.table = normal_levels(mean, std if mode == "pixel" else (0.0, 0.0, 0.0))

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        return cls(geometry.size, config.erase, config.erase_mode, mean, std) if config.erase else None

    def choose(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Top, left, height and width of the box, 0 by 0 for none; start and stride of its noise, below 2^31."""
        uniform = generator.random((count, 5 + 2 * TRIES))
        whether, corner, noise = uniform[:, 0], uniform[:, 1:3].T, uniform[:, 3:5].T
        height, width = self.size
        area = height * width * (AREA[0] + uniform[:, 5 : 5 + TRIES] * (AREA[1] - AREA[0]))
        low, high = np.log(RATIO)
        ratio = np.exp(low + uniform[:, 5 + TRIES :] * (high - low))
        heights, widths = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        inside = (heights < height) & (widths < width)
        first, image = inside.argmax(1), np.arange(count)
        box = np.stack([heights[image, first], widths[image, first]])
        corner = np.floor(corner * ([[height], [width]] - box + 1))
        drawn = np.concatenate([corner, box, np.floor(noise * 2**31)]).astype(np.int64)
        return np.where((whether < self.probability) & inside.any(1), drawn, 0)

    def alter(self, images: Tensor, *choices: Tensor) -> Tensor:
        chosen = (choices[2] * choices[3]).nonzero()[:, 0]  # in tiny images a box may be a line of no pixels
        if not len(chosen):
            return images
        result, boxes = images.clone(memory_format=torch.contiguous_format), torch.stack(choices)
        # One by one on a CPU, so that a box stays in its cache.
        for some in chosen.split(1 if images.device.type == "cpu" else len(chosen)):
            self.fill(result, some, boxes[:, some])
        return result

    def fill(self, images: Tensor, chosen: Tensor, boxes: Tensor) -> None:
        """Fills a box of each chosen image in place, int64 (6, n) as of `choose`."""
        rows, widest = int(boxes[2].sum()), int(boxes[3].max())
        chosen, boxes = (tensor.to(images.device, non_blocking=True) for tensor in (chosen, boxes))
        box, pixel = pixels_of(boxes[:4], images.shape[2], rows, widest)
        channel = torch.arange(3, device=images.device)[:, None, None]
        value = 3 * pixel + channel  # of its image, (3, rows, widest)
        start, stride = boxes[4:, box, None].int()
        quantile = random_bits(start, stride, value.int()).bitwise_and_(LEVELS - 1).add_(LEVELS * channel.int())
        self.table = self.table.to(images.device, non_blocking=True)
        noise = self.table.index_select(0, quantile.flatten())
        place = value.add_((chosen[box] * images[0].numel())[:, None])
        images.view(-1).index_copy_(0, place.flatten(), noise)


def pixels_of(boxes: Tensor, stride: int, rows: int, widest: int) -> tuple[Tensor, Tensor]:
    """The pixels of several boxes, row by row: the number of their box, int64 (rows,), and their position in an image
    whose rows have `stride` pixels, int64 (rows, widest).

    Rows of narrower boxes repeat their last pixel.

    Args:
        boxes: top, left, height and width, int64 (4, n).
        rows: the sum of their heights; passed, as the largest width, so that the host need not wait for the device.
    """
    top, left, height, width = boxes
    box = torch.repeat_interleave(height, output_size=rows)
    row = torch.arange(rows, device=boxes.device) + (top - height.cumsum(0) + height)[box]
    column = torch.arange(widest, device=boxes.device).minimum(width[box, None] - 1)
    return box, column.add_((row * stride + left[box])[:, None])


def random_bits(start: Tensor, stride: Tensor, counter: Tensor) -> Tensor:
    """32 random bits of a counter: the same on every device, and whatever else is computed.

    start + stride * counter is mixed by a finalizer of the kind of MurmurHash3's, with multipliers that Wellons'
    hash-prospector found. All is int32, whose sums and products torch reduces modulo 2^32.

    Args:
        start, stride: random numbers of the image, not negative. The stride is made odd, so that no two counters of an
            image have the same bits.
        counter: not negative.
    """
    bits = counter.mul(stride | 1).add_(start)
    for multiplier, shift in ((0x21F0AAAD, 16), (0x735A2D97, 15)):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(multiplier)
    return bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF))


def normal_levels(mean: Channels, std: Channels) -> Tensor:
    """The quantiles (k + 1/2) / LEVELS of each channel's normal distribution, rounded and clamped to 0 to 255.

    A table, since logarithms and cosines differ in their last bit between devices.

    Args:
        mean, std: on a scale of 0 to 1.

    Returns: uint8 (3 * LEVELS,), one channel after the other.
    """
    share = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    centre, spread = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (mean, std))
    levels = 255 * (centre + spread * torch.special.ndtri(share))
    return levels.round().clamp(0, 255).to(torch.uint8).flatten()
