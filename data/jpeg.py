"""JPEG photos of which a part is needed: no more is decoded than that takes.

libjpeg decodes at 1/2, 1/4 or 1/8 of the size in a fraction of the time, and it can end after the last row of the part.
The work is done by simplejpeg (libjpeg-turbo without the overhead of an image object) where it is installed and gives
Pillow's pixels to the bit, else by Pillow: the result is the same.
"""

import functools
import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

START, SCAN, END, APP1 = 0xD8, 0xDA, 0xD9, 0xE1  # markers; each follows a byte of 0xFF
ENDING_EARLY_PAYS_FROM = 40_000  # bytes of a file
PIECE = 32 * 1024  # bytes that are looked at at a time
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
OTHER_FRAMES = {0xC3, *range(0xC5, 0xD0)} - {0xC8, 0xCC}  # lossless, arithmetic coding
WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What decoding a part needs to know.

    Attributes:
        height, width: in pixels, as stored.
        orientation: of EXIF, 1 (upright) to 8.
        height_at: position of the height in the file.
        block: rows of pixels that are decoded at a time; 0 if all rows must be.
    """

    height: int
    width: int
    orientation: int
    height_at: int
    block: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the photo as it is shown."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> JpegHeader | None:
    """The header of an ordinary photo: three channels of 8 bits, complete to its end.

    None for all else, which is left to Pillow: other formats, grey, CMYK, damaged and truncated files.
    """
    try:
        found = _walk(data)
        if found is None or data.rfind(bytes((0xFF, END))) < found[-1]:
            return None
        at, has_metadata, scan = found
        height, width = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at - 1] != 8 or data[at + 4] != 3 or not height or not width:
            return None
        if Image.MAX_IMAGE_PIXELS and height * width > 2 * Image.MAX_IMAGE_PIXELS:
            return None
        factors = [data[place] & 15 for place in (at + 6, at + 9, at + 12)]
        block = 8 * max(factors) if len(data) >= ENDING_EARLY_PAYS_FROM and _is_one_piece(data, scan) else 0
        return JpegHeader(height, width, _orientation(data) if has_metadata else 1, at, block)
    except (IndexError, ValueError, OSError, SyntaxError):
        return None


def _walk(data: bytes) -> tuple[int, bool, int] | None:
    """Where the height is, whether there is EXIF or XMP, and where the first scan begins."""
    if data[:2] != bytes((0xFF, START)):
        return None
    at, height_at, has_metadata = 2, 0, False
    while data[at] == 0xFF and data[at + 1] not in WITHOUT_LENGTH:
        marker = data[at + 1]
        if marker == SCAN:
            return (height_at, has_metadata, at) if height_at else None
        if marker in FRAMES and not height_at:
            height_at = at + 5
        elif marker in FRAMES or marker in OTHER_FRAMES:
            return None
        has_metadata |= marker == APP1
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _is_one_piece(data: bytes, scan: int) -> bool:
    """Whether the only marker from the scan on is that of the end: no more scans, no damage that looks like one.

    The data of a scan have a 0 after each 0xFF.
    """
    values, markers = np.frombuffer(data, np.uint8, offset=scan + 2), 0
    for start in range(0, len(values), PIECE):  # small enough for the processor's cache
        piece = values[start : start + PIECE + 1]
        markers += np.count_nonzero((piece[:-1] == 0xFF) & (piece[1:] != 0))
    return markers == 1


def _orientation(data: bytes) -> int:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(value) if value in range(1, 9) else 1


def decode_part(data: bytes, header: JpegHeader, box: Box, reduction: int = 1) -> np.ndarray:
    """A part of a photo at 1/reduction of its size: uint8 (height, width, 3).

    Raises ValueError, OSError or SyntaxError if the data are damaged. Damage in rows below the part is not noticed.

    Args:
        box: of the upright photo.
        reduction: 1, 2, 4 or 8. The edges of the part are rounded to whole pixels of the reduced photo.
    """
    top, left, height, width = _stored(box, header)
    # Colours may be stored for every second row only: a part needs one more of them to interpolate its last rows.
    data, rows = _shortened(data, header, top + height + 2 * reduction)
    pixels = _decode(data, rows, header.width, reduction, ends_early=rows < header.height)
    (first, last), (start, end) = reduced(top, height, reduction), reduced(left, width, reduction)
    return _turned(pixels[first:last, start:end], header.orientation)


def reduced(start: int, length: int, reduction: int) -> tuple[int, int]:
    """First and last pixel, exclusive, of a range of pixels in a photo at 1/reduction of its size; one at least."""
    first = (start + reduction // 2) // reduction
    if reduction > 1:
        first = min(first, (start + length - 1) // reduction)
    return first, max(first + 1, (start + length + reduction // 2) // reduction)


def _stored(box: Box, header: JpegHeader) -> Box:
    """A box of the upright photo in the photo as it is stored; the inverse of _turned."""
    top, left, height, width = box
    full_height, full_width = header.upright
    if header.orientation in (3, 4, 7, 8):
        top = full_height - top - height
    if header.orientation in (2, 3, 6, 7):
        left = full_width - left - width
    return (left, top, width, height) if header.orientation >= 5 else (top, left, height, width)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as they are shown; by OpenCV, which is 30 times as fast as NumPy's copy of a mirrored view."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    axis = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)  # 0: upside down, 1: left to right, -1: both
    return pixels if axis is None else cv2.flip(pixels, axis)


def _shortened(data: bytes, header: JpegHeader, bottom: int) -> tuple[bytes, int]:
    """The data and the rows in them, without most of those from `bottom` on.

    The rows come in order, so with a smaller height in the header the decoder ends early.
    """
    rows = -(-bottom // header.block) * header.block if header.block else header.height
    if rows >= header.height:
        return data, header.height
    at = header.height_at
    return b"".join((data[:at], rows.to_bytes(2, "big"), data[at + 2 :])), rows


def _decode(data: bytes, height: int, width: int, reduction: int, ends_early: bool) -> np.ndarray:
    """All of a JPEG of this size, at 1/reduction of it."""
    if simplejpeg := _simplejpeg():
        try:
            return _by_simplejpeg(simplejpeg, data, height, width, reduction, strict=not ends_early)
        except ValueError:  # what Pillow says of it counts
            pass
    return _by_pillow(data, height, width, reduction)


def _by_simplejpeg(
    simplejpeg: Any, data: bytes, height: int, width: int, reduction: int, strict: bool = True
) -> np.ndarray:
    smallest = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)}
    pixels = simplejpeg.decode_jpeg(data, min_factor=reduction, strict=strict, **smallest if reduction > 1 else {})
    return _checked(pixels, height, width, reduction)


def _by_pillow(data: bytes, height: int, width: int, reduction: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if reduction > 1:
            image.draft("RGB", (image.width // reduction, image.height // reduction))
        return _checked(np.array(image), height, width, reduction)


def _checked(pixels: np.ndarray, height: int, width: int, reduction: int) -> np.ndarray:
    if pixels.shape != (-(-height // reduction), -(-width // reduction), 3):
        raise ValueError("it is decoded to another size")
    return pixels


@functools.cache
def _simplejpeg() -> Any:
    """The module, if it gives Pillow's pixels to the bit; else None: which decoder is installed changes no training."""
    try:
        import simplejpeg
    except Exception:  # not installed, or its library does not load here
        return None
    height, width = 75, 101
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for subsampling, progressive in ((0, False), (1, True), (2, False)):  # 4:4:4, 4:2:2, 4:2:0
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
        for reduction in (1, 2, 4, 8):
            try:
                mine = _by_simplejpeg(simplejpeg, file.getvalue(), height, width, reduction)
            except (ValueError, TypeError):  # another version, with other arguments
                return None
            if not np.array_equal(mine, _by_pillow(file.getvalue(), height, width, reduction)):
                return None
    return simplejpeg
