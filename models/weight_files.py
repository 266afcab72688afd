"""Files of weights, safetensors or of torch.save: read as tensors, of which nothing is ever executed."""

import argparse
import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.saved import check_header, tensors_from_bytes
from utils.system.errors import UserError, one_line
from utils.system.memory import check_memory
from utils.system.reading import parse_json, shown

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".bin", ".tar")
PARTS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where training scripts put weights; timm's order


def read_metadata(path: Path) -> dict[str, Any]:
    """The texts in the header of a safetensors file. Raises UserError naming it if the header is invalid."""
    check_header(path)
    with open(path, "rb") as file:
        header = parse_json(file.read(int.from_bytes(file.read(8), "little")), path)
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def parse_tensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors in a file by name, on the CPU, and of a pickle the key under which they were, if they were under one.

    Raises UserError naming the path.
    """
    if path.suffix == SAFETENSORS:
        return tensors_from_bytes(content, path), None
    value = _unpickled(content, path)
    part = None
    if isinstance(value, dict):
        part = next((name for name in PARTS if isinstance(value.get(name), dict)), None)
        value = value[part] if part else value
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path}: not a state dict, nor one under {', '.join(PARTS)} (it holds {_kind(value)})")
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: not a state dict (a name is {_kind(name)})")
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path}: not a state dict ({shown(name)} is {_kind(tensor)}, not a tensor)")
        _check_plain(name, tensor, path)
    return {name: tensor.detach() for name, tensor in value.items()}, part


def _unpickled(content: bytes, path: Path) -> Any:
    """What torch.load makes of a file without executing anything."""
    stream = io.BytesIO(content)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            check_memory(sum(entry.file_size for entry in archive.infolist()), str(path))
    stream.seek(0)
    # A namespace of plain values, which timm's training script saves beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its message advises to execute the file
            raise UserError(
                f"{path}: not loaded, since it is damaged or holds more than tensors, which could execute code; save "
                "its state dict alone, best as safetensors"
            ) from error
        except Exception as error:  # torch raises errors of every kind for an invalid file
            raise UserError(f"{path}: not a file of torch.save ({one_line(error)[:200] or 'empty'})") from error


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Raises UserError for a tensor whose numbers are not all in the file: a sparse, quantised or expanded one."""
    plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{path}: {shown(name)} is not a dense tensor")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping" if value else "nothing"
    return f"an object of type {type(value).__name__}"
