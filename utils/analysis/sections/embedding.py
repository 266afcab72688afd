"""A map of the test images by their features: images that are similar for the model lie close together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from utils.analysis.cache import Arrays, Form, cached
from utils.analysis.inference import fingerprint
from utils.analysis.predictions import Predictions, stratified_choice
from utils.analysis.report.atlas import tiles_of
from utils.analysis.section import Analysis, Section
from utils.plots.figures import CLASS_COLOURS, GREY, class_colours, new_figure, shown_name

LABEL = "Embedding"
COST = "slow"
NEEDS = ()

MOST_POINTS = 5000
MOST_MISTAKES = 4000  # so that the map of a weak model has correct images too
DIMENSIONS = 50  # of PCA, as input of t-SNE
SIDE = 1000  # of a map, in its own units


@dataclass(frozen=True)
class Embedding:
    """Places of some test images on two maps.

    `indices` int64 (n,) in the test set; `pca` and `tsne` float32 (n, 2); `variance` (2,), the shares of the variance
    that the first two principal components explain.
    """

    indices: np.ndarray
    pca: np.ndarray
    tsne: np.ndarray
    variance: np.ndarray


def find(analysis: Analysis, predictions: Predictions) -> Arrays:
    """The fields of an Embedding; only the main process works on them."""
    points = choose_points(predictions)

    def compute() -> Arrays:
        return vars(embed(predictions.features, points)) if analysis.accelerator.is_main_process else {}

    depends_on = fingerprint(analysis, analysis.test) | {"points": MOST_POINTS}
    places, indices = Form("f", (len(points), 2)), Form("i", points.shape, below=len(analysis.test))
    forms = {"indices": indices, "pca": places, "tsne": places, "variance": Form("f", (2,))}
    return cached(analysis.accelerator, [analysis.folder], "embedding", depends_on, forms, compute)


def choose_points(predictions: Predictions) -> np.ndarray:
    """Sorted positions of the mistakes, filled up to MOST_POINTS with correct images, each class in proportion."""
    wrong = np.flatnonzero(predictions.classes != predictions.labels)
    correct = np.flatnonzero(predictions.classes == predictions.labels)
    wrong = wrong[stratified_choice(predictions.labels[wrong], MOST_MISTAKES)]
    correct = correct[stratified_choice(predictions.labels[correct], MOST_POINTS - len(wrong))]
    return np.sort(np.concatenate([wrong, correct]))


def embed(features: np.ndarray, indices: np.ndarray) -> Embedding:
    """Both maps of the features (images, F) at `indices`.

    The input of t-SNE (van der Maaten and Hinton 2008) is the first 50 principal components.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    chosen = features[indices].astype(np.float32)
    with threadpool_limits(1):  # another order of summation would give another map
        pca = PCA(min(DIMENSIONS, *chosen.shape), random_state=0)
        reduced = pca.fit_transform(chosen)
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        tsne = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(reduced)
    return Embedding(indices, reduced[:, :2], tsne, pca.explained_variance_ratio_[:2])


def section(analysis: Analysis, predictions: Predictions, found: Arrays) -> Section:
    """Both maps, coloured by true class, mistakes marked by their shape."""
    embedding, test, class_names = Embedding(**found), analysis.test, analysis.model_config.class_names
    indices = embedding.indices
    true, predicted = predictions.labels[indices], predictions.classes[indices]
    wrong = true != predicted
    rows = [
        {
            "index": int(index),
            "true": class_names[true[row]],
            "predicted": class_names[predicted[row]],
            "pca_1": float(embedding.pca[row, 0]),
            "pca_2": float(embedding.pca[row, 1]),
            "tsne_1": float(embedding.tsne[row, 0]),
            "tsne_2": float(embedding.tsne[row, 1]),
        }
        for row, index in enumerate(indices)
    ]
    order = np.lexsort((true, wrong))  # class by class, the mistakes on top of all others
    maps = [
        make_map(places[order], true[order], wrong[order], class_names) for places in (embedding.tsne, embedding.pca)
    ]
    return Section(
        page={
            "tiles": tiles_of(analysis.shown(test), predictions, indices[order]),
            "maps": dict(zip(("t-SNE", "PCA"), maps, strict=True)),
            "variance": embedding.variance.tolist(),
            "side": SIDE,
            "correct": int((~wrong).sum()),
            "mistakes": int(wrong.sum()),
            "total": len(test),
        },
        figures={"embedding": embedding_figure(maps[0], maps[1], embedding.variance, class_names, len(test))},
        image_tables={"embedding": rows},
    )


@dataclass(frozen=True)
class Group:
    """The correctly classified images of a class, or its mistakes, on a map: `places` int64 (n, 2)."""

    label: int
    wrong: bool
    colour: str
    places: np.ndarray


@dataclass(frozen=True)
class Map:
    """Points from 0 to SIDE in both directions, y downwards, in drawing order.

    `names` holds the places of the class names: label, x, y; they are `name_size` high.
    """

    groups: Sequence[Group]
    names: Sequence[tuple[int, float, float]]
    name_size: int


def make_map(places: np.ndarray, labels: np.ndarray, wrong: np.ndarray, class_names: Sequence[str]) -> Map:
    """A map of places (n, 2): consecutive points form a group, names stand near the medians of their classes."""
    middle, span = (places.max(0) + places.min(0)) / 2, np.ptp(places, axis=0).max()
    points = (SIDE / 2 + 0.95 * SIDE / max(span, 1e-9) * (places - middle) * (1, -1)).round().astype(np.int64)
    colours = class_colours(len(class_names))
    present = np.unique(labels)
    groups = [
        Group(int(label), bool(mistaken), colours[label], points[(labels == label) & (wrong == mistaken)])
        for mistaken in (False, True)
        for label in present
    ]
    size = 30 if len(class_names) <= 20 else 18
    medians = np.array([np.median(points[labels == label], axis=0) for label in present])
    widths = np.array([0.65 * size * len(shown_name(class_names[label])) for label in present])
    free = apart(medians, widths, 1.1 * size).round().astype(int)
    names = [(int(label), *place) for label, place in zip(present, free.tolist(), strict=True)]
    return Map([group for group in groups if len(group.places)], names, size)


def apart(centres: np.ndarray, widths: np.ndarray, height: float) -> np.ndarray:
    """Centres (n, 2) of boxes, moved up and down until no two boxes overlap."""
    centres = centres.astype(float)
    for _ in range(200):
        moved = False
        for one, other in combinations(range(len(centres)), 2):
            across, down = np.abs(centres[other] - centres[one])
            if across < (widths[one] + widths[other]) / 2 and down < height:
                lower, upper = (other, one) if centres[other, 1] >= centres[one, 1] else (one, other)
                centres[lower, 1] += (height - down) / 2 + 0.5
                centres[upper, 1] -= (height - down) / 2 + 0.5
                moved = True
        if not moved:
            break
    return centres


def embedding_figure(tsne: Map, pca: Map, variance: np.ndarray, class_names: Sequence[str], total: int) -> Figure:
    """t-SNE and PCA side by side, of some of `total` test images."""
    figure = new_figure(13, 7.2)
    counts = [sum(len(group.places) for group in tsne.groups if group.wrong == wrong) for wrong in (False, True)]
    figure.suptitle(f"Features of {sum(counts)} of {total} test images, {counts[1]} of them mistakes")
    panels = figure.subplots(1, 2)
    outline = withStroke(linewidth=3, foreground="white")
    written: dict[str, Any] = {"ha": "center", "va": "center", "fontweight": "bold", "path_effects": [outline]}
    for axes, drawn in zip(panels, (tsne, pca), strict=True):
        for group in drawn.groups:
            if group.wrong:
                axes.scatter(*group.places.T, s=14, color=group.colour, marker="x", linewidths=0.8)
            else:
                axes.scatter(*group.places.T, s=7, color=group.colour, linewidths=0, alpha=0.8)
        for label, x, y in drawn.names:
            axes.text(x, y, shown_name(class_names[label]), fontsize=0.3 * drawn.name_size, **written)
        axes.set(xlim=(0, SIDE), ylim=(SIDE, 0), xticks=[], yticks=[], aspect="equal")
    panels[0].set(title="t-SNE", xlabel="only the nearest neighbours have a meaning")
    panels[1].set(
        title="PCA",
        xlabel=f"first component, {variance[0]:.0%} of the variance",
        ylabel=f"second component, {variance[1]:.0%}",
    )
    marks = [
        Line2D([], [], linestyle="", color=GREY, marker="o", markersize=4, label="correct"),
        Line2D([], [], linestyle="", color=GREY, marker="x", markersize=5, label="mistake"),
    ]
    if len(class_names) <= len(CLASS_COLOURS):
        marks += [
            Line2D([], [], linestyle="", color=colour, marker="s", label=shown_name(name))
            for name, colour in zip(class_names, class_colours(len(class_names)), strict=True)
        ]
    figure.legend(handles=marks, loc="outside lower center", ncols=6)
    return figure
