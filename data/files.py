"""Image files: how they are decoded, and images that stay on disk until they are needed."""

import contextlib
import functools
import json
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from data.images import Images, Positions
from data.jpeg import Box, JpegHeader, decode_part, read_header
from data.paths import shared
from data.photo import Photo
from data.preprocessing import Geometry, fit
from utils.config.resolution import Size
from utils.system.errors import UserError, one_line
from utils.system.ranks import local_world_size
from utils.system.threads import asked_threads, available_cores

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
# What a file may hold, whatever its name says. Pillow reads many more, some of them by starting other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
JPEG_START = b"\xff\xd8"
# Odd metadata is harmless, and images of up to 179 million pixels, twice what Pillow warns of, are photos.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Mean bytes per file from which on threads pay. Around small images Pillow takes and releases the interpreter's lock so
# often that two threads need twice the time of one (CIFAR-10 as JPEG, 1 KB each).
THREADS_PAY_FROM = 8 * 1024


class ImageFiles(Images):
    """Images on disk, decoded and fitted whenever they are taken."""

    fitted = True

    def __init__(self, paths: Sequence[str | Path], geometry: Geometry):
        self.paths, self.geometry = shared(paths), geometry

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Positions) -> np.ndarray:
        images = self._empty(len(indices))
        self._fill(images, indices)
        return images

    def decode(self, indices: Positions, block: int = 64) -> np.ndarray:
        images = self._empty(len(indices))
        starts = range(0, len(indices), block)
        with ThreadPoolExecutor(self.threads()) as pool:
            list(pool.map(lambda at: self._fill(images[at : at + block], indices[at : at + block]), starts))
        return images

    def _empty(self, count: int) -> np.ndarray:
        return np.empty((count, *self.geometry.size, 3), np.uint8)

    def _fill(self, images: np.ndarray, indices: Positions) -> None:
        for position, index in enumerate(indices):
            images[position] = read_image(self.paths[index], self.geometry)

    def photos(self, indices: Positions) -> list[Photo]:
        return [FilePhoto(self.paths[index]) for index in indices]

    def content(self) -> Iterator[Any]:
        """Paths, sizes and times of modification, since reading all files would take minutes."""
        files = [(path, os.stat(path)) for path in self.paths]
        yield json.dumps([(path, status.st_size, status.st_mtime_ns) for path, status in files]).encode()

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        return ImageFiles(self.paths.subset(indices), self.geometry)

    def threads(self) -> int:
        """That decode files of this size: as many as pay."""
        sample = self.paths[:: max(1, len(self.paths) // 100)]
        sizes = [os.path.getsize(path) for path in sample if os.path.isfile(path)]
        cores, (_, asked) = available_cores(), asked_threads(os.environ, local_world_size())
        return min(cores, asked or cores) if sum(sizes) >= THREADS_PAY_FROM * len(sizes) else 1


class FilePhoto(Photo):
    """A photo on disk, read when it is needed. Raises UserError as decode_file does, from its size on.

    Of a JPEG no more is decoded than a part takes (data/jpeg.py), so damage below the part is not noticed; a truncated
    file is. Its bytes are in memory from the first look at its size until a part was cut out.
    """

    def __init__(self, path: str | Path):
        self.path = path
        self._data = b""

    @property
    def height(self) -> int:
        return self._size[0]

    @property
    def width(self) -> int:
        return self._size[1]

    def decode(self, reduction: int = 1) -> Image.Image:
        return decode_file(self.path, reduction)

    @functools.cached_property
    def _jpeg(self) -> JpegHeader | None:
        self._data = self._read()
        return read_header(self._data)

    @functools.cached_property
    def _size(self) -> Size:
        return self._jpeg.upright if self._jpeg else upright_size(self.path)

    def _part(self, box: Box, reduction: int) -> np.ndarray:
        header = self._jpeg
        data, self._data = self._data, b""  # a whole batch of photos would be too much
        if header:
            with contextlib.suppress(ValueError, OSError, SyntaxError):  # Pillow reads it, or says what is wrong
                return decode_part(data or self._read(), header, box, reduction)
        return super()._part(box, reduction)

    def _read(self) -> bytes:
        """The content of a JPEG; empty if it is something else, or cannot be read: Pillow says why."""
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(self.path).st_mode):
                with open(self.path, "rb", buffering=0) as file:
                    start = file.read(len(JPEG_START))
                    return start + file.read() if start == JPEG_START else b""
        return b""


def upright_size(path: str | Path) -> Size:
    """Height and width of an image file as decode_file gives it, from its header. Raises UserError."""
    with _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
        return (image.width, image.height) if turned else (image.height, image.width)


def read_image(path: str | Path, geometry: Geometry) -> np.ndarray:
    """An image file fitted to uint8 RGB (height, width, 3). Raises UserError as decode_file does."""
    return fit(decode_file(path), geometry)


def decode_file(path: str | Path, reduction: int = 1) -> Image.Image:
    """An image file as RGB of 8 bits a channel, upright, of its own size.

    - A photo is turned as its EXIF orientation says.
    - An animation is represented by its first frame.
    - Transparent parts are shown on white.
    - 16 bits a channel become the 8 of the same shade. Floating-point pixels are refused, since their scale is unknown.
    - The format is that of the content (FORMATS), not of the name.

    Raises UserError with the path if the file has another format, is damaged or truncated, or has more than 179 million
    pixels (Pillow's guard against files that unpack to more than the memory).

    Args:
        reduction: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, in a fraction of the time, if that is not less
            than 1 / reduction.
    """
    with _opened(path) as image:
        if reduction > 1:
            image.draft("RGB", (image.width // reduction, image.height // reduction))
        return _upright(image)


def decode_stream(stream: BinaryIO) -> Image.Image:
    """As decode_file, of an open file from its beginning on, which stays open. Raises ValueError with the reason."""
    try:
        with Image.open(stream, formats=FORMATS) as image:
            return _upright(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"it begins like none of {', '.join(FORMATS)}") from error
    except Exception as error:  # on damaged files Pillow raises errors of almost every kind
        raise ValueError(one_line(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    image.load()
    return to_rgb(image)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file of which only the header was read. Raises UserError, also for errors in the body."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise OSError("it is not a file")
        with Image.open(path, formats=FORMATS) as image:
            yield image
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
