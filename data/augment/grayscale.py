"""Random greyscale, as in SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A)."""

import numpy as np
from torch import Tensor

from data.augment.augmentation import Augmentation, Channels
from data.augment.batch_of_one import BatchOfOne, from_planes, luma, replace, to_planes
from data.preprocessing import Geometry
from utils.config import TrainConfig


class Grayscale(BatchOfOne):
    """Replaces the colours of a random share of the images by their luma, as torchvision's RandomGrayscale does.

    Args:
        probability: of an image in an epoch, 0 to 1.
    """

    streams = (10,)

    def __init__(self, probability: float):
        self.probability = probability

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        return cls(config.grayscale) if config.grayscale else None

    def choose(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """1 for images that turn grey, else 0."""
        return (generator.random((1, count)) < self.probability).astype(np.int64)

    def alter(self, images: Tensor, *choices: Tensor) -> Tensor:
        (chosen,) = choices
        return replace(images, chosen.nonzero()[:, 0], grey)


def grey(images: Tensor) -> Tensor:
    """Images uint8 (n, height, width, 3) without their colours."""
    return from_planes(luma(to_planes(images)).expand(3, -1, -1, -1))
