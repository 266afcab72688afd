"""The exported model: config.json and model.safetensors, all that is needed to predict.

Both may come from a stranger. Neither is ever executed, sizes are checked before memory is allocated, and whatever is
wrong ends in one line.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data.preprocessing import FITS, INTERPOLATIONS, Geometry, mean_colour
from models import create_model
from models.timm_models import without_memory
from utils.config.resolution import LARGEST, Size
from utils.evaluation.tta import TTA
from utils.system.errors import UserError, one_line
from utils.system.files import replace_file, to_json
from utils.system.memory import check_memory, forward_memory
from utils.system.reading import MOST_BYTES, MOST_SHOWN, check_size, is_number, is_text, parse_json, read_file, shown

FORMAT_VERSION = 3  # of an exported model and of a checkpoint
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Errors of an invalid safetensors file; the last three come from torch, for shapes and dtypes.
UNREADABLE = (SafetensorError, ValueError, LookupError, TypeError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class ModelConfig:
    """model/config.json: everything that is needed to predict, besides the weights.

    Attributes:
        image_size: what images are fitted to, in pixels of a side, or height and width.
        mean, std: per channel, on a scale of 0 to 1.
        resolution: size to which fitted images are scaled for the model, as image_size; unset: image_size.
        tta: test-time augmentation that the model is reported with.
        fit, crop_pct, interpolation: how images are fitted (data.preprocessing.Geometry); pad adds the mean colour.
    """

    architecture: str
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: int | list[int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int | list[int] | None = None
    tta: str = "none"
    fit: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    format_version: int = FORMAT_VERSION

    @property
    def geometry(self) -> Geometry:
        """How an image of any size is fitted."""
        fill = mean_colour(self.mean) if self.fit == "pad" else (0, 0, 0)
        return Geometry(_size(self.image_size), self.fit, self.crop_pct, self.interpolation, fill)

    @property
    def input_size(self) -> Size:
        """Height and width of the model's input in pixels."""
        return _size(self.resolution or self.image_size)

    def create_model(self) -> nn.Module:
        return create_model(self.architecture, len(self.class_names), **self.arguments)

    def without_weights(self) -> nn.Module:
        """The model on the meta device, without memory for its weights."""
        with without_memory():
            return self.create_model().eval()

    def to_bytes(self) -> bytes:
        return to_json(dataclasses.asdict(self))


def _size(value: int | list[int]) -> Size:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def export_model(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Writes config.json and model.safetensors; each is replaced atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / CONFIG, config.to_bytes())
    replace_file(folder / WEIGHTS, tensors_to_bytes(weights))  # last, so that weights imply a config


def load_model(folder: Path) -> tuple[nn.Module, ModelConfig]:
    """The model of an exported folder, on the CPU in eval mode.

    It is built for its weights, not before: what config.json describes is first compared with the shapes in the weights
    file. Raises UserError naming the file that is missing, damaged or does not fit.
    """
    config, path = read_model_config(folder), folder / WEIGHTS
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
            _check_fit(config, shapes, path)
            weights = {name: file.get_tensor(name) for name in shapes}
    except UNREADABLE as error:
        raise UserError(f"{path}: not a safetensors file ({one_line(error)})") from error
    return _with_weights(config, weights, path)


def model_from_files(files: Mapping[str, bytes], folder: Path) -> tuple[nn.Module, ModelConfig]:
    """As load_model, from the contents of the two files, which were read from `folder` and verified."""
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise UserError(f"{folder / name} is missing")
    config, path = parse_model_config(files[CONFIG], folder / CONFIG), folder / WEIGHTS
    weights = tensors_from_bytes(files[WEIGHTS], path)
    _check_fit(config, {name: tuple(tensor.shape) for name, tensor in weights.items()}, path)
    return _with_weights(config, weights, path)


def _check_fit(config: ModelConfig, shapes: Mapping[str, Sequence[int]], path: Path) -> None:
    """Raises UserError unless the weights are those of the model that is described, and both fit into memory."""
    described = config.without_weights()
    _check_shapes(described, shapes, path)
    held = sum(tensor.nbytes for tensor in (*described.parameters(), *described.buffers()))
    check_memory(2 * held, str(path.parent))  # the model and its weights
    check_memory(forward_memory(described, config.input_size), str(path.parent))


def _with_weights(config: ModelConfig, weights: Mapping[str, Tensor], path: Path) -> tuple[nn.Module, ModelConfig]:
    model = config.create_model()
    load_weights(model, weights, path)
    return model.eval(), config


def read_model_config(folder: Path) -> ModelConfig:
    path = folder / CONFIG
    return parse_model_config(read_file(path), path)


def parse_model_config(content: bytes, path: Path) -> ModelConfig:
    """The model config in the content of a file. Raises UserError naming its path."""
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
    """Raises UserError unless a file has this format version or an older one."""
    if type(version) is not int or version < 1:
        raise UserError(f"{path}: not a model config or checkpoint of this suite (format version {shown(version)})")
    if version > FORMAT_VERSION:
        raise UserError(f"{path}: format version {version} is newer than this program's {FORMAT_VERSION}")


def _misfit(config: ModelConfig) -> str | None:
    """What is invalid in a model config; None if nothing is."""
    if not (isinstance(config.architecture, str) and len(config.architecture) <= MOST_SHOWN):
        return "architecture must be a name"
    if not isinstance(config.arguments, dict):
        return "arguments must be a mapping"
    if {"name", "num_classes"} & config.arguments.keys():
        return "arguments must not name the architecture or the number of classes"
    if not config.class_names or not all(is_text(name) for name in config.class_names):
        return "class_names must be one or more texts"
    if len(set(config.class_names)) < len(config.class_names):
        return "class_names must all be different"
    for name in ("image_size", "resolution"):
        size = getattr(config, name)
        if not _is_size(size) and (name, size) != ("resolution", None):
            return f"{name} is {shown(size)}, it must be a number of pixels up to {LARGEST}, or height and width"
    if config.fit not in FITS or config.interpolation not in tuple(INTERPOLATIONS):  # a list has no hash
        return f"fit must be one of {', '.join(FITS)}, and interpolation one of {', '.join(INTERPOLATIONS)}"
    if not is_number(config.crop_pct, 0.1, 1):
        return "crop_pct must be a number from 0.1 to 1"
    if config.tta not in TTA:
        return f"tta must be one of {', '.join(TTA)}"
    for values in (config.mean, config.std):
        if len(values) != 3 or not all(is_number(value, 0, 1) for value in values):
            return "mean and std must be three numbers from 0 to 1 each"
    return None if min(config.std) > 0 else "std must be greater than 0"


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(type(side) is int and 1 <= side <= LARGEST for side in sides)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Loads weights into a model. Raises UserError naming what does not fit."""
    check_weights(model, weights, source)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # a dtype that torch cannot convert
        raise UserError(f"{source}: the weights do not fit the model ({one_line(error)})") from error


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Raises UserError naming what in weights does not fit a model: names, shapes, dtypes."""
    _check_shapes(model, {name: tuple(tensor.shape) for name, tensor in weights.items()}, source)
    for name, mine in model.state_dict().items():
        kind = weights[name].dtype
        if kind != mine.dtype and not (kind.is_floating_point and mine.dtype.is_floating_point):
            raise UserError(f"{source}: the weights do not fit the model ({name} is {kind}, in the model {mine.dtype})")


def _check_shapes(model: nn.Module, shapes: Mapping[str, Sequence[int]], source: Path) -> None:
    """Raises UserError unless a file has a model's tensors, in their shapes."""
    mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in mine if name not in shapes]
    problems += [f"the model has no {shown(name)}" for name in shapes if name not in mine]
    problems += [
        f"{name} is {sides(shapes[name])}, in the model {sides(shape)}"
        for name, shape in mine.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    if problems:
        raise UserError(f"{source}: the weights do not fit the model ({listed(problems)})")


def listed(problems: Sequence[str], most: int = 3) -> str:
    """The first of what is wrong with weights, and how many more there are."""
    return "; ".join(problems[:most]) + (f"; and {len(problems) - most} more" if len(problems) > most else "")


def sides(shape: Sequence[int]) -> str:
    """The shape of a tensor in words."""
    return "x".join(map(str, shape)) or "a scalar"


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def tensors_from_bytes(content: bytes, source: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError naming it."""
    _check_header_size(content[:8], source)
    try:
        return safetensors.torch.load(content)
    except UNREADABLE as error:
        raise UserError(f"{source}: not a safetensors file ({one_line(error)})") from error


def check_header(path: Path) -> None:
    """Raises UserError for a safetensors file that does not fit into the free memory."""
    check_size(path, most=None)
    with open(path, "rb") as file:
        _check_header_size(file.read(8), path)


def _check_header_size(start: bytes, source: Path) -> None:
    """The first 8 bytes of a safetensors file are the length of the JSON that follows."""
    if len(start) < 8 or int.from_bytes(start, "little") > MOST_BYTES:
        raise UserError(f"{source}: not a safetensors file (its header is cut off or too long)")
