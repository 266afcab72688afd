"""Several CAMs of the same mistakes side by side, and how faithful each of them is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from utils.analysis.cam.maps import Cam, class_maps
from utils.analysis.cam.overlay import draw_map, overlay
from utils.analysis.cam.road import road_scores
from utils.analysis.mistakes import Mistake
from utils.analysis.section import Row
from utils.plots.figures import class_label, hide_axes, new_figure

COMPARED_IMAGES = 20  # mistakes that faithfulness is measured on
GRID_IMAGES = 6  # mistakes that are shown with every method at every layer
ROAD_SIDE = 48  # pixels of an input up to which a single CAM is scored too: within two seconds on two cores


@dataclass(frozen=True)
class Compared:
    """A CAM beside others: its maps, float32 (N, H, W), of the same images, and the ROAD score of each."""

    cam: Cam
    maps: np.ndarray
    road: np.ndarray

    @property
    def row(self) -> Row:
        """Its line in cam_grid.csv."""
        count = len(self.road)
        return {
            "method": self.cam.name,
            "layer": self.cam.layer.name,
            "height": self.cam.layer.size[0],
            "width": self.cam.layer.size[1],
            "road": float(self.road.mean()),
            "standard_error": float(self.road.std(ddof=1) / count**0.5) if count > 1 else None,
            "images": count,
            "without_evidence": int((~self.maps.any(axis=(1, 2))).sum()),
        }


def compare(
    model: nn.Module, cams: Sequence[Cam], first_maps: np.ndarray, inputs: Tensor, classes: Sequence[int]
) -> list[Compared]:
    """Every CAM with its ROAD scores; nothing without images, or for a single CAM of images that are slow to score."""
    if not classes or (len(cams) == 1 and max(inputs.shape[2:]) > ROAD_SIDE):
        return []
    compared: list[Compared] = []
    for cam in tqdm(cams, "comparing CAMs", leave=False, disable=None if len(cams) > 1 else True):
        maps = class_maps(model, cam, inputs, classes) if compared else first_maps[: len(classes)]
        compared.append(Compared(cam, maps, road_scores(model, inputs, maps, classes)))
    return compared


def grid_figure(
    compared: Sequence[Compared], mistakes: Sequence[Mistake], images: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """The first mistakes, below them the map of every CAM for the predicted class, beside it the CAM's ROAD score."""
    shown = list(zip(mistakes, images, strict=True))[:GRID_IMAGES]
    figure = new_figure(1.6 * len(shown) + 1.9, 1.65 * len(compared) + 2.7)
    figure.suptitle(
        "Evidence for the predicted class, by method and layer\n"
        f"ROAD: mean and standard error over {len(compared[0].road)} mistakes; higher is more faithful, "
        "0 is chance",
        fontsize=10,
    )
    cells = figure.subplots(len(compared) + 1, len(shown) + 1, squeeze=False)
    for axes, (mistake, image) in zip(cells[0, 1:], shown, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(
            f"predicted:\n{class_label(class_names, mistake.predicted, mistake.predicted_confidence)}\n"
            f"true:\n{class_label(class_names, mistake.true, mistake.true_confidence)}",
            fontsize=9,
        )
    for entry, (label, *row) in zip(compared, cells[1:], strict=True):
        layer, classless = entry.cam.layer, "" if entry.cam.knows_classes else " (any class)"
        label.text(
            1,
            0.5,
            f"{entry.cam.name}{classless}\n{layer.name} ({layer.pixels})\nROAD {road_text(entry.row)}",
            ha="right",
            va="center",
            fontsize=9,
            transform=label.transAxes,
        )
        for axes, (_, image), cam_map in zip(row, shown, entry.maps, strict=False):
            draw_map(axes, overlay(image, cam_map))
    hide_axes(cells.ravel())
    return figure


def road_text(row: Mapping[str, Any]) -> str:
    """A mean score and its standard error."""
    error = row["standard_error"]
    return f"{row['road']:.3f}" + ("" if error is None else f" ± {error:.3f}")
