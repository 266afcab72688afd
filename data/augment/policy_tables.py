"""What the policies choose from: the operations, their magnitudes, and the tables that AutoAugment found.

All as in torchvision 0.29.
"""

from typing import NamedTuple

import numpy as np
import torch

from data.augment.operations import OPERATIONS

NAMES = tuple(OPERATIONS)
CHOSEN_AT_RANDOM = 14  # of them: TrivialAugment and RandAugment never invert


class Space(NamedTuple):
    """How strong the operations are: magnitudes go in equal steps from nothing, bin 0, to these.

    Attributes:
        bins: how many magnitudes there are.
        shear: pixels to the side per pixel.
        pixels: of a translation; None: a share of the side, 150 pixels of 331.
        degrees: of a rotation.
        colour: how far the factor of Brightness, Color, Contrast and Sharpness is from 1.
        bits: that Posterize takes away.
    """

    bins: int
    shear: float
    pixels: float | None
    degrees: float
    colour: float
    bits: int

    def magnitudes(self, operation: str, height: int, width: int) -> list[float]:
        """The magnitude in each bin for images of height x width pixels; zeros if the operation has none."""
        largest = {
            "Shear": self.shear,
            "Translate": self.pixels or 150 / 331 * (width if operation == "TranslateX" else height),
            "Rotate": self.degrees,
            "Brightness": self.colour, "Color": self.colour, "Contrast": self.colour, "Sharpness": self.colour,
        }  # fmt: skip
        if operation == "Posterize":  # bits that are left
            return (8 - torch.arange(self.bins) / ((self.bins - 1) / self.bits)).round().tolist()
        if operation == "Solarize":  # the threshold, as a share of white
            return torch.linspace(1, 0, self.bins).tolist()
        return torch.linspace(0, largest.get(operation.rstrip("XY"), 0), self.bins).tolist()


WIDE = Space(bins=31, shear=0.99, pixels=32, degrees=135, colour=0.99, bits=6)  # TrivialAugmentWide
RAND = Space(bins=31, shear=0.3, pixels=None, degrees=30, colour=0.9, bits=4)
AUTO = RAND._replace(bins=10)


class Table(NamedTuple):
    """AutoAugment's sub-policies, of which each image gets one: arrays (25, 2) for its two operations.

    Attributes:
        operation: int64, places in NAMES.
        probability: that the operation is applied, 0 to 1.
        bin: int64, of its magnitude.
    """

    operation: np.ndarray
    probability: np.ndarray
    bin: np.ndarray


def _read(text: str) -> Table:
    words = np.array([[part.split() for part in line.split(",")] for line in text.strip().splitlines()])
    operation = np.array([[NAMES.index(name) for name in row] for row in words[..., 0].tolist()])
    return Table(operation, words[..., 1].astype(np.float64), words[..., 2].astype(np.int64))


# Operation, probability and bin of the first and of the second (Cubuk et al. 2019, appendix).
TABLES = {
    "imagenet": _read("""
    Posterize 0.4 8, Rotate 0.6 9
    Solarize 0.6 5, AutoContrast 0.6 0
    Equalize 0.8 0, Equalize 0.6 0
    Posterize 0.6 7, Posterize 0.6 6
    Equalize 0.4 0, Solarize 0.2 4
    Equalize 0.4 0, Rotate 0.8 8
    Solarize 0.6 3, Equalize 0.6 0
    Posterize 0.8 5, Equalize 1.0 0
    Rotate 0.2 3, Solarize 0.6 8
    Equalize 0.6 0, Posterize 0.4 6
    Rotate 0.8 8, Color 0.4 0
    Rotate 0.4 9, Equalize 0.6 0
    Equalize 0.0 0, Equalize 0.8 0
    Invert 0.6 0, Equalize 1.0 0
    Color 0.6 4, Contrast 1.0 8
    Rotate 0.8 8, Color 1.0 2
    Color 0.8 8, Solarize 0.8 7
    Sharpness 0.4 7, Invert 0.6 0
    ShearX 0.6 5, Equalize 1.0 0
    Color 0.4 0, Equalize 0.6 0
    Equalize 0.4 0, Solarize 0.2 4
    Solarize 0.6 5, AutoContrast 0.6 0
    Invert 0.6 0, Equalize 1.0 0
    Color 0.6 4, Contrast 1.0 8
    Equalize 0.8 0, Equalize 0.6 0
    """),
    "cifar10": _read("""
    Invert 0.1 0, Contrast 0.2 6
    Rotate 0.7 2, TranslateX 0.3 9
    Sharpness 0.8 1, Sharpness 0.9 3
    ShearY 0.5 8, TranslateY 0.7 9
    AutoContrast 0.5 0, Equalize 0.9 0
    ShearY 0.2 7, Posterize 0.3 7
    Color 0.4 3, Brightness 0.6 7
    Sharpness 0.3 9, Brightness 0.7 9
    Equalize 0.6 0, Equalize 0.5 0
    Contrast 0.6 7, Sharpness 0.6 5
    Color 0.7 7, TranslateX 0.5 8
    Equalize 0.3 0, AutoContrast 0.4 0
    TranslateY 0.4 3, Sharpness 0.2 6
    Brightness 0.9 6, Color 0.2 8
    Solarize 0.5 2, Invert 0.0 0
    Equalize 0.2 0, AutoContrast 0.6 0
    Equalize 0.2 0, Equalize 0.6 0
    Color 0.9 9, Equalize 0.6 0
    AutoContrast 0.8 0, Solarize 0.2 8
    Brightness 0.1 3, Color 0.7 0
    Solarize 0.4 5, AutoContrast 0.9 0
    TranslateY 0.9 9, TranslateY 0.7 9
    AutoContrast 0.9 0, Solarize 0.8 3
    Equalize 0.8 0, Invert 0.1 0
    TranslateY 0.7 9, AutoContrast 0.9 0
    """),
    "svhn": _read("""
    ShearX 0.9 4, Invert 0.2 0
    ShearY 0.9 8, Invert 0.7 0
    Equalize 0.6 0, Solarize 0.6 6
    Invert 0.9 0, Equalize 0.6 0
    Equalize 0.6 0, Rotate 0.9 3
    ShearX 0.9 4, AutoContrast 0.8 0
    ShearY 0.9 8, Invert 0.4 0
    ShearY 0.9 5, Solarize 0.2 6
    Invert 0.9 0, AutoContrast 0.8 0
    Equalize 0.6 0, Rotate 0.9 3
    ShearX 0.9 4, Solarize 0.3 3
    ShearY 0.8 8, Invert 0.7 0
    Equalize 0.9 0, TranslateY 0.6 6
    Invert 0.9 0, Equalize 0.6 0
    Contrast 0.3 3, Rotate 0.8 4
    Invert 0.8 0, TranslateY 0.0 2
    ShearY 0.7 6, Solarize 0.4 8
    Invert 0.6 0, Rotate 0.8 4
    ShearY 0.3 7, TranslateX 0.9 3
    ShearX 0.1 6, Invert 0.6 0
    Solarize 0.7 2, TranslateY 0.6 7
    ShearY 0.8 4, Invert 0.8 0
    ShearX 0.7 9, TranslateY 0.8 3
    ShearY 0.8 5, AutoContrast 0.7 0
    ShearX 0.7 2, Invert 0.1 0
    """),
}
