"""The learning-rate range test (Smith 2015, arXiv:1506.01186): on training batches only."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data.loaders import Batch
from utils.system.errors import Interrupted, SuiteError
from utils.system.files import replacing
from utils.tracking.tracker import Media, Picture, Table
from utils.training.meters import RunningMean
from utils.training.preemption import StopRequest
from utils.training.run import Run

SMOOTHING = 0.9  # of the exponential mean of the loss
CAREFUL_SHARE = 1 / 3  # of the rate of the lowest loss, for all optimizers but Muon
DIVERGED = 2.0  # the test ends when the smoothed loss is this many times its lowest value


def find_learning_rate(
    run: Run, stop: StopRequest, train_step: Callable[[Run, Batch, float, int], tuple[Tensor, Tensor]]
) -> None:
    """Runs the range test on training batches, restores model and optimizer, and takes its rate if `lr` is auto."""
    accelerator = run.accelerator
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    unused_epochs = range(run.config.epochs, 2**31)
    batches = enumerate(batch for epoch in unused_epochs for batch in run.loader.epoch(epoch))

    def step(rate: float) -> float:
        if signum := stop.agreed():
            raise Interrupted(signum, f"stopped in the range test, before training; {run.directory.how_to_resume()}")
        (position, batch), mean = next(batches), RunningMean(accelerator.device)
        mean.add(*train_step(run, batch, rate, position), batch.count)
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
        write_range_test(test, run.directory.path)
        picture = Picture(run.directory.path / "lr_finder.png")
        shown: dict[str, Media] = {"lr_finder": picture, "lr_finder_curve": as_table(test)}
        run.directory.track(lambda tracker: tracker.show(shown, step=0))


@dataclass(frozen=True)
class RangeTest:
    """Learning rates, the loss of the step taken with each, its exponential mean, and the suggestion."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float


def range_test(
    step: Callable[[float], float], share: float, lowest: float = 1e-4, highest: float = 10.0, steps: int = 100
) -> RangeTest:
    """Takes up to `steps` optimizer steps at exponentially growing rates.

    Args:
        step: takes one update at the given learning rate and returns the batch's mean loss before it.
        share: of the rate of the lowest smoothed loss, which is suggested.

    Raises SuiteError where already the first loss is not finite.
    """
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    for position in range(steps):
        rate = lowest * (highest / lowest) ** (position / (steps - 1))
        loss = step(rate)
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(mean / (1 - SMOOTHING ** (position + 1)))
        if position > steps // 10 and smoothed[-1] > DIVERGED * min(smoothed):
            break
    if not rates:
        raise SuiteError("the range test found no finite loss, not even at its lowest learning rate")
    return RangeTest(rates, losses, smoothed, suggest(rates, smoothed, share))


def suggest(rates: list[float], smoothed: list[float], share: float) -> float:
    """A share of the rate at which the smoothed loss is lowest.

    The steepest point of a noisy curve jumps between seeds; the minimum of the smoothed one does not. The mean lags ten
    steps behind, in which the rate triples, so that a third of it is where the loss itself was lowest. Muon bears the
    whole: its updates have a length of their own, and the noise of a larger rate goes as the rate falls
    (docs/results/README.md).
    """
    return share * min(zip(smoothed, rates, strict=True))[1]


def as_table(test: RangeTest) -> Table:
    """A row for each step."""
    return Table(["lr", "loss", "smoothed_loss"], list(zip(test.rates, test.losses, test.smoothed, strict=True)))


def write_range_test(test: RangeTest, folder: Path) -> None:
    """lr_finder.csv and lr_finder.png."""
    table = as_table(test)
    with replacing(folder / "lr_finder.csv", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows(table.rows)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="0.75", linewidth=1, label="loss of each step")
    axes.plot(test.rates, test.smoothed, color="tab:blue", label="smoothed")
    axes.axvline(test.suggestion, color="tab:orange", linestyle="--", label=f"suggestion {test.suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate (log scale)", ylabel="training loss", title="Learning-rate range test")
    low, high = min(test.smoothed), max(test.smoothed[: max(1, len(test.smoothed) // 3)])
    axes.set_ylim(low - 0.15 * (high - low), high + 0.6 * (high - low))
    axes.legend()
    axes.grid(alpha=0.3)
    with replacing(folder / "lr_finder.png") as file:
        figure.savefig(file, format="png", dpi=200)
