"""Predictions for a whole split, each image once and in order, on any number of processes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm

from utils.evaluation.tta import tta_logits


class Batches(Protocol):
    """A split in batches that are dealt to the ranks in turn (data.loaders.EvaluationLoader).

    Attributes:
        count: images of the split.
        batch_size: of every batch but the last.
        rounds: items that each rank iterates over: batches, and None once there are no more.
    """

    count: int
    batch_size: int
    rounds: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | None]: ...


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts all of a model into eval mode for the block; afterwards each layer is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def predict(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Batches,
    prepare: Callable[[Tensor], Tensor],
    tta: str = "none",
    progress: str = "",
    between_batches: Callable[[], None] = lambda: None,
) -> Tensor:
    """Logits, float32 (images, classes) on the CPU, in the order of the split, the same on every rank.

    Args:
        model: maps normalised images to logits; put into eval mode for the call.
        loader: deals the split's batches to the ranks.
        prepare: turns a batch of the loader into normalised images on the device.
        tta: test-time augmentation (utils.evaluation.tta).
        progress: label of a progress bar on the main process; no bar if empty or not a terminal.
        between_batches: called on every rank before every round; may raise to stop.
    """
    for buffer in model.buffers() if accelerator.num_processes > 1 else ():
        buffer.copy_(broadcast(buffer, 0))  # batch-norm statistics are rank 0's, as in its checkpoint
    rounds = []
    with in_eval_mode(model):
        hidden = None if progress and accelerator.is_main_process else True  # None: unless it is a terminal
        for batch in tqdm(loader, progress, loader.rounds, leave=False, disable=hidden):
            between_batches()
            if batch is not None:
                logits = tta_logits(model, prepare(batch[0]), tta).float()
            else:
                logits = torch.empty(0, 0, device=accelerator.device)
            rounds.append(logits)
    return _in_order(accelerator, rounds, loader)


def _in_order(accelerator: Accelerator, rounds: list[Tensor], loader: Batches) -> Tensor:
    """All ranks' rounds as one tensor; batch b is that of rank b % ranks in round b // ranks."""
    if accelerator.num_processes == 1:
        return torch.cat(rounds).cpu()
    mine = max(logits.shape[1] for logits in rounds)
    classes = int(accelerator.gather(torch.tensor([mine], device=accelerator.device)).max())
    padded = torch.zeros(len(rounds), loader.batch_size, classes, device=accelerator.device)
    for position, logits in enumerate(rounds):
        padded[position, : len(logits), : logits.shape[1]] = logits
    ranks = accelerator.gather(padded[None])  # (ranks, rounds, batch, classes)
    return ranks.transpose(0, 1).flatten(0, 2)[: loader.count].cpu()
