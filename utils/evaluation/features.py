"""The features of a whole split: what the head of a model gets as input; and how well their neighbours know a class."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from utils.evaluation.predict import Batches

NEIGHBOURS = 10  # that vote on the class of an image
BLOCK = 1024  # images whose neighbours are searched at a time
MOST_SEARCHED, MOST_SCORED = 50_000, 10_000  # images of either side; of more, some that are evenly spaced


@torch.no_grad()
def compute_features(
    accelerator: Accelerator,
    model: nn.Module,
    layers: Sequence[nn.Linear],
    loader: Batches,
    prepare: Callable[[Tensor], Tensor],
    progress: str = "",
    between_batches: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The inputs of a model's head in a forward pass, side by side: float32 (images, features) on the main process, in
    the order of the split, and the same for any number of processes; empty on the others.

    Args:
        model: maps normalised images to logits, in eval mode.
        layers: of the head, each with inputs (N, in_features).
        loader: deals the split's batches to the ranks.
        prepare: turns a batch of the loader into normalised images on the device.
        progress: label of a progress bar on the main process; no bar if empty or not a terminal.
        between_batches: called on every rank before every round; may raise to stop.
    """
    found: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float())) for layer in layers]
    shape = (loader.batch_size, sum(layer.in_features for layer in layers))
    collected = np.empty((loader.count if accelerator.is_main_process else 0, shape[1]), np.float32)
    hidden = None if progress and accelerator.is_main_process else True  # None: unless it is a terminal
    place = 0
    try:
        for batch in tqdm(loader, progress, loader.rounds, leave=False, disable=hidden):
            between_batches()
            mine = torch.zeros(shape, device=accelerator.device)
            if batch is not None:
                model(prepare(batch[0]))
                mine[: len(batch[0])] = torch.cat(found, dim=1)
                found.clear()
            everyone = accelerator.gather(mine)  # (ranks * batch_size, features), the batches in order
            if accelerator.is_main_process:
                rows = everyone[: loader.count - place].cpu().numpy()
                collected[place : place + len(rows)] = rows
                place += len(rows)
    finally:
        for hook in hooks:
            hook.remove()
    return collected


def neighbour_accuracy(
    known: np.ndarray, known_labels: np.ndarray, features: np.ndarray, labels: np.ndarray, device: torch.device
) -> float:
    """Accuracy of a k-nearest-neighbour classifier by cosine similarity, k = NEIGHBOURS or all if there are fewer: the
    class that most of them have, the lowest of several.

    Args:
        known, features: (images, features) of the images with known classes, and of those to classify.
        known_labels, labels: int64 (images,).
    """
    known, known_labels = (_spread(values, MOST_SEARCHED) for values in (known, known_labels))
    features, labels = (_spread(values, MOST_SCORED) for values in (features, labels))
    references = torch.nn.functional.normalize(torch.from_numpy(known).to(device))
    classes = torch.from_numpy(known_labels).to(device)
    correct = 0
    for start in range(0, len(features), BLOCK):
        part = torch.nn.functional.normalize(torch.from_numpy(features[start : start + BLOCK]).to(device))
        nearest = (part @ references.T).topk(min(NEIGHBOURS, len(references)), dim=1).indices
        votes = torch.nn.functional.one_hot(classes[nearest], int(classes.max()) + 1).sum(1)
        correct += int((votes.argmax(1).cpu() == torch.from_numpy(labels[start : start + BLOCK])).sum())
    return correct / len(features)


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """All rows, or `most` of them, evenly spaced."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).astype(int)]
