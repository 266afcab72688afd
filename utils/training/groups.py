"""The parts of a model that learn at lrs of their own: its layers in order, and its head."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from models import classifiers
from models.timm_models import PREFIX
from utils.config import TrainConfig
from utils.system.errors import UserError


class Part(NamedTuple):
    """The part of a model that a parameter is in, and the part's lr relative to the option `lr`."""

    name: str
    lr_factor: float


def parts(config: TrainConfig, model: nn.Module) -> dict[str, Part]:
    """The part of every parameter, by the parameter's name.

    - With `layer_decay`, "layer 0" at the input and so on. The lr of a layer is `layer_decay` times that of the one
      after it (BEiT, Bao et al. 2022, arXiv:2106.08254), and the last one has the full lr.
    - "head": the layer that makes the logits, at `head_lr_factor` times the full lr. What a model has beside it in its
      last layer, such as a norm layer, has the full lr.
    - "backbone" is the rest if there are no layers; "all" is the whole model if nothing sets the head apart.

    Raises UserError for `layer_decay` on a model whose layers are not known.
    """
    names = [name for name, _ in model.named_parameters()]
    if config.layer_decay == 1 and config.head_lr_factor == 1 and config.freeze_epochs == 0:
        return dict.fromkeys(names, Part("all", 1.0))
    found = dict.fromkeys(names, Part("backbone", 1.0))
    if config.layer_decay < 1:
        layers = layers_of(config, model)
        last = max(layers.values())
        found = {name: Part(f"layer {layers[name]}", config.layer_decay ** (last - layers[name])) for name in names}
    head = set(head_parameters(model))
    return found | {
        name: Part("head", config.head_lr_factor) for name, parameter in model.named_parameters() if parameter in head
    }


def layers_of(config: TrainConfig, model: nn.Module) -> dict[str, int]:
    """The layer of every parameter, by name: 0 at the input; the head is in the last one.

    timm's models have timm's own layers, as in its `param_groups_layer_decay`, those of this suite their `layers()`.
    Raises UserError if the model has neither, or a single layer.
    """
    given: Any = model
    found: dict[str, int] = {}
    if hasattr(model, "layers") and not config.model.startswith(PREFIX):
        modules = {module: number for number, layer in enumerate(given.layers()) for module in layer}
        found = {name: modules[_module(name, modules)] for name, _ in model.named_parameters()}
    elif hasattr(model, "group_matcher"):
        from timm.models import group_parameters

        found = group_parameters(model, given.group_matcher(coarse=False), reverse=True)
    if max(found.values(), default=0) == 0:
        raise UserError(
            f"layer_decay: {config.layer_decay:g} is not allowed with {config.model}, whose layers are not known; use 1"
        )
    return found


def _module(parameter: str, modules: dict[str, int]) -> str:
    """The one of these modules that a parameter is in."""
    return next(module for module in modules if parameter.startswith(f"{module}."))


def head_parameters(model: nn.Module) -> list[Tensor]:
    """The parameters that make the logits; of distilled transformers, those of both heads."""
    return [parameter for layer in classifiers(model) for parameter in layer.parameters()]
