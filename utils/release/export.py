"""The model as a program for other runtimes, with its preprocessing inside, checked against the saved weights."""

import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.release.classifier import PIXELS, ImageClassifier
from utils.system.errors import SuiteError, UserError, one_line
from utils.system.files import replace_file

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
TOLERANCE = 1e-4  # of a logit, relative to the largest one; rounding takes about a hundredth of it
RESIZED = 8  # images that are checked at another size too

Program = Callable[[Tensor], Tensor]  # images to logits


@dataclass(frozen=True)
class Exported:
    """A file in model/, and the largest difference of its logits from the model's over `count` images."""

    kind: str
    file: str
    difference: float
    count: int


def check_packages(kinds: Sequence[str]) -> None:
    """Raises UserError naming packages that an export needs and that are not installed."""
    for kind in kinds:
        if missing := [package for package in PACKAGES[kind] if find_spec(package) is None]:
            raise UserError(f"export: {kind} needs {', '.join(missing)}; pip install -r requirements-optional.txt")


def export_programs(folder: Path, kinds: Sequence[str], images: Tensor) -> list[Exported]:
    """Writes the model in `folder` beside its weights, as ONNX and with torch.export.

    Each program maps `images`, uint8 RGB (N, H, W, 3) for any N, H and W, to `logits`, float32 (N, classes), as
    utils.release.classifier.ImageClassifier does: it fits the images itself (data.resample.fit_batch). It carries the
    class names: in ONNX as metadata `class_names` (JSON), in model.pt2 as the extra file class_names.json.

    Args:
        images: for the check, uint8 RGB (n, H, W, 3), at least one; a few of them are checked at another size too.

    Raises SuiteError, and writes nothing, if a program cannot be made or its logits are not the model's.
    """
    classifier = ImageClassifier.from_pretrained(folder)
    checked = [images[:1], *_batches(images), _resized(images[:RESIZED])]
    with torch.no_grad():
        expected = torch.cat([classifier(batch) for batch in checked])
    with _one_line_of("torch.export"):
        height, width = classifier.model_config.geometry.size
        example = torch.zeros(2, height + 3, width + 5, 3, dtype=torch.uint8)  # of a size that is nobody's
        free = {at: torch.export.Dim(name, min=1) for at, name in enumerate(("batch", "height", "width"))}
        program = torch.export.export(classifier, (example,), dynamic_shapes={"images": free})
    contents, found = {}, []
    for kind in dict.fromkeys(kinds):
        with _one_line_of(kind):
            write, read = {"onnx": (_write_onnx, _read_onnx), "torch": (_write_torch, _read_torch)}[kind]
            contents[kind] = write(program, json.dumps(classifier.model_config.class_names))
            run = read(contents[kind])
            logits = torch.cat([run(batch) for batch in checked])
        difference = (logits - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise SuiteError(
                f"export: the logits of {FILES[kind]} differ from the checkpoint's by up to {difference:.2g}"
            )
        found.append(Exported(kind, FILES[kind], difference, len(images)))
    for kind, content in contents.items():
        replace_file(folder / FILES[kind], content)
    return found


def _batches(images: Tensor) -> Sequence[Tensor]:
    return images.split(max(1, PIXELS // math.prod(images.shape[1:3])))


def _resized(images: Tensor) -> Tensor:
    """The images with rows and columns repeated, less one row: another size and another shape."""
    return images.repeat_interleave(2, 1)[:, 1:].repeat_interleave(3, 2)


@contextmanager
def _one_line_of(step: str):
    """Exporters raise errors of every kind for a model that they do not support, and print warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise SuiteError(f"export: {step} failed ({type(error).__name__}: {one_line(error)[:300]})") from error


def _write_onnx(program: torch.export.ExportedProgram, class_names: str) -> bytes:
    made: Any = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False)
    made.model.metadata_props["class_names"] = class_names
    return made.model_proto.SerializeToString()


def _read_onnx(content: bytes) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_torch(program: torch.export.ExportedProgram, class_names: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"class_names.json": class_names})
    return file.getvalue()


def _read_torch(content: bytes) -> Program:
    module = torch.export.load(io.BytesIO(content)).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run
