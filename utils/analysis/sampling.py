"""Some of many images, the same at every call."""

import numpy as np


def stratified_choice(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Sorted positions of `count` images, each class in proportion; of all where there are no more than that.

    A function of its arguments alone. With fewer images than classes, some classes have none.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shares = np.empty(len(labels))  # of its own class that comes before an image
    for label in np.unique(labels):
        members = order[labels[order] == label]
        shares[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(shares[order], kind="stable")][:count])
