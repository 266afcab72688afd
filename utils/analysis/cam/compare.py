"""Several CAMs of the same mistakes side by side, and how faithful each of them is by ROAD, remove and debias (Rong et
al. 2022, arXiv:2202.00449)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirst, ROADMostRelevantFirst
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import Tensor, nn
from tqdm import tqdm

from utils.analysis.cam.maps import Cam, class_maps, draw_map
from utils.analysis.predictions import Mistake
from utils.analysis.section import Row
from utils.analysis.views import View
from utils.plots.figures import hide_axes, new_figure

COMPARED_IMAGES = 20  # mistakes that faithfulness is measured on
GRID_IMAGES = 6  # mistakes that are shown with every method at every layer
PERCENTILES = (20, 40, 60, 80)  # percent of the pixels that remain
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


def road_scores(model: nn.Module, inputs: Tensor, maps: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """How faithful each map is, float64 (N,), between -0.5 and 0.5.

    The pixels that a map marks as most important are removed, a share at a time, and imputed from their neighbours;
    then those that it marks as least important. The score is half the difference of the probabilities of the class,
    mean over the shares: 0 for a map that is no better than chance. A map without positive evidence ranks all pixels
    alike and scores 0.

    Args:
        model: float32, in eval mode.
        inputs: normalised images (N, 3, H, W) on the model's device.
        maps: float32 (N, H, W).
        classes: the class that each map explains.
    """
    goals = [ClassifierOutputSoftmaxTarget(index) for index in classes]
    ranks = _ranks(maps)
    scores = np.zeros(len(maps))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", DeprecationWarning)  # the library calls NumPy with tensors
        torch.manual_seed(0)  # of the noise on the pixels that are filled in
        for percentile in PERCENTILES:
            least, most = (
                metric(percentile)(inputs, ranks, goals, model, return_diff=False)
                for metric in (ROADLeastRelevantFirst, ROADMostRelevantFirst)
            )
            scores += (least - most) / 2 / len(PERCENTILES)
    return np.where(maps.any(axis=(1, 2)), scores, 0)


def _ranks(maps: np.ndarray) -> np.ndarray:
    """The pixels of each map in the order of their values, float32 from 0 to 1, equal values in random order.

    The library removes what lies above a percentile. Where a third of a map is zero, that would be no pixel or all of
    them.
    """
    flat = maps.reshape(len(maps), -1)
    order = np.lexsort((np.random.default_rng(0).random(flat.shape), flat))
    ranks = np.empty_like(flat)
    np.put_along_axis(ranks, order, np.linspace(0, 1, flat.shape[1], dtype=np.float32)[None], axis=1)
    return ranks.reshape(maps.shape)


def grid_figure(
    compared: Sequence[Compared], mistakes: Sequence[Mistake], views: Sequence[View], class_names: Sequence[str]
) -> Figure:
    """The first mistakes, below them the map of every CAM for the predicted class, beside it the CAM's ROAD score."""
    shown = list(zip(mistakes, views, strict=True))[:GRID_IMAGES]
    figure = new_figure(1.6 * len(shown) + 1.9, 1.65 * len(compared) + 2.7)
    figure.suptitle(
        "Evidence for the predicted class, by method and layer\n"
        f"ROAD: mean and standard error over {len(compared[0].road)} mistakes; higher is more faithful, "
        "0 is chance",
        fontsize=10,
    )
    cells = figure.subplots(len(compared) + 1, len(shown) + 1, squeeze=False)
    for axes, (mistake, view) in zip(cells[0, 1:], shown, strict=True):
        axes.imshow(view.picture, interpolation="nearest")
        true, predicted = mistake.labels(class_names)
        axes.set_title(f"predicted:\n{predicted}\ntrue:\n{true}", fontsize=9)
    for entry, (label, *row) in zip(compared, cells[1:], strict=True):
        layer, classless = entry.cam.layer, "" if entry.cam.knows_classes else " (any class)"
        text = f"{entry.cam.name}{classless}\n{layer.name} ({layer.pixels})\nROAD {road_text(entry.row)}"
        label.text(1, 0.5, text, ha="right", va="center", fontsize=9, transform=label.transAxes)
        for axes, (_, view), cam_map in zip(row, shown, entry.maps, strict=False):
            draw_map(axes, view.overlay(cam_map))
    hide_axes(cells.ravel())
    return figure


def road_text(row: Mapping[str, Any]) -> str:
    """A mean score and its standard error."""
    error = row["standard_error"]
    return f"{row['road']:.3f}" + ("" if error is None else f" ± {error:.3f}")
