"""When a training does what: functions of the step number alone, so that a resume cannot put them out of step."""

import math
from dataclasses import dataclass
from functools import cached_property

from utils.config import TrainConfig
from utils.config.resolution import Phase, Size, phase_at, resolution_phases
from utils.system.errors import UserError

SCHEDULES = ("onecycle", "cosine", "linear", "step", "constant")
SHORT = 10  # steps: a shorter run would skip a onecycle peak that lies between two of them


@dataclass(frozen=True)
class Plan:
    """The course of a training. A step is one optimizer update; steps count from 1, epochs from 0.

    Attributes:
        images: in the training split.
        image_size: of the data set, height and width in pixels.
    """

    config: TrainConfig
    images: int
    image_size: Size

    def __post_init__(self) -> None:
        """Raises UserError if `resolution` does not end at image_size."""
        resolution_phases(self.config.resolution, self.image_size, self.total_steps)

    @cached_property
    def steps_per_epoch(self) -> int:
        return -(-self.images // self.config.batch_size)

    @cached_property
    def total_steps(self) -> int:
        """The steps of all epochs, which the learning-rate schedule spans; none with a frozen backbone: its head is
        fitted."""
        return 0 if self.config.freeze == "backbone" else self.config.epochs * self.steps_per_epoch

    @cached_property
    def last_step(self) -> int:
        """The step after which training ends: that of `max_steps`, or the last of all epochs."""
        return min(self.total_steps, self.config.max_steps or self.total_steps)

    @cached_property
    def phases(self) -> list[Phase]:
        """The image sizes of the run and the step after which each begins."""
        return resolution_phases(self.config.resolution, self.image_size, self.total_steps)

    @property
    def augmented_epochs(self) -> int:
        """How many epochs have augmented images, before those without."""
        return round(self.config.augment_until * self.config.epochs)

    def augments(self, step: int) -> bool:
        """Whether the images of a step are augmented and mixed."""
        return (step - 1) // self.steps_per_epoch < self.augmented_epochs

    def trains_all(self, step: int) -> bool:
        """Whether a step trains the whole model, not the head alone."""
        return step > self.config.freeze_epochs * self.steps_per_epoch

    def epoch_end(self, epoch: int) -> int:
        """The last step of an epoch."""
        return (epoch + 1) * self.steps_per_epoch

    def pause(self, epoch: int) -> int:
        """The step after which an epoch is evaluated: its last one, or that of the training."""
        return min(self.epoch_end(epoch), self.last_step)

    def pauses_after(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0 or step == self.last_step

    def lr_factor(self, step: int) -> float:
        """The share of the peak learning rate that a step is taken with."""
        factor = learning_rate_factor(self.config.schedule, step - 1, self.total_steps, self.config.warmup_fraction)
        return self.peak_factor * factor

    @property
    def peak_factor(self) -> float:
        """The share of `lr` that the schedule reaches: 1 unless the run is shorter than `full_lr_steps`."""
        least = self.config.full_lr_steps
        return self.total_steps / least if self.total_steps < least else 1.0

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to; before the first step, the first phase."""
        return phase_at(self.phases, step - 1)

    def begins_phase(self, step: int, previous: int) -> bool:
        """Whether a step is the first at its image size for weights that were last updated by step `previous`."""
        return previous > 0 and self.phase(previous) != self.phase(step)

    def is_logged(self, step: int) -> bool:
        """Whether a training line is written after a step."""
        return step % self.config.log_every_steps == 0 or self.pauses_after(step)

    def is_checked(self, step: int) -> bool:
        """Whether loss, gradient and weights are checked for numbers that are not finite after a step."""
        return step % self.config.nan_patience == 0 or self.is_logged(step)

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is due after a step, inside an epoch; that of its end is written in any case."""
        every = self.config.checkpoint_every_steps
        return every is not None and step % every == 0 and not self.pauses_after(step)

    def images_until(self, step: int, epochs: int) -> int:
        """Images of the first `step` steps, of which `epochs` epochs are complete."""
        return epochs * self.images + (step - epochs * self.steps_per_epoch) * self.config.batch_size


def learning_rate_factor(schedule: str, step: int, total_steps: int, warmup_fraction: float = 0.0) -> float:
    """The share of the peak learning rate for the update after `step` finished ones (0 <= step < total_steps).

    - onecycle: cosine from 1/25 up to 1, then cosine down to 1/250,000 (Smith and Topin 2017, arXiv:1708.07120, with
      torch's OneCycleLR constants). From 10 steps on it equals torch's; in fewer the peak moves to the nearest step,
      since torch's lies between two of them or before the first.
    - cosine, linear: down to 0 at the end of training, which is after the last update, after a linear warm-up.
    - step: a tenth at one half and again at three quarters of the run, after a linear warm-up.
    - constant: 1, after a linear warm-up.

    The linear warm-up ends before the last step, whatever its share. Raises UserError for another schedule.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule: {schedule!r} is not allowed; choose from {', '.join(SCHEDULES)}")
    if schedule == "onecycle":
        return _onecycle(step, total_steps, warmup_fraction)
    warmup = min(warmup_fraction * total_steps, total_steps - 1)
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    progress = (step - warmup) / (total_steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "step":
        return 0.1 ** ((step >= total_steps / 2) + (step >= 3 * total_steps / 4))
    return 1.0


def _onecycle(step: int, total_steps: int, warmup_fraction: float) -> float:
    peak = warmup_fraction * total_steps - 1
    if total_steps < SHORT:
        peak = max(0, round(peak))
    if step <= peak:
        return _cosine_between(1 / 25, 1.0, step / peak if peak > 0 else 1.0)
    return _cosine_between(1.0, 1 / 250_000, (step - peak) / max(1e-9, total_steps - 1 - peak))


def _cosine_between(first: float, last: float, progress: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * min(1.0, progress)))
