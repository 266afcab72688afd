"""What a resume needs, in one small object, and its way into a checkpoint and back.

Data order, augmentation, learning rate and other random choices are functions of seed and step, so there is no loader,
scheduler or generator state to save.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.saved import (
    FORMAT_VERSION,
    check_version,
    check_weights,
    load_weights,
    parse_model_config,
    tensors_from_bytes,
    tensors_to_bytes,
)
from utils.config import TrainConfig
from utils.system.errors import UserError
from utils.system.files import to_json
from utils.system.reading import is_number, parse_json, shown
from utils.training.optimizers import load_optimizer_tensors, optimizer_tensors
from utils.training.progress import STATE_FORMS, TrainState

if TYPE_CHECKING:
    from utils.training.run import Run

# The first four are in every checkpoint, the others where there is a validation split, EMA or Lookahead.
FILES = (
    "trainer.json", "config.json", "model.safetensors", "optimizer.safetensors",
    "best.safetensors", "unaveraged.safetensors", "lookahead.safetensors",
)  # fmt: skip


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
        "model": run.eval_model.state_dict(),
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
    mine, identity = dataclasses.asdict(config), config.identity()
    for name, value in trainer["options"].items():
        kept = name == "augment_backend" and mine[name] == "auto"  # goes on as it was
        if name in identity and value != mine[name] and not kept:
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

    load_weights(run.eval_model, tensors("model.safetensors"), source / "model.safetensors")
    if run.ema:
        load_weights(run.model, tensors("unaveraged.safetensors"), source / "unaveraged.safetensors")
    if run.lookahead:
        load_weights(run.lookahead.model, tensors("lookahead.safetensors"), source / "lookahead.safetensors")
    load_optimizer_tensors(run.optimizer, run.model, tensors("optimizer.safetensors"))
    run.best = tensors("best.safetensors") if best else None
    if run.best is not None:
        check_weights(run.eval_model, run.best, source / "best.safetensors")
    run.state = state
    if run.accelerator.scaler and trainer["scaler"]:
        names = run.accelerator.scaler.state_dict().keys()
        if trainer["scaler"].keys() != names or not all(is_number(value, 0) for value in trainer["scaler"].values()):
            raise UserError(f"resume: the scaler of {source} is {shown(trainer['scaler'])}, which no training writes")
        run.accelerator.scaler.load_state_dict(trainer["scaler"])
