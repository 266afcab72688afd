"""Where the model looks in its mistakes: class activation maps, and how faithful they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from utils.analysis.cam.compare import COMPARED_IMAGES, compare, grid_figure
from utils.analysis.cam.layers import SMALLEST_MAP
from utils.analysis.cam.maps import Cam, class_maps, draw_map, enlarge
from utils.analysis.predictions import Mistake, Predictions, find_mistakes, shown_of
from utils.analysis.section import Analysis, Section
from utils.plots.figures import hide_axes, message_figure, new_figure
from utils.tracking.tracker import Media, Picture, Table

LABEL = "GradCAM"
COST = "quick"
NEEDS = ()


@dataclass(frozen=True)
class Example:
    """A mistake as it is shown: the image, and the evidence for either class drawn over it.

    uint8 (H, W, 3) each; a map is None if there is no positive evidence for the class.
    """

    mistake: Mistake
    image: np.ndarray
    predicted_map: np.ndarray | None
    true_map: np.ndarray | None


def section(analysis: Analysis, predictions: Predictions) -> Section:
    """Maps of the `images` most confident mistakes for both classes, and the faithfulness of every CAM."""
    model, cams, config = analysis.model, analysis.cams, analysis.model_config
    cam, class_names = cams.chosen[0], config.class_names
    mistakes = find_mistakes(predictions.probabilities, predictions.labels)
    total, mistakes = len(mistakes), mistakes[: analysis.config.images]
    images = np.array([analysis.test.images[mistake.index] for mistake in mistakes], np.uint8)
    images = images.reshape(-1, *config.geometry.size, 3)  # without mistakes too
    inputs = analysis.inputs_of(images)
    predicted, true = [mistake.predicted for mistake in mistakes], [mistake.true for mistake in mistakes]
    maps = np.split(class_maps(model, cam, inputs.repeat(2, 1, 1, 1), predicted + true), 2)
    shown = analysis.shown(analysis.test)
    views = [shown.view(mistake.index) for mistake in mistakes]
    examples = [
        Example(mistake, view.picture, view.overlay(predicted_map), view.overlay(true_map))
        for mistake, view, predicted_map, true_map in zip(mistakes, views, *maps, strict=True)
    ]
    compared = compare(model, cams.chosen, maps[0], inputs[:COMPARED_IMAGES], predicted[:COMPARED_IMAGES])
    rows = [entry.row for entry in compared]
    figures = {"gradcam": gradcam_figure(examples, class_names, cam)}
    if len(compared) > 1:
        figures["cam_grid"] = grid_figure(compared, mistakes, views, class_names)
    return Section(
        summary={
            "cam_layer": cam.layer.name,
            "cam_layer_size": list(cam.layer.size),
            "cam_method": cam.name,
            "cam_view": list(cam.view or config.input_size),
            "cam_refused_layers": {name: list(size) for name, size in cams.refused.items()},
            "cam_road": rows,
        },
        page={
            "cam": cam,
            "size": config.input_size,
            "enlargement": cams.enlargement,
            "examples": examples,
            "title": shown_of(len(examples), total),
            "smallest": SMALLEST_MAP,
            "whole": shown.geometry is not None,
        },
        figures=figures,
        tables={"cam_grid": rows} if len(compared) > 1 else {},
        media=example_media(examples, predictions, class_names) if examples else {},
    )


def example_media(
    examples: Sequence[Example], predictions: Predictions, class_names: Sequence[str]
) -> dict[str, Media]:
    """For the trackers: the images, their heat maps, and a table with the probability of each class."""
    images, cams, rows = [], [], []
    for example in examples:
        mistake = example.mistake
        true, predicted = class_names[mistake.true], class_names[mistake.predicted]
        caption = f"true {true}, predicted {predicted} ({mistake.predicted_confidence:.0%})"
        images.append(Picture(enlarge(example.image), caption))
        cam = None if example.predicted_map is None else Picture(example.predicted_map, caption)
        cams += [cam] if cam else []
        probabilities = predictions.probabilities[mistake.index].tolist()
        rows.append([mistake.index, images[-1], cam, true, predicted, f"{true} → {predicted}", *probabilities])
    columns = ["index", "image", "cam", "true", "predicted", "confusion", *(f"p({name})" for name in class_names)]
    return {
        "misclassified_images": images,
        "misclassified_table": Table(columns, rows),
        **({"cam_images": cams} if cams else {}),
    }


def gradcam_figure(examples: Sequence[Example], class_names: Sequence[str], cam: Cam) -> Figure:
    """Each misclassified image beside the evidence for its predicted and for its true class."""
    if not examples:
        return message_figure("No image of the test set is misclassified: there is nothing to explain.")
    pairs = 2
    rows = -(-len(examples) // pairs)
    figure = new_figure(11, 2.2 * rows + 0.8)
    shown = (
        "evidence for the predicted and for the true class"
        if cam.knows_classes
        else "salient regions, the same for every class"
    )
    figure.suptitle(f"{cam} ({cam.pixels}): {shown}\norange to yellow = more; each map has its own scale")
    cells = figure.subplots(rows, 3 * pairs, squeeze=False).reshape(rows * pairs, 3)
    for (original, predicted, true), example in zip(cells, examples, strict=False):
        true_label, predicted_label = example.mistake.labels(class_names)
        original.imshow(example.image, interpolation="nearest")
        original.set_title(f"image {example.mistake.index}", fontsize=8)
        draw_map(predicted, example.predicted_map)
        predicted.set_title(f"predicted:\n{predicted_label}", fontsize=8)
        draw_map(true, example.true_map)
        true.set_title(f"true:\n{true_label}", fontsize=8)
    hide_axes(cells.ravel())
    return figure
