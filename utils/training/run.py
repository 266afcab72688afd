"""Everything that one training works with. build.py makes it, snapshot.py writes it into a checkpoint and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.loaders import DeviceLoader, TrainLoader
from data.splits import Dataset
from models.drop_path import Draws
from models.head import Head
from models.weights import Loaded
from utils.config import TrainConfig
from utils.config.resolution import Size
from utils.runs.directory import RunDirectory
from utils.training.averaging import Ema, Lookahead
from utils.training.distillation import Teacher
from utils.training.freezing import Freezing
from utils.training.meters import Meters
from utils.training.mixing import Mixing
from utils.training.plan import Plan
from utils.training.profiling import StepProfiler
from utils.training.progress import TrainState


@dataclass
class Run:
    """One training.

    Attributes:
        config: the options with nothing left to choose, but for the lr of a range test.
        mean, std: of the training images, (3,), on the device.
        arguments: those of create_model, besides the classes.
        model: the bare model. Its forward computes in the precision of the launch.
        ddp_model: the same weights with gradients averaged over the ranks, and compiled if the launch asks for it.
        micro_batch_size: images per process and forward pass; None: all of the process's part.
        mixing: MixUp and CutMix, if the options ask for them.
        teacher: the model that this one learns from, if the options name one.
        freezing: trains the head alone at first, if the options ask for it.
        draws: of stochastic depth.
        ema, lookahead: averages of the weights, if the options ask for them.
        best: weights at the end of the epoch with the best validation accuracy, on the CPU.
        loaded: what became of the start weights; None in a resumed run, and in one that starts from random weights.
        head: that the probe is to be put into; None if the run starts without.
    """

    config: TrainConfig
    accelerator: Accelerator
    directory: RunDirectory
    data: Dataset
    loader: TrainLoader | DeviceLoader
    mean: Tensor
    std: Tensor
    plan: Plan
    arguments: Mapping[str, Any]
    model: nn.Module
    ddp_model: nn.Module
    optimizer: torch.optim.Optimizer
    micro_batch_size: int | None
    mixing: Mixing | None
    teacher: Teacher | None
    freezing: Freezing | None
    draws: Draws
    ema: Ema | None
    lookahead: Lookahead | None
    meters: Meters
    profiler: StepProfiler
    state: TrainState
    best: dict[str, Tensor] | None = None
    loaded: Loaded | None = None
    head: Head | None = None

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and exported."""
        return self.ema.model if self.ema else self.model

    @property
    def resolution(self) -> Size:
        """Height and width in pixels of the images of the last finished step."""
        return self.plan.phase(self.state.step).size

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train or to score."""
        return self.state.evaluated_step >= self.plan.last_step and self.loaded is None

    @property
    def best_accuracy(self) -> float | None:
        """Validation accuracy of the `best` weights; None if there are none.

        Once images have another size, those of the smaller size no longer compete.
        """
        began = self.plan.phase(self.state.step).first_step
        outgrown = began > 0 and self.state.best_step <= began
        return None if self.best is None or outgrown else self.state.best_accuracy

    def compete(self, accuracy: float) -> bool:
        """Takes the weights as the best if this validation accuracy of theirs is higher than any before."""
        if self.best_accuracy is not None and accuracy <= self.best_accuracy:
            return False
        self.state.best_accuracy, self.state.best_step = accuracy, self.state.step
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.eval_model.state_dict().items()}
        return True
