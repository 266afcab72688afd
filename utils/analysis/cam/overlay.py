"""A class activation map drawn over its image."""

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

ENLARGED_SIDE = 160  # pixels, at least
MOST_OPAQUE = 0.75  # of the colour over the image


def overlay(image: np.ndarray, cam: np.ndarray) -> np.ndarray | None:
    """A map (H, W) over its image (uint8, H x W x 3), enlarged and as uint8; None for a map without positive evidence.

    The image turns grey and shows through where the map is low, so that colour can only come from the map.
    """
    if not cam.any():
        return None
    grey = enlarge(image).mean(axis=2, keepdims=True)
    smooth = cv2.resize(cam, grey.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colour = 255 * colormaps["autumn"](smooth)[..., :3]
    opacity = MOST_OPAQUE * smooth[..., None]
    return ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)


def enlarge(image: np.ndarray) -> np.ndarray:
    """The same pixels, each repeated until the image is at least ENLARGED_SIDE wide: sharp in print."""
    factor = -(-ENLARGED_SIDE // image.shape[0])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def draw_map(axes: Axes, overlaid: np.ndarray | None) -> None:
    """The result of `overlay`, or words if it is None."""
    if overlaid is None:
        axes.imshow([[[0.85] * 3]])
        axes.text(0, 0, "no positive\nevidence", ha="center", va="center", fontsize=8)
    else:
        axes.imshow(overlaid, interpolation="nearest")
