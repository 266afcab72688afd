"""Random rotation."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.augment.augmentation import Augmentation, Channels
from data.augment.batch_of_one import BatchOfOne
from data.augment.operations import apply_, to_device, to_uint8
from data.preprocessing import Geometry, mean_colour
from utils.config import TrainConfig

STEPS = 2**24  # of which an angle is one


class Rotate(BatchOfOne):
    """Turns images around their centre by an angle that is uniform within +-degrees, with bilinear interpolation.

    The corners get the mean colour. A pixel on the edge is a blend of both by the parts that they cover, which differs
    from `fill` of torchvision 0.29: that takes the image's part twice, and a dark line runs around the image.

    Args:
        degrees: the largest angle.
        fill: the colour of the corners, 0 to 255.
    """

    streams = (7,)

    def __init__(self, degrees: float, fill: tuple[int, int, int]):
        self.degrees = degrees
        self._fill = torch.tensor(fill, dtype=torch.float32)

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        return cls(config.rotate, mean_colour(mean)) if config.rotate else None

    def choose(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """The angle, in STEPS from the most clockwise to the most counter-clockwise."""
        return generator.integers(STEPS, size=(1, count))

    def angles(self, choices: np.ndarray) -> np.ndarray:
        """Of choices, in degrees, counter-clockwise."""
        return self.degrees * ((2 * choices + 1) / STEPS - 1)

    def alter(self, images: Tensor, *choices: Tensor) -> Tensor:
        angles = np.radians(self.angles(choices[0].numpy()))
        result = images.clone()
        apply_(self._turn, result, to_device(np.stack([np.cos(angles), np.sin(angles)], 1), images))
        return result

    def _turn(self, images: Tensor, turns: Tensor) -> Tensor:
        """Turns images by the cosine and sine of their angles, float32 (n, 2)."""
        height, width = images.shape[1:3]
        fill = self._fill.to(images.device, non_blocking=True)
        cos, sin = turns[..., None, None].unbind(1)
        x = torch.arange(width, device=images.device) - (width - 1) / 2
        y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
        source = torch.stack([(cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)], 3)
        # grid_sample has zeros outside, so the fill is moved to zero, row by row since channel by channel is slow.
        pixels = images.flatten(2).float().sub_(fill.repeat(width)).view(images.shape).permute(0, 3, 1, 2)
        pixels = F.grid_sample(pixels, source, padding_mode="zeros", align_corners=False)
        pixels = to_uint8(pixels.add_(fill[:, None, None]).round_())
        return torch.stack(pixels.unbind(1), 3)
