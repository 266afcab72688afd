"""Augmentation with albumentations, a function of (seed, epoch, image index) alone.

Whatever process, worker or order an image is drawn in, it gets the same crop, flip and hole. albumentations keeps one
generator per pipeline, which repeats itself across workers and epochs; it is therefore replaced for every image.
"""

import os
import random

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the package index for its version

import albumentations as A
import cv2
import numpy as np

# One thread per loader process: the images are small, and the cores belong to the training.
cv2.setNumThreads(0)


class Augmentation:
    """Random crop, horizontal flip and CutOut of one uint8 image (size, size, 3); the result has the same form.

    Args:
        image_size: side of the images in pixels.
        crop_padding: pixels added on each side before the random crop to image_size.
        horizontal_flip: "none", "random" (half of the images in every epoch) or "alternating": a random half in
            the first epoch, the other half in the next, and so on (Jordan 2024, arXiv:2404.00498).
        cutout: side of the erased square, centred on any pixel and hanging over the border there (DeVries and
            Taylor 2017, arXiv:1708.04552).
        fill: the erased square's value per channel, on a scale of 0 to 1; the mean of the data set.
        seed: of the run.
        padding_mode: what crop_padding adds: "zeros", or "reflect" for the image mirrored at its border.
    """

    def __init__(
        self,
        image_size: int,
        crop_padding: int = 0,
        horizontal_flip: str = "none",
        cutout: int = 0,
        fill: tuple[float, float, float] = (0.0, 0.0, 0.0),
        seed: int = 0,
        padding_mode: str = "zeros",
    ):
        steps: list[A.BasicTransform] = []
        if crop_padding:
            border = cv2.BORDER_REFLECT_101 if padding_mode == "reflect" else cv2.BORDER_CONSTANT
            steps.append(A.Pad(padding=crop_padding, fill=0, border_mode=border))
            steps.append(A.RandomCrop(image_size, image_size))
        if horizontal_flip == "random":
            steps.append(A.HorizontalFlip(p=0.5))
        if cutout:
            steps += _cutout(image_size, cutout, tuple(round(255 * value) for value in fill))
        self.pipeline = A.Compose(steps)
        self.alternating = horizontal_flip == "alternating"
        self.seed = seed

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        entropy = np.random.SeedSequence([self.seed, epoch, index]).generate_state(2, np.uint64)
        generator = np.random.Generator(np.random.PCG64(int(entropy[0])))
        self.pipeline.set_random_state(generator, random.Random(int(entropy[1])))
        if self.alternating and (epoch + _coin(self.seed, index)) % 2:
            image = np.ascontiguousarray(image[:, ::-1])
        return self.pipeline(image=image)["image"]


def _coin(seed: int, index: int) -> int:
    """0 or 1, fixed for an image: whether alternating flip begins with it mirrored."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] & 1)


def _cutout(image_size: int, side: int, fill: tuple[float, ...]) -> list[A.BasicTransform]:
    """A square whose centre is uniform over the image's pixels.

    CoarseDropout keeps its hole inside the image, so the image is padded by half the square, holed and cropped back:
    the hole's corner is then uniform over image_size positions from -side // 2, as in the paper.
    """
    before, after = side // 2, side - side // 2 - 1
    hole = A.CoarseDropout(
        num_holes_range=(1, 1), hole_height_range=(side, side), hole_width_range=(side, side), fill=fill, p=1.0
    )
    return [
        A.Pad(padding=(before, before, after, after), fill=0),
        hole,
        A.Crop(x_min=before, y_min=before, x_max=before + image_size, y_max=before + image_size),
    ]
