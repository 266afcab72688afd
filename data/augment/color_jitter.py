"""Random brightness, contrast, saturation and hue, by the rules of torchvision's ColorJitter.

Every change is written twice: image by image for a CPU, where OpenCV knows pixels of three channels and torch does not
(it is twice as fast), and for all images of a batch, one channel after the other, for other devices.
"""

from collections.abc import Sequence
from itertools import permutations

import cv2
import numpy as np
import torch
from torch import Tensor

from data.augment.augmentation import Augmentation, Channels, from_fixed, to_fixed
from data.augment.batch_of_one import BatchOfOne, from_planes, luma, to_planes
from data.preprocessing import Geometry
from utils.config import TrainConfig

ORDERS = tuple(permutations(range(4)))
LUMA = np.array([[0.2989, 0.587, 0.114]], np.float32)  # torchvision's
TO_LEVELS = 255.999 / 255  # by which torchvision scales back to uint8 after the hue


class ColorJitter(BatchOfOne):
    """Changes brightness, contrast, saturation and hue, in a random order of its own for every image, as torchvision.

    Each change truncates to whole levels, as torchvision's v2 kernels do on uint8. With the same draws the brightness
    is theirs to the bit; of the others, rounding in float32 moves fewer than one value in 1,000 by one level.

    Args:
        strengths: of brightness, contrast, saturation and hue, 0 for none. The first three multiply by a factor that is
            uniform from max(0, 1 - strength) to 1 + strength; the hue turns by a share of the circle that is uniform
            from -strength to strength (at most 0.5).
    """

    streams = (9,)

    def __init__(self, strengths: Sequence[float]):
        brightness, contrast, saturation, hue = strengths
        self.low = np.array([*(max(0.0, 1 - s) for s in (brightness, contrast, saturation)), -hue])
        self.high = np.array([1 + brightness, 1 + contrast, 1 + saturation, hue])
        self.used = [number for number, strength in enumerate(strengths) if strength]

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        strengths = config.color_jitter
        if len(strengths) == 1:
            strengths = 3 * strengths
        return cls([*strengths, 0.0][:4]) if any(strengths) else None

    def choose(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Which of ORDERS; factors of brightness, contrast and saturation and turn of the hue, in fixed point."""
        uniform = generator.random((count, 5))
        order = np.floor(uniform[:, 0] * len(ORDERS)).astype(np.int64)
        return np.stack([order, *to_fixed(self.low + uniform[:, 1:] * (self.high - self.low)).T])

    def alter(self, images: Tensor, *choices: Tensor) -> Tensor:
        orders = [ORDERS[number] for number in choices[0].tolist()]
        amounts = from_fixed(torch.stack(choices[1:]))
        if images.device.type == "cpu":
            return self._one_by_one(images, orders, amounts.T.tolist())
        return self.together(images, orders, amounts)

    def _one_by_one(self, images: Tensor, orders: list[tuple[int, ...]], amounts: list[list[float]]) -> Tensor:
        result = torch.empty_like(images)
        for image, order, own, place in zip(images, orders, amounts, result.numpy(), strict=True):
            pixels = image.contiguous().float()
            for number in order:
                if number in self.used:
                    ONE_BY_ONE[number](pixels, own[number])
            np.copyto(place, pixels.numpy(), casting="unsafe")
        return result

    def together(self, images: Tensor, orders: list[tuple[int, ...]], amounts: Tensor) -> Tensor:
        """As `alter`, by what any device can compute.

        Args:
            amounts: real numbers of the four changes, float32 (4, n).
        """
        amounts = amounts.to(images.device, non_blocking=True)[:, :, None, None]
        planes = to_planes(images)
        for step in range(4):
            for number in self.used:
                mine = [image for image, order in enumerate(orders) if order[step] == number]
                if mine:
                    chosen = torch.tensor(mine).to(images.device, non_blocking=True)
                    part = planes.index_select(1, chosen)
                    TOGETHER[number](part, amounts[number].index_select(0, chosen))
                    planes.index_copy_(1, chosen, part)
        return from_planes(planes)


# -- one image, float32 (height, width, 3), in place ------------------------------------------------------------------


def _brightness_of_one(pixels: Tensor, factor: float) -> None:
    pixels.mul_(factor).clamp_(0, 255).floor_()


def _contrast_of_one(pixels: Tensor, factor: float) -> None:
    mean = _luma_of_one(pixels).mean((0, 1), keepdim=True)[..., None]
    pixels.mul_(factor).add_(mean, alpha=1 - factor).clamp_(0, 255).floor_()


def _saturation_of_one(pixels: Tensor, factor: float) -> None:
    grey = cv2.cvtColor(_luma_of_one(pixels).numpy(), cv2.COLOR_GRAY2RGB)
    cv2.addWeighted(pixels.numpy(), factor, grey, 1 - factor, 0, dst=pixels.numpy())
    pixels.clamp_(0, 255).floor_()


def _hue_of_one(pixels: Tensor, turn: float) -> None:
    hsv = cv2.cvtColor(pixels.numpy(), cv2.COLOR_RGB2HSV)
    hsv = cv2.add(hsv, (360 * (turn % 1), 0, 0, 0), dst=hsv)  # back from up to 720 degrees, but not from below 0
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=pixels.numpy())
    pixels.mul_(TO_LEVELS).clamp_(0, 255).floor_()


def _luma_of_one(pixels: Tensor) -> Tensor:
    return torch.from_numpy(cv2.transform(pixels.numpy(), LUMA)).floor_()


# -- a batch, float32 (3, n, height, width), in place, by an amount (n, 1, 1) -----------------------------------------


def _brightness(planes: Tensor, factor: Tensor) -> None:
    planes.mul_(factor).clamp_(0, 255).floor_()


def _contrast(planes: Tensor, factor: Tensor) -> None:
    mean = luma(planes).mean((1, 2), keepdim=True)
    planes.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 255).floor_()


def _saturation(planes: Tensor, factor: Tensor) -> None:
    grey = luma(planes).mul_(1 - factor)
    planes.mul_(factor).add_(grey).clamp_(0, 255).floor_()


def _hue(planes: Tensor, turn: Tensor) -> None:
    """On the circle of hues red is 0, yellow 1, green 2, and so on to 6, red again."""
    red, green, blue = planes
    low, top = planes.amin(0), planes.amax(0)
    span = top - low
    hue = torch.where(
        blue == top, red - green + 4 * span, torch.where(green == top, blue - red + 2 * span, green - blue)
    )
    hue = (hue / span.clamp(min=1) + 6 * turn).remainder_(6)
    red.copy_(low + span * ((hue - 3).abs() - 1).clamp_(0, 1))
    green.copy_(top - span * ((hue - 2).abs() - 1).clamp_(0, 1))
    blue.copy_(top - span * ((hue - 4).abs() - 1).clamp_(0, 1))
    planes.mul_(TO_LEVELS).floor_()


ONE_BY_ONE = (_brightness_of_one, _contrast_of_one, _saturation_of_one, _hue_of_one)
TOGETHER = (_brightness, _contrast, _saturation, _hue)
