"""The head of a model: the layers that map its features to logits, whatever the architecture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import classifiers
from utils.config.resolution import Size
from utils.evaluation.predict import in_eval_mode
from utils.system.errors import UserError

SAME = 1e-3  # relative difference of logits that rounding may make


@dataclass(frozen=True)
class Head:
    """Linear layers, and how the logits of the model follow from them: `scale` times the sum of their outputs.

    Most models have one layer and a scale of 1; distilled transformers have two, whose outputs are averaged. Features
    are the inputs of the layers, side by side.
    """

    layers: Sequence[nn.Linear]
    scale: float = 1.0

    @property
    def width(self) -> int:
        """How many features there are."""
        return sum(layer.in_features for layer in self.layers)

    @property
    def has_bias(self) -> bool:
        return all(layer.bias is not None for layer in self.layers)

    def logits(self, features: Tensor) -> Tensor:
        """The model's logits (N, classes), float32, of features (N, width)."""
        parts = features.split([layer.in_features for layer in self.layers], dim=1)
        outputs = [layer(part) for layer, part in zip(self.layers, parts, strict=True)]
        return self.scale * sum(output.float() for output in outputs)

    @torch.no_grad()
    def load(self, weight: Tensor, bias: Tensor) -> None:
        """Changes the layers in place, so that the logits of features x are weight @ x + bias.

        Args:
            weight: (classes, width).
            bias: (classes,); without effect if the layers have none.
        """
        parts = weight.split([layer.in_features for layer in self.layers], dim=1)
        for layer, part in zip(self.layers, parts, strict=True):
            layer.weight.copy_(part / self.scale)
            if layer.bias is not None:
                layer.bias.copy_(bias / (self.scale * len(self.layers)))

    def of(self, model: nn.Module) -> "Head":
        """The same head of a copy of the model."""
        return Head(_linear_layers(model), self.scale)


@torch.no_grad()
def find_head(model: nn.Module, size: Size) -> Head:
    """The head of a model for images of that size, which must be linear in the features. Changes nothing.

    How the logits follow from the layers is measured on two images of noise, with random weights in the layers.

    Raises UserError, naming head_init, for a head that is not linear.
    """
    layers = _linear_layers(model)
    device, dtype = layers[0].weight.device, layers[0].weight.dtype
    source = torch.Generator().manual_seed(0)
    before = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in layers]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    outputs: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output if inputs[0].ndim == 2 else torch.empty(0))

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with in_eval_mode(model):
            logits = model(torch.randn(2, 3, *size, generator=source).to(device, dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, values in zip(layers, before, strict=True):
            layer.load_state_dict(values)
    if not torch.isfinite(logits).all():
        raise UserError("init_from: the logits of the start weights are not finite; the weights are damaged")
    if len(outputs) == len(layers) and all(output.shape == logits.shape for output in outputs):
        total = torch.stack(outputs).sum(0)
        scale = float((logits * total).sum() / (total * total).sum())
        if scale and float((logits - scale * total).abs().max()) <= SAME * float(logits.abs().max()):
            nearest = round(1 / scale)  # the exact value of a mean over layers, or of a division
            exact = nearest and abs(1 / scale / nearest - 1) < SAME
            return Head(layers, 1 / nearest if exact else scale)
    raise _not_linear("does more than a linear layer")


def _linear_layers(model: nn.Module) -> Sequence[nn.Linear]:
    found = []
    for layer in classifiers(model):
        if not isinstance(layer, nn.Linear):
            raise _not_linear(f"is no linear layer ({type(layer).__name__})")
        found.append(layer)
    return found


def _not_linear(why: str) -> UserError:
    return UserError(
        f"head_init: probe is not allowed with this model, whose head {why}; --head_init random starts without a probe"
    )
