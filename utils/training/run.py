"""Everything that one training works with. build.py makes it, snapshot.py writes it into a checkpoint and back."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.loaders import DeviceLoader, TrainLoader
from data.splits import Dataset
from utils.config import TrainConfig
from utils.config.resolution import Size
from utils.runs.directory import RunDirectory
from utils.training.averaging import Ema, Lookahead
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
        model: the bare model. Its forward computes in the precision of the launch.
        ddp_model: the same weights with gradients averaged over the ranks, and compiled if the launch asks for it.
        micro_batch_size: images per process and forward pass; None: all of the process's part.
        mixing: MixUp and CutMix, if the options ask for them.
        ema, lookahead: averages of the weights, if the options ask for them.
        best: weights at the end of the epoch with the best validation accuracy, on the CPU.
    """

    config: TrainConfig
    accelerator: Accelerator
    directory: RunDirectory
    data: Dataset
    loader: TrainLoader | DeviceLoader
    mean: Tensor
    std: Tensor
    plan: Plan
    model: nn.Module
    ddp_model: nn.Module
    optimizer: torch.optim.Optimizer
    micro_batch_size: int | None
    mixing: Mixing | None
    ema: Ema | None
    lookahead: Lookahead | None
    meters: Meters
    profiler: StepProfiler
    state: TrainState
    best: dict[str, Tensor] | None = None

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and exported."""
        return self.ema.model if self.ema else self.model

    @property
    def resolution(self) -> Size:
        """Height and width in pixels of the images of the last finished step."""
        return self.plan.phase(self.state.step).size

    @property
    def best_accuracy(self) -> float | None:
        """Validation accuracy of the `best` weights; None if there are none.

        Once images have another size, those of the smaller size no longer compete.
        """
        outgrown = 0 < self.state.best_step <= self.plan.phase(self.state.step).first_step
        return None if self.best is None or outgrown else self.state.best_accuracy
