"""What the search for wrong labels promises."""

import numpy as np
import pytest

from data.sources import load_split
from utils.analysis.sections.label_issues import find_label_issues


@pytest.fixture(scope="module")
def flipped() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A model's probabilities of the digits that it was not trained on, labels of which 20 are wrong, and which."""
    from sklearn.linear_model import LogisticRegression

    train, test = (load_split("digits", "", part, 8)[0] for part in ("train", "test"))
    pixels, others = (split.images[:][..., 0].reshape(len(split), -1) / 255 for split in (train, test))
    probabilities = LogisticRegression(max_iter=300).fit(pixels, train.labels).predict_proba(others)
    generator = np.random.default_rng(0)
    places = generator.choice(len(test), 20, replace=False)
    labels = test.labels.copy()
    labels[places] = (labels[places] + generator.integers(1, 10, 20)) % 10
    return probabilities, labels, places


def test_most_wrong_labels_are_found_and_lead_the_list(flipped):
    probabilities, labels, places = flipped
    candidates = find_label_issues(probabilities, labels)
    found = [candidate.index for candidate in candidates]
    assert np.isin(places, found).mean() >= 0.65
    assert np.isin(found[:10], places).mean() >= 0.8


def test_the_clearest_contradiction_comes_first(flipped):
    probabilities, labels, _ = flipped
    candidates = find_label_issues(probabilities, labels)
    margins = [candidate.margin for candidate in candidates]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] > 0
    first = candidates[0]
    assert first.given == labels[first.index]
    assert first.suggested_probability == probabilities[first.index, first.suggested]


def test_a_class_must_be_as_probable_as_it_usually_is_for_its_own_images():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.7, 0.3, 0.0], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
    labels = np.array([0, 1, 1, 2, 2])  # usual: 0.9, 0.5, 0.45
    (candidate,) = find_label_issues(probabilities, labels)
    assert (candidate.index, candidate.given, candidate.suggested) == (3, 2, 1)


def test_a_class_without_images_is_never_suggested():
    probabilities = np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0]])
    assert {candidate.suggested for candidate in find_label_issues(probabilities, np.array([0, 2]))} == {0}
