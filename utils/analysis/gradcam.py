"""Where a model looks: class activation maps with the grad-cam library (Selvaraju et al. 2017, arXiv:1610.02391)."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import cv2
import numpy as np
import pytorch_grad_cam
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from utils.analysis.figures import class_label, hide_axes, message_figure, new_figure
from utils.analysis.misclassified import Mistake, gallery_title
from utils.analysis.section import Section
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


@dataclass(frozen=True)
class Cams:
    """The methods by name and the layers that are asked for; the first of each explains the mistakes."""

    methods: dict[str, type]
    layers: list[CamLayer]


@dataclass(frozen=True)
class Example:
    """A mistake as it is shown: the image as it lies in the data set, and what speaks for either class drawn over it.

    Pictures are uint8, H x W x 3; a map is None where nothing speaks for the class.
    """

    mistake: Mistake
    image: np.ndarray
    predicted_map: np.ndarray | None
    true_map: np.ndarray | None


def section(
    model: nn.Module,
    cams: Cams,
    mistakes: Sequence[Mistake],
    total: int,
    images: np.ndarray,
    inputs: Tensor,
    class_names: Sequence[str],
) -> Section:
    """Maps of the first of `total` mistakes.

    Args:
        images: of the mistakes, uint8 (N, H, W, 3), as they lie in the data set.
        inputs: the same as the model wants them, (N, 3, h, w) on its device.
    """
    (name, method), layer = next(iter(cams.methods.items())), cams.layers[0]
    predicted, true = (
        class_maps(model, layer, method, inputs, classes)
        for classes in ([mistake.predicted for mistake in mistakes], [mistake.true for mistake in mistakes])
    )
    examples = [
        Example(mistake, image, overlay(image, predicted_map), overlay(image, true_map))
        for mistake, image, predicted_map, true_map in zip(mistakes, images, predicted, true, strict=True)
    ]
    return Section(
        "gradcam",
        summary={"cam_layer": layer.name, "cam_layer_size": list(layer.size), "cam_method": name},
        page={"examples": examples, "title": gallery_title(len(examples), total)},
        figures={"gradcam": gradcam_figure(examples, class_names, name, layer)},
    )


def choose_cams(model: nn.Module, image_size: int, methods: str, layers: str | None) -> Cams:
    """Methods and layers from their names, separated by commas. Raises UserError."""
    chosen = {name: choose_method(name) for name in _names(methods)}
    names = _names(layers) if layers else [None]
    return Cams(chosen, [choose_layer(model, image_size, name) for name in names])


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


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _suggestion(name: str, allowed: list[str]) -> str:
    close = {candidate.lower(): candidate for candidate in allowed}
    match = get_close_matches(name.lower(), close, n=1)
    hint = f"did you mean {close[match[0]]}? " if match else ""
    return f"{hint}choose from {', '.join(allowed)}"


def gradcam_figure(examples: Sequence[Example], class_names: Sequence[str], method: str, layer: CamLayer) -> Figure:
    """Each misclassified image beside what speaks for its predicted and for its true class."""
    if not examples:
        return message_figure("No image of the test set is misclassified: there is nothing to explain.")
    pairs = 2
    rows = -(-len(examples) // pairs)
    figure = new_figure(11, 2.2 * rows + 0.8)
    height, width = layer.size
    figure.suptitle(
        f"{method} at {layer.name} ({height}x{width} pixels): what speaks for the predicted and for the true class\n"
        "orange to yellow = more; each map has its own scale"
    )
    cells = figure.subplots(rows, 3 * pairs, squeeze=False).reshape(rows * pairs, 3)
    for (original, predicted, true), example in zip(cells, examples, strict=False):
        mistake = example.mistake
        original.imshow(example.image, interpolation="nearest")
        original.set_title(f"image {mistake.index}", fontsize=8)
        _draw_map(predicted, example.predicted_map)
        predicted.set_title(
            f"predicted:\n{class_label(class_names, mistake.predicted, mistake.predicted_confidence)}", fontsize=8
        )
        _draw_map(true, example.true_map)
        true.set_title(f"true:\n{class_label(class_names, mistake.true, mistake.true_confidence)}", fontsize=8)
    hide_axes(cells.ravel())
    return figure


def _draw_map(axes: Axes, picture: np.ndarray | None) -> None:
    if picture is None:
        axes.imshow([[[0.85] * 3]])
        axes.text(0, 0, "no positive\nevidence", ha="center", va="center", fontsize=8)
    else:
        axes.imshow(picture, interpolation="nearest")
