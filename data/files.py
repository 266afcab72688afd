"""Image files: how they are decoded, and images that stay on disk until they are needed."""

import json
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.images import Images, Positions
from data.preprocessing import fit
from utils.system.errors import UserError
from utils.system.ranks import local_world_size
from utils.system.threads import asked_threads, available_cores

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
# What a file may hold, whatever its name says. Pillow reads many more, some of them by starting other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Odd metadata is harmless, and images of up to 179 million pixels, twice what Pillow warns of, are photos.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Mean bytes per file from which on threads pay. Around small images Pillow takes and releases the interpreter's lock so
# often that two threads need twice the time of one (CIFAR-10 as JPEG, 1 KB each).
THREADS_PAY_FROM = 8 * 1024


class ImageFiles(Images):
    """Images on disk, decoded and fitted to `size` pixels whenever they are taken."""

    fitted = True

    def __init__(self, paths: Sequence[str | Path], size: int):
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Positions) -> np.ndarray:
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        self._fill(images, indices)
        return images

    def decode(self, indices: Positions, block: int = 64) -> np.ndarray:
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        starts = range(0, len(indices), block)
        with ThreadPoolExecutor(self._threads()) as pool:
            list(pool.map(lambda at: self._fill(images[at : at + block], indices[at : at + block]), starts))
        return images

    def _fill(self, images: np.ndarray, indices: Positions) -> None:
        for position, index in enumerate(indices):
            images[position] = read_image(self.paths[index], self.size)

    def originals(self, indices: Positions) -> list[np.ndarray]:
        return [np.asarray(decode_file(self.paths[index])) for index in indices]

    def content(self) -> Iterator[Any]:
        """Paths, sizes and times of modification, since reading all files would take minutes."""
        files = [(str(path), os.stat(path)) for path in self.paths]
        yield json.dumps([(path, status.st_size, status.st_mtime_ns) for path, status in files]).encode()

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        return ImageFiles([self.paths[index] for index in indices], self.size)

    def _threads(self) -> int:
        """As many as pay for files of this size."""
        sample = self.paths[:: max(1, len(self.paths) // 100)]
        sizes = [os.path.getsize(path) for path in sample if os.path.isfile(path)]
        cores, (_, asked) = available_cores(), asked_threads(os.environ, local_world_size())
        return min(cores, asked or cores) if sum(sizes) >= THREADS_PAY_FROM * len(sizes) else 1


def read_image(path: str | Path, size: int) -> np.ndarray:
    """An image file fitted to uint8 RGB (size, size, 3). Raises UserError as decode_file does."""
    return fit(decode_file(path, size), size)


def decode_file(path: str | Path, size: int | None = None) -> Image.Image:
    """An image file as RGB of 8 bits a channel, upright, of its own size.

    - A photo is turned as its EXIF orientation says.
    - An animation is represented by its first frame.
    - Transparent parts are shown on white.
    - 16 bits a channel become the 8 of the same shade. Floating-point pixels are refused, since their scale is unknown.
    - The format is that of the content (FORMATS), not of the name.

    Raises UserError with the path if the file has another format, is damaged or truncated, or has more than 179 million
    pixels (Pillow's guard against files that unpack to more than the memory).

    Args:
        size: the image is going to be fitted to so many pixels, so a JPEG may be decoded at 1/2, 1/4 or 1/8 of its
            size, in a fraction of the time, if both sides stay at least as long.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise OSError("it is not a file")
        with Image.open(path, formats=FORMATS) as image:
            if size is not None:
                image.draft("RGB", (size, size))
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return to_rgb(image)
    except Exception as error:  # on damaged files Pillow raises errors of almost every kind
        reason = str(error) or type(error).__name__
        raise UserError(f"data_dir: {path} is not a readable image ({reason})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """As RGB of 8 bits a channel, on white. Pillow alone would clip 16-bit grey at 255 and show hidden colours."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
