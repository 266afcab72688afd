"""Where a model looks: class activation maps with the grad-cam library (Selvaraju et al. 2017, arXiv:1610.02391)."""

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

import cv2
import numpy as np
import pytorch_grad_cam
import torch
from matplotlib import colormaps
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from utils.errors import UserError

SMALLEST_MAP = 5  # pixels: a coarser feature map cannot say where
BATCH_SIZE = 50
ENLARGED_SIDE = 160  # pixels that a picture has at least
MOST_OPAQUE = 0.75  # of the colour over the image


class CamLayer(NamedTuple):
    """The module whose activation is looked at, and the height and width of that activation in pixels."""

    name: str
    module: nn.Module
    size: tuple[int, int]


def cam_methods() -> dict[str, type]:
    """The methods of the grad-cam library by name: its classes that take target layers and release their hooks."""
    classes = dict(inspect.getmembers(pytorch_grad_cam, inspect.isclass))
    return {
        name: kind
        for name, kind in classes.items()
        if hasattr(kind, "__exit__") and "target_layers" in inspect.signature(kind).parameters
    }


def choose_method(name: str) -> type:
    """The class of that name; raises UserError with the nearest name otherwise."""
    methods = cam_methods()
    if name not in methods:
        raise UserError(f"cam_method: {name!r} is not allowed; {_suggestion(name, list(methods))}")
    return methods[name]


def choose_layer(model: nn.Module, image_size: int, name: str | None = None) -> CamLayer:
    """The module of that name, or the deepest one whose feature map is at least 5x5 pixels.

    Sizes are read off the activations of a forward pass. By default the inside of a block is passed over: a module is
    considered if it is part of the model itself, of a Sequential, or of a wrapper whose output is no feature map.
    Raises UserError for an unknown layer and for one whose feature map is too small.
    """
    sizes = feature_map_sizes(model, image_size)
    large = [layer for layer, size in sizes.items() if min(size) >= SMALLEST_MAP]
    candidates = [layer for layer in large if _is_stage(model, layer, sizes)] or large
    if not candidates:
        raise UserError(f"cam_layer: no layer of this model has a feature map of {SMALLEST_MAP}x{SMALLEST_MAP} pixels")
    if name is None:
        name = candidates[-1]
    elif name not in sizes:
        raise UserError(f"cam_layer: {name!r} is not allowed; {_suggestion(name, candidates)}")
    elif name not in large:
        height, width = sizes[name]
        raise UserError(
            f"cam_layer: {name} is not allowed; its feature map is {height}x{width} pixels, and under "
            f"{SMALLEST_MAP}x{SMALLEST_MAP} a map cannot say where; choose from {', '.join(candidates)}"
        )
    return CamLayer(name, model.get_submodule(name), sizes[name])


@torch.no_grad()
def feature_map_sizes(model: nn.Module, image_size: int) -> dict[str, tuple[int, int]]:
    """Height and width of the activation of every module that gives (N, C, H, W), in the order they are computed."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                sizes.pop(name, None)
                sizes[name] = (output.shape[2], output.shape[3])

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        parameter = next(model.parameters())
        model(torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def class_maps(model: nn.Module, layer: CamLayer, method: type, inputs: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Maps, float32 (N, H, W) at the size of the inputs, of what speaks for one class in each image.

    Each map is scaled to 0..1 by itself, so that maps show where and not how much; a map that is zero everywhere found
    no positive evidence.

    Args:
        model: float32, in eval mode, not compiled, with gradients enabled.
        inputs: normalised images (N, 3, H, W) on the model's device.
        classes: the class to explain for each image.
    """
    maps = [np.empty((0, *inputs.shape[2:]), np.float32)]
    with method(model, [layer.module]) as cam:
        for start in range(0, len(inputs), BATCH_SIZE):
            targets = [ClassifierOutputTarget(index) for index in classes[start : start + BATCH_SIZE]]
            maps.append(cam(input_tensor=inputs[start : start + BATCH_SIZE], targets=targets))
    model.zero_grad(set_to_none=True)
    return np.concatenate(maps)


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
    """The same pixels, each repeated until the picture is at least ENLARGED_SIDE wide: sharp in print."""
    factor = -(-ENLARGED_SIDE // image.shape[0])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _is_stage(model: nn.Module, name: str, sizes: dict[str, tuple[int, int]]) -> bool:
    parts = name.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return all(outer not in sizes or isinstance(model.get_submodule(outer), nn.Sequential) for outer in around)


def _suggestion(name: str, allowed: list[str]) -> str:
    close = {candidate.lower(): candidate for candidate in allowed}
    match = get_close_matches(name.lower(), close, n=1)
    hint = f"did you mean {close[match[0]]}? " if match else ""
    return f"{hint}choose from {', '.join(allowed)}"
