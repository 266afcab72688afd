"""Does a confidence of 80 % mean right in 80 % of the cases? Reliability diagram and expected calibration error."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reliability:
    """Predictions in equally wide bins of confidence.

    `edges` (bins + 1,); per bin `counts`, mean `confidence` and `accuracy` (both 0 where a bin is empty).
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean gap between confidence and accuracy over all predictions (Guo et al. 2017, arXiv:1706.04599)."""
        return float(self.counts @ np.abs(self.confidence - self.accuracy) / self.counts.sum())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Bins the predicted classes' probabilities.

    Args:
        probabilities: (images, classes), rows sum to 1.
        labels: (images,), the true classes.
    """
    confidences = probabilities.max(1)
    hits = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    positions = np.digitize(confidences, edges[1:-1], right=True)
    counts = np.bincount(positions, minlength=bins)
    filled = counts.clip(min=1)
    return Reliability(
        edges,
        counts,
        np.bincount(positions, confidences, bins) / filled,
        np.bincount(positions, hits, bins) / filled,
    )
