"""What a resume needs, in one small object, and its way into a checkpoint and back.

Data order, augmentation, learning rate and other random choices are functions of seed and step, so there is no loader,
scheduler or generator state to save.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.checkpoint import (
    FORMAT_VERSION,
    check_version,
    check_weights,
    load_weights,
    parse_model_config,
    tensors_from_bytes,
    tensors_to_bytes,
)
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import to_json
from utils.reading import is_count, is_number, parse_json, shown
from utils.training.launches import Launch, is_history
from utils.training.optimizers import load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from utils.training.run import Run

# The first four are in every checkpoint, the others where there is a validation split, EMA or Lookahead.
FILES = (
    "trainer.json", "config.json", "model.safetensors", "optimizer.safetensors",
    "best.safetensors", "unaveraged.safetensors", "lookahead.safetensors",
)  # fmt: skip

# Options that may change when a run is resumed; all others decide which run it is.
FREE_OPTIONS = {
    "data_dir", "memory_fraction", "num_workers", "micro_batch_size", "max_steps", "find_lr", "channels_last",
    "compile", "output_dir", "resume", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "trackers",
    "project_name", "run_name", "run_group", "run_tags", "track_model", "debug", "peer_timeout",
    "export", "push_to_hub", "on_nan", "nan_patience", "profile",
}  # fmt: skip


@dataclass
class TrainState:
    """Progress of a run.

    Attributes:
        step: finished optimizer steps.
        epoch: finished epochs, their evaluation included.
        evaluated_step: the step after which the last evaluation was made.
        learning_rate: the peak rate (of the range test where `lr` is auto).
        train_seconds: spent in training steps, over all resumes.
        best_accuracy, best_step: highest validation accuracy at the end of an epoch so far, if there is a validation
            split, and its step. Accuracies on images of another size do not compete.
        metrics_size: bytes of metrics.jsonl that belong to this state.
        window: each rank's sums of loss, hits and images since the last training line.
        epoch_sums: the same over the epoch up to that line.
        bad_steps: latest steps in a row whose loss or gradient was not finite.
        skipped: (before, after) of each rollback: the weights after step `before` were taken for those after `after`.
        launches: what the run was trained by (utils/training/launches.py).
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


def _is_table(value: Any, width: int, fits: Callable[[Any], bool]) -> bool:
    """Whether a value of a JSON file is a list of rows of so many entries that fit."""
    return isinstance(value, list) and all(
        isinstance(row, list) and len(row) == width and all(map(fits, row)) for row in value
    )


# What each value of a saved TrainState is, in a checkpoint that may come from a stranger.
STATE_FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("step", "epoch", "evaluated_step", "best_step", "metrics_size", "bad_steps"), is_count),
    **dict.fromkeys(("learning_rate", "train_seconds"), lambda value: is_number(value, 0)),
    **dict.fromkeys(("window", "epoch_sums"), lambda value: _is_table(value, 3, is_number)),
    "best_accuracy": lambda value: value is None or is_number(value, 0, 1),
    "skipped": lambda value: _is_table(value, 2, is_count),
    "launches": is_history,
}


def pack(run: "Run") -> dict[str, bytes]:
    """The files of a checkpoint. config.json and model.safetensors alone are an exported model."""
    trainer = {
        "format_version": FORMAT_VERSION,
        "state": dataclasses.asdict(run.state),
        "options": dataclasses.asdict(run.config),
        "train_count": len(run.data.train),
        "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler else None,
    }
    tensors = {
        "model": run.reported.state_dict(),
        "optimizer": optimizer_tensors(run.optimizer, run.model),
        "unaveraged": run.model.state_dict() if run.ema else None,
        "lookahead": run.lookahead.model.state_dict() if run.lookahead else None,
        "best": run.best,
    }
    files = {"trainer.json": to_json(trainer), "config.json": run.model_config.to_bytes()}
    return files | {
        f"{name}.safetensors": tensors_to_bytes(values) for name, values in tensors.items() if values is not None
    }


def saved_option(files: Mapping[str, bytes], name: str, default: Any) -> Any:
    """An option of the run that a checkpoint's files are of; `default` where its program did not know it."""
    return json.loads(files["trainer.json"])["options"].get(name, default)


def check_options(files: Mapping[str, bytes], source: Path, config: TrainConfig) -> None:
    """Before any download: raises UserError naming what differs where a checkpoint belongs to another run."""
    trainer = _read_trainer(files, source)
    mine = dataclasses.asdict(config)
    for name, value in trainer["options"].items():
        kept = name == "augment_backend" and mine[name] == "auto"  # goes on as it was
        if name in mine and name not in FREE_OPTIONS and value != mine[name] and not kept:
            raise UserError(
                f"{name}: {mine[name]} differs from {shown(value)} in {source}; {_advice(name, value, mine)}"
            )


def _advice(name: str, saved: Any, mine: Mapping[str, Any]) -> str:
    """What to do where an option differs from the checkpoint's."""
    if mine["resume"] not in ("auto", "never"):
        return "a fork has the options of its checkpoint; without --resume, another output_dir trains from the start"
    if name == "epochs":
        return (
            "the learning-rate schedule spans all epochs, so that another number is another run: resume with --epochs "
            f"{shown(saved)}, or train from the start with --epochs {mine[name]} --output_dir NEW"
        )
    if name == "batch_size":
        return (
            "resume with the same (a smaller micro_batch_size needs less memory and may change) or choose another "
            "output_dir"
        )
    return "resume with the same or choose another output_dir"


def _read_trainer(files: Mapping[str, bytes], source: Path) -> dict[str, Any]:
    """The content of trainer.json. Raises UserError where it is not of the form that pack gives it."""
    if "trainer.json" not in files:
        raise UserError(f"resume: {source} has no trainer.json")
    path = source / "trainer.json"
    trainer = parse_json(files["trainer.json"], path)
    check_version(trainer.get("format_version"), path)
    kinds: dict[str, Any] = {"state": dict, "options": dict, "train_count": int, "scaler": (dict, type(None))}
    for name, kind in kinds.items():
        if not isinstance(trainer.get(name), kind):
            raise UserError(f"resume: {path}: {name} is {shown(trainer.get(name))}, which no training writes")
    for name, value in trainer["state"].items():
        if name not in STATE_FORMS or not STATE_FORMS[name](value):
            raise UserError(f"resume: {path}: state has {shown(name)} {shown(value)}, which no training writes")
    return trainer


def unpack(run: "Run", files: Mapping[str, bytes], source: Path) -> None:
    """Puts a run back to where its checkpoint was.

    Raises UserError naming what differs where the checkpoint belongs to another run.
    """
    trainer = _read_trainer(files, source)
    best = run.data.validation and trainer["state"].get("best_accuracy") is not None
    sometimes = zip(FILES[4:], (best, run.ema, run.lookahead), strict=True)
    for name in (*FILES[:4], *(name for name, expected in sometimes if expected)):
        if name not in files:
            raise UserError(f"resume: {source} has no {name}")
    theirs = dataclasses.asdict(parse_model_config(files["config.json"], source / "config.json"))
    for name, value in dataclasses.asdict(run.model_config).items():
        if name not in ("resolution", "tta", "format_version") and theirs[name] != value:
            raise UserError(f"resume: {name} of {source} is {shown(theirs[name])}, of this data set {shown(value)}")
    if trainer["train_count"] != len(run.data.train):
        raise UserError(
            f"resume: {source} was trained on {trainer['train_count']} images, this data set has {len(run.data.train)}"
        )
    state = TrainState(**trainer["state"])
    begun = state.step - state.epoch * run.steps_per_epoch
    if not (0 <= begun <= run.steps_per_epoch and state.step <= run.total_steps and state.evaluated_step <= state.step):
        raise UserError(
            f"resume: {source} is at step {state.step} after {state.epoch} epochs of {run.steps_per_epoch} steps, "
            f"evaluated at {state.evaluated_step}: no training gets there"
        )

    def tensors(name: str) -> dict[str, Tensor]:
        return tensors_from_bytes(files[name], source / name)

    load_weights(run.reported, tensors("model.safetensors"), source / "model.safetensors")
    if run.ema:
        load_weights(run.model, tensors("unaveraged.safetensors"), source / "unaveraged.safetensors")
    if run.lookahead:
        load_weights(run.lookahead.model, tensors("lookahead.safetensors"), source / "lookahead.safetensors")
    load_optimizer_tensors(run.optimizer, run.model, tensors("optimizer.safetensors"))
    run.best = tensors("best.safetensors") if best else None
    if run.best is not None:
        check_weights(run.reported, run.best, source / "best.safetensors")
    run.state = state
    if run.accelerator.scaler and trainer["scaler"]:
        names = run.accelerator.scaler.state_dict().keys()
        if trainer["scaler"].keys() != names or not all(is_number(value, 0) for value in trainer["scaler"].values()):
            raise UserError(f"resume: the scaler of {source} is {shown(trainer['scaler'])}, which no training writes")
        run.accelerator.scaler.load_state_dict(trainer["scaler"])
