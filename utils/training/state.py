"""What a resume needs, in one small object, and its way into a checkpoint and back.

Data order, augmentation, learning rate and other random choices are functions of seed and step, so there is no loader,
scheduler or generator state to save.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from utils.checkpoint import FORMAT_VERSION, ModelConfig, load_weights, tensors_from_bytes, tensors_to_bytes
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import to_json
from utils.training.optimizers import load_optimizer_tensors, optimizer_tensors

FILES = ("trainer.json", "config.json", "model.safetensors", "optimizer.safetensors", "best.safetensors")

# Options that may change when a run is resumed; all others decide which run it is.
FREE_OPTIONS = {
    "data_dir", "memory_fraction", "num_workers", "micro_batch_size", "max_steps", "find_lr", "channels_last",
    "compile", "output_dir", "resume", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "trackers",
    "project_name", "run_name", "debug", "peer_timeout",
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
        best_accuracy: highest validation accuracy so far, where there is a validation split.
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
    metrics_size: int = 0
    window: list[list[float]] = field(default_factory=list)
    epoch_sums: list[list[float]] = field(default_factory=list)


def pack(
    state: TrainState,
    config: TrainConfig,
    model_config: ModelConfig,
    model: nn.Module,
    optimizer: Optimizer,
    scaler_state: Mapping[str, Any] | None,
    best: Mapping[str, Tensor] | None,
    train_count: int,
) -> dict[str, bytes]:
    """The files of a checkpoint. config.json and model.safetensors alone are an exported model."""
    trainer = {
        "format_version": FORMAT_VERSION,
        "state": dataclasses.asdict(state),
        "options": dataclasses.asdict(config),
        "train_count": train_count,
        "scaler": scaler_state,
    }
    files = {
        "trainer.json": to_json(trainer),
        "config.json": model_config.to_bytes(),
        "model.safetensors": tensors_to_bytes(model.state_dict()),
        "optimizer.safetensors": tensors_to_bytes(optimizer_tensors(optimizer, model)),
    }
    if best is not None:
        files["best.safetensors"] = tensors_to_bytes(best)
    return files


def unpack(
    files: Mapping[str, bytes],
    source: Path,
    config: TrainConfig,
    model_config: ModelConfig,
    model: nn.Module,
    optimizer: Optimizer,
    train_count: int,
) -> tuple[TrainState, Mapping[str, Any] | None, dict[str, Tensor] | None]:
    """Restores model and optimizer in place; returns the state, the loss scaler's state and the best weights.

    Raises UserError naming what differs where the checkpoint belongs to another run.
    """
    for name in FILES:
        if name not in files and name != "best.safetensors":
            raise UserError(f"resume: {source} has no {name}")
    trainer = json.loads(files["trainer.json"])
    if trainer["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"resume: {source} has format version {trainer['format_version']}, this program knows {FORMAT_VERSION}"
        )
    mine = dataclasses.asdict(config)
    for name, value in trainer["options"].items():
        if name in mine and name not in FREE_OPTIONS and value != mine[name]:
            raise UserError(
                f"{name}: {mine[name]} differs from {value} in {source}; "
                "resume with the same or choose another output_dir"
            )
    theirs = json.loads(files["config.json"])
    for name, value in json.loads(model_config.to_bytes()).items():
        if theirs.get(name) != value:
            raise UserError(f"resume: {name} of {source} is {theirs.get(name)}, of this data set {value}")
    if trainer["train_count"] != train_count:
        raise UserError(
            f"resume: {source} was trained on {trainer['train_count']} images, this data set has {train_count}"
        )
    load_weights(model, tensors_from_bytes(files["model.safetensors"], source), source)
    load_optimizer_tensors(optimizer, model, tensors_from_bytes(files["optimizer.safetensors"], source))
    best = tensors_from_bytes(files["best.safetensors"], source) if "best.safetensors" in files else None
    return TrainState(**trainer["state"]), trainer["scaler"], best
