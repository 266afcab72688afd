"""When a training does what: functions of the step number alone, so that a resume cannot put them out of step."""

from dataclasses import dataclass
from functools import cached_property

from utils.config import TrainConfig
from utils.config.resolution import Phase, phase_at, resolution_phases
from utils.training.schedules import learning_rate_factor


@dataclass(frozen=True)
class Plan:
    """The course of a training. A step is one optimizer update; steps count from 1, epochs from 0.

    Attributes:
        images: in the training split.
        image_size: of the data set, in pixels.
    """

    config: TrainConfig
    images: int
    image_size: int

    def __post_init__(self) -> None:
        """Raises UserError if `resolution` does not end at image_size."""
        resolution_phases(self.config.resolution, self.image_size, self.total_steps)

    @cached_property
    def steps_per_epoch(self) -> int:
        return -(-self.images // self.config.batch_size)

    @cached_property
    def total_steps(self) -> int:
        """The steps of all epochs, which the learning-rate schedule spans."""
        return self.config.epochs * self.steps_per_epoch

    @cached_property
    def last_step(self) -> int:
        """The step after which training ends: that of `max_steps`, or the last of all epochs."""
        return min(self.total_steps, self.config.max_steps or self.total_steps)

    @cached_property
    def phases(self) -> list[Phase]:
        """The image sizes of the run and the step after which each begins."""
        return resolution_phases(self.config.resolution, self.image_size, self.total_steps)

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
        config = self.config
        return learning_rate_factor(config.schedule, step - 1, self.total_steps, config.warmup_fraction)

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
