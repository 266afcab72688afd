"""Architectures of timm (github.com/huggingface/pytorch-image-models) as `timm:NAME`, with random weights.

timm's are made for images of 224 pixels. For smaller ones they get what timm itself offers: a stem or patches that
shrink the image less, else dilated stages. What a model was given is recorded with it, so that it is built again alike.
"""

import functools
import inspect
import warnings
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import nn

from utils.system.errors import UserError, did_you_mean, one_line

PREFIX = "timm:"
SMALLEST_MAP = 4  # pixels of the last feature map that are aimed at, as in the ResNets of this suite
SMALLEST_GRID = 7  # patches per side that are aimed at, as of 32 pixels in an image of 224
STEMS = [("patch_size", 3), ("patch_size", 2), ("patch_size", 1), ("output_stride", 16), ("output_stride", 8)]
ARGUMENTS = {"img_size", "patch_size", "output_stride"}  # a saved model may name these and no other
FAILURES = (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError, AttributeError)


def create_timm_model(name: str, num_classes: int, **arguments: int) -> nn.Module:
    """The model of timm itself, so that its weights have timm's names. `arguments` are those of timm_arguments.

    Raises UserError where timm is missing, does not know the name, or cannot build the model so.
    """
    architecture = _known(name)
    if not arguments.keys() <= ARGUMENTS or not all(type(value) is int and value > 0 for value in arguments.values()):
        raise UserError(
            f"model: {name} does not accept {arguments}; it takes whole numbers as {', '.join(sorted(ARGUMENTS))}"
        )
    import timm

    try:
        return timm.create_model(architecture, pretrained=False, num_classes=num_classes, **arguments)
    except FAILURES as error:
        raise UserError(f"model: {name} does not accept {arguments} ({_reason(error)})") from error


@functools.cache
def timm_arguments(name: str, sizes: tuple[int, ...]) -> Mapping[str, int]:
    """What create_timm_model is to be given for images of these sides in pixels, the last of which counts most.

    - Models for images of one size: that size.
    - Transformers with one grid of patches: patches small enough for a grid of 7x7, that divide the image.
    - Others: a stem that shrinks the image less, else dilated stages that do not shrink it, so that the last feature
      map has 4x4 pixels, or as many as timm offers.

    Raises UserError where the model is not for such images. Nothing is computed: the models are built without weights.
    """
    native = _built(name)
    accepted = _init_parameters(type(native))
    size, strides = sizes[-1], _strides(native)
    fixed = {"img_size": size} if "img_size" in accepted else {}
    if fixed and len(sizes) > 1:
        plan = ", ".join(map(str, sizes))
        raise UserError(f"resolution: {plan} is not allowed with {name}, which is built for images of one size")
    arguments = fixed
    if strides and "patch_size" in accepted and _patches(native) == (strides[-1], strides[-1]):
        patch = _patch_size(name, size, strides[-1])
        arguments = fixed | ({"patch_size": patch} if patch != strides[-1] else {})
    elif strides and size // strides[-1] < SMALLEST_MAP:
        arguments = _small_image_stem(name, size, strides[-1], fixed, accepted)
    for side in sizes:
        _check_size(name, arguments, side)
    return arguments


def _known(name: str) -> str:
    """timm's name of the model."""
    if find_spec("timm") is None:
        raise UserError(f"model: {name} needs timm, which is not installed; pip install -r requirements-optional.txt")
    import timm

    architecture, known = name.removeprefix(PREFIX), timm.list_models()
    if architecture not in known:
        hint = did_you_mean(architecture, known)
        raise UserError(
            f"model: {name!r} is not allowed; timm has no {architecture}; {hint}timm.list_models() names all there are"
        )
    return architecture


def _built(name: str, arguments: Mapping[str, int] | None = None) -> nn.Module:
    """The model without memory for its weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initial values that cannot be drawn without memory
        return create_timm_model(name, 1, **(arguments or {})).eval()


def _init_parameters(kind: type) -> set[str]:
    """Names of the arguments that a class and those that it is derived from take."""
    return {
        name
        for base in kind.__mro__
        for name in inspect.signature(base.__init__).parameters  # type: ignore[misc]
    }


def _strides(model: nn.Module) -> list[int]:
    """By how much each stage's feature map is smaller than the image; empty where timm does not say."""
    return [stage["reduction"] for stage in getattr(model, "feature_info", [])]


def _patches(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the patches that a transformer cuts an image into."""
    embedding = getattr(model, "patch_embed", getattr(model, "stem", None))
    size = getattr(embedding, "patch_size", None)
    return (size, size) if isinstance(size, int) else size


def _patch_size(name: str, size: int, native: int) -> int:
    """The largest side of patches, up to timm's own, of which at least 7 fill the side of an image."""
    largest = min(native, size // SMALLEST_GRID)
    patch = next((patch for patch in range(largest, 0, -1) if size % patch == 0), 0)
    if 3 * patch < largest or patch == 0:
        raise UserError(
            f"image_size: {size} is not allowed with {name}, which cuts images into equal patches; choose a size that "
            f"a number up to {max(largest, 1)} divides, such as {max(1, round(size / 8)) * 8}"
        )
    return patch


def _small_image_stem(name: str, size: int, native: int, fixed: dict[str, int], accepted: set[str]) -> dict[str, int]:
    """The first of timm's offers that leaves a large enough last map, else the first that leaves the largest."""
    best, smallest = fixed, native
    for option, value in STEMS:
        if option not in accepted:
            continue
        try:
            stride = _strides(_built(name, fixed | {option: value}))[-1]
        except UserError:  # timm has settled this for the model
            continue
        if stride < smallest:
            best, smallest = fixed | {option: value}, stride
        if size // smallest >= SMALLEST_MAP:
            break
    return best


def _reason(error: Exception) -> str:
    return one_line(error)[:200] or type(error).__name__


@torch.no_grad()
def _check_size(name: str, arguments: Mapping[str, int], size: int) -> None:
    """Raises UserError where the model cannot take images of that side."""
    model = _built(name, arguments)
    try:
        model(torch.zeros(1, 3, size, size, device="meta"))
    except FAILURES as error:
        if "meta" in str(error):  # something that only real weights can compute
            return
        raise UserError(f"image_size: {size} is not allowed with {name} ({_reason(error)})") from error
