"""Which images make up which step, and their way to the device.

The order is a pure function of (seed, epoch): step k of an epoch is the k-th slice of `batch_size` of a permutation,
and each rank takes its part of that slice. So the k-th update sees the same images for every number of processes,
loader workers and micro-batches, and a resume inside an epoch needs nothing but the step.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data.augmentation import Augmentation
from data.datasets import Split

IGNORED = -100  # the label that torch's cross-entropy gives no weight
Key = tuple[int, int]  # (epoch, position in the split)


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` images."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def rank_part(indices: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The contiguous part of a global batch that a rank works on; parts differ by at most one image."""
    return np.array_split(indices, world_size)[rank]


class Batch(NamedTuple):
    """This rank's part of one step.

    `images` are uint8 (n, size, size, 3), `labels` int64 (n,). `count` of them carry weight: n, or 0 for a rank that
    has no image in this step and got one as a filler, labelled IGNORED. `global_count` is the count over all ranks.
    """

    images: Tensor
    labels: Tensor
    count: int
    global_count: int


class StepSampler:
    """For every remaining step of an epoch, the keys of the images that this rank works on.

    A rank whose part is empty (a last batch with fewer images than processes) gets the batch's first image as a
    filler, so that it takes part in the collective calls.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int, world_size: int):
        self.count, self.batch_size, self.seed, self.rank, self.world_size = count, batch_size, seed, rank, world_size
        self.epoch, self.first_step = 0, 0

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size) - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        order = epoch_order(self.seed, self.epoch, self.count)
        for start in range(self.first_step * self.batch_size, self.count, self.batch_size):
            batch = order[start : start + self.batch_size]
            mine = rank_part(batch, self.rank, self.world_size)
            yield [(self.epoch, int(index)) for index in (mine if len(mine) else batch[:1])]


class _Batches(TorchDataset):
    """Fetches whole batches of uint8 images; with an augmentation, each image is augmented for its epoch."""

    def __init__(self, split: Split, augmentation: Augmentation | None = None):
        self.split, self.augmentation = split, augmentation

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        images, labels = self.split.images, self.split.labels
        if self.augmentation is None:
            batch = [images[index] for _, index in keys]
        else:
            batch = [self.augmentation(images[index], epoch, index) for epoch, index in keys]
        return torch.from_numpy(np.stack(batch)), torch.from_numpy(labels[[index for _, index in keys]])


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def _torch_loader(batches: _Batches, sampler, num_workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        batches,
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


class TrainLoader:
    """The training images of this rank, step by step.

    Args:
        batch_size: images per step over all ranks.
        num_workers: loader processes; 0 loads in this one. The result is the same.
    """

    def __init__(
        self,
        split: Split,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.count, self.batch_size = len(split), batch_size
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = math.ceil(self.count / batch_size)
        self._sampler = StepSampler(self.count, batch_size, seed, rank, world_size)
        self._loader = _torch_loader(_Batches(split, augmentation), self._sampler, num_workers, pin_memory)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields this rank's part of each step of an epoch, from first_step on."""
        self._sampler.epoch, self._sampler.first_step = epoch, first_step
        for step, (images, labels) in enumerate(self._loader, first_step):
            global_count = min(self.batch_size, self.count - step * self.batch_size)
            filler = self.rank >= global_count
            if filler:
                labels = torch.full_like(labels, IGNORED)
            yield Batch(images, labels, 0 if filler else len(labels), global_count)


class EvaluationLoader:
    """A split in its own order, in fixed batches that are dealt to the ranks in turn.

    The batches are the same for every number of ranks, and so are the logits. Every rank gets the same number of
    rounds; where there is no batch left for it, None.
    """

    def __init__(
        self,
        split: Split,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 500,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        batches = [range(start, min(start + batch_size, len(split))) for start in range(0, len(split), batch_size)]
        self.count, self.batch_size = len(split), batch_size
        self.rounds = math.ceil(len(batches) / world_size)
        mine = [[(0, index) for index in batch] for batch in batches[rank::world_size]]
        self._loader = _torch_loader(_Batches(split), mine, num_workers, pin_memory)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | None]:
        given = 0
        for batch in self._loader:
            given += 1
            yield batch
        yield from [None] * (self.rounds - given)


def to_input(images: Tensor, mean: Tensor, std: Tensor, channels_last: bool = True) -> Tensor:
    """uint8 (N, H, W, 3) as normalised float32 (N, 3, H, W) on the device of `mean` and `std` (3,), scale 0 to 1."""
    images = images.to(mean.device, non_blocking=True).permute(0, 3, 1, 2)  # already channels last in memory
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = images.to(torch.float32, memory_format=layout)
    return images.sub_(255 * mean[:, None, None]).div_(255 * std[:, None, None])
