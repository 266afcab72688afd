"""Checkpoints that are whole or not there, and the exported model. Tensors in safetensors, the rest in JSON: a file
of a run directory is data and never executed. It may come from a stranger: memory is taken for what was found to fit,
and whatever is wrong ends in one line.

A checkpoint is a folder `step-000123/` with a MANIFEST.json that holds size and SHA-256 of every other file. It is
written under a temporary name, read back, and renamed when it is on the disk; only then are older ones deleted.
"""

import contextlib
import dataclasses
import shutil
import stat
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models import create_model
from utils.config import LARGEST_IMAGE
from utils.errors import UserError, one_line
from utils.files import digest, replace_file, sync_folder, to_json, write_durably
from utils.memory import check_memory, forward_memory
from utils.reading import (
    MOST_BYTES,
    MOST_SHOWN,
    check_size,
    is_number,
    is_text,
    parse_json,
    read_file,
    read_json,
    shown,
)
from utils.tta import TTA

FORMAT_VERSION = 2
MANIFEST = "MANIFEST.json"
WEIGHTS = "model.safetensors"
# What a broken or foreign safetensors file can end in; the last three come from torch, for shapes and kinds of numbers.
UNREADABLE = (SafetensorError, ValueError, LookupError, TypeError, RuntimeError, OverflowError)


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

    def without_weights(self) -> nn.Module:
        """The model as it is described, without memory for its weights."""
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # initial values that cannot be drawn without memory
            return self.create_model().eval()

    def to_bytes(self) -> bytes:
        return to_json(dataclasses.asdict(self))


def export_model(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Writes config.json and model.safetensors; each is replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "config.json", config.to_bytes())
    replace_file(folder / WEIGHTS, tensors_to_bytes(weights))  # last: who finds them finds a whole model


def load_model(folder: Path) -> tuple[nn.Module, ModelConfig]:
    """The model of an exported folder (or of a checkpoint), on the CPU in eval mode.

    It is built for its weights, not before: what config.json describes is compared with the file of the weights first.
    Raises UserError naming the file where something is missing, damaged or does not fit.
    """
    config, path = read_model_config(folder), folder / WEIGHTS
    described = config.without_weights()
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
            _check_shapes(described, shapes, path)
            held = sum(tensor.nbytes for tensor in (*described.parameters(), *described.buffers()))
            check_memory(2 * held, str(folder))  # the model and its weights
            check_memory(forward_memory(described, config.input_size), str(folder))
            weights = {name: file.get_tensor(name) for name in shapes}
    except UNREADABLE as error:
        raise UserError(f"{path}: not a safetensors file ({one_line(error)})") from error
    model = config.create_model()
    load_weights(model, weights, path)
    return model.eval(), config


def read_model_config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    return parse_model_config(read_file(path), path)


def parse_model_config(content: bytes, path: Path) -> ModelConfig:
    """The model config in a file's content. Raises UserError naming its path."""
    values = parse_json(content, path)
    check_version(values.get("format_version"), path)
    try:
        for name in ("class_names", "mean", "std"):
            if not isinstance(values[name], list):
                raise ValueError(f"{name} is not a list")
            values[name] = tuple(values[name])
        config = ModelConfig(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a model config ({shown(one_line(error))})") from error
    if problem := _misfit(config):
        raise UserError(f"{path}: not a model config ({problem})")
    return config


def check_version(version: Any, path: Path) -> None:
    """Raises UserError unless a file is of this format version or an older one."""
    if type(version) is not int or version < 1:
        raise UserError(f"{path}: not a model config or checkpoint of this suite (format version {shown(version)})")
    if version > FORMAT_VERSION:
        raise UserError(f"{path}: format version {version} is newer than this program's {FORMAT_VERSION}")


def _misfit(config: ModelConfig) -> str | None:
    """What in a model config is not of the form that ModelConfig says; None if nothing is."""
    if not (isinstance(config.architecture, str) and len(config.architecture) <= MOST_SHOWN):
        return "architecture is a name"
    if not isinstance(config.arguments, dict):
        return "arguments are a mapping"
    if {"name", "num_classes"} & config.arguments.keys():
        return "arguments are those that class_names do not decide"
    if not config.class_names or not all(is_text(name) for name in config.class_names):
        return "class_names are texts, at least one"
    if len(set(config.class_names)) < len(config.class_names):
        return "class_names are not all different"
    for name in ("image_size", "resolution"):
        side = getattr(config, name)
        if not (type(side) is int and 1 <= side <= LARGEST_IMAGE) and (name, side) != ("resolution", None):
            return f"{name} is {shown(side)}, not a number of pixels up to {LARGEST_IMAGE}"
    if config.tta not in TTA:
        return f"tta is one of {', '.join(TTA)}"
    for values in (config.mean, config.std):
        if len(values) != 3 or not all(is_number(value) for value in values):
            return "mean and std are three numbers each"
    return None if min(config.std) > 0 else "std is greater than 0"


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Puts weights into a model. Raises UserError naming what does not fit."""
    check_weights(model, weights, source)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # numbers of a kind that torch cannot convert
        raise UserError(f"{source}: the weights do not fit the model ({one_line(error)})") from error


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Raises UserError naming what in weights does not fit a model: names, shapes, kinds of numbers."""
    _check_shapes(model, {name: tuple(tensor.shape) for name, tensor in weights.items()}, source)
    for name, mine in model.state_dict().items():
        kind = weights[name].dtype
        if kind != mine.dtype and not (kind.is_floating_point and mine.dtype.is_floating_point):
            raise UserError(f"{source}: the weights do not fit the model ({name} is {kind}, in the model {mine.dtype})")


def _check_shapes(model: nn.Module, shapes: Mapping[str, Sequence[int]], source: Path) -> None:
    """Raises UserError unless a file has the tensors of a model, each of its shape."""
    mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in mine if name not in shapes]
    problems += [f"the model has no {shown(name)}" for name in shapes if name not in mine]
    problems += [
        f"{name} is {_sides(shapes[name])}, in the model {_sides(shape)}"
        for name, shape in mine.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source}: the weights do not fit the model ({'; '.join(problems[:3])}{more})")


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


# -- bytes and tensors ------------------------------------------------------------------------------------------------


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def tensors_from_bytes(content: bytes, source: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError naming it."""
    _check_header_size(content[:8], source)
    try:
        return safetensors.torch.load(content)
    except UNREADABLE as error:
        raise UserError(f"{source}: not a safetensors file ({one_line(error)})") from error


def _check_header(path: Path) -> None:
    """Raises UserError for a safetensors file that cannot be opened within the memory there is."""
    check_size(path, most=None)
    with open(path, "rb") as file:
        _check_header_size(file.read(8), path)


def _check_header_size(start: bytes, source: Path) -> None:
    """The first 8 bytes of a safetensors file say how long the JSON is that follows."""
    if len(start) < 8 or int.from_bytes(start, "little") > MOST_BYTES:
        raise UserError(f"{source}: not a safetensors file (its header is cut off or too long)")


# -- checkpoints ------------------------------------------------------------------------------------------------------


def write_checkpoint(root: Path, step: int, files: Mapping[str, bytes], keep: int) -> Path:
    """Writes root/step-<step> from file contents and deletes all but the newest `keep` checkpoints.

    Raises OSError (disk full, read-only, no folder to make root in) and leaves what was there before.
    """
    final = root / f"step-{step:06d}"
    temporary, aside = root / f".{final.name}.tmp", root / f".{final.name}.old"
    for left_over in root.glob(".step-*.tmp"):  # of a run that was killed while it wrote
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        root.mkdir(exist_ok=True)
        temporary.mkdir()
        manifest = {name: {"size": len(content), "sha256": digest([content])} for name, content in files.items()}
        for name, content in files.items():
            write_durably(temporary / name, content)
        write_durably(
            temporary / MANIFEST, to_json({"format_version": FORMAT_VERSION, "step": step, "files": manifest})
        )
        if problem := damage(temporary, own=True):
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


def newest_checkpoint(root: Path, repair: bool = True) -> Path | None:
    """The newest checkpoint that is whole; each damaged one is named in a warning on stderr.

    Args:
        repair: also put back what a crash left set aside; for the run that has the folder's lock, not for its readers.
    """
    if repair:
        _recover(root)
    for folder in reversed(list_checkpoints(root)):
        problem = damage(folder)
        if problem is None:
            return folder
        print(f"warning: checkpoint {folder} is damaged ({one_line(problem)}) and was passed over", file=sys.stderr)
    return None


def damage(folder: Path, own: bool = False) -> str | None:
    """What is wrong with a checkpoint, judged by its manifest; None if nothing is.

    Raises UserError where its files are larger than the free memory: it is then neither read nor passed over.

    Args:
        own: this process has just written it and will not read it into memory.
    """
    try:
        files = _manifest(folder)
        sizes = {}
        for name, entry in files.items():
            if Path(name).name != name:
                return f"{MANIFEST} names {shown(name)}, which is not a file of this folder"
            status = (folder / name).stat()
            if not stat.S_ISREG(status.st_mode):
                return f"{shown(name)} is not a file"
            sizes[name] = status.st_size
            if sizes[name] != entry["size"]:
                return f"{shown(name)} has {sizes[name]} bytes instead of {shown(entry['size'])}"
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    if not own:
        check_memory(sum(sizes.values()), str(folder))
    try:
        for name, entry in files.items():
            if _digest_of_file(folder / name) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
    except (OSError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file of a checkpoint. Raises ValueError, KeyError or UserError without them."""
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{MANIFEST} lists no file")
    return files


def read_checkpoint(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files of a whole checkpoint; files that its manifest does not list are left out.

    Raises UserError where it is not whole, or is larger than the free memory.
    """
    if problem := damage(folder):
        raise UserError(f"resume: {folder} is not a whole checkpoint ({problem})")
    listed = _manifest(folder)
    return {name: read_file(folder / name, most=None) for name in names if name in listed}


def _digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return digest(iter(lambda: file.read(2**20), b""))
