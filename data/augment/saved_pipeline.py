"""A pipeline of albumentations as `A.save` writes it, or as people write it by hand, into the pipeline itself.

    transform:
      __class_fullname__: Compose
      transforms:
        - {__class_fullname__: RandomResizedCrop, size: [224, 224], scale: [0.3, 1.0], p: 1.0}
        - {__class_fullname__: HorizontalFlip, p: 0.5}

The file is data: names are looked up in a table of albumentations' own transforms, and values are numbers, texts and
lists of them; nothing is imported or executed. What albumentations only warns of, such as an argument that it ignores,
is an error here. Without `p`, a transform has the default of its class.
"""

import inspect
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import albumentations as A
from albumentations.core.serialization import SERIALIZABLE_REGISTRY, serialize_enum
from pydantic import ValidationError

from utils.system.errors import UserError, did_you_mean, one_line
from utils.system.reading import MOST_SHOWN, parse_json, parse_yaml, shown

DEEPEST = 30  # levels of lists and mappings
LARGEST_NUMBER = 20_000  # pixels or kelvins; an image of that side takes 1.2 GB
NAME = "__class_fullname__"

# -- what cannot be in a file -----------------------------------------------------------------------------------------

_ABSTRACT = ("BaseCompose", "BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D")
_OUTPUT = "the model takes uint8 RGB images and normalises them by itself"
_REFERENCES = "its reference images cannot be in a file"
_TARGETS = "it needs boxes or masks, and there are only images"
REFUSED = {
    "Lambda": "its functions cannot be in a file",
    **dict.fromkeys(("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"), _OUTPUT),
    **dict.fromkeys(("FDA", "HistogramMatching", "PixelDistributionAdaptation", "TemplateTransform"), _REFERENCES),
    **dict.fromkeys(("AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop", "RandomSizedBBoxSafeCrop"), _TARGETS),
    **dict.fromkeys(("ConstrainedCoarseDropout", "CropNonEmptyMaskIfExists"), _TARGETS),
}

# Arguments of compositions, which albumentations does not check.
_SELECTIONS = ("[0]", "[1]", "[2]", "[0, 1]", "[0, 2]", "[1, 2]", "[0, 1, 2]")
_EMPTY = (lambda value: not value, "empty: there are only images, drawn with the seed of the run")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")
_COMPOSITION: dict[str, tuple[Callable[[Any], bool], str]] = {
    "p": (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
    "n": (lambda value: type(value) is int and value > 0, "a whole number from 1 on"),
    "channels": (lambda value: repr(value) in _SELECTIONS, "a list of some of 0, 1, 2 in order"),
    "save_key": (lambda value: isinstance(value, str), "a text"),
    **dict.fromkeys(("replace", "is_check_shapes"), _SWITCH),
    **dict.fromkeys(("bbox_params", "keypoint_params", "additional_targets", "mask_interpolation", "seed"), _EMPTY),
}
# Warnings of transforms that are slow or have another name too; they work as they are.
_HARMLESS = r".*(is a special case of|is an alias for|is a specialized version of|is very slow)"


# -- reading ----------------------------------------------------------------------------------------------------------


def parse_pipeline(content: bytes, path: str) -> A.Compose:
    """The pipeline in a YAML or, if the path ends in .json, JSON file.

    Raises UserError naming the file, the transform and what is wrong with it.
    """
    try:
        transform = _build(_structure(content, path))
    except UserError as error:
        raise UserError(f"augment_file: {path}: {error}") from error
    return transform if isinstance(transform, A.Compose) else A.Compose([transform])


def _structure(content: bytes, path: str) -> Any:
    """The entry `transform` of the file: plain data."""
    try:
        value: Any = parse_json(content, Path()) if path.endswith(".json") else parse_yaml(content.decode("utf-8-sig"))
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{Path()}: ")) from error
    except ValueError as error:
        raise UserError(f"not a YAML file ({one_line(error)})") from error
    if not isinstance(value, dict) or "transform" not in value:
        raise UserError(
            f"it has no entry `transform`; write it as albumentations' A.save does (it holds {_bare(value)})"
        )
    if unknown := value.keys() - {"transform", "__version__"}:
        raise UserError(f"unknown entry {shown(min(map(str, unknown)))}; a pipeline is the entry `transform` alone")
    _check_plain(value, DEEPEST)
    return value["transform"]


def _check_plain(value: Any, levels: int) -> None:
    """Raises UserError for anything but mappings, lists, texts, switches and numbers of a reasonable size."""
    if levels == 0:
        raise UserError(f"it is nested too deep; at most {DEEPEST} levels")
    if isinstance(value, (dict, list)):
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise UserError(f"the keys of {_bare(value)} must be texts")
        for entry in value.values() if isinstance(value, dict) else value:
            _check_plain(entry, levels - 1)
    elif type(value) in (int, float):
        if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:  # nor if it is not a number
            raise UserError(f"{shown(value)} is not allowed; numbers are from -{LARGEST_NUMBER} to {LARGEST_NUMBER}")
    elif not (value is None or isinstance(value, (bool, str))):
        raise UserError(f"{shown(value)} is not allowed; values are numbers, texts, lists and mappings")


def _bare(value: Any) -> str:
    return shown(value).replace("\n", " ")


# -- building ---------------------------------------------------------------------------------------------------------


@cache
def _kinds() -> dict[str, type[A.BasicTransform] | type[A.BaseCompose]]:
    """The transforms and compositions of albumentations by name; not those that others, as we, derive from them."""
    kinds: dict[str, Any] = {name: getattr(A, name, None) for name in SERIALIZABLE_REGISTRY if name not in _ABSTRACT}
    return {
        name: kind
        for name, kind in kinds.items()
        if kind is SERIALIZABLE_REGISTRY[name] and issubclass(kind, (A.BasicTransform, A.BaseCompose))
    }


def _build(node: Any, place: str = "") -> A.BasicTransform | A.BaseCompose:
    """A transform with all that it contains.

    Args:
        place: its number among the transforms of the composition that it is in, such as 2.1; empty for the whole.
    """
    if not isinstance(node, dict) or not isinstance(node.get(NAME), str):
        where = f"transform {place}" if place else "the entry `transform`"
        raise UserError(f"{where} is {_bare(node)}; it must be a mapping with {NAME}, such as HorizontalFlip")
    name, arguments = node[NAME], {key: value for key, value in node.items() if key != NAME}
    where = f"transform {place}, {shown(name)}" if place else shown(name)
    try:
        kind = _kind(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", _HARMLESS, UserWarning)
            if issubclass(kind, A.BaseCompose):
                transforms = _nested(arguments.pop("transforms", None), place)
                return _construct(kind, {**_composed(kind, arguments), "transforms": transforms})
            return _single(kind, arguments)
    except _Inside as error:
        raise UserError(str(error)) from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


class _Inside(Exception):
    """An error of a transform inside of a composition, which names its own place."""


def _nested(nodes: Any, place: str) -> list[A.BasicTransform | A.BaseCompose]:
    if not isinstance(nodes, list) or not nodes:
        raise UserError(f"transforms is {_bare(nodes)}; it must be a list of transforms")
    try:
        return [_build(node, f"{place}.{number}".lstrip(".")) for number, node in enumerate(nodes, 1)]
    except UserError as error:
        raise _Inside(str(error)) from error


def _kind(name: str) -> type[A.BasicTransform] | type[A.BaseCompose]:
    if name in REFUSED:
        raise UserError(f"{REFUSED[name]}; remove {name}")
    kinds = _kinds()
    if name not in kinds:
        near = did_you_mean(name.rpartition(".")[2][:MOST_SHOWN], sorted(kinds.keys() - REFUSED)).strip()
        raise UserError(
            f"albumentations {A.__version__} has no such transform; {near or 'write its name as A.save does'}"
        )
    if issubclass(kinds[name], A.Transform3D):
        raise UserError(f"it is for volumes; remove {name}")
    return kinds[name]


def _composed(kind: type[A.BaseCompose], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a composition besides its transforms, checked."""
    allowed = [name for name in _COMPOSITION if name in inspect.signature(kind).parameters]
    for name, value in arguments.items():
        if name not in allowed:
            raise _unknown(name, [*allowed, "transforms"])
        holds, words = _COMPOSITION[name]
        if not holds(value):
            raise UserError(f"{name}: {_bare(value)} is not allowed; it must be {words}")
    if "channels" in allowed and "channels" not in arguments:
        raise UserError("channels is missing; A.save does not write it, so add it, such as channels: [0]")
    return {name: value for name, value in arguments.items() if _COMPOSITION[name] is not _EMPTY}


def _single(kind: type[A.BasicTransform], arguments: dict[str, Any]) -> A.BasicTransform:
    """A transform that contains no others.

    A.save also writes arguments of base classes, which the class itself does not take (the padding of PadIfNeeded).
    They must be as A.save would write them again.
    """
    own = [name for name in inspect.signature(kind).parameters if name != "strict"]
    inherited = {name for base in kind.__mro__[:-1] for name in inspect.signature(base).parameters}
    for name in arguments:
        if name not in own and name not in inherited - {"strict", "args", "kwargs"}:
            raise _unknown(name, own)
    transform = _construct(kind, {name: value for name, value in arguments.items() if name in own})
    saved = serialize_enum(transform.to_dict_private())
    for name, value in arguments.items():
        if name not in own and (name not in saved or saved[name] != value):
            raise _unknown(name, own)
    if needed := transform.targets_as_params:
        raise UserError(f"it needs {', '.join(needed)}, and there are only images; remove {kind.__name__}")
    return transform


def _unknown(name: str, allowed: list[str]) -> UserError:
    near = did_you_mean(name[:MOST_SHOWN], allowed).strip()
    return UserError(f"unknown argument {shown(name)}; {near or 'it has ' + ', '.join(allowed)}")


def _construct(kind: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except Exception as error:  # whatever albumentations raises for values from a file, its warnings included
        cause = error.__cause__
        raise UserError(_reasons(cause) if isinstance(cause, ValidationError) else one_line(error)) from error


def _reasons(error: ValidationError) -> str:
    """What pydantic found, in one line: the argument, its value, and what it could be."""
    first, *others = error.errors()
    name = first["loc"][0] if first["loc"] else ""
    same = [first, *(other for other in others if other["loc"][:1] == first["loc"][:1])]
    words = " or ".join(dict.fromkeys(problem["msg"].removeprefix("Value error, ") for problem in same))
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return f"{name} is missing"
    return f"{name}: {_bare(first['input'])} is not allowed; {words}" if name else words
