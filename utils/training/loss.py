"""The loss that is minimised, and what a training line says of it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.training.micro_batch import Piece
from utils.training.run import Run


def training_loss(run: Run, logits: Tensor, piece: Piece) -> Tensor:
    """The loss of a piece of the batch, summed over its images, (); with `teacher`, partly against its answers."""
    loss = F.cross_entropy(logits, piece.targets, reduction="sum", label_smoothing=run.config.label_smoothing)
    return run.teacher.distil(loss, logits, piece.inputs) if run.teacher else loss


@torch.no_grad()
def measure(logits: Tensor, targets: Tensor) -> Tensor:
    """Sums over the images of the cross-entropy, without label smoothing or teacher so that it compares with the test
    loss, and of the correct predictions: (2,).

    Args:
        targets: labels (n,), or class shares (n, classes), of which the largest counts as the label.
    """
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return torch.stack([F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(1) == labels).sum()])
