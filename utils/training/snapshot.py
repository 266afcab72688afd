"""A run into the files of a checkpoint and back.

Data order, augmentation, learning rate and other random choices are functions of seed and step, so there is no loader,
scheduler or generator state to save.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models import saved
from utils.config import TrainConfig
from utils.config.resolution import plain_size
from utils.system.errors import UserError
from utils.system.files import digest, to_json
from utils.system.reading import is_number, is_text, parse_json, shown
from utils.training.optimizers import load_optimizer_tensors, optimizer_tensors
from utils.training.progress import STATE_FORMS, TrainState
from utils.training.run import Run

MODELS = ("model.safetensors", "unaveraged.safetensors", "lookahead.safetensors")
TRAINER, CONFIG, OPTIMIZER, BEST = "trainer.json", "config.json", "optimizer.safetensors", "best.safetensors"
FILES = (TRAINER, CONFIG, OPTIMIZER, BEST, *MODELS)
# In trainer.json and environment.json: digests of what an option names, which counts in place of its path.
PIPELINE, TEACHER = "augment_file_sha256", "teacher_sha256"
ORIGIN = "start_weights"  # what is known of them (Origin.describe), in trainer.json and environment.json


def exported_config(run: Run) -> saved.ModelConfig:
    """config.json of the model as it is now, with the resolution that it was last trained on."""
    config, data = run.config, run.data
    geometry = data.geometry
    return saved.ModelConfig(
        architecture=config.model,
        arguments=dict(run.arguments),
        class_names=data.class_names,
        image_size=plain_size(geometry.size),
        mean=data.mean,
        std=data.std,
        resolution=plain_size(run.resolution),
        tta=config.tta,
        fit=geometry.fit,
        crop_pct=geometry.crop_pct,
        interpolation=geometry.interpolation,
    )


def save(run: Run) -> None:
    """Writes a checkpoint, whose numbers must be finite; to be called on every rank at the same step."""
    run.meters.save(run.state, run.accelerator)

    def files(metrics_size: int) -> dict[str, bytes]:
        run.state.metrics_size = metrics_size
        return _pack(run)

    run.directory.save_checkpoint(run.state.step, files)


def _pack(run: Run) -> dict[str, bytes]:
    """The files of a checkpoint. config.json and model.safetensors alone are an exported model."""
    scaler = run.accelerator.scaler
    trainer = {
        "format_version": saved.FORMAT_VERSION,
        "state": dataclasses.asdict(run.state),
        "options": dataclasses.asdict(run.config),
        "train_count": len(run.data.train),
        **{name: run.directory.environment.get(name) for name in (PIPELINE, TEACHER, ORIGIN)},
        "scaler": scaler.state_dict() if scaler else None,
    }
    tensors = {name: model.state_dict() for name, model in _models(run).items()}
    tensors[OPTIMIZER] = optimizer_tensors(run.optimizer, run.model)
    if run.best is not None:
        tensors[BEST] = run.best
    files = {TRAINER: to_json(trainer), CONFIG: exported_config(run).to_bytes()}
    return files | {name: saved.tensors_to_bytes(values) for name, values in tensors.items()}


def _models(run: Run) -> dict[str, nn.Module]:
    """The models of a run by the files of their weights."""
    found = (run.eval_model, run.model if run.ema else None, run.lookahead.model if run.lookahead else None)
    return {name: model for name, model in zip(MODELS, found, strict=True) if model is not None}


def saved_options(files: Mapping[str, bytes], source: Path) -> dict[str, Any]:
    """The options of the run in a checkpoint, as far as its version had them."""
    return _read_trainer(files, source)["options"]


def saved_origin(files: Mapping[str, bytes], source: Path) -> dict[str, str | None] | None:
    """What is known of the weights that the run in a checkpoint once started from; None if they were random."""
    found = _read_trainer(files, source).get(ORIGIN)
    if found is None:
        return None
    if not isinstance(found, dict) or not all(value is None or is_text(value) for value in found.values()):
        raise UserError(f"resume: {source / TRAINER}: invalid {ORIGIN} {shown(found)}")
    return found


def check_options(
    files: Mapping[str, bytes],
    source: Path,
    config: TrainConfig,
    pipeline: bytes = b"",
    teacher: Mapping[str, bytes] | None = None,
) -> None:
    """Before any download, raises UserError naming the option that differs if a checkpoint is of another run.

    Args:
        pipeline: the content of `augment_file`, which counts in place of its path.
        teacher: the files of `teacher`, which count likewise.
    """
    trainer = _read_trainer(files, source)
    mine, identity = dataclasses.asdict(config), config.identity()
    theirs = dataclasses.asdict(TrainConfig()) | trainer["options"]  # older versions did what are now the defaults
    for name in ("init_from", *theirs):  # of which the defaults of others depend
        value = theirs[name]
        resolved = name == "augment_backend" and mine[name] == "auto"  # to the checkpoint's
        if name in identity and value != mine[name] and not resolved:
            raise UserError(
                f"{name}: {mine[name]} differs from {shown(value)} in {source}; {_advice(name, value, mine)}"
            )
    contents = {"augment_file": (PIPELINE, [pipeline] if pipeline else [], "pipeline")}
    contents["teacher"] = (TEACHER, list(teacher.values()) if teacher else [], "teacher")
    for name, (key, parts, what) in contents.items():
        saved_digest, own_digest = trainer.get(key), digest(parts) if parts else None
        if saved_digest != own_digest:
            raise UserError(
                f"{name}: {getattr(config, name) or 'null'} ({_shown_digest(own_digest, what)}) differs from that of "
                f"{source} ({_shown_digest(saved_digest, what)}); resume with the same or choose another output_dir"
            )


def _shown_digest(sha256: Any, what: str) -> str:
    return f"SHA-256 {shown(sha256)[:12]}..." if sha256 else f"no {what}"


def _advice(name: str, theirs: Any, mine: Mapping[str, Any]) -> str:
    """What to do if an option differs from the checkpoint's."""
    if mine["resume"] not in ("auto", "never"):
        return "a fork has the options of its checkpoint; without --resume, another output_dir trains from the start"
    if name == "init_from":
        return (
            "a run that has begun resumes from its own checkpoint, not from weights: give the same as before, or start "
            "another run with --output_dir NEW"
        )
    if name == "epochs":
        return (
            "the learning-rate schedule spans all epochs, so another number is another run: resume with --epochs "
            f"{shown(theirs)}, or train from the start with --epochs {mine[name]} --output_dir NEW"
        )
    if name == "batch_size":
        return (
            "resume with the same (a smaller micro_batch_size needs less memory and may change) or choose another "
            "output_dir"
        )
    return "resume with the same or choose another output_dir"


def _read_trainer(files: Mapping[str, bytes], source: Path) -> dict[str, Any]:
    """The content of trainer.json. Raises UserError if it is not of the form that _pack gives it."""
    if TRAINER not in files:
        raise UserError(f"resume: {source} has no {TRAINER}")
    path = source / TRAINER
    trainer = parse_json(files[TRAINER], path)
    saved.check_version(trainer.get("format_version"), path)
    kinds: dict[str, Any] = {"state": dict, "options": dict, "train_count": int, "scaler": (dict, type(None))}
    for name, kind in kinds.items():
        if not isinstance(trainer.get(name), kind):
            raise UserError(f"resume: {path}: invalid {name} {shown(trainer.get(name))}")
    for name, value in trainer["state"].items():
        if name not in STATE_FORMS or not STATE_FORMS[name](value):
            raise UserError(f"resume: {path}: invalid {shown(name)} in state: {shown(value)}")
    return trainer


def restore(run: Run, files: Mapping[str, bytes], source: Path) -> None:
    """Puts a run back to where its checkpoint `source` was; the clock continues.

    Raises UserError naming what differs if the checkpoint belongs to another run.
    """
    trainer = _read_trainer(files, source)
    state = TrainState(**trainer["state"])
    models, has_best = _models(run), bool(run.data.validation) and state.best_accuracy is not None
    for name in (TRAINER, CONFIG, OPTIMIZER, *models, *([BEST] if has_best else [])):
        if name not in files:
            raise UserError(f"resume: {source} has no {name}")
    _check_fit(run, trainer, state, files, source)

    def tensors(name: str) -> dict[str, Tensor]:
        return saved.tensors_from_bytes(files[name], source / name)

    for name, model in models.items():
        saved.load_weights(model, tensors(name), source / name)
    load_optimizer_tensors(run.optimizer, run.model, tensors(OPTIMIZER))
    run.best = tensors(BEST) if has_best else None
    if run.best is not None:
        saved.check_weights(run.eval_model, run.best, source / BEST)
    scaler, saved_scaler = run.accelerator.scaler, trainer["scaler"]
    if scaler and saved_scaler:
        valid = all(is_number(value, 0) for value in saved_scaler.values())
        if saved_scaler.keys() != scaler.state_dict().keys() or not valid:
            raise UserError(f"resume: {source} has an invalid scaler: {shown(saved_scaler)}")
        scaler.load_state_dict(saved_scaler)
    run.state = state
    run.meters.restore(state, run.accelerator)


def _check_fit(
    run: Run, trainer: Mapping[str, Any], state: TrainState, files: Mapping[str, bytes], source: Path
) -> None:
    """Raises UserError if model, data or progress of a checkpoint cannot be those of the run."""
    theirs = dataclasses.asdict(saved.parse_model_config(files[CONFIG], source / CONFIG))
    for name, value in dataclasses.asdict(exported_config(run)).items():
        if name not in ("resolution", "tta", "format_version") and theirs[name] != value:
            raise UserError(f"resume: {name} of {source} is {shown(theirs[name])}, of this data set {shown(value)}")
    plan = run.plan
    if trainer["train_count"] != plan.images:
        raise UserError(
            f"resume: {source} was trained on {trainer['train_count']} images, this data set has {plan.images}"
        )
    begun = state.step - state.epoch * plan.steps_per_epoch
    possible = 0 <= begun <= plan.steps_per_epoch and state.step <= plan.total_steps
    if not possible or state.evaluated_step > state.step:
        raise UserError(
            f"resume: {source} has an impossible state: step {state.step} after {state.epoch} epochs of "
            f"{plan.steps_per_epoch} steps, evaluated after step {state.evaluated_step}"
        )
