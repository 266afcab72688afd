"""Sums that are exact over images and processes."""

from typing import Any

import torch
from torch import Tensor


class RunningMean:
    """Loss and accuracy over the images since the last reset, summed on the device without waiting for it.

    Sums, not means, cross the processes: batches and ranks may hold different numbers of images. A batch whose loss is
    not finite is left out, its images too.
    """

    def __init__(self, device: torch.device):
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=kind, device=device)  # loss, correct, images

    def add(self, loss_sum: Tensor, correct: Tensor, count: int) -> None:
        batch = torch.stack([loss_sum.detach(), correct, torch.full_like(loss_sum, count)])
        self.sums += torch.where(loss_sum.isfinite(), batch, 0)

    def reset(self) -> None:
        self.sums.zero_()

    def merge(self, other: "RunningMean") -> None:
        self.sums += other.sums

    def mean(self, accelerator: Any) -> tuple[float, float, int]:
        """(loss, accuracy, images) over all processes. Waits for the device."""
        loss, correct, count = accelerator.reduce(self.sums, "sum").tolist()
        return loss / max(count, 1), correct / max(count, 1), int(count)

    def state(self, accelerator: Any) -> list[list[float]]:
        """One row of sums per rank, for a checkpoint."""
        return accelerator.gather(self.sums[None]).tolist()

    def restore(self, rows: list[list[float]], rank: int, world_size: int) -> None:
        """Takes this rank's row; with another number of processes, rank 0 takes the sum of all. No rows: nothing."""
        if not rows:
            return
        table = torch.tensor(rows, dtype=self.sums.dtype)
        mine = table[rank] if len(table) == world_size else table.sum(0) * (rank == 0)
        self.sums.copy_(mine)
