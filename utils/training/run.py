"""Everything that one training works with, and what is asked of it more than once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.datasets import Dataset, Split
from data.loaders import EvaluationLoader, TrainLoader
from utils.checkpoint import ModelConfig
from utils.config import TrainConfig
from utils.errors import SuiteError
from utils.evaluation import predict
from utils.metrics import RunningMean, Scores, score
from utils.rundir import RunDirectory
from utils.training.schedules import learning_rate_factor
from utils.training.state import TrainState, pack


@dataclass
class Run:
    """One training.

    Attributes:
        model: the bare model, which is evaluated and saved. Its forward computes in the precision of the launch.
        trained: the same model as gradients see it: in DDP and compiled, where asked for.
        micro_batch_size: images per process and forward pass; None: all of the process's part.
        mean, std: of the training images, (3,), on the device.
        window, epoch_sums: of the loss and accuracy since the last training line, and in the epoch up to it.
        best: weights of the epoch with the best validation accuracy, on the CPU.
    """

    config: TrainConfig
    accelerator: Accelerator
    directory: RunDirectory
    data: Dataset
    loader: TrainLoader
    model: nn.Module
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    micro_batch_size: int | None
    mean: Tensor
    std: Tensor
    window: RunningMean
    epoch_sums: RunningMean
    state: TrainState = field(default_factory=TrainState)
    best: dict[str, Tensor] | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all epochs: what the schedule spans."""
        return self.config.epochs * self.loader.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return min(self.total_steps, self.config.max_steps or self.total_steps)

    @property
    def epoch_end(self) -> int:
        """The step after which the current epoch ends."""
        return (self.state.epoch + 1) * self.loader.steps_per_epoch

    @property
    def model_config(self) -> ModelConfig:
        return describe_model(self.config, self.data)

    def learning_rate(self) -> float:
        """The rate of the next step."""
        config = self.config
        factor = learning_rate_factor(config.schedule, self.state.step, self.total_steps, config.warmup_fraction)
        return self.state.learning_rate * factor

    def evaluate(self, split: Split, between_batches: Callable[[], None] = lambda: None) -> Scores:
        """Scores of the model as it is, over exactly the images of a split."""
        accelerator = self.accelerator
        loader = EvaluationLoader(split, accelerator.process_index, accelerator.num_processes)
        logits = predict(
            accelerator,
            self.model,
            loader,
            self.mean,
            self.std,
            self.config.channels_last,
            progress="evaluating",
            between_batches=between_batches,
        )
        return score(logits, torch.from_numpy(split.labels))

    def summary(self, scores: Scores) -> dict[str, Any]:
        """The content of summary.json, with the scores of the reported model on the test split."""
        state, loader = self.state, self.loader
        images = state.epoch * loader.count + (state.step - state.epoch * loader.steps_per_epoch) * loader.batch_size
        return {
            "test_accuracy": scores.accuracy,
            "test_loss": scores.loss,
            "test_count": scores.count,
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
            "best_validation_accuracy": state.best_accuracy,
        }

    def save(self) -> None:
        """Writes a checkpoint of the run as it stands; to be called on every rank at the same step."""
        state, accelerator = self.state, self.accelerator
        state.window, state.epoch_sums = self.window.state(accelerator), self.epoch_sums.state(accelerator)
        self.check_finite(sum(row[0] for row in state.window))
        if not accelerator.is_main_process:
            return
        state.metrics_size = self.directory.metrics.size()
        scaler_state = accelerator.scaler.state_dict() if accelerator.scaler else None
        files = pack(
            state,
            self.config,
            self.model_config,
            self.model,
            self.optimizer,
            scaler_state,
            self.best,
            len(self.data.train),
        )
        self.directory.save_checkpoint(state.step, files)

    def check_finite(self, loss: float) -> None:
        """Raises where the loss or the weights are no numbers any more; the last checkpoint is from before."""
        if math.isfinite(loss) and torch.stack([weight.isfinite().all() for weight in self.model.parameters()]).all():
            return
        raise SuiteError(
            f"the loss is not finite any more at step {self.state.step} (peak learning rate "
            f"{self.state.learning_rate:.3g}); last good checkpoint: {self.directory.last_checkpoint_name()}; "
            "try a lower --lr or --grad_clip_norm 1",
            silent=not self.accelerator.is_main_process,
        )


def describe_model(config: TrainConfig, data: Dataset) -> ModelConfig:
    """The exported model's config.json."""
    arguments = {"norm": config.norm, "width": config.width}
    return ModelConfig(config.model, arguments, data.class_names, data.image_size, data.mean, data.std)
