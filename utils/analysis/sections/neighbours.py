"""Which training images are most similar to a mistake for the model? They hint at why it is wrong."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from utils.analysis.cache import Arrays, Form, cached
from utils.analysis.inference import fingerprint, predict_split
from utils.analysis.predictions import Mistake, Predictions, find_mistakes
from utils.analysis.report.atlas import Tile, tiles_of
from utils.analysis.section import Analysis, Section
from utils.plots.figures import hide_axes, message_figure, new_figure, shown_name

LABEL = "Neighbours"
COST = "slow"
NEEDS = ("training images",)

PER_IMAGE = 5
MOST_ROWS = 10  # in neighbours.png


def find(analysis: Analysis, predictions: Predictions) -> Arrays:
    """The training images nearest to each of n mistakes, the nearest first; costs a forward pass over all of them.

    Returns, on the main process: `positions` int64 (n, k) in the training split; `similarities` float32 (n, k), cosines
    of the angles between the features of both, 1 for the same direction.
    """
    mistakes = [mistake.index for mistake in find_mistakes(predictions.probabilities, predictions.labels)]
    seen = np.setdiff1d(np.arange(len(analysis.train)), analysis.held_out)
    split = analysis.train.subset(seen)

    def compute() -> Arrays:
        features = predict_split(analysis, split, "training images").features
        if not analysis.accelerator.is_main_process:
            return {}
        positions, similarities = nearest(predictions.features[mistakes], features)
        return {"positions": seen[positions], "similarities": similarities}

    depends_on = fingerprint(analysis, analysis.test, split) | {"per_image": PER_IMAGE}
    shape = len(mistakes), min(PER_IMAGE, len(split))
    forms = {"positions": Form("i", shape, below=len(analysis.train)), "similarities": Form("f", shape)}
    return cached(analysis.accelerator, [analysis.folder], "neighbours", depends_on, forms, compute)


def nearest(features: np.ndarray, training_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and cosines (n, k) of the `training_features` at the smallest angles to each of `features` (n, F)."""
    from sklearn.neighbors import NearestNeighbors

    count = min(PER_IMAGE, len(training_features))
    if not len(features):
        return np.empty((0, count), np.int64), np.empty((0, count), np.float32)
    index = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute")
    index.fit(training_features.astype(np.float32))
    distances, positions = index.kneighbors(features.astype(np.float32))
    return positions, (1 - distances).astype(np.float32)


def section(analysis: Analysis, predictions: Predictions, found: Arrays) -> Section:
    """All mistakes with their neighbours as a table, the `images` most confident ones as images."""
    train, class_names = analysis.train, analysis.model_config.class_names
    test_images, train_images = analysis.shown(analysis.test), analysis.shown(train)
    mistakes = find_mistakes(predictions.probabilities, predictions.labels)
    positions, similarities = found["positions"], found["similarities"]
    labels = train.labels[positions]
    neighbours = list(zip(mistakes, positions, labels, similarities, strict=True))
    rows = [
        {
            "index": mistake.index,
            "true": class_names[mistake.true],
            "predicted": class_names[mistake.predicted],
            "rank": rank,
            "training_index": int(position),
            "training_label": class_names[label],
            "similarity": round(float(similarity), 4),
        }
        for mistake, *near in neighbours
        for rank, (position, label, similarity) in enumerate(zip(*near, strict=True), 1)
    ]
    return Section(
        summary={
            "neighbours": {
                "per_image": labels.shape[1],
                "of_the_predicted_class": share(labels, [mistake.predicted for mistake in mistakes]),
                "of_the_true_class": share(labels, [mistake.true for mistake in mistakes]),
            }
        },
        page={
            "rows": [
                [
                    *tiles_of(test_images, predictions, [mistake.index]),
                    *(
                        Tile("train", int(position), train_images, int(label), caption=caption(mistake, label, cosine))
                        for position, label, cosine in zip(*near, strict=True)
                    ),
                ]
                for mistake, *near in neighbours[: analysis.config.images]
            ],
            "count": len(mistakes),
        },
        figures={"neighbours": neighbours_figure(analysis, mistakes, positions, similarities)},
        tables={"neighbours": rows},
    )


def caption(mistake: Mistake, label: int, cosine: float) -> str:
    """The cosine, and whether the label is one of the two classes of the mistake."""
    known = {mistake.predicted: ", as predicted", mistake.true: ", as true"}
    return f"cosine {cosine:.2f}{known.get(label, '')}"


def share(labels: np.ndarray, classes: Sequence[int]) -> float:
    """The share of labels (n, k) that are the class of their row, 0 to 1; 0 if there are no rows."""
    return float((labels == np.array(classes)[:, None]).mean()) if len(classes) else 0.0


def neighbours_figure(
    analysis: Analysis, mistakes: Sequence[Mistake], positions: np.ndarray, similarities: np.ndarray
) -> Figure:
    """A row for each of the first mistakes: the image, then its nearest training images with their labels."""
    if not mistakes:
        return message_figure("No image of the test set is misclassified.")
    train, class_names = analysis.train, analysis.model_config.class_names
    test_images, train_images = analysis.shown(analysis.test), analysis.shown(train)
    total, mistakes = len(mistakes), mistakes[:MOST_ROWS]
    columns = 1 + positions.shape[1]
    figure = new_figure(1.55 * columns, 1.75 * len(mistakes) + 0.6)
    figure.suptitle(f"Nearest training images of {len(mistakes)} of {total} mistakes")
    cells = figure.subplots(len(mistakes), columns, squeeze=False)
    hide_axes(cells.flat)
    for row, mistake, places, cosines in zip(cells, mistakes, positions, similarities, strict=False):
        row[0].imshow(test_images[mistake.index], interpolation="nearest")
        true, predicted = (shown_name(class_names[label]) for label in (mistake.true, mistake.predicted))
        row[0].set_title(f"true: {true}\npredicted: {predicted}", fontsize=7, fontweight="bold")
        for axes, position, cosine in zip(row[1:], places, cosines, strict=True):
            axes.imshow(train_images[int(position)], interpolation="nearest")
            axes.set_title(f"{shown_name(class_names[train.labels[position]])}\ncosine {cosine:.2f}", fontsize=7)
    return figure
