"""How far a run has come, and by which launches: what a resume needs besides weights and optimizer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.system.reading import is_count, is_number, is_text

# A launch is what environment.json says of it under these names; in a history, `step` is where it began.
COMPARED = ("device", "device_name", "world_size", "mixed_precision", "compile", "muon_arithmetic")
# The value in versions that did not note it. A name that is missing here too is unknown, and not compared.
BEFORE_NOTED: dict[str, Any] = {"muon_arithmetic": "5 iterations, bf16 products (torch.optim.Muon)"}
MOST_LAUNCHES, LONGEST_VALUE = 20, 200
# The highest value of each entry of `start`.
START = {"accuracy": 1.0, "loss": 1e30, "validation_accuracy": 1.0, "knn_accuracy": 1.0, "seconds": 1e30}

Launch = dict[str, Any]


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
            split, and its step: 0 if nothing was better than the start weights. Accuracies at another image size do
            not compete.
        start: of a run that starts from weights, once they were scored before the first step: `accuracy` and `loss` on
            the test split, `validation_accuracy`, `knn_accuracy` of the nearest neighbours, and the `seconds` that it
            took; None if there is none.
        metrics_size: bytes of metrics.jsonl that belong to this state.
        window: each rank's sums of loss, correct predictions and images since the last training line; of the last
            checkpoint.
        epoch_sums: the same over the epoch up to that line.
        bad_steps: latest steps in a row whose loss or gradient was not finite.
        skipped: (before, after) of each rollback: step `after` + 1 started from the weights of step `before`.
        launches: the launches that trained the run: precision, device and the like.
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
    start: dict[str, float | None] = field(default_factory=dict)

    @property
    def weights_step(self) -> int:
        """The last step that updated the weights: `step`, or right after a rollback that of the checkpoint."""
        before, after = self.skipped[-1] if self.skipped else (0, 0)
        return before if after == self.step else self.step


def _is_start(value: Any) -> bool:
    """Whether a value of a JSON file says how the start weights scored, or is empty."""
    if not isinstance(value, dict) or value.keys() not in (set(), set(START)):
        return False
    return all(entry is None or is_number(entry, 0, START[name]) for name, entry in value.items()) and (
        not value or None not in (value["accuracy"], value["loss"])
    )


def launch_of(environment: Mapping[str, Any]) -> Launch:
    """The part of environment.json that is compared."""
    return {name: environment[name] for name in COMPARED if name in environment}


def with_launch(history: Sequence[Launch], step: int, launch: Launch) -> list[Launch]:
    """The history of a run that `launch` resumes at `step`. A launch that equals the one before is not noted; of more
    than MOST_LAUNCHES, the first and the latest remain.

    A checkpoint of a version without a history begins with a launch of which only the step, 0, is known.
    """
    if not history and step > 0:
        history = [{"step": 0}]
    before = [entry for entry in history if entry["step"] < step]  # the others trained no step of what is resumed
    if not before or before[-1] != {"step": before[-1]["step"], **launch}:
        before.append({"step": step, **launch})
    return [*before[:1], *before[1:][-(MOST_LAUNCHES - 1) :]]


def difference(history: Sequence[Launch], launch: Launch) -> str:
    """What differs from the launch that the run began with, in one line; empty if nothing does, or nothing is known."""
    began = {**BEFORE_NOTED, **(history[0] if history else {})}
    names = [name for name in launch if name in began and launch[name] != began[name]]
    if "device" in names and "device_name" in names:
        names.remove("device_name")

    def listed(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {'none' if values[name] is None else values[name]}" for name in names)

    if not names:
        return ""
    return (
        f"this run began with {listed(began)} and resumes with {listed(launch)}; from here on its steps compute "
        "differently, and summary.json will list both launches"
    )


def is_history(value: Any) -> bool:
    """Whether a value of a JSON file is a history of launches."""
    return isinstance(value, list) and len(value) <= MOST_LAUNCHES and all(map(_is_launch, value))


def _is_launch(entry: Any) -> bool:
    def fits(value: Any) -> bool:
        return value is None or is_count(value) or (is_text(value) and len(value) <= LONGEST_VALUE)

    if not isinstance(entry, dict) or not is_count(entry.get("step")):
        return False
    return entry.keys() <= {"step", *COMPARED} and all(map(fits, entry.values()))


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
    "start": _is_start,
}
