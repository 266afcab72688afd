"""The predictions of a model for a split."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


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
