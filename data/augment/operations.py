"""The operations of automatic augmentation, each over a batch of images that have their own parameters.

Results are those of torchvision.transforms.v2.functional on each image by itself, to the bit on a CPU, except where
`affine` and `contrast` say so. They depend neither on the other images of the batch nor on threads: all formulas are
elementwise, and what is summed are whole numbers, exactly.

Images are uint8 (n, height, width, 3) on any device; parameters float32 (n, parameters) on the same device, of which a
kernel takes the first ones, one unless it says otherwise. The result is a new tensor. A value for each channel is laid
out for a whole row of pixels, since torch is several times slower at repeating three numbers.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.augment.batch_of_one import luma

Kernel = Callable[[Tensor, Tensor], Tensor]
PIXELS = 2**26  # that a kernel gets at once; it counts them in int32
PIXELS_ON_CPU = 2**17  # so that what it computes stays in the cache


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Takes every pixel from the nearest one to where its matrix says; black where that is outside of the image.

    A source in the very middle between two pixels is a matter of rounding, here as in torchvision.

    Args:
        matrices: a, b, c, d, e, f of the source (a x + b y + c, d x + e y + f) of the pixel (x, y), in pixels to the
            right of and below the centre of the image.
    """
    count, height, width = images.shape[:3]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    a, b, c, d, e, f = matrices[:, :6, None, None].unbind(1)
    # What is outside falls into a black margin of one pixel. Each sum is (n, 1, width) + (n, height, 1).
    column = (a * x + (b * y + (c + (width + 1) / 2))).clamp_(0, width + 1).round_().int()
    row = (d * x + (e * y + (f + (height + 1) / 2))).clamp_(0, height + 1).round_().int()
    margin = images.new_zeros(count, height + 2, width + 2, 3)
    margin[:, 1:-1, 1:-1] = images
    first = torch.arange(count, dtype=torch.int32, device=images.device)[:, None, None] * ((height + 2) * (width + 2))
    source = row.mul_(width + 2).add_(column).add_(first)
    return margin.view(-1, 3).index_select(0, source.view(-1)).view(images.shape)


def slide(images: Tensor, moves: Tensor) -> Tensor:
    """As `affine`, for sources (x + a y + b, y + c): rows move as a whole, which takes a fifth of the time on a CPU.

    Args:
        moves: a, b and c, which is a whole number.
    """
    count, height, width = images.shape[:3]
    a, b, c = moves[:, :3, None].unbind(1)
    line = torch.arange(height, device=images.device)
    column = (a * (line - (height - 1) / 2) + b).clamp_(-width, width).round_().long()
    # Every row has black ones of its width on both sides, and a black one follows the last.
    black = count * height
    wide = images.new_zeros(black + 1, 3, 3 * width)
    wide[:-1, 1] = images.view(black, 3 * width)
    row = (line + c).long()
    first = torch.arange(count, device=images.device)[:, None] * height
    row = torch.where((row >= 0) & (row < height), row + first, black)
    windows = wide.as_strided((3 * width * len(wide) - width + 1, 3 * width), (3, 1))  # one from every pixel on
    return windows.index_select(0, ((3 * row + 1) * width + column).view(-1)).view(images.shape)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return to_uint8(_rows(images).float().mul_(factor[:, :1, None])).view(images.shape)


def color(images: Tensor, weights: Tensor) -> Tensor:
    """Blends images with their luma, by weights of the image and of the luma."""
    grey = luma(images.permute(3, 0, 1, 2))[..., None].expand(-1, -1, -1, 3).flatten(2)
    return _blend(images, grey, weights)


def contrast(images: Tensor, weights: Tensor) -> Tensor:
    """Blends images with the mean of their luma, by weights of the image and of the mean.

    torchvision rounds the last pixels of an image otherwise, so one next to a whole number may be a level off.
    """
    total = luma(images.permute(3, 0, 1, 2)).sum(2).long().sum(1)
    mean = total.float() / (images.shape[1] * images.shape[2])
    return _blend(images, mean[:, None, None].expand(-1, -1, 3 * images.shape[2]).contiguous(), weights)


def sharpness(images: Tensor, weights: Tensor) -> Tensor:
    """Blends images with their blur, except for the border's pixels, by weights of the image and of the blur."""
    height, width = images.shape[1:3]
    if height <= 2 or width <= 2:
        return images.clone()
    rows = _rows(images).short()
    middle = rows[:, 1:-1, 3:-3]
    tall = (rows[:, :-2] + rows[:, 1:-1]).add_(rows[:, 2:])
    blur = (tall[:, :, :-6] + tall[:, :, 3:-3]).add_(tall[:, :, 6:]).add_(middle, alpha=4)  # of weight 13
    change = blur.float().mul_(1 / 13).round_().sub_(middle)
    weight = weights[:, 1:2, None].expand(-1, -1, change.shape[2]).contiguous()
    result = images.clone()
    _rows(result)[:, 1:-1, 3:-3] = to_uint8(middle.float().addcmul_(change, weight))
    return result


def posterize(images: Tensor, mask: Tensor) -> Tensor:
    """Keeps the bits of a mask, 0 to 255."""
    return images & mask[:, :1, None, None].to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values that reach a threshold, 0 to 255."""
    below = threshold[:, :1, None].ceil().short() - 1
    return images ^ ((below - _rows(images)) >> 15).to(torch.uint8).view(images.shape)  # the sign: all bits or none


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretches each channel to 0 to 255, unless it has one value only."""
    rows = _rows(images)
    low, high = (values.view(-1, images.shape[2], 3) for values in (rows.amin(1), rows.amax(1)))
    low, high = low.amin(1).float(), high.amax(1).float()
    flat = low == high
    scale = high.sub_(low).mul_(1 / 255).masked_fill_(flat, 1)
    low.masked_fill_(flat, 0)
    low, scale = (value[:, None].expand(-1, images.shape[2], -1).flatten(1)[:, None] for value in (low, scale))
    return to_uint8(rows.float().sub_(low).div_(scale)).view(images.shape)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Spreads the values of each channel evenly over 0 to 255, by Pillow's rules."""
    count, height, width = images.shape[:3]
    first = torch.arange(0, 3 * 256 * count, 256, dtype=torch.int32, device=images.device).view(count, 1, 3)
    value = _rows(images).int().add_(first.expand(-1, width, -1).flatten(1)[:, None]).long().view(-1)
    histogram = torch.zeros(3 * count * 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(0, value, torch.ones_like(value, dtype=torch.int32))
    histogram = histogram.view(3 * count, 256)
    same = torch.arange(256, dtype=torch.int32, device=images.device)
    largest = (same * (histogram > 0)).amax(1, keepdim=True).long()
    step = (height * width - histogram.gather(1, largest)).div_(255, rounding_mode="floor")
    before = histogram.cumsum(1, dtype=torch.int32) - histogram  # how many pixels are darker
    spread = (before + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    lookup = torch.where(step > 0, spread, same).to(torch.uint8)
    return lookup.view(-1).index_select(0, value).view(images.shape)


def invert(images: Tensor, _: Tensor) -> Tensor:
    return ~images


def _blend(images: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of images and of others, float32 (n, height or 1, 3 width)."""
    own, weight = weights[:, :2, None, None].unbind(1)
    rows = _rows(images).float().mul_(own)
    weight = weight.expand(-1, -1, rows.shape[2]).contiguous()
    return to_uint8(rows.addcmul_(other, weight)).view(images.shape)


def to_uint8(values: Tensor) -> Tensor:
    """Numbers within 0 to 255, cut off to whole ones; the tensor given is used up."""
    return values.clamp_(0, 255).short().to(torch.uint8)  # directly, a CPU takes three times as long


def to_device(values: np.ndarray, images: Tensor) -> Tensor:
    """Numbers for images on their device, floats in float32, without waiting for what the device has to do."""
    tensor = torch.from_numpy(values)
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.pin_memory().to(images.device, non_blocking=True) if images.is_cuda else tensor.to(images.device)


def apply_(kernel: Kernel, images: Tensor, parameters: Tensor) -> None:
    """Replaces images by what a kernel makes of them, a part at a time."""
    size = max(1, (PIXELS_ON_CPU if images.device.type == "cpu" else PIXELS) // images[0, ..., 0].numel())
    for part, values in zip(images.split(size), parameters.split(size), strict=True):
        part.copy_(kernel(part, values))


def _rows(images: Tensor) -> Tensor:
    """(n, height, 3 width)"""
    return images.flatten(2)


class Operation(NamedTuple):
    """An operation of a policy.

    Attributes:
        kernel: None if it changes nothing.
        parameters: of the kernel, at most MOST_PARAMETERS, from a magnitude and the height and width of the images.
        signed: whether its magnitude may be negative.
    """

    kernel: Kernel | None
    parameters: Callable[[float, int, int], Sequence[float]] = lambda magnitude, height, width: ()
    signed: bool = False


def _rotation(magnitude: float, height: int, width: int) -> Sequence[float]:
    """Counter-clockwise, in degrees."""
    cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
    return cos, -sin, 0, sin, cos, 0


def _weights(magnitude: float, height: int, width: int) -> Sequence[float]:
    """Of the image and of the other, one in all."""
    factor = 1 + magnitude
    return factor, 1 - factor


MOST_PARAMETERS = 6
OPERATIONS = {  # shears leave the top or the left edge where it is, translations are whole pixels
    "Identity": Operation(None),
    "ShearX": Operation(slide, lambda m, h, w: (m, m * h / 2, 0), signed=True),
    "ShearY": Operation(affine, lambda m, h, w: (1, 0, 0, m, 1, m * w / 2), signed=True),
    "TranslateX": Operation(slide, lambda m, h, w: (0, -int(m), 0), signed=True),
    "TranslateY": Operation(slide, lambda m, h, w: (0, 0, -int(m)), signed=True),
    "Rotate": Operation(affine, _rotation, signed=True),
    "Brightness": Operation(brightness, lambda m, h, w: (1 + m,), signed=True),
    "Color": Operation(color, _weights, signed=True),
    "Contrast": Operation(contrast, _weights, signed=True),
    "Sharpness": Operation(sharpness, _weights, signed=True),
    "Posterize": Operation(posterize, lambda m, h, w: (256 - 2 ** (8 - int(m)),)),  # the upper m bits
    "Solarize": Operation(solarize, lambda m, h, w: (255 * m,)),
    "AutoContrast": Operation(autocontrast),
    "Equalize": Operation(equalize),
    "Invert": Operation(invert),
}
