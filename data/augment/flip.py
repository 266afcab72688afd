"""Horizontal flip."""

from collections.abc import Sequence
from typing import Literal

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from data.augment.augmentation import Augmentation, Canvas, stream
from utils.config import TrainConfig


class HorizontalFlip(Augmentation):
    """Mirrors images left to right.

    Args:
        mode: "random" (half of the images in every epoch) or "alternating": a random half in the first epoch, the other
            half in the next, and so on (Jordan 2024, arXiv:2404.00498).
    """

    streams = (2,)

    def __init__(self, mode: Literal["random", "alternating"]):
        self.alternating = mode == "alternating"

    @classmethod
    def from_config(cls, config: TrainConfig, image_size: int, mean: tuple[float, float, float]) -> Augmentation | None:
        return None if config.horizontal_flip == "none" else cls(config.horizontal_flip)

    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        """1 for images that are mirrored, else 0."""
        coins = stream(seed, 0 if self.alternating else epoch, *self.streams).integers(2, size=(1, count))
        return (coins + epoch) % 2 if self.alternating else coins

    def apply(self, canvas: Canvas, *choices: Tensor) -> None:
        (mirrored,) = choices
        images = canvas.images
        canvas.images = torch.where(mirrored.bool()[:, None, None, None], images.flip(2), images)

    def transforms(self) -> Sequence[A.BasicTransform]:
        return () if self.alternating else (A.HorizontalFlip(p=0.5),)

    def prepare(self, image: np.ndarray, seed: int, epoch: int, index: int) -> np.ndarray:
        if not self.alternating:
            return image
        coin = int(np.random.SeedSequence([seed, index]).generate_state(1)[0] & 1)  # mirrored in epoch 0
        return np.ascontiguousarray(image[:, ::-1]) if (epoch + coin) % 2 else image
