"""What a training measures of itself: sums that are exact over images and processes, the one clock of training, and how
busy it keeps the machine."""

import contextlib
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from data.loaders import Batch
from utils.training.progress import TrainState


class RunningMean:
    """Loss and accuracy over the images since the last reset, summed on the device without waiting for it.

    Sums, not means, cross the processes: batches and ranks may hold different numbers of images. A batch whose loss is
    not finite is skipped, its images too.
    """

    def __init__(self, device: torch.device):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=dtype, device=device)  # loss, correct, images

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


class Clock:
    """Counts the seconds of training: it stands still unless `running`, and while `paused` in there.

    Attributes:
        seconds: of training in all, over all resumes, up to the last pause or lap.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None  # perf_counter() of the last reading; None while it stands still
        self.begin_lap()

    @contextlib.contextmanager
    def running(self, on: bool = True) -> Iterator[None]:
        before = self._since is not None
        self._read(on)
        try:
            yield
        finally:
            self._read(before)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return self.running(False)

    def begin_lap(self) -> None:
        self._read(self._since is not None)
        self._lap_began_at, self._images = self.seconds, 0

    def count(self, images: int) -> None:
        """Adds images of all ranks to the lap."""
        self._images += images

    def lap(self) -> float:
        """Images per second of training in this lap, which ends; the next one begins."""
        self._read(self._since is not None)
        speed = self._images / (self.seconds - self._lap_began_at)
        self.begin_lap()
        return speed

    def restore(self, seconds: float) -> None:
        """Continues the count of the launches before."""
        self.seconds = seconds
        self.begin_lap()

    def _read(self, on: bool) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if on else None


class MachineUse:
    """Use of the processor and of the GPU by this process since the last reading."""

    def __init__(self, device: torch.device):
        self._device = device
        self._has_gpu_sensor = device.type == "cuda" and find_spec("pynvml") is not None and _answers(device)
        self._mark = (time.perf_counter(), time.process_time())

    def read(self) -> dict[str, float]:
        """`cpu_cores` (busy, on average); on a CUDA device also `gpu_memory_gib` (peak) and, with NVIDIA's library
        installed, `gpu_percent` (of the time in which some kernel ran)."""
        now = (time.perf_counter(), time.process_time())
        elapsed, worked = (new - old for new, old in zip(now, self._mark, strict=True))
        self._mark = now
        use = {"cpu_cores": round(worked / elapsed, 2)}
        if self._device.type == "cuda":
            use["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated(self._device) / 2**30, 3)
        if self._has_gpu_sensor:
            use["gpu_percent"] = torch.cuda.utilization(self._device)
        return use


def _answers(device: torch.device) -> bool:
    """Whether NVIDIA's library knows the use of this GPU; of a part of one (MIG) it does not."""
    try:
        torch.cuda.utilization(device)
    except Exception:  # of its own kinds, which are known only if it is installed
        return False
    return True


class Meters:
    """The measurements of one rank.

    Attributes:
        window: loss and accuracy since the last training line.
        epoch: the same over the epoch up to that line.
        gradient_norm: of the last step, before clipping.
        bad_steps: the latest steps in a row whose loss or gradient was not finite; int64 on the device.
    """

    def __init__(self, device: torch.device):
        self.window, self.epoch = RunningMean(device), RunningMean(device)
        self.gradient_norm = torch.zeros((), device=device)
        self.bad_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.clock, self.machine = Clock(), MachineUse(device)

    def add(self, batch: Batch, loss_sum: Tensor, correct: Tensor, gradient_norm: Tensor) -> None:
        """Takes in a step; does not wait for the device.

        Args:
            batch: this rank's part of it.
            loss_sum, correct: summed over that part, ().
            gradient_norm: of the global batch, ().
        """
        self.window.add(loss_sum, correct, batch.count)
        finite = loss_sum.isfinite() & gradient_norm.isfinite()
        self.bad_steps = torch.where(finite, 0, self.bad_steps + 1)
        self.gradient_norm = gradient_norm
        self.clock.count(batch.global_count)

    def end_window(self) -> None:
        """Moves the sums of the window to those of the epoch."""
        self.epoch.merge(self.window)
        self.window.reset()

    def save(self, state: TrainState, accelerator: Accelerator) -> None:
        """Writes what a resume needs into `state`; to be called on every rank."""
        state.window, state.epoch_sums = self.window.state(accelerator), self.epoch.state(accelerator)
        state.train_seconds = self.clock.seconds

    def restore(self, state: TrainState, accelerator: Accelerator) -> None:
        """Restores the sums from `state`; the clock continues."""
        for mean, rows in ((self.window, state.window), (self.epoch, state.epoch_sums)):
            mean.restore(rows, accelerator.process_index, accelerator.num_processes)
        self.bad_steps = torch.full_like(self.bad_steps, state.bad_steps)
