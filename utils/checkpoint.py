"""Checkpoints that are whole or not there, and the exported model. Tensors in safetensors, the rest in JSON: a file
of a run directory is data and never executed.

A checkpoint is a folder `step-000123/` with a MANIFEST.json that holds size and SHA-256 of every other file. It is
written under a temporary name, read back, and renamed when it is on the disk; only then are older ones deleted.
"""

import dataclasses
import hashlib
import json
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

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"


# -- the exported model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to predict: model/config.json. `mean` and `std` on a scale of 0 to 1."""

    architecture: str
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    format_version: int = FORMAT_VERSION

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
            values[name] = tuple(values[name])
        return ModelConfig(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a model config ({error})") from error


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
    temporary = root / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
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
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(root)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in list_checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, oldest step first, whole or not."""
    folders = [path for path in root.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(folders, key=lambda path: int(path.name[5:]))


def newest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint that is whole; each damaged one is named in a warning on stderr."""
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
        for name, entry in manifest["files"].items():
            content = (folder / name).read_bytes()
            if len(content) != entry["size"]:
                return f"{name} has {len(content)} bytes instead of {entry['size']}"
            if _digest(content) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_checkpoint(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files of a whole checkpoint; files that it does not have are left out."""
    if problem := damage(folder):
        raise UserError(f"resume: {folder} is not a whole checkpoint ({problem})")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
