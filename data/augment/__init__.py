"""Augmentation of training images: one file each, and a line of AUGMENTATIONS.

A pipeline applies those of a run to single images (albumentations) or to batches on their device (tensor).
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing albumentations would ask the package index

import random
from collections.abc import Sequence
from pkgutil import resolve_name

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from data.augment.augmentation import Augmentation, Canvas
from utils.config import TrainConfig

# One thread per loader process: the images are small, and the cores belong to the training.
cv2.setNumThreads(0)

AUGMENTATIONS = (  # in the order in which single images get them
    "resized_crop.ResizedCrop",
    "crop.PaddedCrop",
    "flip.HorizontalFlip",
    "cutout.CutOut",
)


def create_augmentations(config: TrainConfig, image_size: int, mean: tuple[float, float, float]) -> list[Augmentation]:
    """The augmentations that the options turn on, in order.

    Args:
        image_size: side of the images in pixels.
        mean: of the training images per channel, on a scale of 0 to 1.
    """
    kinds = (resolve_name(f"data.augment.{name}") for name in AUGMENTATIONS)
    augmentations = (kind.from_config(config, image_size, mean) for kind in kinds)
    return [augmentation for augmentation in augmentations if augmentation]


class ImagePipeline:
    """Augments uint8 RGB images (height, width, 3) one by one, with albumentations.

    albumentations keeps one generator per pipeline, which repeats itself across workers and epochs; it is therefore
    replaced for every image.
    """

    def __init__(self, augmentations: Sequence[Augmentation], seed: int = 0):
        self.augmentations, self.seed = augmentations, seed
        self.needs_original = any(step.needs_original for step in augmentations)
        self.transform = A.Compose([transform for step in augmentations for transform in step.transforms()])

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        entropy = np.random.SeedSequence([self.seed, epoch, index]).generate_state(2, np.uint64)
        generator = np.random.Generator(np.random.PCG64(int(entropy[0])))
        self.transform.set_random_state(generator, random.Random(int(entropy[1])))
        for step in self.augmentations:
            image = step.prepare(image, self.seed, epoch, index)
        return self.transform(image=image)["image"]


class BatchPipeline:
    """Augments batches of uint8 RGB images (n, size, size, 3), without Python work or a memory copy per image.

    The choices of an epoch are drawn on the CPU, so they are the same on every device. Augmentations on the canvas come
    last, so that they share one.
    """

    def __init__(self, augmentations: Sequence[Augmentation], seed: int = 0):
        self.augmentations = sorted(augmentations, key=lambda step: step.on_canvas)
        self.seed, self.margin = seed, sum(step.margin for step in augmentations)
        self._rows = [len(step.draw(seed, 0, 1)) for step in self.augmentations]

    def draw(self, epoch: int, count: int) -> Tensor:
        """The choices for images 0 to count - 1 in an epoch, int64 (count, all rows of all augmentations)."""
        drawn = [step.draw(self.seed, epoch, count) for step in self.augmentations]
        return torch.from_numpy(np.concatenate([np.empty((0, count), np.int64), *drawn]).T.copy())

    def __call__(self, images: Tensor, choices: Tensor) -> Tensor:
        """Augments images by the rows of `draw` that belong to them, on the same device."""
        canvas = Canvas(images, self.margin)
        for step, own in zip(self.augmentations, choices.split(self._rows, 1), strict=True):
            step.apply(canvas, *own.unbind(1))
        return canvas.images
