"""What a resume needs, in one small object, and its way into a checkpoint and back.

Data order, augmentation, learning rate and other random choices are functions of seed and step, so there is no loader,
scheduler or generator state to save.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.checkpoint import FORMAT_VERSION, load_weights, tensors_from_bytes, tensors_to_bytes
from utils.errors import UserError
from utils.files import to_json
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
    "export", "push_to_hub",
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
        best_accuracy: highest validation accuracy so far, where there is a validation split, and the step it was
            reached at. Accuracies on images of another size do not compete.
        metrics_size: bytes of metrics.jsonl that belong to this state.
        window: each rank's sums of loss, hits and images since the last training line.
        epoch_sums: the same over the epoch up to that line.
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


def unpack(run: "Run", files: Mapping[str, bytes], source: Path) -> None:
    """Puts a run back to where its checkpoint was.

    Raises UserError naming what differs where the checkpoint belongs to another run.
    """
    averages = [("unaveraged.safetensors", run.ema), ("lookahead.safetensors", run.lookahead)]
    for name in (*FILES[:4], *(name for name, average in averages if average)):
        if name not in files:
            raise UserError(f"resume: {source} has no {name}")
    trainer = json.loads(files["trainer.json"])
    if trainer["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"resume: {source} has format version {trainer['format_version']}, this program knows {FORMAT_VERSION}"
        )
    mine = dataclasses.asdict(run.config)
    for name, value in trainer["options"].items():
        if name in mine and name not in FREE_OPTIONS and value != mine[name]:
            raise UserError(
                f"{name}: {mine[name]} differs from {value} in {source}; "
                "resume with the same or choose another output_dir"
            )
    theirs = json.loads(files["config.json"])
    for name, value in json.loads(run.model_config.to_bytes()).items():
        if name not in ("resolution", "tta", "format_version") and theirs.get(name) != value:
            raise UserError(f"resume: {name} of {source} is {theirs.get(name)}, of this data set {value}")
    if trainer["train_count"] != len(run.data.train):
        raise UserError(
            f"resume: {source} was trained on {trainer['train_count']} images, this data set has {len(run.data.train)}"
        )

    def tensors(name: str) -> dict[str, Tensor]:
        return tensors_from_bytes(files[name], source)

    load_weights(run.reported, tensors("model.safetensors"), source)
    if run.ema:
        load_weights(run.model, tensors("unaveraged.safetensors"), source)
    if run.lookahead:
        load_weights(run.lookahead.model, tensors("lookahead.safetensors"), source)
    load_optimizer_tensors(run.optimizer, run.model, tensors("optimizer.safetensors"))
    run.best = tensors("best.safetensors") if "best.safetensors" in files else None
    run.state = TrainState(**trainer["state"])
    if run.accelerator.scaler and trainer["scaler"]:
        run.accelerator.scaler.load_state_dict(trainer["scaler"])
