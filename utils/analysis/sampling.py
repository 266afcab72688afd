"""A subset of the images, the same at every call."""

import numpy as np


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
