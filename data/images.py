"""Images by position: one contract for arrays, files, and whatever else holds images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data.photo import ArrayPhoto, Photo

BLOCK = 1024  # images that a digest reads at a time

Positions = Sequence[int] | np.ndarray


class Images(ABC):
    """uint8 RGB images (height, width, 3), fitted to the model's size.

    A new kind of images implements `__len__` and `take`; the rest follows from them.

    Attributes:
        fitted: whether the images were cropped or scaled, so that they differ from `photos`.
    """

    fitted: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: Positions) -> np.ndarray:
        """The images at these positions, a new array (n, height, width, 3)."""

    def decode(self, indices: Positions) -> np.ndarray:
        """As `take`, on several threads if that is faster; not for loader workers, which share the cores."""
        return self.take(indices)

    def photos(self, indices: Positions) -> list[Photo]:
        """The images at these positions before they were fitted, each of its own size."""
        return [ArrayPhoto(image) for image in self.take(indices)]

    @property
    def in_memory(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The array that holds the images, (m, height, width, 3), and their positions in it; None if `take` decodes."""
        return None

    def content(self) -> Iterator[Any]:
        """What a digest of the images is computed over, as bytes or arrays: by default their pixels."""
        for start in range(0, len(self), BLOCK):
            yield np.ascontiguousarray(self.take(np.arange(start, min(start + BLOCK, len(self)))))

    def subset(self, indices: np.ndarray) -> "Images":
        """The images at these positions, as images of their own."""
        return Subset(self, indices)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """One image at a position, or an array of those at several."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        positions = np.asarray(index)
        return self.take(positions) if positions.ndim else self.take(positions[None])[0]


class InMemory(Images):
    """Images in one array, often a file that all processes of the machine map.

    Args:
        array: uint8 (n, height, width, 3).
        files: the files that were decoded and fitted to become `array`, if any.
    """

    def __init__(self, array: np.ndarray, files: Images | None = None):
        self.array, self.files, self.fitted = array, files, files is not None

    def __len__(self) -> int:
        return len(self.array)

    def take(self, indices: Positions) -> np.ndarray:
        return self.array[np.asarray(indices)]

    def photos(self, indices: Positions) -> list[Photo]:
        return self.files.photos(indices) if self.files else super().photos(indices)

    @property
    def in_memory(self) -> tuple[np.ndarray, np.ndarray]:
        return self.array, np.arange(len(self))


class Subset(Images):
    """A selection of other images, without a copy: position i is images[indices[i]]."""

    def __init__(self, images: Images, indices: np.ndarray):
        self.images, self.indices, self.fitted = images, indices, images.fitted

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Positions) -> np.ndarray:
        return self.images.take(self.indices[np.asarray(indices)])

    def photos(self, indices: Positions) -> list[Photo]:
        return self.images.photos(self.indices[np.asarray(indices)])

    @property
    def in_memory(self) -> tuple[np.ndarray, np.ndarray] | None:
        found = self.images.in_memory
        return found and (found[0], found[1][self.indices])
