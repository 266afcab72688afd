"""Checkpoints that are whole or not there, and the exported model. Tensors in safetensors, the rest in JSON: a file
of a run directory is data and never executed.

A checkpoint is a folder `step-000123/` with a MANIFEST.json that holds size and SHA-256 of every other file. It is
written under a temporary name, read back, and renamed when it is on the disk; only then are older ones deleted.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models import create_model
from utils.errors import UserError
from utils.files import replace_file, sync_folder, to_json, write_durably
from utils.tta import TTA

FORMAT_VERSION = 2
MANIFEST = "MANIFEST.json"


# -- the exported model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to predict: model/config.json.

    Attributes:
        image_size: side of the data set's images in pixels.
        mean, std: per channel, on a scale of 0 to 1.
        resolution: the side to which the model wants them scaled; unset: image_size.
        tta: test-time augmentation that the model is reported with.
    """

    architecture: str
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int | None = None
    tta: str = "none"
    format_version: int = FORMAT_VERSION

    @property
    def input_size(self) -> int:
        """Side in pixels of what the model is given."""
        return self.resolution or self.image_size

    def create_model(self) -> nn.Module:
        return create_model(self.architecture, len(self.class_names), **self.arguments)

    def to_bytes(self) -> bytes:
        return to_json(dataclasses.asdict(self))


def export_model(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Writes config.json and model.safetensors; each is replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "model.safetensors", tensors_to_bytes(weights))
    replace_file(folder / "config.json", config.to_bytes())


def load_model(folder: Path) -> tuple[nn.Module, ModelConfig]:
    """The model of an exported folder (or of a checkpoint), on the CPU in eval mode.

    Raises UserError naming the file where something is missing, damaged or does not fit.
    """
    config = read_model_config(folder)
    model = config.create_model()
    weights = tensors_from_bytes(read_file(folder / "model.safetensors"), folder / "model.safetensors")
    load_weights(model, weights, folder)
    return model.eval(), config


def read_model_config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    try:
        values = json.loads(read_file(path))
        if values["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {values['format_version']} is newer than this program's {FORMAT_VERSION}"
            )
        for name in ("class_names", "mean", "std"):
            if not isinstance(values[name], list):
                raise ValueError(f"{name} is not a list")
            values[name] = tuple(values[name])
        config = ModelConfig(**values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a model config ({error})") from error
    if problem := _misfit(config):
        raise UserError(f"{path}: not a model config ({problem})")
    return config


def _misfit(config: ModelConfig) -> str | None:
    """What in a model config is not of the form that ModelConfig says; None if nothing is."""
    if not (isinstance(config.architecture, str) and isinstance(config.arguments, dict)):
        return "architecture is a name, arguments a mapping"
    if {"name", "num_classes"} & config.arguments.keys():
        return "arguments are those that class_names do not decide"
    if not config.class_names or not all(isinstance(name, str) for name in config.class_names):
        return "class_names are texts, at least one"
    if type(config.image_size) is not int or config.image_size < 1:
        return "image_size is a whole number of pixels"
    if config.resolution is not None and not (type(config.resolution) is int and config.resolution >= 1):
        return "resolution is a whole number of pixels, or unset"
    if config.tta not in TTA:
        return f"tta is one of {', '.join(TTA)}"
    for values in (config.mean, config.std):
        if len(values) != 3 or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            return "mean and std are three numbers each"
    return None if min(config.std) > 0 else "std is greater than 0"


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{source}: the weights do not fit the model ({' '.join(str(error).split())[:300]})") from error


# -- bytes and tensors ------------------------------------------------------------------------------------------------


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def tensors_from_bytes(content: bytes, source: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{source}: not a safetensors file ({error})") from error


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error


# -- checkpoints ------------------------------------------------------------------------------------------------------


def write_checkpoint(root: Path, step: int, files: Mapping[str, bytes], keep: int) -> Path:
    """Writes root/step-<step> from file contents and deletes all but the newest `keep` checkpoints.

    Raises OSError (disk full, read-only) and leaves what was there before.
    """
    final = root / f"step-{step:06d}"
    temporary, aside = root / f".{final.name}.tmp", root / f".{final.name}.old"
    for left_over in root.glob(".step-*.tmp"):  # of a run that was killed while it wrote
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        manifest = {name: {"size": len(content), "sha256": _digest(content)} for name, content in files.items()}
        for name, content in files.items():
            write_durably(temporary / name, content)
        write_durably(
            temporary / MANIFEST, to_json({"format_version": FORMAT_VERSION, "step": step, "files": manifest})
        )
        if problem := damage(temporary):
            raise OSError(f"{final}: reading back what was written failed: {problem}")
        sync_folder(temporary)
        _recover(root)
        if final.exists():
            final.rename(aside)
        temporary.rename(final)
        sync_folder(root)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            _recover(root)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    # A damaged checkpoint of a later step, which the resume passed over, takes no place among those that are kept.
    for old in [path for path in list_checkpoints(root) if _step(path) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _recover(root: Path) -> None:
    """Puts back a checkpoint that a crash left set aside, before the new one of the same step had its name."""
    for aside in root.glob(".step-*.old"):
        final = aside.with_name(aside.stem[1:])
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, oldest step first, whole or not."""
    folders = [path for path in root.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(folders, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def newest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint that is whole; each damaged one is named in a warning on stderr."""
    _recover(root)
    for folder in reversed(list_checkpoints(root)):
        problem = damage(folder)
        if problem is None:
            return folder
        print(f"warning: checkpoint {folder} is damaged ({problem}) and was passed over", file=sys.stderr)
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, judged by its manifest; None if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not manifest["files"]:
            return f"{MANIFEST} lists no file"
        for name, entry in manifest["files"].items():
            if Path(name).name != name:
                return f"{MANIFEST} names {name!r}, which is not a file of this folder"
            content = (folder / name).read_bytes()
            if len(content) != entry["size"]:
                return f"{name} has {len(content)} bytes instead of {entry['size']}"
            if _digest(content) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_checkpoint(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files of a whole checkpoint; files that its manifest does not list are left out."""
    if problem := damage(folder):
        raise UserError(f"resume: {folder} is not a whole checkpoint ({problem})")
    listed = json.loads((folder / MANIFEST).read_bytes())["files"]
    return {name: (folder / name).read_bytes() for name in names if name in listed}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
