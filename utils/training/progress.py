"""How far a run has come: what a resume needs besides weights and optimizer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from utils.system.reading import is_count, is_number
from utils.training.launches import Launch, is_history


@dataclass
class TrainState:
    """Progress of a run. trainer.json of a checkpoint holds these names.

    Attributes:
        step: finished optimizer steps.
        epoch: finished epochs, their evaluation included.
        evaluated_step: the step after which the last evaluation was made.
        learning_rate: the peak lr (from the range test with `lr: auto`).
        train_seconds: time spent in training steps, over all resumes; of the last checkpoint.
        best_accuracy, best_step: highest validation accuracy at the end of an epoch so far, if there is a validation
            split, and its step. Accuracies at another image size do not compete.
        metrics_size: bytes of metrics.jsonl that belong to this state.
        window: each rank's sums of loss, correct predictions and images since the last training line; of the last
            checkpoint.
        epoch_sums: the same over the epoch up to that line.
        bad_steps: latest steps in a row whose loss or gradient was not finite.
        skipped: (before, after) of each rollback: step `after` + 1 started from the weights of step `before`.
        launches: the launches that trained the run (utils/training/launches.py).
    """

    step: int = 0
    epoch: int = 0
    evaluated_step: int = 0
    learning_rate: float = 0.0
    train_seconds: float = 0.0
    best_accuracy: float | None = None
    best_step: int = 0
    metrics_size: int = 0
    window: list[list[float]] = field(default_factory=list)
    epoch_sums: list[list[float]] = field(default_factory=list)
    bad_steps: int = 0
    skipped: list[list[int]] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)

    @property
    def weights_step(self) -> int:
        """The last step that updated the weights: `step`, or right after a rollback that of the checkpoint."""
        before, after = self.skipped[-1] if self.skipped else (0, 0)
        return before if after == self.step else self.step


def _is_table(value: Any, width: int, fits: Callable[[Any], bool]) -> bool:
    """Whether a value of a JSON file is a list of rows of `width` entries that fit."""
    return isinstance(value, list) and all(
        isinstance(row, list) and len(row) == width and all(map(fits, row)) for row in value
    )


# How each value of a TrainState is validated when it is read: a checkpoint may come from a stranger.
STATE_FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("step", "epoch", "evaluated_step", "best_step", "metrics_size", "bad_steps"), is_count),
    **dict.fromkeys(("learning_rate", "train_seconds"), lambda value: is_number(value, 0)),
    **dict.fromkeys(("window", "epoch_sums"), lambda value: _is_table(value, 3, is_number)),
    "best_accuracy": lambda value: value is None or is_number(value, 0, 1),
    "skipped": lambda value: _is_table(value, 2, is_count),
    "launches": is_history,
}
