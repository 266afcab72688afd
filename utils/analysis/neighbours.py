"""Which training images look most like a mistake to the model? They show what it took the image for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from data.splits import Split
from utils.analysis.atlas import Tile, tiles_of
from utils.analysis.misclassified import Mistake, find_mistakes
from utils.analysis.predictions import Predictions
from utils.analysis.section import Section
from utils.plots.figures import hide_axes, message_figure, new_figure, shown_name

PER_IMAGE = 5
MOST_ROWS = 10  # in neighbours.png


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to each of n test images, the nearest first.

    `positions` int64 (n, k) in the training split; `similarities` float32 (n, k), cosines of the angles between the
    features of both, 1 for the same direction.
    """

    positions: np.ndarray
    similarities: np.ndarray


def nearest(features: np.ndarray, training_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `features` (n, F) those of `training_features` at the least angles: positions, cosines (n, k)."""
    from sklearn.neighbors import NearestNeighbors

    count = min(PER_IMAGE, len(training_features))
    if not len(features):
        return np.empty((0, count), np.int64), np.empty((0, count), np.float32)
    index = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute")
    index.fit(training_features.astype(np.float32))
    distances, positions = index.kneighbors(features.astype(np.float32))
    return positions, (1 - distances).astype(np.float32)


def section(
    predictions: Predictions,
    neighbours: Neighbours,
    test: Split,
    train: Split,
    class_names: Sequence[str],
    shown: int,
) -> Section:
    """All mistakes with their neighbours as a table, the `shown` most confident ones as pictures.

    `neighbours` are those of all mistakes in the order of find_mistakes, with places in `train`.
    """
    mistakes = find_mistakes(predictions.probabilities, predictions.labels)
    labels = train.labels[neighbours.positions]
    found = list(zip(mistakes, neighbours.positions, labels, neighbours.similarities, strict=True))
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
        for mistake, *near in found
        for rank, (position, label, similarity) in enumerate(zip(*near, strict=True), 1)
    ]
    return Section(
        "neighbours",
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
                    *tiles_of(test, predictions, [mistake.index]),
                    *(
                        Tile("train", int(position), train.images, int(label), caption=caption(mistake, label, cosine))
                        for position, label, cosine in zip(*near, strict=True)
                    ),
                ]
                for mistake, *near in found[:shown]
            ],
            "count": len(mistakes),
        },
        figures={"neighbours": neighbours_figure(mistakes, neighbours, test, train, class_names)},
        tables={"neighbours": rows},
    )


def caption(mistake: Mistake, label: int, cosine: float) -> str:
    """What is special about a neighbour of this label."""
    known = {mistake.predicted: ", as predicted", mistake.true: ", as true"}
    return f"cosine {cosine:.2f}{known.get(label, '')}"


def share(labels: np.ndarray, classes: Sequence[int]) -> float:
    """How many of the labels (n, k) are the class of their row, 0 to 1; 0 where there is no row."""
    return float((labels == np.array(classes)[:, None]).mean()) if len(classes) else 0.0


def neighbours_figure(
    mistakes: Sequence[Mistake],
    neighbours: Neighbours,
    test: Split,
    train: Split,
    class_names: Sequence[str],
) -> Figure:
    """A row for each of the first mistakes: the image, then its nearest training images with their labels."""
    if not mistakes:
        return message_figure("No image of the test set is misclassified.")
    total, mistakes = len(mistakes), mistakes[:MOST_ROWS]
    columns = 1 + neighbours.positions.shape[1]
    figure = new_figure(1.55 * columns, 1.75 * len(mistakes) + 0.6)
    figure.suptitle(f"Nearest training images of {len(mistakes)} of {total} mistakes")
    cells = figure.subplots(len(mistakes), columns, squeeze=False)
    hide_axes(cells.flat)
    for row, mistake, positions, similarities in zip(
        cells, mistakes, neighbours.positions, neighbours.similarities, strict=False
    ):
        row[0].imshow(test.images[mistake.index], interpolation="nearest")
        row[0].set_title(
            f"true: {shown_name(class_names[mistake.true])}\npredicted: {shown_name(class_names[mistake.predicted])}",
            fontsize=7,
            fontweight="bold",
        )
        for axes, position, similarity in zip(row[1:], positions, similarities, strict=True):
            axes.imshow(train.images[int(position)], interpolation="nearest")
            axes.set_title(f"{shown_name(class_names[train.labels[position]])}\ncosine {similarity:.2f}", fontsize=7)
    return figure
