"""Augmentation of training images: one file each, and a line in create_augmentations."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing albumentations would ask the package index

from typing import Literal

from data.augment.augmentation import Augmentation
from data.augment.canvas import PaddingMode
from data.augment.crop import PaddedCrop
from data.augment.cutout import CutOut
from data.augment.flip import HorizontalFlip
from data.augment.pipeline import BatchPipeline, ImagePipeline
from data.augment.resized_crop import ResizedCrop


def create_augmentations(
    image_size: int,
    crop_padding: int = 0,
    horizontal_flip: Literal["none", "random", "alternating"] = "none",
    cutout: int = 0,
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0),
    padding_mode: PaddingMode = "zeros",
    crop: Literal["pad", "resized"] = "pad",
) -> list[Augmentation]:
    """The augmentations that are on, in the order in which single images get them.

    Args:
        image_size: side of the images in pixels.
        crop_padding: pixels added on each side before the random crop, if `crop` is "pad"; 0: no crop.
        horizontal_flip: as HorizontalFlip's mode, or "none".
        cutout: side of the erased square in pixels; 0: off.
        fill: the erased square's value per channel, on a scale of 0 to 1; the mean of the data set.
        padding_mode: what crop_padding adds: "zeros", or "reflect" for the image mirrored at its border.
        crop: "pad", or "resized" for parts of any size (RandomResizedCrop).
    """
    augmentations = [
        ResizedCrop(image_size) if crop == "resized" else None,
        PaddedCrop(image_size, crop_padding, padding_mode) if crop == "pad" and crop_padding else None,
        HorizontalFlip(horizontal_flip) if horizontal_flip != "none" else None,
        CutOut(image_size, cutout, fill) if cutout else None,
    ]
    return [augmentation for augmentation in augmentations if augmentation]
