"""Start weights into a model: every tensor is loaded, adapted, made anew or unused, and told."""

import contextlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import classifiers
from models.origin import Origin
from models.saved import listed, sides
from models.timm_models import FAILURES
from utils.system.errors import UserError
from utils.system.reading import shown, some

PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
COUNTER = ".num_batches_tracked"  # of batch norm; torch's own before 0.4.1 has none


@dataclass(frozen=True)
class Loaded:
    """What became of each tensor: names in the model, or `unused` in the weights.

    Attributes:
        loaded: as they are in the weights.
        adapted: resampled to another size, or under another name.
        new: made anew: the head, unless it is kept.
        unused: what the model has no place for: the head of the weights, or what timm drops.
        notes: what was done to them, in words.
    """

    loaded: Sequence[str]
    adapted: Sequence[str]
    new: Sequence[str]
    unused: Sequence[str]
    notes: Sequence[str] = ()


@torch.no_grad()
def load_start(
    model: nn.Module, tensors: Mapping[str, Tensor], origin: Origin, class_names: Sequence[str], keep_head: bool = False
) -> Loaded:
    """Loads weights into a freshly made model, whose head stays as it is unless `keep_head` and the classes agree.

    Position embeddings of another grid, tables of relative positions and patches of another size are resampled by
    timm's own functions; numbers of a smaller precision are converted. A model on the meta device is only compared.

    Raises UserError naming every tensor that fits by no name or shape, unless it belongs to the head; the model is then
    as it was.
    """
    if keep_head:
        _check_classes(origin, class_names)
    mine, head = model.state_dict(), _head(model)
    given, notes = _without_prefixes(tensors)
    places = {name: place for place, name in enumerate(mine)}
    fitted = _fitted(model, mine, head, given)
    ready, adapted, problems = {}, [], []
    for name in sorted(fitted, key=lambda name: (places.get(name, len(places)), name)):  # a file may have any order
        tensor = fitted[name]
        if name in head and not keep_head:
            continue
        if name not in mine:
            problems.append(f"the model has no {shown(name)}")
        elif problem := _misfit(name, tensor, mine[name]):
            problems.append(problem)
        else:
            ready[name] = tensor
            if tensor is not given.get(name):
                adapted.append(name)
                notes += _resized(name, given.get(name), tensor)
    absent = [name for name in mine if name not in fitted and (keep_head or name not in head)]
    problems += [f"{name} is missing" for name in absent if not name.endswith(COUNTER)]
    if problems:
        size = f" of image_size {origin.image_size}" if origin.image_size else ""
        raise UserError(f"init_from: {origin.path}: the weights{size} do not fit the model ({listed(problems)})")
    if renamed := [name for name in adapted if name not in given]:
        notes.append(f"{len(renamed)} under other names, as timm reads them")
    notes += _conversions(ready, mine)
    for name, tensor in ready.items():
        mine[name].copy_(tensor)
    used = {id(tensor) for name, tensor in fitted.items() if name in ready}
    return Loaded(
        loaded=[name for name in ready if name not in adapted],
        adapted=adapted,
        new=[name for name in mine if name not in ready],
        unused=sorted(name for name, tensor in given.items() if id(tensor) not in used and name not in adapted),
        notes=notes,
    )


def _check_classes(origin: Origin, class_names: Sequence[str]) -> None:
    """Raises UserError unless the head of the weights is one of exactly these classes, in this order."""
    theirs, mine = origin.class_names, tuple(class_names)
    if theirs == mine:
        return
    if theirs is None:
        raise UserError(f"keep_head: {origin.path} does not name the classes of its head; leave keep_head out")
    if set(theirs) == set(mine):
        what = "in another order"
    else:
        here, there = [name for name in mine if name not in theirs], [name for name in theirs if name not in mine]
        parts = [
            f"{some(list(map(shown, names)), 3)} only {where}"
            for names, where in ((here, "here"), (there, "there"))
            if names
        ]
        what = "; ".join(parts)
    raise UserError(
        f"keep_head: the {len(mine)} classes of the data set are not the {len(theirs)} of {origin.path} ({what}); "
        "leave keep_head out"
    )


def _head(model: nn.Module) -> set[str]:
    """Names of the tensors of the head: the classifier's, and those of the other heads that timm names."""
    heads = set(classifiers(model))
    prefixes = {name for name, module in model.named_modules() if module in heads}
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    prefixes |= set([named] if isinstance(named, str) else named)
    return {name for name in model.state_dict() if any(name.startswith(f"{prefix}.") for prefix in prefixes)}


def _without_prefixes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Under the names that the model had before it was wrapped, and what was stripped, in words."""
    given, stripped = dict(tensors), ""
    while prefix := next(
        (prefix for prefix in PREFIXES if given and all(name.startswith(prefix) for name in given)), ""
    ):
        given, stripped = {name.removeprefix(prefix): tensor for name, tensor in given.items()}, stripped + prefix
    return given, [f"prefix {stripped} stripped from all names"] if stripped else []


def _fitted(
    model: nn.Module, mine: Mapping[str, Tensor], head: set[str], given: dict[str, Tensor]
) -> Mapping[str, Tensor]:
    """The weights by the model's names and in its shapes, as far as timm or a patch's size can make them so."""

    def fits(tensors: Mapping[str, Tensor]) -> bool:
        same = all(
            name in head or (name in mine and tensor.shape == mine[name].shape) for name, tensor in tensors.items()
        )
        return same and all(name in tensors or name in head for name in mine)

    # timm's own conversion for the family: older names, position embeddings, tables of relative positions.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    found: Mapping[str, Any] = given
    if convert is not None and not fits(given):
        with contextlib.suppress(*FAILURES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about timm's own code
            found = convert(dict(given), model)
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()):
        found = given
    return {name: _with_patches(model, name, tensor) for name, tensor in found.items()}


def _with_patches(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The filter of patches, resampled if those of the model have another size (Beyer et al. 2022, FlexiViT)."""
    layers: dict[str, Any] = dict(model.named_modules())
    layer = layers.get(name.removesuffix(".weight"))
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != layer.stride or tensor.ndim != 4:
        return tensor
    if tensor.shape[:2] != layer.weight.shape[:2] or tensor.shape == layer.weight.shape or max(tensor.shape[2:]) > 64:
        return tensor
    from timm.layers import resample_patch_embed

    return resample_patch_embed(tensor, list(layer.kernel_size))


def _misfit(name: str, tensor: Tensor, own: Tensor) -> str | None:
    """Why a tensor cannot become the model's of that name; None if it can."""
    if tensor.shape != own.shape:
        is_filter = tensor.ndim == own.ndim == 4 and own.shape[1] == 3
        if is_filter and (tensor.shape[0], *tensor.shape[2:]) == (own.shape[0], *own.shape[2:]):
            return f"{name} takes images of {tensor.shape[1]} channels, those of this suite have 3"
        return f"{name} is {sides(tensor.shape)}, in the model {sides(own.shape)}"
    floating = tensor.dtype.is_floating_point, own.dtype.is_floating_point
    if tensor.dtype != own.dtype and floating != (True, True):
        return f"{name} is {tensor.dtype}, in the model {own.dtype}"
    if floating[0] and not torch.isfinite(tensor.float()).all():
        return f"{name} has values that are not finite"
    return None


def _resized(name: str, before: Tensor | None, after: Tensor) -> list[str]:
    if before is None or before.shape == after.shape:
        return []
    return [f"{name} resampled from {sides(before.shape)} to {sides(after.shape)}"]


def _conversions(ready: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> list[str]:
    """Which precisions were converted, in words."""
    pairs = {(str(tensor.dtype), str(mine[name].dtype)) for name, tensor in ready.items()}
    return [
        f"converted from {theirs.removeprefix('torch.')} to {own.removeprefix('torch.')}"
        for theirs, own in sorted(pairs)
        if theirs != own
    ]
