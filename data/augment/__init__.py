"""Augmentation of training images: one file each, and a line of AUGMENTATIONS.

A pipeline applies those of a run to single images (albumentations) or to batches on their device (tensor).
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing albumentations would ask the package index

from collections.abc import Sequence
from pkgutil import resolve_name

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from data.augment.augmentation import Augmentation, Canvas, Channels, generators
from data.augment.pipeline_file import FilePipeline
from data.photo import ArrayPhoto, Photo
from data.preprocessing import Geometry
from utils.config import TrainConfig

# One thread per loader process: the images are small, and the cores belong to the training.
cv2.setNumThreads(0)

AUGMENTATIONS = (  # in the order in which single images get them
    "resized_crop.ResizedCrop",
    "crop.PaddedCrop",
    "flip.HorizontalFlip",
    "flip.VerticalFlip",
    "rotate.Rotate",
    "policy.AutomaticAugmentation",
    "color_jitter.ColorJitter",
    "grayscale.Grayscale",
    "blur.GaussianBlur",
    "cutout.CutOut",
    "erase.Erase",
)


def create_augmentations(
    config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels, pipeline: bytes = b""
) -> list[Augmentation]:
    """The augmentations that the options turn on, in order.

    Args:
        geometry: of the images.
        mean, std: of the training images per channel, on a scale of 0 to 1.
        pipeline: the content of `augment_file`, if there is one, which replaces all others.
    """
    if config.augment_file is not None:
        return [FilePipeline(pipeline, config.augment_file, geometry.size)]
    kinds = (resolve_name(f"data.augment.{name}") for name in AUGMENTATIONS)
    augmentations = (kind.from_config(config, geometry, mean, std) for kind in kinds)
    return [augmentation for augmentation in augmentations if augmentation]


class ImagePipeline:
    """Augments uint8 RGB images (height, width, 3) one by one, with albumentations.

    albumentations keeps one generator per pipeline, which repeats itself across workers and epochs; it is therefore
    replaced for every image.

    Attributes:
        takes_photos: whether images come as photos, before they are fitted.
    """

    def __init__(self, augmentations: Sequence[Augmentation], seed: int = 0):
        self.augmentations, self.seed = augmentations, seed
        self._cutting = next((step for step in augmentations if step.needs_original), None)
        self.takes_photos = self._cutting is not None
        self.transform = A.Compose([transform for step in augmentations for transform in step.transforms()])

    def __call__(self, image: np.ndarray | Photo, epoch: int, index: int) -> np.ndarray:
        """Augments an image by its draw in an epoch."""
        if self._cutting:
            photo = image if isinstance(image, Photo) else ArrayPhoto(image)
            image = self._cutting.cut(photo, self.seed, epoch, index)
        assert isinstance(image, np.ndarray)
        if self.transform.transforms:
            self.transform.set_random_state(*generators(self.seed, epoch, index))
        for step in self.augmentations:
            image = step.prepare(image, self.seed, epoch, index)
        return self.transform(image=image)["image"] if self.transform.transforms else image


class BatchPipeline:
    """Augments batches of uint8 RGB images (n, height, width, 3), without Python work or a memory copy per image.

    The choices of an epoch are drawn on the CPU, so they are the same on every device. Augmentations come by their
    stage, so that those on the canvas share one.
    """

    def __init__(self, augmentations: Sequence[Augmentation], seed: int = 0):
        self.augmentations = sorted(augmentations, key=lambda step: step.stage)
        self.seed, self.margin = seed, sum(step.margin for step in augmentations)
        self._rows = [len(step.draw(seed, 0, 1)) for step in self.augmentations]

    def draw(self, epoch: int, count: int) -> Tensor:
        """The choices for images 0 to count - 1 in an epoch, int64 (count, all rows of all augmentations)."""
        drawn = [step.draw(self.seed, epoch, count) for step in self.augmentations]
        return torch.from_numpy(np.concatenate([np.empty((0, count), np.int64), *drawn]).T.copy())

    def __call__(self, images: Tensor, choices: Tensor, on_host: Tensor | None = None) -> Tensor:
        """Augments images by the rows of `draw` that belong to them.

        Args:
            choices: on the device of the images.
            on_host: the same on the CPU; by default they are copied from the device, which the host waits for.
        """
        canvas = Canvas(images, self.margin)
        if on_host is None:
            on_host = choices.cpu() if any(step.on_host for step in self.augmentations) else choices
        both = zip(choices.split(self._rows, 1), on_host.split(self._rows, 1), strict=True)
        for step, (on_device, host) in zip(self.augmentations, both, strict=True):
            step.apply(canvas, *(host if step.on_host else on_device).unbind(1))
        return canvas.images
