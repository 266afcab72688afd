"""Architectures of timm (github.com/huggingface/pytorch-image-models) as `timm:NAME`.

timm's models are designed for 224 pixels. For smaller images they get what timm offers: a stem or patches that
downsample less, else dilated stages. Start weights want the model that they were trained in, so with them that is done
later, and dilation, which leaves every weight as it is, comes first. These arguments are saved with the model, so that
it is rebuilt the same.
"""

import contextlib
import functools
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from utils.config.resolution import Size, plain_size, shown_size
from utils.system.errors import UserError, did_you_mean, one_line

PREFIX = "timm:"
SMALLEST_MAP = 4  # target side of the last feature map, as in the ResNets of this suite
SMALLEST_GRID = 7  # target number of patches per side, as of 32 pixels in an image of 224
TRAINED_MAP, TRAINED_GRID = 2, 4  # sides from which on a model with start weights stays as timm has it
KEPT = ("patch_size", "output_stride")  # arguments that start weights were trained with; img_size may differ
STEMS = [("patch_size", 3), ("patch_size", 2), ("patch_size", 1), ("output_stride", 16), ("output_stride", 8)]
ARGUMENTS = {"img_size", "patch_size", "output_stride"}  # all that a saved model may name
FAILURES = (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError, AttributeError)


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Models are made on the meta device, without memory for their weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initial values, which meta tensors do not have
        yield


def create_timm_model(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """timm's own model, so that its weights have timm's names. `arguments` are those of timm_arguments.

    Raises UserError if timm is not installed, does not know the name, or cannot build the model with these arguments.
    """
    architecture = timm_name(name)
    if not arguments.keys() <= ARGUMENTS or not all(_is_argument(*argument) for argument in arguments.items()):
        raise UserError(
            f"model: {name} does not accept {arguments}; it takes whole numbers as {', '.join(sorted(ARGUMENTS))}"
        )
    import timm

    try:
        return timm.create_model(architecture, pretrained=False, num_classes=num_classes, **arguments)
    except FAILURES as error:
        raise UserError(f"model: {name} does not accept {arguments} ({_reason(error)})") from error


def drop_path_rates(name: str, arguments: Mapping[str, Any], rate: float | None) -> dict[str, float]:
    """timm's rates of stochastic depth above 0 by the names of the layers that apply them, with `rate` in the last
    block; None: those that the model has by itself.

    Raises UserError if the model has no stochastic depth, or a kind of its own.
    """
    import timm
    from timm.layers import DropPath

    wanted = {} if rate is None else {"drop_path_rate": rate}
    try:
        with without_memory():
            model = timm.create_model(timm_name(name), pretrained=False, num_classes=1, **arguments, **wanted)
    except FAILURES as error:
        raise UserError(f"drop_path: {rate} is not allowed with {name}, which has no stochastic depth") from error
    layers = [(at, layer) for at, layer in model.named_modules() if isinstance(layer, DropPath)]
    rates = {at: float(layer.drop_prob) for at, layer in layers if layer.drop_prob > 0}
    if rate and not rates:
        raise UserError(f"drop_path: {rate} is not allowed with {name}, which has no stochastic depth of timm's kind")
    return rates


def _is_argument(name: str, value: Any) -> bool:
    """A whole number from 1 on, or for img_size height and width."""
    numbers = value if name == "img_size" and isinstance(value, list) and len(value) == 2 else [value]
    return all(type(number) is int and number > 0 for number in numbers)


@functools.cache
def timm_arguments(
    name: str, sizes: tuple[Size, ...], trained: tuple[tuple[str, int], ...] | None = None
) -> Mapping[str, Any]:
    """The arguments of create_timm_model for images of these sizes, of which the last decides.

    - Models for images of one size: that size.
    - Transformers with one grid of patches: patches that divide the image, small enough for a grid of 7x7.
    - Others: a stem that downsamples less, else dilated stages that do not, so that the last feature map has 4x4
      pixels, or as many as timm offers.

    With start weights, the arguments that they were trained with. Where these are timm's own, patches stay as they are
    from a grid of 4x4 on, if they divide the image, and stems and stages from a last feature map of 2x2 on; below that
    it is as above, but for that smaller map and with dilated stages first.

    Args:
        trained: arguments among KEPT of the start weights; None: random weights.

    Raises UserError if the model does not take such images. Models are built on the meta device: nothing is computed.
    """
    native = _built(name)
    accepted = _init_parameters(type(native))
    size, strides = sizes[-1], _strides(native)
    fixed: dict[str, Any] = {"img_size": plain_size(size)} if "img_size" in accepted else {}
    if fixed and len(sizes) > 1:
        plan = ", ".join(map(shown_size, sizes))
        raise UserError(f"resolution: {plan} is not allowed with {name}, which is built for images of one size")
    arguments = fixed | dict(trained or ())
    if trained or not strides:
        pass
    elif "patch_size" in accepted and _patches(native) == (strides[-1], strides[-1]):
        fits = math.gcd(*size) % strides[-1] == 0 and min(size) // strides[-1] >= TRAINED_GRID
        patch = strides[-1] if trained is not None and fits else _patch_size(name, size, strides[-1])
        arguments = fixed | ({"patch_size": patch} if patch != strides[-1] else {})
    else:
        smallest, stems = (SMALLEST_MAP, STEMS) if trained is None else (TRAINED_MAP, [*STEMS[3:], *STEMS[:3]])
        if min(size) // strides[-1] < smallest:
            arguments = _small_image_stem(name, min(size), smallest, stems, strides[-1], fixed, accepted)
    for each in sizes:
        if reason := _refusal(name, arguments, each):
            option, remedy = "image_size", _designed_size(native)
            if each != size:
                option, remedy = "resolution", "begin with a larger size"
            raise UserError(
                f"{option}: {shown_size(each)} is not allowed with {name} ({reason}); {remedy}, or take another model"
            )
    return arguments


def timm_name(name: str) -> str:
    """timm's name of `timm:NAME`. Raises UserError if timm is not installed or has no such model."""
    if find_spec("timm") is None:
        raise UserError(f"model: {name} needs timm, which is not installed; pip install -r requirements.txt")
    import timm

    architecture, known = name.removeprefix(PREFIX), timm.list_models()
    if architecture not in known:
        untagged = architecture.partition(".")[0]
        tagged = f"{PREFIX}{untagged} is the model, and hf-hub:timm/{architecture} names its weights; "
        hint = tagged if untagged in known else did_you_mean(architecture, known)
        raise UserError(
            f"model: {name!r} is not allowed; timm has no {architecture}; {hint}timm.list_models() lists all"
        )
    return architecture


def pools_as(name: str, pooling: Any) -> bool:
    """Whether the model has that `global_pool` by itself: timm writes it into the config.json of every model."""
    if not isinstance(pooling, str):
        return False
    import timm

    try:
        with without_memory():
            own, asked = (
                str(timm.create_model(timm_name(name), pretrained=False, **arguments))
                for arguments in ({}, {"global_pool": pooling})
            )
    except FAILURES:
        return False
    return own == asked


def _built(name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The model on the meta device, without memory for its weights."""
    with without_memory():
        return create_timm_model(name, 1, **(arguments or {})).eval()


def _init_parameters(kind: type) -> set[str]:
    """Names of the arguments of a class and its base classes."""
    return {
        name
        for base in kind.__mro__
        for name in inspect.signature(base.__init__).parameters  # type: ignore[misc]
    }


def _strides(model: nn.Module) -> list[int]:
    """The stride of each stage's feature map; empty if timm does not say."""
    return [stage["reduction"] for stage in getattr(model, "feature_info", [])]


def _patches(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the patches that a transformer cuts an image into."""
    embedding = getattr(model, "patch_embed", getattr(model, "stem", None))
    size = getattr(embedding, "patch_size", None)
    return (size, size) if isinstance(size, int) else size


def _patch_size(name: str, size: Size, native: int) -> int:
    """The largest patch side, up to timm's own, with at least 7 patches along an image."""
    largest = min(native, min(size) // SMALLEST_GRID)
    patch = next((patch for patch in range(largest, 0, -1) if math.gcd(*size) % patch == 0), 0)
    if 3 * patch < largest or patch == 0:
        height, width = (max(1, round(side / 8)) * 8 for side in size)
        raise UserError(
            f"image_size: {shown_size(size)} is not allowed with {name}, which cuts images into equal patches; choose "
            f"a size that a number up to {max(largest, 1)} divides, such as {shown_size((height, width))}"
        )
    return patch


def _small_image_stem(
    name: str,
    size: int,
    target: int,
    stems: Sequence[tuple[str, int]],
    native: int,
    fixed: dict[str, Any],
    accepted: set[str],
) -> dict[str, Any]:
    """The first of the stems with a large enough last feature map, else the first with the largest.

    Args:
        size: shorter side of the images in pixels.
        target: side of the last feature map from which on it is large enough.
    """
    best, smallest = fixed, native
    for option, value in stems:
        if option not in accepted:
            continue
        try:
            stride = _strides(_built(name, fixed | {option: value}))[-1]
        except UserError:  # this model fixes the option
            continue
        if stride < smallest:
            best, smallest = fixed | {option: value}, stride
        if size // smallest >= target:
            break
    return best


def _reason(error: Exception) -> str:
    return one_line(error)[:200] or type(error).__name__


@torch.no_grad()
def _refusal(name: str, arguments: Mapping[str, Any], size: Size) -> str:
    """Why the model does not take images of that size; empty if it does."""
    try:
        _built(name, arguments)(torch.zeros(1, 3, *size, device="meta"))
    except UserError as error:
        return str(error).removeprefix("model: ")
    except FAILURES as error:
        return "" if "meta" in str(error) else _reason(error)  # an operation that needs real weights
    return ""


def _designed_size(model: nn.Module) -> str:
    """Names the size that timm designed a model for."""
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[1:]
    return f"choose {shown_size(tuple(size))}, the size of timm's weights" if len(size) == 2 else "choose another size"
