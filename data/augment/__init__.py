"""Augmentation of training images: one file each, and a line of AUGMENTATIONS."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing albumentations would ask the package index

from pkgutil import resolve_name

from data.augment.augmentation import Augmentation
from data.augment.pipeline import BatchPipeline, ImagePipeline
from utils.config import TrainConfig

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
