"""Training photos decoded once and scaled down, in one file that all processes of the machine map.

<data_dir>/.decoded/photos-<side>-<digest>.npy is a flat array of bytes: height, width and offset of each photo (int64),
then their pixels. It may be larger than the memory; what is not in it stays on disk.
"""

import errno
import itertools
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.decoded import cache_file, map_array, replacing
from data.files import ImageFiles, upright_size
from data.images import Images, Positions
from data.photo import ArrayPhoto, Photo
from utils.config.resolution import Size
from utils.system.errors import EnvironmentFault, UserError, one_line

COLUMNS = 3  # height, width, offset
BLOCK = 64  # photos that are decoded at a time


class CachedPhotos(Images):
    """Images on disk whose photos, before they are fitted, come scaled down from a cache.

    Args:
        files: the images.
        pixels: uint8 (bytes,) of all photos.
        table: int64 (n, 3): height, width and offset in `pixels` of each photo.
    """

    fitted = True

    def __init__(self, files: Images, pixels: np.ndarray, table: np.ndarray):
        self.files, self.pixels, self.table = files, pixels, table

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Positions) -> np.ndarray:
        return self.files.take(indices)

    def decode(self, indices: Positions) -> np.ndarray:
        return self.files.decode(indices)

    def photos(self, indices: Positions) -> list[Photo]:
        return [ArrayPhoto(self._pixels(*self.table[index].tolist())) for index in indices]

    def _pixels(self, height: int, width: int, offset: int) -> np.ndarray:
        return self.pixels[offset : offset + 3 * height * width].reshape(height, width, 3)

    def content(self) -> Iterator[Any]:
        return self.files.content()

    def subset(self, indices: np.ndarray) -> "CachedPhotos":
        return CachedPhotos(self.files.subset(indices), self.pixels, self.table[indices])


def cached_photos(files: ImageFiles, root: Path, side: int, exact: bool = False) -> CachedPhotos:
    """The photos, each scaled so that its shorter side has at most `side` pixels; decoded if the cache is missing.

    Says in a line on stderr how large the cache is before it is written. Raises UserError if that is more than the free
    space, EnvironmentFault if it cannot be written: without it the run would train on other pixels.

    Args:
        root: data_dir.
        exact: decode JPEGs at their full size; otherwise at a fraction of it that is at least the scaled size.
    """
    path = cache_file(root, f"photos-{side}{'-exact' if exact else ''}", files.paths)
    found = _load(path, len(files))
    if found is None:
        _write(path, files, side, exact)
        found = _load(path, len(files))
    if found is None:
        raise EnvironmentFault(f"cache_side: {path} cannot be read back")
    return CachedPhotos(files, *found)


def _load(path: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels and table of a cache, or None if it is missing or not what is expected."""
    values = map_array(path, (-1,), np.dtype(np.uint8), "r")
    start = 8 * COLUMNS * count
    if values is None or len(values) < start:
        return None
    table = np.frombuffer(values[:start].tobytes(), "<i8").reshape(count, COLUMNS)
    pixels, (heights, widths, offsets) = values[start:], table.T
    if not ((table[:, :2] > 0) & (table[:, :2] < 2**31)).all():
        return None
    ends = np.cumsum(3 * heights * widths)
    valid = ends[-1] == len(pixels) and (offsets == ends - 3 * heights * widths).all()
    return (pixels, table) if valid else None


def _write(path: Path, files: ImageFiles, side: int, exact: bool) -> None:
    sizes = [_scaled_size(upright_size(path), side) for path in files.paths]
    table = np.empty((len(files), COLUMNS), "<i8")
    table[:, :2] = sizes
    areas = 3 * table[:, 0] * table[:, 1]
    table[:, 2] = np.cumsum(areas) - areas
    total = table.nbytes + int(areas.sum())
    shown = f"{total / 2**30:,.1f} GiB" if total >= 2**30 else f"{total / 2**20:,.1f} MiB"
    try:
        path.parent.mkdir(exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if total > free:
            raise OSError(errno.ENOSPC, "")
        print(
            f"note: cache_side: decoding {len(files):,} photos into a cache of {shown} in {path.parent}",
            file=sys.stderr,
            flush=True,
        )
        if path.is_file():  # damaged
            path.unlink()
        with replacing(path, (total,), np.dtype(np.uint8)) as file, ThreadPoolExecutor(files.threads()) as pool:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (total,)})
            file.write(table.tobytes())
            for start in range(0, len(files), BLOCK):
                block = sizes[start : start + BLOCK]
                photos = files.photos(range(start, start + len(block)))
                for pixels in pool.map(_shrunk, photos, block, itertools.repeat(exact)):
                    file.write(pixels.tobytes())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"cache_side: {side} is not allowed here; the cache takes {shown}, more than is free in {path.parent}; "
                "set a smaller one, or leave it unset"
            ) from error
        raise EnvironmentFault(
            f"cache_side: the cache in {path.parent} cannot be written ({one_line(error)}); leave cache_side unset to "
            "train without it"
        ) from error


def _scaled_size(size: Size, side: int) -> Size:
    """Height and width with a shorter side of at most `side` pixels."""
    scale = min(1.0, side / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _shrunk(photo: Photo, size: Size, exact: bool) -> np.ndarray:
    return photo.cut((0, 0, photo.height, photo.width), size, Image.Resampling.BILINEAR, exact)
