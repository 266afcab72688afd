"""Everything that one training works with, and what is asked of it more than once."""

import math
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.loaders import DeviceLoader, EvaluationLoader, TrainLoader
from data.preprocessing import to_input
from data.splits import Dataset, Split
from models import model_arguments
from models.saved import ModelConfig
from models.summary import describe_model
from utils.config import TrainConfig
from utils.config.resolution import Phase, phase_at, resolution_phases
from utils.evaluation.predict import predict
from utils.evaluation.scores import Scores, score
from utils.runs.directory import RunDirectory
from utils.system.errors import one_line
from utils.tracking.tracker import Text, Tracker
from utils.training.averaging import Ema, Lookahead
from utils.training.launches import Launch, difference, launch_of, with_launch
from utils.training.loading import worker_count
from utils.training.machine_use import MachineUse
from utils.training.meters import RunningMean
from utils.training.mixing import Mixing
from utils.training.profiling import StepProfiler
from utils.training.progress import TrainState
from utils.training.schedules import learning_rate_factor
from utils.training.snapshot import pack, unpack


@dataclass
class Run:
    """One training.

    Attributes:
        model: the bare model. Its forward computes in the precision of the launch.
        ddp_model: the same model as gradients see it: in DDP and compiled, where asked for; from prepare() on.
        micro_batch_size: images per process and forward pass; None: all of the process's part.
        mean, std: of the training images, (3,), on the device.
        window, epoch_sums: of the loss and accuracy since the last training line, and in the epoch up to it.
        phases: sizes of the training images over the run.
        mixing: MixUp and CutMix, where asked for.
        ema, lookahead: averages of the weights, where asked for.
        best: weights at the end of the epoch with the best validation accuracy, on the CPU.
        gradient_norm: of the last step, before clipping.
        bad_steps: the latest steps in a row whose loss or gradient was not finite; int64 on the device.
        profiler: on the main process, where asked for.
        launch: the step that it began at and what environment.json says of it, on the main process from set-up on.
    """

    config: TrainConfig
    accelerator: Accelerator
    directory: RunDirectory
    data: Dataset
    loader: TrainLoader | DeviceLoader
    model: nn.Module
    optimizer: torch.optim.Optimizer
    micro_batch_size: int | None
    ddp_model: nn.Module = field(init=False)
    mean: Tensor = field(init=False)
    std: Tensor = field(init=False)
    machine_use: MachineUse = field(init=False)
    window: RunningMean = field(init=False)
    epoch_sums: RunningMean = field(init=False)
    bad_steps: Tensor = field(init=False)
    gradient_norm: Tensor = field(init=False)
    phases: list[Phase] = field(init=False)
    mixing: Mixing | None = None
    ema: Ema | None = None
    lookahead: Lookahead | None = None
    state: TrainState = field(default_factory=TrainState)
    best: dict[str, Tensor] | None = None
    profiler: StepProfiler | None = None
    launch: tuple[int, Launch] | None = None

    def __post_init__(self) -> None:
        config, data, device = self.config, self.data, self.accelerator.device
        self.mean, self.std = torch.tensor(data.mean, device=device), torch.tensor(data.std, device=device)
        self.window, self.epoch_sums = RunningMean(device), RunningMean(device)
        self.bad_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.gradient_norm = torch.zeros((), device=device)
        self.machine_use = MachineUse(device)
        self.phases = resolution_phases(config.resolution, data.image_size, self.total_steps)
        self.state.learning_rate = 0.0 if config.lr == "auto" else config.lr
        if config.mixup or config.cutmix:
            self.mixing = Mixing(config.mixup, config.cutmix, len(data.class_names))
        if config.ema_decay is not None:
            self.ema = Ema(self.model, config.ema_decay)
        if config.lookahead_steps is not None:
            self.lookahead = Lookahead(self.model, config.lookahead_steps, config.lookahead_decay)
        if config.profile and self.accelerator.is_main_process:
            self.profiler = StepProfiler(self.directory.path)

    def restore(self, files: Mapping[str, bytes], source: Path) -> None:
        """Goes back to where a checkpoint was. Raises UserError where it is of another run."""
        unpack(self, files, source)
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.window.restore(self.state.window, rank, world_size)
        self.epoch_sums.restore(self.state.epoch_sums, rank, world_size)
        self.bad_steps = torch.full_like(self.bad_steps, self.state.bad_steps)
        if self.launch:
            self.state.launches = with_launch(self.state.launches, *self.launch)

    def note_launch(self) -> None:
        """Takes this launch into the run's history, unless there is nothing left to train; a warning says what differs
        from the launch that it began with."""
        if not self.accelerator.is_main_process or self.state.evaluated_step >= self.last_step:
            return
        self.launch = self.state.step, launch_of(self.directory.environment)
        if self.state.step and (line := difference(self.state.launches, self.launch[1])):
            print(f"warning: {one_line(line)}", file=sys.stderr)
        self.state.launches = with_launch(self.state.launches, *self.launch)

    def prepare(self) -> None:
        """Hands model and optimizer to Accelerate: device, precision, DDP, compilation."""
        self.directory.track(self._show_model)
        self.ddp_model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        if self.ema:
            self.accelerator.prepare_model(self.ema.model, evaluation_mode=True)

    def _show_model(self, tracker: Tracker) -> None:
        if tracker.fresh:
            tracker.show({"model_summary": Text(describe_model(self.model, self.data.image_size))}, step=0)

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and exported."""
        return self.ema.model if self.ema else self.model

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all epochs: what the schedule spans."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return min(self.total_steps, self.config.max_steps or self.total_steps)

    @property
    def epoch_end(self) -> int:
        """The step after which the current epoch ends."""
        return (self.state.epoch + 1) * self.steps_per_epoch

    @property
    def pause(self) -> int:
        """The step after which the current epoch, or the training, ends."""
        return min(self.epoch_end, self.last_step)

    @property
    def accuracy_to_beat(self) -> float | None:
        """Validation accuracy of the best epoch, whose weights are reported; None before the first epoch's end.

        Accuracies on images of another size than the last step's do not compete.
        """
        outgrown = 0 < self.state.best_step <= self.last_phase.first_step
        return None if outgrown else self.state.best_accuracy

    @property
    def model_config(self) -> ModelConfig:
        """The exported model's config.json, for the resolution that it was last trained on."""
        config, data = self.config, self.data
        return ModelConfig(
            config.model,
            model_arguments(config, data.image_size),
            data.class_names,
            data.image_size,
            data.mean,
            data.std,
            self.last_phase.size,
            config.tta,
        )

    def learning_rate(self, step: int) -> float:
        """The rate of a step, from 1."""
        config = self.config
        factor = learning_rate_factor(config.schedule, step - 1, self.total_steps, config.warmup_fraction)
        return self.state.learning_rate * factor

    @property
    def next_phase(self) -> Phase:
        """The phase of the next step."""
        return phase_at(self.phases, self.state.step)

    @property
    def last_phase(self) -> Phase:
        """The phase of the last finished step."""
        return phase_at(self.phases, self.state.step - 1)

    @property
    def begins_phase(self) -> bool:
        """Whether the next step is the first on images of its size."""
        state = self.state
        trained = state.skipped[-1][0] if state.skipped and state.skipped[-1][1] == state.step else state.step
        return trained > 0 and phase_at(self.phases, trained - 1) != self.next_phase

    def update_averages(self) -> None:
        """Takes the weights after an optimizer step, the last of state.step, into their averages."""
        step = self.state.step
        if self.lookahead:
            self.lookahead.update(self.model, step, self.total_steps)
        if self.ema:  # anew with every phase, whose norm statistics are other ones
            self.ema.update(self.model, step - 1 - self.last_phase.first_step)

    def evaluate(self, split: Split, between_batches: Callable[[], None] = lambda: None, tta: str = "none") -> Scores:
        """Scores of the reported model as it is, over exactly the images of a split, at its training resolution."""
        accelerator = self.accelerator
        decodes = split.images.in_memory is None
        loader = EvaluationLoader(
            split,
            accelerator.process_index,
            accelerator.num_processes,
            num_workers=worker_count(self.config, accelerator) if decodes else 0,
            pin_memory=decodes and accelerator.device.type == "cuda",
        )
        resolution = self.last_phase.size
        logits = predict(
            accelerator,
            self.eval_model,
            loader,
            lambda images: to_input(images, self.mean, self.std, self.config.channels_last, resolution),
            tta,
            progress="evaluating",
            between_batches=between_batches,
        )
        return score(logits, torch.from_numpy(split.labels))

    def log_window(self, rate: float, speed: float) -> str:
        """Writes the training line of the steps since the one before, and returns it as text.

        Args:
            rate: learning rate of the last step.
            speed: images per second.
        """
        loss, accuracy, count = self.window.mean(self.accelerator)
        if count:  # else no loss was finite, and there is nothing to tell yet
            values = {"lr": rate, "images_per_second": round(speed, 1), "images": count, **self.step_details()}
            self.directory.log("train", self.state.step, self.state.epoch + 1, loss, accuracy, **values)
        self.epoch_sums.merge(self.window)
        self.window.reset()
        return f"loss {loss:.3f}, accuracy {accuracy:.2%}, lr {rate:.3g}, {speed:.0f} images/s"

    def note_step(self, loss_sum: Tensor, hits: Tensor, count: int) -> None:
        """Takes in what a step of `count` images on this rank gave; does not wait for the device."""
        self.window.add(loss_sum, hits, count)
        finite = loss_sum.isfinite() & self.gradient_norm.isfinite()
        self.bad_steps = torch.where(finite, 0, self.bad_steps + 1)

    def is_logged(self, step: int) -> bool:
        """Whether a training line is written after this step of the current epoch."""
        return step % self.config.log_every_steps == 0 or step == self.pause

    def is_checked(self, step: int) -> bool:
        """Whether it is looked after this step whether the numbers are finite."""
        return step % self.config.nan_patience == 0 or self.is_logged(step)

    def step_details(self) -> dict[str, float]:
        """What a training line says of its last step and of the machine, besides loss and rate."""
        details = {"gradient_norm": float(self.gradient_norm)}
        if not math.isfinite(details["gradient_norm"]):  # under fp16 some steps overflow, and are skipped
            details.clear()
        return {**details, **self.machine_use.read(), **self.logged_resolution()}

    def logged_resolution(self) -> dict[str, int]:
        """What a line of the last step's metrics says of its images' size, where that changes."""
        return {"resolution": self.last_phase.size} if len(self.phases) > 1 else {}

    def summary(self, scores: Scores, plain: Scores) -> dict[str, Any]:
        """The content of summary.json: scores of the reported model on the test split, `plain` without TTA."""
        state, count = self.state, len(self.data.train)
        images = state.epoch * count + (state.step - state.epoch * self.steps_per_epoch) * self.config.batch_size
        return {
            "test_accuracy": scores.accuracy,
            "test_loss": scores.loss,
            "test_count": scores.count,
            "test_accuracy_without_tta": plain.accuracy,
            "per_class_accuracy": dict(zip(self.data.class_names, scores.per_class_accuracy, strict=True)),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "steps": state.step,
            "epochs": state.epoch,
            "train_seconds": round(state.train_seconds, 3),
            "images_per_second": round(images / state.train_seconds, 1) if state.train_seconds else None,
            "world_size": self.accelerator.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
            "seed": self.config.seed,
            "learning_rate": state.learning_rate,
            "best_validation_accuracy": self.accuracy_to_beat,
            "skipped_steps": sum(after - before for before, after in state.skipped),
            "launches": state.launches,
        }

    def say_finished(self) -> None:
        """One line instead of epochs, for a run that has none left to train."""
        if not self.accelerator.is_main_process:
            return
        folder, steps = shlex.quote(self.config.output_dir), f"{self.state.step} steps"
        if self.state.step < self.total_steps:
            steps += f" of {self.total_steps}: max_steps"
        accuracy = self.directory.finished_accuracy(self.state.step)
        if accuracy is None:
            print(f"{folder} is trained to its end ({steps}); evaluating and exporting the model")
        else:
            print(f"{folder} is finished ({steps}, test accuracy {accuracy:.2%}); nothing to train")

    def save(self) -> None:
        """Writes a checkpoint of the run as it stands, which must not be ruined; on every rank at the same step."""
        state, accelerator = self.state, self.accelerator
        state.window, state.epoch_sums = self.window.state(accelerator), self.epoch_sums.state(accelerator)

        def files(metrics_size: int) -> dict[str, bytes]:
            state.metrics_size = metrics_size
            return pack(self)

        self.directory.save_checkpoint(state.step, files)

    def track_best(self) -> None:
        """Tells the trackers of a new best epoch, so that also a run that goes on, or ends early, shows it."""
        best = {"best_validation_accuracy": self.state.best_accuracy, "best_step": self.state.best_step}
        self.directory.track(lambda tracker: tracker.summarise(best, self.state.step))

    def track_checkpoint(self) -> None:
        """Hands the checkpoint of this step to the trackers, where every epoch's is asked for."""
        folder, state = self.directory.path / "checkpoints" / f"step-{self.state.step:06d}", self.state
        if self.config.track_model == "all" and folder.is_dir():
            self._track_files("checkpoint", folder, best=state.best_step == state.step)

    def track_model(self, summary: Mapping[str, Any]) -> None:
        """Hands model/ to the trackers, unless that is not asked for."""
        if self.config.track_model != "none":
            self._track_files("model", self.directory.path / "model", best=True, **summary)

    def _track_files(self, name: str, folder: Path, best: bool, **metadata: Any) -> None:
        state = self.state
        aliases = ["latest", f"step-{state.step:06d}", *(["best"] if best else [])]
        details = {"step": state.step, "epoch": state.epoch, "best_validation_accuracy": state.best_accuracy}
        details |= {"git_commit": self.directory.environment.get("git_commit"), **metadata}
        self.directory.track(lambda tracker: tracker.keep_files(name, folder, aliases, details))

    def close(self) -> None:
        """Ends the profile, where training ended before it."""
        if self.profiler:
            self.profiler.close()
