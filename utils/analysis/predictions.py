"""The predictions of a model for a split, and which of them are wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from utils.plots.figures import class_label


@dataclass(frozen=True)
class Predictions:
    """For every image of a split, in its order.

    `logits` float32 (images, classes); `features` float16 (images, F), the input of the classifier; with test-time
    augmentation both are means over the views. `labels` int64 (images,).
    """

    logits: np.ndarray
    features: np.ndarray
    labels: np.ndarray

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 (images, classes), rows sum to 1."""
        from scipy.special import softmax

        return softmax(self.logits.astype(np.float64), axis=1)

    @cached_property
    def classes(self) -> np.ndarray:
        """The predicted class of each image, int64."""
        return self.logits.argmax(1)

    def at_temperature(self, temperature: float) -> "Predictions":
        """With all logits divided by a temperature above 0: the same classes, other probabilities."""
        return replace(self, logits=self.logits / np.float32(temperature))


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: its position in the test set, both classes, and the probability given to each."""

    index: int
    true: int
    predicted: int
    true_confidence: float
    predicted_confidence: float

    def labels(self, class_names: Sequence[str]) -> tuple[str, str]:
        """The true and the predicted class, each with its probability, for a figure."""
        return (
            class_label(class_names, self.true, self.true_confidence),
            class_label(class_names, self.predicted, self.predicted_confidence),
        )


def find_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> list[Mistake]:
    """All mistakes, the most confident first.

    Args:
        probabilities: (images, classes), rows sum to 1.
        labels: (images,), the true classes.
    """
    predictions = probabilities.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[np.argsort(-probabilities[wrong, predictions[wrong]], kind="stable")]
    true, predicted = labels[wrong], predictions[wrong]
    columns = wrong, true, predicted, probabilities[wrong, true], probabilities[wrong, predicted]
    return [Mistake(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def shown_of(shown: int, total: int) -> str:
    """How many of all mistakes are shown, as a title."""
    return f"All {total} misclassified images" if shown == total else f"The {shown} most confident of {total} mistakes"


def stratified_choice(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Sorted positions of `count` images, each class in proportion; of all images if there are no more.

    A function of its arguments alone. With fewer images than classes, some classes have none.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shares = np.empty(len(labels))  # for each image, the share of its class that precedes it
    for label in np.unique(labels):
        members = order[labels[order] == label]
        shares[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(shares[order], kind="stable")][:count])
