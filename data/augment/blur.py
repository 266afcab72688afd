"""Random Gaussian blur, as in SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A) and BYOL (arXiv:2006.07733)."""

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.augment.augmentation import Augmentation, Channels, from_fixed, to_fixed
from data.augment.batch_of_one import BatchOfOne, from_planes, replace, to_planes
from data.preprocessing import Geometry
from utils.config import TrainConfig
from utils.config.resolution import Size

SIGMA = (0.1, 2.0)  # pixels, SimCLR's range


class GaussianBlur(BatchOfOne):
    """Blurs a random share of the images, with a standard deviation that is uniform from 0.1 to 2 pixels.

    The kernel is SimCLR's: a tenth of the image's shorter side wide, made odd, but at least 3 pixels; BYOL's 23 at 224
    pixels. Its weights and its mirrored borders are those of torchvision's v2 kernel, which multiplies by both
    directions at once; ours takes one after the other, so that few values are rounded to the other level.

    Args:
        size: height and width of the images in pixels, at least 2.
        probability: of an image in an epoch, 0 to 1.
    """

    streams = (11,)

    def __init__(self, size: Size, probability: float):
        self.probability = probability
        self.width = max(3, min(size) // 10 | 1)

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        return cls(geometry.size, config.blur) if config.blur else None

    def choose(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """The standard deviation in fixed point, or 0 for images that stay sharp."""
        uniform = generator.random((count, 2))
        sigma = to_fixed(SIGMA[0] + uniform[:, 1] * (SIGMA[1] - SIGMA[0]))
        return np.where(uniform[:, 0] < self.probability, sigma, 0)[None]

    def alter(self, images: Tensor, *choices: Tensor) -> Tensor:
        chosen = choices[0].nonzero()[:, 0]
        kernels = gaussians(from_fixed(choices[0][chosen]), self.width)
        blur = blur_one_by_one if images.device.type == "cpu" else blur_together
        return replace(images, chosen, lambda sharp: blur(sharp, kernels))


def gaussians(sigma: Tensor, width: int) -> Tensor:
    """Gaussians of `sigma` (n,) pixels, cut off at an odd width, of sum 1: float32 (n, width)."""
    place = torch.arange(width) - width // 2
    return torch.softmax(-((place / (math.sqrt(2) * sigma[:, None])) ** 2), dim=1)


def blur_one_by_one(images: Tensor, kernels: Tensor) -> Tensor:
    """Images uint8 (n, height, width, 3) on a CPU, blurred along both sides by a kernel each, float32 (n, odd)."""
    result = torch.empty_like(images)
    for image, kernel, place in zip(images.numpy(), kernels.numpy(), result.numpy(), strict=True):
        blurred = cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
        np.copyto(place, np.rint(blurred, out=blurred), casting="unsafe")
    return result


def blur_together(images: Tensor, kernels: Tensor) -> Tensor:
    """As `blur_one_by_one`, for all images at once, on any device."""
    pad, groups = kernels.shape[1] // 2, 3 * len(images)
    kernels = kernels.to(images.device, non_blocking=True).repeat(3, 1)[:, None]  # for each channel of each image
    planes = F.pad(to_planes(images), [pad] * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernels[..., None], groups=groups)
    planes = F.conv2d(planes, kernels[:, :, None], groups=groups)
    return from_planes(planes.unflatten(1, (3, -1))[0].round_())
