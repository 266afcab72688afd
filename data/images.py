"""Images by position, in memory or on disk, and splits of them."""

import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from utils.system.errors import UserError
from utils.system.launcher import available_cores
from utils.system.ranks import local_world_size
from utils.system.threads import asked_threads

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
# What a file may hold, whatever its name says. Pillow reads many more, some of them by starting other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Odd metadata is of no interest here, and images of up to 179 million pixels, twice what Pillow warns of, are photos.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Bytes of an average file from which on threads decode faster than one. Around small images Pillow takes and gives
# back the interpreter's lock so often that two threads need twice the time of one (CIFAR-10 as JPEG, 1 KB each).
THREADS_PAY_FROM = 8 * 1024


class Images(Protocol):
    """Images by position: each uint8, (size, size, 3), RGB. In memory, several positions give an array of them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class ImageFiles:
    """Images that stay on disk and are decoded when they are asked for."""

    def __init__(self, paths: Sequence[str | Path], size: int):
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], self.size)

    def decode(self, indices: Sequence[int] | np.ndarray, block: int = 64) -> np.ndarray:
        """The images at these positions as one array, uint8 (n, size, size, 3)."""
        decoded = np.empty((len(indices), self.size, self.size, 3), np.uint8)

        def fill(start: int) -> None:
            for position in range(start, min(start + block, len(indices))):
                decoded[position] = self[indices[position]]

        with ThreadPoolExecutor(self._threads()) as pool:
            list(pool.map(fill, range(0, len(indices), block)))
        return decoded

    def _threads(self) -> int:
        """As many as pay for files of this size."""
        sample = self.paths[:: max(1, len(self.paths) // 100)]
        sizes = [os.path.getsize(path) for path in sample if os.path.isfile(path)]
        cores, (_, asked) = available_cores(), asked_threads(os.environ, local_world_size())
        return min(cores, asked or cores) if sum(sizes) >= THREADS_PAY_FROM * len(sizes) else 1


class Selected:
    """Some images of an array that stays whole, where all processes of the machine share it.

    Position i is array[indices[i]]; a slice or an array of positions gives a copy of those images.
    """

    def __init__(self, array: np.ndarray, indices: np.ndarray):
        self.array, self.indices = array, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        return self.array[self.indices[index]]


@dataclass(frozen=True)
class Split:
    """Part of a data set: `images` (uint8, RGB, HWC), `labels` (int64, one per image), `paths` where they are files."""

    images: Images
    labels: np.ndarray
    paths: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "Split":
        images = self.images
        paths = [self.paths[index] for index in indices] if self.paths else ()
        if isinstance(images, ImageFiles):
            chosen: Images = ImageFiles([images.paths[index] for index in indices], images.size)
        elif isinstance(images, Selected):
            chosen = Selected(images.array, images.indices[indices])
        else:
            chosen = Selected(np.asarray(images), indices)
        return Split(chosen, self.labels[indices], paths)

    def in_memory(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The array that has the images, (n, size, size, 3), and their positions in it; None if they are on disk."""
        if isinstance(self.images, ImageFiles):
            return None
        if isinstance(self.images, Selected):
            return self.images.array, self.images.indices
        return np.asarray(self.images), np.arange(len(self.images))


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Decodes one file to uint8 RGB (size, size, 3): upright, scaled to cover the square, cropped at its centre.

    - A photo is turned as its EXIF orientation says.
    - Of an animation, the first frame is taken.
    - What is transparent is shown on white.
    - 16 bits a channel become the 8 that have the same shade. Floating-point pixels are refused: nobody says what white
      is.
    - The format is that of the content (FORMATS), not of the name.

    Raises UserError naming the path of what is no such file, is damaged or cut short, or has more than 179 million
    pixels (Pillow's guard against files that unpack to more than the memory).
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited on
            raise OSError("it is not a file")
        with Image.open(path, formats=FORMATS) as image:
            image.draft("RGB", (size, size))
            ImageOps.exif_transpose(image, in_place=True)
            return as_square(image, size)
    except Exception as error:  # on damaged files Pillow raises errors of almost every kind
        reason = str(error) or type(error).__name__
        raise UserError(f"data_dir: {path} is not a readable image ({reason})") from error


def as_square(image: Image.Image, size: int) -> np.ndarray:
    """uint8 RGB (size, size, 3), scaled to cover the square and cropped at its centre."""
    image = _rgb(image)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _rgb(image: Image.Image) -> Image.Image:
    """As RGB with 8 bits a channel, on white. Pillow alone would cut 16-bit grey off at 255 and show hidden colours."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
