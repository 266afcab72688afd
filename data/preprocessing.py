"""From decoded images to the model's input: fitted to its size, normalised by the training set's mean and std."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.images import Images
from utils.config.resolution import Size, shown_size

Channels = tuple[float, float, float]
FITS = ("crop", "squash", "pad")
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Geometry:
    """How an image of any size becomes one of the model's.

    Attributes:
        size: height and width in pixels of the result.
        fit: crop: scaled until it covers the size, the middle cut out; squash: both sides scaled; pad: scaled until it
            fits in, in the middle of an area of one colour.
        crop_pct: fraction of the sides that crop and squash leave, around the centre.
        interpolation: bilinear, bicubic or lanczos, always with antialiasing.
        fill: the colour that pad adds, 0 to 255.
    """

    size: Size
    fit: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    fill: tuple[int, int, int] = (0, 0, 0)

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image of width x height pixels that the result shows: left, top, right, bottom in its pixels.

        With pad it reaches over the border.
        """
        if self.fit == "pad":
            x, y, inner_width, inner_height = self.placed(width, height)
            left, right = (column * width / inner_width for column in (-x, self.size[1] - x))
            top, bottom = (row * height / inner_height for row in (-y, self.size[0] - y))
            return left, top, right, bottom
        part_width, part_height = self._part(width, height)
        left, top = (width - part_width) * 0.5, (height - part_height) * 0.5
        return left, top, left + part_width, top + part_height

    def placed(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Where pad puts an image of width x height pixels: left, top, width and height in the result."""
        scale = self.size[1] / self._part(width, height)[0]
        inner_width, inner_height = (max(1, round(side * scale)) for side in (width, height))
        return (self.size[1] - inner_width) // 2, (self.size[0] - inner_height) // 2, inner_width, inner_height

    def _part(self, width: int, height: int) -> tuple[float, float]:
        """Width and height of the area, in pixels of the image, that becomes the result, but for rounding with pad."""
        part_width, part_height = width * self.crop_pct, height * self.crop_pct
        ratio = self.size[1] / self.size[0]
        wider = width * self.size[0] - height * self.size[1]  # in whole numbers: rounded, the part may leave the image
        if self.fit != "squash" and wider:
            if (wider > 0) == (self.fit == "crop"):
                part_width = ratio * part_height
            else:
                part_height = part_width / ratio
        return part_width, part_height

    @property
    def cache_name(self) -> str:
        """A name for images fitted like this, for files."""
        name = shown_size(self.size)
        if self != Geometry(self.size):
            name += f"-{self.fit}-{self.crop_pct:g}-{self.interpolation}-{bytes(self.fill).hex()}"
        return name


def square(size: int) -> Geometry:
    """Fitted to size x size pixels with all defaults."""
    return Geometry((size, size))


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """An RGB image as uint8 (height, width, 3) of the geometry's size."""
    height, width = geometry.size
    method = INTERPOLATIONS[geometry.interpolation]
    if image.size == (width, height) and geometry.crop_pct == 1:
        return np.asarray(image)
    if geometry.fit != "pad":
        return np.asarray(image.resize((width, height), method, box=geometry.region(*image.size)))
    left, top, inner_width, inner_height = geometry.placed(*image.size)
    result = Image.new("RGB", (width, height), geometry.fill)
    result.paste(image.resize((inner_width, inner_height), method), (left, top))
    return np.asarray(result)


def mean_colour(mean: Channels) -> tuple[int, int, int]:
    """A mean per channel on a scale of 0 to 1 as a colour on one of 0 to 255."""
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def channel_statistics(images: Images, most: int | None = None) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel, on a scale of 0 to 1; of at most `most` evenly spaced images."""
    counts = np.zeros((3, 256))
    for block in _blocks(images, min(most or len(images), len(images))):
        for channel in range(3):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share @ values**2 - mean**2).clip(min=1e-6))  # 0 in images of one colour
    return tuple(mean.tolist()), tuple(std.tolist())


def _blocks(images: Images, count: int, pixels: int = 2_000_000) -> Iterator[np.ndarray]:
    """`count` evenly spaced images, in arrays of about `pixels` pixels each."""
    size = max(1, pixels // images[0][..., 0].size)
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    yield from (images.decode(chosen[start : start + size]) for start in range(0, count, size))


def to_input(images: Tensor, mean: Tensor, std: Tensor, channels_last: bool = True, size: Size | None = None) -> Tensor:
    """uint8 (N, H, W, 3) as normalised float32 (N, 3, H, W) on the device of `mean` and `std` (3,), scale 0 to 1.

    With `size`, scaled to that height and width by torch's adaptive average pooling (F.interpolate, mode "area"): row i
    is the mean of the rows from floor(i H / height) to before ceil((i + 1) H / height), columns alike. Where the sizes
    do not divide each other these windows overlap, and whole pixels are averaged, not the shares of them that the area
    would have.
    """
    count, height, width, _ = images.shape
    rows = images.to(mean.device, non_blocking=True).to(torch.float32).reshape(count, height, 3 * width)
    # Whole rows of pixels against mean and std repeated as often: four times the speed of broadcasting single pixels.
    rows.sub_(255 * mean.repeat(width)).div_(255 * std.repeat(width))
    inputs = rows.view(count, height, width, 3).permute(0, 3, 1, 2)  # channels last in memory
    if size is not None and size != (height, width):
        # Apple's GPUs scale by whole numbers only.
        place = torch.device("cpu") if inputs.device.type == "mps" else inputs.device
        inputs = F.interpolate(inputs.to(place), size=size, mode="area").to(inputs.device)
    return inputs if channels_last else inputs.contiguous()
