"""Models by name. To add one: a file with its class, and a line in MODELS.

A model maps images to logits in `forward` and to the inputs of its linear layer `fc` in `forward_features`. It takes
`norm` and `width`, as the options of these names. Models called `timm:NAME` are timm's (timm_models.py), with its
`get_classifier` in place of `fc`.

A model may define `layers() -> list[tuple[str, ...]]`, the names of the modules of each layer from the input to the
head, which `layer_decay` needs; every parameter is in one of them. Those of timm have its `group_matcher`.

A model may define `initialise_from(inputs: Tensor) -> None`. A new run calls it once, before training, with a few
thousand normalised training images, float32 (N, 3, H, W), without augmentation; a resumed or loaded model has the
result in its weights. It must be deterministic, so that every process initialises the same weights.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from models.resnet import ResNet
from models.speednet import SpeedNet
from models.timm_models import KEPT, PREFIX, create_timm_model, timm_arguments
from utils.config import TrainConfig
from utils.config.defaults import UNTRAINED
from utils.config.resolution import Size, parse_resolution
from utils.system.errors import UserError, one_line, suggestion
from utils.system.reading import shown

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, (2, 2, 2, 2)),  # 11,173,962 parameters at 10 classes
    "resnet34": partial(ResNet, (3, 4, 6, 3)),  # 21,282,122
    "speednet": SpeedNet,  # 1,972,792, of which 1,971,352 are trained
}
ARGUMENTS = {"norm": str, "width": int}  # all that a saved model may name


def list_models() -> list[str]:
    """The names of this suite's own models."""
    return sorted(MODELS)


def create_model(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """Builds a freshly initialised model that maps images (N, 3, H, W), float32, to logits (N, num_classes).

    Raises UserError for an unknown name and for arguments that the model does not accept.
    """
    if name.startswith(PREFIX):
        return create_timm_model(name, num_classes, **arguments)
    if name not in MODELS:
        raise UserError(f"model: {name!r} is not allowed; {suggestion(name, [*list_models(), PREFIX + 'NAME'])}")
    try:
        if not all(type(value) is ARGUMENTS.get(argument) for argument, value in arguments.items()):
            raise TypeError("norm must be a name, width a whole number; there are no others")
        return MODELS[name](num_classes=num_classes, **arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # of torch, for impossible sizes
        raise UserError(f"model: {name} does not accept {shown(arguments)} ({one_line(error)})") from error


def model_arguments(config: TrainConfig, image_size: Size, trained: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of create_model, besides the classes, for images of that size.

    Args:
        trained: the arguments of the model that the start weights were trained in, or of the checkpoint that a run with
            start weights resumes from; those of a run with random weights follow from its options alone.

    Raises UserError for options that the model does not take.
    """
    own = {"norm": config.norm, "width": config.width}
    if not config.model.startswith(PREFIX):
        return own
    for option, value in own.items():
        if value != UNTRAINED[option]:
            raise UserError(
                f"{option}: {value} is not allowed with {config.model}; it is for {', '.join(list_models())}"
            )
    sizes = [size for size, _ in parse_resolution(config.resolution)] if config.resolution else [image_size]
    kept = None
    if config.is_fine_tuned:
        kept = tuple((name, number) for name in KEPT if type(number := (trained or {}).get(name)) is int)
    return dict(timm_arguments(config.model, tuple(sizes), kept))


def classifiers(model: nn.Module) -> Sequence[nn.Module]:
    """The layers that map features to logits: one or, of distilled transformers, two."""
    given: Any = model
    found = given.get_classifier() if hasattr(given, "get_classifier") else given.fc
    return found if isinstance(found, tuple) else (found,)


def classifier(model: nn.Module) -> nn.Module:
    """The layer that maps features to logits; of several, the first."""
    return classifiers(model)[0]


def describe_model(model: nn.Module, image_size: Size) -> str:
    """A table of sizes in and out, parameters and multiplications per layer, for one image."""
    import torchinfo

    columns = ("input_size", "output_size", "num_params", "mult_adds")
    return str(torchinfo.summary(copy.deepcopy(model), (1, 3, *image_size), col_names=columns, depth=4, verbose=0))
