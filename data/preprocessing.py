"""From decoded images to the model's input: fitted to its size, normalised by the training set's mean and std."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from data.images import Images


def fit(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image as uint8 (size, size, 3): scaled to cover the square, cropped at its centre."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def channel_statistics(
    images: Images, most: int | None = None
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
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


def to_input(images: Tensor, mean: Tensor, std: Tensor, channels_last: bool = True, size: int | None = None) -> Tensor:
    """uint8 (N, H, W, 3) as normalised float32 (N, 3, H, W) on the device of `mean` and `std` (3,), scale 0 to 1.

    With `size`, scaled to (N, 3, size, size) by torch's adaptive average pooling (F.interpolate, mode "area"): row i is
    the mean of the rows from floor(i H / size) to before ceil((i + 1) H / size), columns alike. Where size does not
    divide H these windows overlap, and whole pixels are averaged, not the shares of them that the area would have.
    """
    count, height, width, _ = images.shape
    rows = images.to(mean.device, non_blocking=True).to(torch.float32).view(count, height, 3 * width)
    # Whole rows of pixels against mean and std repeated as often: four times the speed of broadcasting single pixels.
    rows.sub_(255 * mean.repeat(width)).div_(255 * std.repeat(width))
    inputs = rows.view(count, height, width, 3).permute(0, 3, 1, 2)  # channels last in memory
    if size is not None and size != height:
        # Apple's GPUs scale by whole numbers only.
        place = torch.device("cpu") if inputs.device.type == "mps" else inputs.device
        inputs = F.interpolate(inputs.to(place), size=(size, size), mode="area").to(inputs.device)
    return inputs if channels_last else inputs.contiguous()
