"""Which images make up which step, and their way to the device.

The order is a pure function of (seed, epoch): step k of an epoch is the k-th slice of `batch_size` of a permutation,
and each rank takes its part of that slice. So the k-th update sees the same images for every number of processes,
loader workers and micro-batches, and a resume inside an epoch needs nothing but the step.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data.augment import BatchPipeline, ImagePipeline
from data.splits import Split
from utils.system.errors import EnvironmentFault, one_line

EVALUATION_BATCH = 500  # images at a time in evaluation


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` images."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """This rank's part of one step.

    `images` are uint8 (n, height, width, 3), `labels` int64 (n,), on the CPU or already on the device. `count` of them
    carry weight: n, or 0 for a rank that has no image in this step and got one as a filler. `global_count` is the count
    over all ranks, and `first` the position of the part in the global batch. For mixing, one more image precedes them
    (see Steps).
    """

    images: Tensor
    labels: Tensor
    count: int
    global_count: int
    first: int = 0


class Steps:
    """For every step of an epoch, the images that a rank works on, by position in the split.

    With `repeated` copies of each augmented image in its step, an epoch of as many steps has a part of the images
    (Hoffer et al. 2020, arXiv:1901.09335). Copy c of an image is the position + c * count, and is augmented on its own.
    Copies are apart from each other in the batch, since images are mixed with their neighbours.

    The part of a rank is contiguous; parts differ by at most one image. A rank whose part is empty (a last batch with
    fewer images than processes) gets the batch's first image as a filler, so that it takes part in the collective
    calls. With `lead`, the image before the part in the global batch (the last one for the first) comes first: images
    are mixed with the one before them, whichever rank has it.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        lead: bool = False,
        repeated: int = 1,
    ):
        self.count, self.batch_size, self.seed, self.lead = count, batch_size, seed, lead
        self.rank, self.world_size, self.repeated = rank, world_size, repeated
        self.steps_per_epoch = math.ceil(count / batch_size)

    def positions(self, epoch: int, first_step: int = 0, augmented: bool = True) -> Iterator[np.ndarray]:
        copies = self.repeated if augmented else 1
        order, images = epoch_order(self.seed, epoch, self.count), math.ceil(self.batch_size / copies)
        for step in range(first_step, self.steps_per_epoch):
            size = self._global_count(step)
            originals = order[step * images :][: math.ceil(size / copies)]
            batch = (originals + self.count * np.arange(copies)[:, None]).ravel()[:size]
            places = np.array_split(np.arange(len(batch)), self.world_size)[self.rank]
            if not len(places):
                places = np.zeros(1, dtype=np.int64)
            if self.lead:
                places = np.concatenate([places[:1] - 1, places])
            yield batch[places]

    def _global_count(self, step: int) -> int:
        return min(self.batch_size, self.count - step * self.batch_size)

    def batch(self, step: int, images: Tensor, labels: Tensor) -> Batch:
        """What was loaded for a step of an epoch."""
        global_count = self._global_count(step)
        filler = self.rank >= global_count
        share, longer = divmod(global_count, self.world_size)  # as numpy's array_split
        first = 0 if filler else self.rank * share + min(self.rank, longer)
        return Batch(images, labels, 0 if filler else len(labels) - self.lead, global_count, first)


class _Batches(TorchDataset):
    """Fetches whole batches of uint8 images by (epoch, positions): augmented for that epoch, or as they are if it is
    None."""

    def __init__(self, split: Split, pipeline: ImagePipeline | None = None):
        self.split, self.pipeline = split, pipeline

    def __getitems__(self, key: tuple[int | None, np.ndarray]) -> tuple[Tensor, Tensor]:
        epoch, drawn = key
        positions = drawn % len(self.split)
        images, labels = self.split.images, torch.from_numpy(self.split.labels[positions])
        if self.pipeline is None or epoch is None:
            return torch.from_numpy(images.take(positions)), labels
        batch = images.photos(positions) if self.pipeline.takes_photos else images.take(positions)
        keys = zip(batch, drawn.tolist(), strict=True)
        return torch.from_numpy(np.stack([self.pipeline(image, epoch, index) for image, index in keys])), labels


def _from_worker(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """As tensors in shared memory or, if that is full, as arrays, which torch sends through a pipe.

    torch itself would run into the full shared memory in a thread of the worker, and the loader would wait forever.
    """
    images, labels = batch
    try:
        return images.share_memory_(), labels.share_memory_()
    except RuntimeError:
        return images.numpy(), labels.numpy()


class _TorchLoader:
    """PyTorch's loader, which also works if /dev/shm is small (64 MB in many containers).

    Args:
        warns: whether this process warns of that.
    """

    def __init__(self, images: _Batches, keys: Iterable, num_workers: int, pin_memory: bool, warns: bool):
        self._warns = warns
        self._loader = DataLoader(
            images,
            batch_sampler=keys,
            collate_fn=_from_worker if num_workers else lambda batch: batch,  # type: ignore[arg-type]
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises EnvironmentFault if the workers cannot be started."""
        try:
            batches = iter(self._loader)
        except OSError as error:  # no room for their semaphores in /dev/shm, no more processes, memory or open files
            raise EnvironmentFault(
                f"the loader workers cannot be started ({one_line(error)}); --num_workers 0 loads without them"
            ) from error
        for images, labels in batches:
            if self._warns and isinstance(images, np.ndarray):
                self._warns = False
                print(
                    "warning: shared memory (/dev/shm) is too small for the loader workers, so batches go through "
                    "pipes, which is slower; `docker run --shm-size 1g` makes it larger",
                    file=sys.stderr,
                )
            yield torch.as_tensor(images), torch.as_tensor(labels)


class TrainLoader:
    """The training images of this rank, step by step, augmented one by one on the CPU.

    Args:
        num_workers: loader processes; 0 loads in this one. The result is the same.
    """

    def __init__(
        self, split: Split, pipeline: ImagePipeline, steps: Steps, num_workers: int = 0, pin_memory: bool = False
    ):
        self.steps = steps
        self._images = _Batches(split, pipeline)
        self._keys: list[tuple[int | None, np.ndarray]] = []  # of the remaining steps of an epoch
        self._loader = _TorchLoader(self._images, self._keys, num_workers, pin_memory, warns=steps.rank == 0)

    def augmented(self, epoch: int, positions: np.ndarray) -> Tensor:
        """The images at these positions by their draws of an epoch: uint8 (n, height, width, 3)."""
        return self._images.__getitems__((epoch, positions))[0]

    def epoch(self, epoch: int, first_step: int = 0, augmented: bool = True) -> Iterator[Batch]:
        """Yields this rank's part of each step of an epoch, from first_step on; not `augmented`: as evaluation sees
        the images."""
        draws = epoch if augmented else None
        self._keys[:] = [(draws, drawn) for drawn in self.steps.positions(epoch, first_step, augmented)]
        for step, (images, labels) in enumerate(self._loader, first_step):
            yield self.steps.batch(step, images, labels)


class DeviceLoader:
    """As TrainLoader, for images that live on the device and are augmented there, a whole batch at once.

    On a CPU they stay in the memory that all processes of the machine share. Only the order and the choices of an epoch
    are copied to the device, and the host never waits for it.

    Augmentations get the images in memory, fitted or not (see utils.training.loading.choose_backend).
    Raises ValueError if the images are not in memory.
    """

    def __init__(self, split: Split, pipeline: BatchPipeline, steps: Steps, device: torch.device):
        self.steps, self.pipeline, self.device = steps, pipeline, device
        held = split.images.in_memory
        if held is None:
            raise ValueError("the images are not in memory")
        images, places = held
        self.images, self.places = torch.from_numpy(images).to(device), torch.from_numpy(places).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)

    def augmented(self, epoch: int, positions: np.ndarray) -> Tensor:
        """As TrainLoader.augmented; on the device."""
        mine, drawn = torch.from_numpy(positions), self.pipeline.draw(epoch, self.steps.count)
        images = self.images.index_select(0, self.places[mine.to(self.device)])
        return self.pipeline(images, drawn[mine].to(self.device), drawn[mine])

    def epoch(self, epoch: int, first_step: int = 0, augmented: bool = True) -> Iterator[Batch]:
        """As TrainLoader.epoch."""
        drawn = self.pipeline.draw(epoch, self.steps.count * self.steps.repeated)
        choices = drawn.to(self.device, non_blocking=True)
        parts = list(self.steps.positions(epoch, first_step, augmented))
        if not parts:
            return
        sizes = [len(part) for part in parts]
        indices = torch.from_numpy(np.concatenate(parts)).to(self.device, non_blocking=True)
        for step, (mine, part) in enumerate(zip(indices.split(sizes), parts, strict=True), first_step):
            positions = mine % self.steps.count
            images = self.images.index_select(0, self.places[positions])
            if augmented:
                images = self.pipeline(images, choices.index_select(0, mine), drawn[torch.from_numpy(part)])
            yield self.steps.batch(step, images, self.labels.index_select(0, positions))


class EvaluationLoader:
    """A split in its own order, in fixed batches that are dealt to the ranks in turn.

    The batches are the same for every number of ranks, and so are the logits. Every rank gets the same number of
    rounds: None if there is no batch left for it.
    """

    def __init__(
        self,
        split: Split,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = EVALUATION_BATCH,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        batches = [range(start, min(start + batch_size, len(split))) for start in range(0, len(split), batch_size)]
        self.count, self.batch_size = len(split), batch_size
        self.rounds = math.ceil(len(batches) / world_size)
        mine = [(None, np.arange(batch.start, batch.stop)) for batch in batches[rank::world_size]]
        self._empty_rounds = self.rounds - len(mine)
        self._loader = _TorchLoader(_Batches(split), mine, num_workers, pin_memory, warns=rank == 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | None]:
        yield from self._loader
        yield from [None] * self._empty_rounds
