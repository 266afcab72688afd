"""The splits of a data set: training, validation and test images with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from data.images import Images
from data.paths import shared
from data.preprocessing import Channels, Geometry
from utils.config.resolution import plain_size
from utils.system.errors import UserError
from utils.system.files import digest


@dataclass(frozen=True)
class Split:
    """Part of a data set: `images`, `labels` (int64, one per image), and `paths` if the images are files."""

    images: Images
    labels: np.ndarray
    paths: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "Split":
        """The images at these positions, with labels and paths; no image is copied."""
        paths = shared(self.paths).subset(indices) if self.paths else ()
        return Split(self.images.subset(indices), self.labels[indices], paths)

    def digest(self) -> str:
        """SHA-256 over images and labels; files count by path, size and time of modification."""
        return digest(chain(self.images.content(), [self.labels.tobytes()]))


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on. `mean` and `std` are per channel, on a scale of 0 to 1."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    geometry: Geometry
    mean: Channels
    std: Channels

    def describe(self) -> dict[str, Any]:
        """Name, number of classes, size, and of each split the number of images and their digest."""
        size = plain_size(self.geometry.size)
        described: dict[str, Any] = {"name": self.name, "classes": len(self.class_names), "image_size": size}
        for name in ("train", "validation", "test"):
            if (split := getattr(self, name)) is not None:
                described[name] = {"images": len(split), "sha256": split.digest()}
        return described


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of the larger and of the smaller part; a function of its arguments alone."""
    from sklearn.model_selection import train_test_split

    try:
        rest, held_out = train_test_split(
            np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise UserError(f"validation_fraction: {fraction} cannot be split off {len(labels)} images: {error}") from error
    return np.sort(rest), np.sort(held_out)
