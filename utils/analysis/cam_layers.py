"""Where in a model a class activation map can be taken from."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.errors import UserError, suggestion

SMALLEST_MAP = 5  # pixels: a coarser feature map cannot say where

Size = tuple[int, int]


@dataclass(frozen=True)
class CamLayer:
    """What is looked at: a module, and the channels, height and width of its activation.

    `module` is None for methods that look at all layers at once; the size is then that of the input.
    """

    name: str
    module: nn.Module | None
    channels: int
    size: Size

    @property
    def pixels(self) -> str:
        return "{}x{}".format(*self.size)


def choose_layer(model: nn.Module, image_size: int, name: str | None = None) -> CamLayer:
    """The module of that name, or the deepest one whose feature map is at least 5x5 pixels.

    Sizes are read off the activations of a forward pass. By default the inside of a block is passed over (_is_stage).
    Raises UserError for an unknown layer and for one whose feature map is too small.
    """
    layers = feature_maps(model, image_size)
    large = [layer.name for layer in layers.values() if not _is_coarse(layer)]
    candidates = [name for name in large if _is_stage(model, name, layers)] or large
    if not candidates:
        raise UserError(f"cam_layer: no layer of this model has a feature map of {SMALLEST_MAP}x{SMALLEST_MAP} pixels")
    if name is None:
        name = candidates[-1]
    elif name not in layers:
        raise UserError(f"cam_layer: {name!r} is not allowed; {suggestion(name, candidates)}")
    elif _is_coarse(layers[name]):
        raise UserError(
            f"cam_layer: {name} is not allowed; its feature map is {layers[name].pixels} pixels, and under "
            f"{SMALLEST_MAP}x{SMALLEST_MAP} a map cannot say where; choose from {', '.join(candidates)}"
        )
    return layers[name]


def refused_layers(model: nn.Module, image_size: int) -> dict[str, Size]:
    """The layers that would be offered if their feature maps were not too coarse, with their height and width."""
    layers = feature_maps(model, image_size)
    return {name: layer.size for name, layer in layers.items() if _is_coarse(layer) and _is_stage(model, name, layers)}


@torch.no_grad()
def feature_maps(model: nn.Module, image_size: int) -> dict[str, CamLayer]:
    """Every module that gives (N, C, H, W) for images of that side, by name, in the order they are computed."""
    found: dict[str, CamLayer] = {}

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                found.pop(name, None)
                found[name] = CamLayer(name, module, output.shape[1], (output.shape[2], output.shape[3]))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        parameter = next(model.parameters())
        model(torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_coarse(layer: CamLayer) -> bool:
    return min(layer.size) < SMALLEST_MAP


def _is_stage(model: nn.Module, name: str, layers: Mapping[str, CamLayer]) -> bool:
    """Whether a module is part of the model itself, of a Sequential, or of a wrapper whose output is no feature map."""
    parts = name.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return all(outer not in layers or isinstance(model.get_submodule(outer), nn.Sequential) for outer in around)
