"""The layers of a model that a class activation map can be computed at."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from utils.config.resolution import Size
from utils.system.errors import UserError, suggestion

SMALLEST_MAP = 5  # pixels: a coarser feature map cannot say where
LARGEST_VIEW = 512  # pixels of a side that an image is enlarged to
REFUSALS = (AssertionError, RuntimeError, ValueError, TypeError, LookupError)  # of a model that takes one size only

Form = Literal["channels first", "channels last", "tokens"]


@dataclass(frozen=True)
class CamLayer:
    """A module, and the channels, height and width of its activation.

    Attributes:
        module: None for methods that use all layers at once; the size is then that of the input.
        form: of the activation: (N, C, H, W), (N, H, W, C), or a transformer's (N, tokens, C), row by row.
        prefix: how many tokens, such as the class token, stand before those of the image.
        visible: whether the logits depend on it place by place. What a transformer's last block makes of the image's
            own tokens is lost where the class token alone is read.
    """

    name: str
    module: nn.Module | None
    channels: int
    size: Size
    form: Form = "channels first"
    prefix: int = 0
    visible: bool = True

    def as_map(self, activation: Tensor) -> Tensor:
        """An activation of the module, or its gradient, as (N, C, H, W)."""
        if self.form == "channels first":
            return activation
        if self.form == "tokens":
            activation = activation[:, self.prefix :].unflatten(1, self.size)
        return activation.permute(0, 3, 1, 2).contiguous()

    @property
    def pixels(self) -> str:
        return "{}x{}".format(*self.size)


def choose_view(model: nn.Module, image_size: Size, names: Collection[str] = ()) -> Size:
    """The size of the images that maps are computed from: `image_size`, or the smallest larger one with which at most
    one stage follows the deepest whose feature map is at least 5x5 pixels, if the model takes it.

    A stage is an outermost module that gives a feature map: layer3 of a ResNet, blocks.4 of an EfficientNet.

    Args:
        names: of layers that are asked for, as choose_layer takes them; none: the default one. They are looked at in
            images of a larger size only if that is what they need.
    """

    def needed(layers: Mapping[str, CamLayer]) -> bool:
        return any(name in layers and _is_coarse(layers[name]) for name in names)

    view, layers = image_size, feature_maps(model, image_size)
    if names and not needed(layers):
        return image_size
    while coarse := [layer.size for layer in _stages(model, layers) if _is_coarse(layer)][:-1]:
        factor = SMALLEST_MAP / min(coarse[-1])
        view = round(view[0] * factor), round(view[1] * factor)
        if max(view) > LARGEST_VIEW:
            return image_size
        try:
            layers = feature_maps(model, view)
        except REFUSALS:
            return image_size
    return image_size if needed(layers) else view


def _stages(model: nn.Module, layers: Mapping[str, CamLayer]) -> list[CamLayer]:
    """The outermost stages that the logits depend on, in the order they are computed."""
    names = [name for name, layer in layers.items() if layer.visible and _is_stage(model, name, layers)]
    return [layers[name] for name in names if not any(name.startswith(f"{outer}.") for outer in names)]


def choose_layer(model: nn.Module, image_size: Size, name: str | None = None) -> CamLayer:
    """The module of that name, or the deepest one whose feature map is at least 5x5 pixels.

    Sizes are read off the activations of a forward pass. By default the inside of a block is skipped (_is_stage).
    Raises UserError for an unknown layer and for one whose feature map is too small.
    """
    layers = feature_maps(model, image_size)
    large = [layer.name for layer in layers.values() if layer.visible and not _is_coarse(layer)]
    candidates = [name for name in large if _is_stage(model, name, layers)] or large
    if not candidates:
        raise UserError(f"cam_layer: no layer of this model has a feature map of {SMALLEST_MAP}x{SMALLEST_MAP} pixels")
    if name is None:
        name = candidates[-1]
    elif name not in layers:
        raise UserError(f"cam_layer: {name!r} is not allowed; {suggestion(name, candidates)}")
    elif _is_coarse(layers[name]):
        raise UserError(
            f"cam_layer: {name} is not allowed; its feature map is {layers[name].pixels} pixels, and below "
            f"{SMALLEST_MAP}x{SMALLEST_MAP} a map cannot say where; choose from {', '.join(candidates)}"
        )
    elif not layers[name].visible:
        raise UserError(
            f"cam_layer: {name} is not allowed; the model's answer does not depend on what this layer has at each "
            f"place of the image; choose from {', '.join(candidates)}"
        )
    return layers[name]


def refused_layers(model: nn.Module, image_size: Size) -> dict[str, Size]:
    """The layers that are left out only because their feature maps are too coarse, with their height and width."""
    layers = feature_maps(model, image_size)
    return {name: layer.size for name, layer in layers.items() if _is_coarse(layer) and _is_stage(model, name, layers)}


@torch.enable_grad()
def feature_maps(model: nn.Module, image_size: Size) -> dict[str, CamLayer]:
    """Every module that gives a feature map or tokens for images of that size, by name, in the order they are computed.

    An output that has not the shape of the image, or is a single pixel, is no feature map.
    """
    found: dict[str, CamLayer] = {}
    outputs: dict[str, Tensor] = {}

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> Tensor | None:
            if not isinstance(output, Tensor) or isinstance(module, nn.Identity):
                return None
            layer = _layer(model, name, module, output, image_size)
            if layer is None:
                return None
            found.pop(name, None)
            found[name], outputs[name] = layer, output
            return output.clone()  # the next module may write into its input

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        parameter = next(model.parameters())
        noise = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
        logits = model(noise.to(parameter).requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(logits.flatten()[0], [outputs[name] for name in found], allow_unused=True)
    visible = {
        name: gradient is not None and bool(layer.as_map(gradient).any())
        for (name, layer), gradient in zip(found.items(), gradients, strict=True)
    }
    if not any(visible.values()):  # a classifier that is all zero, as some are before training
        return found
    return {name: replace(layer, visible=visible[name]) for name, layer in found.items()}


def _layer(model: nn.Module, name: str, module: nn.Module, output: Tensor, image_size: Size) -> CamLayer | None:
    """The output for one image as a layer; None unless it is a map of more than one pixel in the image's shape."""
    if output.ndim == 4 and len(output) == 1:
        _, first, middle, last = output.shape
        sides: dict[Form, tuple[int, int]] = {"channels first": (middle, last), "channels last": (first, middle)}
        forms = [form for form, size in sides.items() if _has_shape_of(image_size, size)]
        if not forms:
            return None
        form = "channels last" if getattr(model, "output_fmt", "") == "NHWC" and len(forms) == 2 else forms[0]
        return CamLayer(name, module, last if form == "channels last" else first, sides[form], form)
    if output.ndim == 3 and len(output) == 1:
        tokens, channels = output.shape[1:]
        for prefix in (getattr(model, "num_prefix_tokens", 0), 0):
            rows = round(math.sqrt(max(0, tokens - prefix) * image_size[0] / image_size[1]))
            size = rows, (tokens - prefix) // max(1, rows)
            if rows * size[1] == tokens - prefix and _has_shape_of(image_size, size):
                return CamLayer(name, module, channels, size, "tokens", prefix)
    return None


def _has_shape_of(image_size: Size, size: Size) -> bool:
    """Whether a map has more than one pixel and is the image divided by some stride, its sides rounded up or down."""
    if image_size[0] == image_size[1]:
        return size[0] == size[1] > 1
    if min(size) < 2:
        return False
    sides = list(zip(image_size, size, strict=True))
    return max(side / (pixels + 1) for side, pixels in sides) < min(side / (pixels - 1) for side, pixels in sides)


def _is_coarse(layer: CamLayer) -> bool:
    return min(layer.size) < SMALLEST_MAP


def _is_stage(model: nn.Module, name: str, layers: Mapping[str, CamLayer]) -> bool:
    """Whether a module is part of the model itself, of a Sequential, or of a wrapper whose output is no feature map.

    A Sequential of several stages, with maps of several sizes, is none itself.
    """
    module = model.get_submodule(name)
    inside = [f"{name}.{child}" for child, _ in module.named_children()]
    if isinstance(module, nn.Sequential) and len({layers[child].size for child in inside if child in layers}) > 1:
        return False
    parts = name.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return all(outer not in layers or isinstance(model.get_submodule(outer), nn.Sequential) for outer in around)
