"""Which labels does the model contradict most? Candidates for wrong labels; many are mistakes of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from utils.analysis.predictions import Predictions
from utils.analysis.report.atlas import tiles_of
from utils.analysis.section import Analysis, Section
from utils.plots.figures import class_label, image_grid, message_figure

LABEL = "Label issues"
COST = "quick"
NEEDS = ()

SHOWN = 24


@dataclass(frozen=True)
class Candidate:
    """A test image whose label may be wrong: the given and the suggested class, each with its probability."""

    index: int
    given: int
    suggested: int
    given_probability: float
    suggested_probability: float

    @property
    def margin(self) -> float:
        """By how much the suggested class is more probable, 0 to 1."""
        return self.suggested_probability - self.given_probability


def section(analysis: Analysis, predictions: Predictions) -> Section:
    """All candidates as a table, the first of them as images."""
    test, class_names = analysis.test, analysis.model_config.class_names
    candidates = find_label_issues(predictions.probabilities, predictions.labels)
    shown, pictures = candidates[:SHOWN], analysis.shown(test)
    images = [pictures[candidate.index] for candidate in shown]
    captions = [f"labelled {class_names[item.given]}; perhaps {class_names[item.suggested]}" for item in shown]
    rows = [
        {
            "index": candidate.index,
            "given": class_names[candidate.given],
            "suggested": class_names[candidate.suggested],
            "given_probability": candidate.given_probability,
            "suggested_probability": candidate.suggested_probability,
            "margin": candidate.margin,
            **({"path": test.paths[candidate.index]} if test.paths else {}),
        }
        for candidate in candidates
    ]
    return Section(
        summary={"label_issue_candidates": len(candidates)},
        page={"tiles": tiles_of(pictures, predictions, [candidate.index for candidate in shown], captions)},
        figures={"label_issues": label_issues_figure(shown, images, len(candidates), class_names)},
        tables={"label_issues": rows},
    )


def find_label_issues(probabilities: np.ndarray, labels: np.ndarray) -> list[Candidate]:
    """Images for which another class is as probable as on average for its own images, and more than the given one.

    Confident learning (Northcutt et al. 2021, arXiv:1911.00068), ranked by normalised margin, the clearest first. A
    class that gets little probability on average thus needs less to be suggested.

    Args:
        probabilities: (images, classes), rows sum to 1, of a model that was not trained on these images.
        labels: (images,), the given classes.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.bincount(labels, own, classes) / counts.clip(min=1)
    usual[counts == 0] = np.inf  # a class without images is never suggested
    confident = np.where((probabilities >= usual) & (probabilities > own[:, None]), probabilities, 0.0)
    suggested = confident.argmax(1)
    gains = confident.max(1) - own
    found = np.flatnonzero(gains > 0)
    found = found[np.argsort(-gains[found], kind="stable")]
    columns = found, labels[found], suggested[found], own[found], probabilities[found, suggested[found]]
    return [Candidate(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def label_issues_figure(
    candidates: Sequence[Candidate], images: Sequence[np.ndarray], total: int, class_names: Sequence[str]
) -> Figure:
    """Images with given and suggested class, of `total` candidates."""
    if not candidates:
        return message_figure("The model contradicts no label of the test set with confidence.")
    titles = [
        f"given: {class_label(class_names, candidate.given, candidate.given_probability)}\n"
        f"suggested: {class_label(class_names, candidate.suggested, candidate.suggested_probability)}"
        for candidate in candidates
    ]
    figure = image_grid(images, titles, columns=6)
    figure.suptitle(f"Labels to check: {len(candidates)} of {total} candidates, the clearest first")
    return figure
