"""Images of any size fitted by torch alone, to the bit as data.preprocessing.fit does it with Pillow: for exported
programs, which have no Pillow.

Resampling is separable: an image is multiplied by one matrix along its width and one along its height. Both are
computed from the image's size without a branch, so that an exported program takes every size.
"""

import math

import torch
from torch import Tensor

from data.preprocessing import Geometry

WEIGHT_BITS = 22  # to which Pillow rounds weights, so that sums of products are whole numbers of 2**-22


def fit_batch(images: Tensor, geometry: Geometry) -> Tensor:
    """uint8 RGB (N, H, W, 3) of any size, fitted: uint8 (N, height, width, 3), the same as Pillow's.

    Products are summed in float64, where they are exact in any order. The cost is that of two dense products, N x 3 x H
    x W x width multiplications for the first and larger one.
    """
    if images.device.type == "mps":  # Apple's GPUs have no float64
        images = images.cpu()
    sides = [torch.full((), side, dtype=torch.float64, device=images.device) for side in images.shape[1:3]]
    rows, columns = (_weights(images.shape[1 + axis], axis, sides, geometry) for axis in (0, 1))
    channels = images.permute(0, 3, 1, 2).to(torch.float64)
    scaled = to_levels(rows @ to_levels(channels @ columns.T))  # across first, rounded in between, as Pillow does
    if geometry.fit == "pad":
        covered = rows.any(1)[:, None] & columns.any(1)
        fill = torch.tensor(geometry.fill, dtype=torch.float64, device=images.device)
        scaled = torch.where(covered, scaled, fill[:, None, None])
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _weights(length: int, axis: int, sides: list[Tensor], geometry: Geometry) -> Tensor:
    """How much each pixel along an axis counts in each of the result, float64 (size, length); rows of 0 for bars.

    The formulas, and the order of their operations, are those of Geometry and of Pillow's Resample.c.

    Args:
        length: of the axis, a number or a symbol.
        axis: 0 for the height, 1 for the width.
        sides: height and width of the image, float64 scalars.
    """
    side, size = sides[axis], geometry.size[axis]
    place = torch.arange(size, device=side.device, dtype=torch.float64)
    inside = torch.ones_like(place, dtype=torch.bool)
    if geometry.fit == "pad":
        inner = (side * (geometry.size[1] / _part(sides, geometry, 1))).round().clamp(min=1)
        place = place - ((size - inner) / 2).floor()
        inside = (place >= 0) & (place < inner)
        step, first = side / inner, torch.zeros_like(side)
    else:
        part = _part(sides, geometry, axis)
        start = (side - part) * 0.5
        first, last = start.to(torch.float32), (start + part).to(torch.float32)  # as Pillow takes a box
        step, first = (last - first).to(torch.float64) / size, first.to(torch.float64)
    centre = first + (place + 0.5) * step
    pixel = torch.arange(length, device=side.device, dtype=torch.float64)
    distance = (pixel - centre[:, None] + 0.5) * (1 / step.clamp(min=1))
    weights = kernel(distance, geometry.interpolation) * inside[:, None]
    weights = weights / torch.where(inside, weights.sum(1), 1.0)[:, None]
    levels = weights * 2.0**WEIGHT_BITS
    return torch.where(levels < 0, (levels - 0.5).ceil(), (levels + 0.5).floor()) / 2.0**WEIGHT_BITS


def _part(sides: list[Tensor], geometry: Geometry, axis: int) -> Tensor:
    """As Geometry._part, along an axis: a float64 scalar."""
    height, width = (side * _float64(geometry.crop_pct, side) for side in sides)
    part = (height, width)[axis]
    if geometry.fit != "squash":
        ratio = _float64(geometry.size[1] / geometry.size[0], height)
        other = (width / ratio, ratio * height)[axis]
        wider = sides[1] * geometry.size[0] - sides[0] * geometry.size[1]
        takes_other = wider > 0 if (axis == 1) == (geometry.fit == "crop") else wider < 0
        part = torch.where(takes_other, other, part)
    return part


def kernel(distance: Tensor, interpolation: str) -> Tensor:
    """Pillow's filters, not yet normalised: the weight of pixels at these distances, in pixels, of any shape.

    bilinear: a triangle, 1 pixel to either side; bicubic (Keys 1981, a = -0.5): 2 pixels; lanczos: 3. Where an image is
    scaled down, distances in pixels of the result make it antialiased.
    """
    far = distance.abs()
    if interpolation == "bilinear":
        return (1 - far).clamp(min=0)
    if interpolation == "bicubic":
        near, beyond = (1.5 * far - 2.5) * far * far + 1, (((far - 5) * far + 8) * far - 4) * -0.5
        return torch.where(far < 1, near, torch.where(far < 2, beyond, 0.0))
    return torch.where(far < 3, _sinc(far) * _sinc(far / 3), 0.0)


def _sinc(distance: Tensor) -> Tensor:
    angle = distance * _float64(math.pi, distance).to(distance.dtype)
    return torch.where(distance == 0, 1.0, torch.sin(angle) / torch.where(distance == 0, 1.0, angle))


def _float64(value: float, beside: Tensor) -> Tensor:
    """A scalar; the exporter to ONNX would round a Python number to float32."""
    return torch.tensor(value, dtype=torch.float64, device=beside.device)


def to_levels(values: Tensor) -> Tensor:
    """Rounded to whole levels, halves upwards, and clamped to 0 to 255."""
    return (values + 0.5).floor().clamp(0, 255)
