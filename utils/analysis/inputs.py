"""What sections need besides the predictions of the test split, found by all processes together."""

from dataclasses import dataclass

import numpy as np

from data.splits import Split
from utils.analysis import calibration, embedding, neighbours, robustness
from utils.analysis.embedding import Embedding
from utils.analysis.inference import fingerprint, predict_kept, predict_split, predict_test
from utils.analysis.kept import Arrays, Form, find_or_compute
from utils.analysis.misclassified import find_mistakes
from utils.analysis.neighbours import Neighbours
from utils.analysis.predictions import Predictions
from utils.analysis.robustness import Probe
from utils.analysis.sampling import stratified_choice
from utils.analysis.setup import Analysis


@dataclass(frozen=True)
class SectionInputs:
    """On the main process; each is None where its section is not asked for, and elsewhere.

    `validation` is None too where training held no images out.
    """

    validation: Predictions | None = None
    neighbours: Neighbours | None = None
    embedding: Embedding | None = None
    probe: Probe | None = None
    compared: Predictions | None = None


def find_inputs(analysis: Analysis, predictions: Predictions) -> SectionInputs:
    """Everything for the sections that were asked for, kept for the next call. To be called on all processes."""
    return SectionInputs(
        validation=find_validation(analysis) if "calibration" in analysis.sections else None,
        neighbours=find_neighbours(analysis, predictions) if "neighbours" in analysis.sections else None,
        embedding=find_embedding(analysis, predictions) if "embedding" in analysis.sections else None,
        probe=find_probe(analysis, predictions) if "robustness" in analysis.sections else None,
        compared=predict_test(analysis.other, analysis.other.run.path / "analysis") if analysis.other else None,
    )


def find_validation(analysis: Analysis) -> Predictions | None:
    """Predictions of images that training held out: enough of them to fit one number."""
    held_out = analysis.held_out
    if not len(held_out):
        return None
    labels = analysis.train.labels[held_out]
    chosen = held_out[stratified_choice(labels, calibration.FITTED_ON)]
    return predict_kept(analysis, analysis.train.subset(chosen), "validation", "validation images")


def find_neighbours(analysis: Analysis, predictions: Predictions) -> Neighbours | None:
    """The training images that are nearest to each mistake; costs a forward pass over all of them."""
    mistakes = [mistake.index for mistake in find_mistakes(predictions.probabilities, predictions.labels)]
    seen = np.setdiff1d(np.arange(len(analysis.train)), analysis.held_out)
    split = analysis.train.subset(seen)

    def compute() -> Arrays:
        features = predict_split(analysis, split, "training images").features
        if not analysis.accelerator.is_main_process:
            return {}
        positions, similarities = neighbours.nearest(predictions.features[mistakes], features)
        return {"positions": seen[positions], "similarities": similarities}

    depends_on = fingerprint(analysis, analysis.test, split) | {"per_image": neighbours.PER_IMAGE}
    shape = len(mistakes), min(neighbours.PER_IMAGE, len(split))
    forms = {"positions": Form("i", shape, below=len(analysis.train)), "similarities": Form("f", shape)}
    found = find_or_compute(analysis.accelerator, [analysis.folder], "neighbours", depends_on, forms, compute)
    return Neighbours(**found) if found else None


def find_embedding(analysis: Analysis, predictions: Predictions) -> Embedding | None:
    """The maps of the test images; only the main process works on them."""

    points = embedding.choose_points(predictions)

    def compute() -> Arrays:
        if not analysis.accelerator.is_main_process:
            return {}
        return vars(embedding.embed(predictions.features, points))

    depends_on = fingerprint(analysis, analysis.test) | {"points": embedding.MOST_POINTS}
    places, indices = Form("f", (len(points), 2)), Form("i", points.shape, below=len(analysis.test))
    forms = {"indices": indices, "pca": places, "tsne": places, "variance": Form("f", (2,))}
    found = find_or_compute(analysis.accelerator, [analysis.folder], "embedding", depends_on, forms, compute)
    return Embedding(**found) if found else None


def find_probe(analysis: Analysis, predictions: Predictions) -> Probe:
    """Which of some test images are still classified right at every strength of every corruption."""
    test = analysis.test
    chosen = stratified_choice(test.labels, robustness.IMAGES)
    shape = (len(robustness.CORRUPTIONS), robustness.STRENGTHS, len(chosen))

    def compute() -> Arrays:
        images = robustness.Corrupted(np.stack([test.images[index] for index in chosen]), chosen)
        split = Split(images, np.tile(test.labels[chosen], shape[0] * shape[1]))
        corrupted = predict_split(analysis, split, "corrupted images")
        return {"hits": (corrupted.classes == corrupted.labels).reshape(shape)}

    settings = {name: [corruption.unit, *corruption.values] for name, corruption in robustness.CORRUPTIONS.items()}
    depends_on = fingerprint(analysis, test) | {"images": len(chosen), "corruptions": settings}
    forms = {"hits": Form("b", shape)}
    found = find_or_compute(analysis.accelerator, [analysis.folder], "robustness", depends_on, forms, compute)
    return Probe(chosen, predictions.classes[chosen] == test.labels[chosen], found["hits"])
