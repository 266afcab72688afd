"""Augmentation with albumentations, a function of (seed, epoch, image index) alone.

Whatever process, worker or order an image is drawn in, it gets the same crop, flip and hole. albumentations keeps one
generator per pipeline, which repeats itself across workers and epochs; it is therefore replaced for every image.
"""

import os
import random
from typing import Any

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
            steps.append(CutOut(cutout, tuple(round(255 * value) for value in fill)))
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


class CutOut(A.ImageOnlyTransform):
    """Fills a square whose centre is uniform over the image's pixels and which hangs over the border there.

    albumentations' CoarseDropout keeps its hole inside the image: it would always erase the whole square, and the
    centre of the image three times as often as the paper.

    Args:
        side: of the square in pixels.
        fill: value per channel, on a scale of 0 to 255.
    """

    def __init__(self, side: int, fill: tuple[int, ...]):
        super().__init__(p=1.0)
        self.side, self.fill = side, fill

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        return {"row": self.py_random.randrange(height), "column": self.py_random.randrange(width)}

    def apply(self, img: np.ndarray, row: int, column: int, **_: Any) -> np.ndarray:
        top, left = row - self.side // 2, column - self.side // 2
        image = img.copy()
        image[max(top, 0) : top + self.side, max(left, 0) : left + self.side] = self.fill
        return image
