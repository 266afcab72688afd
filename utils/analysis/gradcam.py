"""Where the model looks in its mistakes: class activation maps, and how faithful they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from utils.analysis.cam.compare import COMPARED_IMAGES, compare, grid_figure
from utils.analysis.cam.layers import SMALLEST_MAP, Size, choose_layer, refused_layers
from utils.analysis.cam.maps import Cam, class_maps
from utils.analysis.cam.methods import choose_method, layers_of
from utils.analysis.cam.overlay import draw_map, overlay
from utils.analysis.misclassified import Mistake, gallery_title
from utils.analysis.section import Section
from utils.plots.figures import class_label, hide_axes, message_figure, new_figure


@dataclass(frozen=True)
class Cams:
    """The methods at the layers that are asked for: the first explains the mistakes, all are compared.

    `refused` are the layers whose feature maps are too coarse, with their height and width in pixels.
    """

    chosen: Sequence[Cam] = ()
    refused: Mapping[str, Size] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A mistake as it is shown: the image as it lies in the data set, and what speaks for either class drawn over it.

    Pictures are uint8, H x W x 3; a map is None where nothing speaks for the class.
    """

    mistake: Mistake
    image: np.ndarray
    predicted_map: np.ndarray | None
    true_map: np.ndarray | None


def choose_cams(
    model: nn.Module,
    image_size: int,
    methods: str,
    layers: str | None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
) -> Cams:
    """All combinations of methods and layers, given as names between commas. Raises UserError."""
    kinds = {name: choose_method(name, aug_smooth, eigen_smooth) for name in _names(methods)}
    places = [choose_layer(model, image_size, name) for name in (_names(layers) if layers else [None])]
    chosen = [
        Cam(name, kind, layer, aug_smooth, eigen_smooth)
        for name, kind in kinds.items()
        for layer in layers_of(kind, places, image_size)
    ]
    return Cams(chosen, refused_layers(model, image_size))


def section(
    model: nn.Module,
    cams: Cams,
    mistakes: Sequence[Mistake],
    total: int,
    images: np.ndarray,
    inputs: Tensor,
    class_names: Sequence[str],
) -> Section:
    """Maps of the first of `total` mistakes, and the faithfulness of every CAM.

    Args:
        images: of the mistakes, uint8 (N, H, W, 3), as they lie in the data set.
        inputs: the same as the model wants them, (N, 3, h, w) on its device.
    """
    cam = cams.chosen[0]
    predicted, true = [mistake.predicted for mistake in mistakes], [mistake.true for mistake in mistakes]
    maps = np.split(class_maps(model, cam, inputs.repeat(2, 1, 1, 1), predicted + true), 2)
    examples = [
        Example(mistake, image, overlay(image, predicted_map), overlay(image, true_map))
        for mistake, image, predicted_map, true_map in zip(mistakes, images, *maps, strict=True)
    ]
    compared = compare(model, cams.chosen, maps[0], inputs[:COMPARED_IMAGES], predicted[:COMPARED_IMAGES])
    rows = [entry.row for entry in compared]
    figures = {"gradcam": gradcam_figure(examples, class_names, cam)}
    if len(compared) > 1:
        figures["cam_grid"] = grid_figure(compared, mistakes, images, class_names)
    return Section(
        "gradcam",
        summary={
            "cam_layer": cam.layer.name,
            "cam_layer_size": list(cam.layer.size),
            "cam_method": cam.name,
            "cam_refused_layers": {name: list(size) for name, size in cams.refused.items()},
            "cam_road": rows,
        },
        page={"cam": cam, "examples": examples, "title": gallery_title(len(examples), total), "smallest": SMALLEST_MAP},
        figures=figures,
        tables={"cam_grid": rows} if len(compared) > 1 else {},
    )


def gradcam_figure(examples: Sequence[Example], class_names: Sequence[str], cam: Cam) -> Figure:
    """Each misclassified image beside what speaks for its predicted and for its true class."""
    if not examples:
        return message_figure("No image of the test set is misclassified: there is nothing to explain.")
    pairs = 2
    rows = -(-len(examples) // pairs)
    figure = new_figure(11, 2.2 * rows + 0.8)
    shown = (
        "what speaks for the predicted and for the true class"
        if cam.knows_classes
        else "what stands out, whichever class is asked about"
    )
    figure.suptitle(f"{cam} ({cam.layer.pixels} pixels): {shown}\norange to yellow = more; each map has its own scale")
    cells = figure.subplots(rows, 3 * pairs, squeeze=False).reshape(rows * pairs, 3)
    for (original, predicted, true), example in zip(cells, examples, strict=False):
        mistake = example.mistake
        original.imshow(example.image, interpolation="nearest")
        original.set_title(f"image {mistake.index}", fontsize=8)
        draw_map(predicted, example.predicted_map)
        predicted.set_title(
            f"predicted:\n{class_label(class_names, mistake.predicted, mistake.predicted_confidence)}", fontsize=8
        )
        draw_map(true, example.true_map)
        true.set_title(f"true:\n{class_label(class_names, mistake.true, mistake.true_confidence)}", fontsize=8)
    hide_axes(cells.ravel())
    return figure


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))
