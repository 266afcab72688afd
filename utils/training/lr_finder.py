"""The learning-rate range test (Smith 2015, arXiv:1506.01186): on training batches only."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data.loaders import Batch
from utils.plots.curves import range_test_figure
from utils.system.errors import Interrupted, SuiteError
from utils.system.files import replacing
from utils.tracking.tracker import Media, Picture, Table
from utils.training.meters import RunningMean
from utils.training.preemption import StopRequest
from utils.training.run import Run

SMOOTHING = 0.9  # of the exponential mean of the loss
CAREFUL_SHARE = 1 / 3  # of the lr with the lowest loss, for all optimizers but Muon
DIVERGED = 2.0  # the test ends when the smoothed loss is this many times its lowest value

TrainStep = Callable[[Run, Batch, float, int], tuple[Tensor, Tensor, Tensor]]


def find_learning_rate(run: Run, stop: StopRequest, train_step: TrainStep) -> None:
    """Runs the range test on training batches, restores model and optimizer, and with `lr: auto` takes its suggestion.

    The lr is that of the option: parameter groups with a factor take their share of it, as in training. The whole model
    is trained, also with `freeze_epochs`, since most of a run will be.

    Writes lr_finder.csv and lr_finder.png. To be called on every rank, before the first step.
    """
    accelerator = run.accelerator
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    unused_epochs, augmented = range(run.config.epochs, 2**31), run.plan.augments(step=1)
    batches = enumerate(batch for epoch in unused_epochs for batch in run.loader.epoch(epoch, augmented=augmented))

    def step(lr: float) -> float:
        if signum := stop.agreed():
            raise Interrupted(signum, f"stopped in the range test, before training; {run.directory.how_to_resume()}")
        (position, batch), mean = next(batches), RunningMean(accelerator.device)
        loss_sum, correct, _ = train_step(run, batch, lr, position)
        mean.add(loss_sum, correct, batch.count)
        loss, _, count = mean.mean(accelerator)
        return loss if count == batch.global_count else math.nan

    with stop.answering("stopping; nothing has been trained yet"):
        test = range_test(step, 1.0 if run.config.optimizer == "muon" else CAREFUL_SHARE)
    run.model.load_state_dict(weights)
    run.optimizer.state.clear()
    if scaler:
        accelerator.scaler.load_state_dict(scaler)
    if run.config.lr == "auto":
        run.state.learning_rate = test.suggestion
    accelerator.print(f"range test suggests {test.suggestion:.3g}; training with {run.state.learning_rate:.3g}")
    if accelerator.is_main_process:
        media = write_range_test(test, run.directory.path)
        run.directory.track(lambda tracker: tracker.show(media, step=0))


@dataclass(frozen=True)
class RangeTest:
    """Learning rates, the loss of the step taken with each, its exponential mean, and the suggestion."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float


def range_test(
    step: Callable[[float], float], share: float, lowest: float = 1e-4, highest: float = 10.0, steps: int = 100
) -> RangeTest:
    """Takes up to `steps` optimizer steps at exponentially growing learning rates.

    Args:
        step: takes one update at the given learning rate and returns the batch's mean loss before it.
        share: the suggestion is this share of the learning rate with the lowest smoothed loss.

    Raises SuiteError if the first loss is not finite.
    """
    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    for position in range(steps):
        lr = lowest * (highest / lowest) ** (position / (steps - 1))
        loss = step(lr)
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        lrs.append(lr)
        losses.append(loss)
        smoothed.append(mean / (1 - SMOOTHING ** (position + 1)))
        if position > steps // 10 and smoothed[-1] > DIVERGED * min(smoothed):
            break
    if not lrs:
        raise SuiteError("the range test found no finite loss, not even at its lowest learning rate")
    return RangeTest(lrs, losses, smoothed, suggest(lrs, smoothed, share))


def suggest(lrs: list[float], smoothed: list[float], share: float) -> float:
    """A share of the learning rate at which the smoothed loss is lowest.

    The steepest point of a noisy curve jumps between seeds; the minimum of the smoothed one does not. The mean lags ten
    steps behind, in which the learning rate triples, so that a third of it is where the loss itself was lowest. Muon
    takes the whole: the length of its updates does not depend on the gradient, and the noise of a larger learning rate
    goes as the schedule decays (docs/log.md).
    """
    return share * min(zip(smoothed, lrs, strict=True))[1]


def write_range_test(test: RangeTest, folder: Path) -> dict[str, Media]:
    """Writes lr_finder.csv, with a row per step, and lr_finder.png; returns both for the trackers."""
    table = Table(["lr", "loss", "smoothed_loss"], list(zip(test.lrs, test.losses, test.smoothed, strict=True)))
    with replacing(folder / "lr_finder.csv", newline="") as file:
        csv.writer(file).writerows([table.columns, *table.rows])
    figure = range_test_figure(test.lrs, test.losses, test.smoothed, test.suggestion)
    with replacing(folder / "lr_finder.png") as file:
        figure.savefig(file, format="png")
    return {"lr_finder": Picture(folder / "lr_finder.png"), "lr_finder_curve": table}
