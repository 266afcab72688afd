"""Is a map faithful? ROAD, remove and debias (Rong et al. 2022, arXiv:2202.00449)."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirst, ROADMostRelevantFirst
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import Tensor, nn

PERCENTILES = (20, 40, 60, 80)  # percent of the pixels that remain


def road_scores(model: nn.Module, inputs: Tensor, maps: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """How faithful each map is, float64 (N,), between -0.5 and 0.5.

    The pixels that a map marks as most important are removed, a share at a time, and imputed from their neighbours;
    then those that it marks as least important. The score is half the difference of the probabilities of the class,
    mean over the shares: 0 for a map that is no better than chance. A map without positive evidence ranks all pixels
    alike and scores 0.

    Args:
        model: float32, in eval mode.
        inputs: normalised images (N, 3, H, W) on the model's device.
        maps: float32 (N, H, W).
        classes: the class that each map explains.
    """
    goals = [ClassifierOutputSoftmaxTarget(index) for index in classes]
    ranks = _ranks(maps)
    scores = np.zeros(len(maps))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", DeprecationWarning)  # the library calls NumPy with tensors
        torch.manual_seed(0)  # of the noise on the pixels that are filled in
        for percentile in PERCENTILES:
            least, most = (
                metric(percentile)(inputs, ranks, goals, model, return_diff=False)
                for metric in (ROADLeastRelevantFirst, ROADMostRelevantFirst)
            )
            scores += (least - most) / 2 / len(PERCENTILES)
    return np.where(maps.any(axis=(1, 2)), scores, 0)


def _ranks(maps: np.ndarray) -> np.ndarray:
    """The pixels of each map in the order of their values, float32 from 0 to 1, equal values in random order.

    The library removes what lies above a percentile. Where a third of a map is zero, that would be no pixel or all of
    them.
    """
    flat = maps.reshape(len(maps), -1)
    order = np.lexsort((np.random.default_rng(0).random(flat.shape), flat))
    ranks = np.empty_like(flat)
    np.put_along_axis(ranks, order, np.linspace(0, 1, flat.shape[1], dtype=np.float32)[None], axis=1)
    return ranks.reshape(maps.shape)
