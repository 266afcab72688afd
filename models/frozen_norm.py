"""Batch norm that keeps the running statistics of its weights and normalises with them in training too.

Statistics of a small batch are noisy, and those of the new images replace what the weights were trained with: a
network that is fine-tuned gently is better off with its own. Scale and shift (`weight`, `bias`) are trained as ever.
Without batch statistics every image is computed on its own, so that runs agree on any number of processes.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Frozen:
    """What is put before a batch-norm class, so that `train` leaves the layer itself in eval mode."""

    def train(self, mode: bool = True) -> Any:
        layer: Any = super().train(mode)  # type: ignore[misc]  # an activation inside the layer follows
        layer.training = False
        return layer


def freeze_statistics(model: nn.Module) -> int:
    """Freezes the statistics of every batch-norm layer in place: torch's own kinds and those derived from them, such as
    timm's with an activation. Names, state dict and copies of the model stay what they are.

    Returns how many layers that are; 0 for a model without batch norm.
    """
    layers = statistics_layers(model)
    for layer in layers:
        kind: Any = type(layer)
        layer.__class__ = type(kind.__name__, (_Frozen, kind), {})
        layer.train(layer.training)
    return len(layers)


def is_frozen(layer: nn.Module) -> bool:
    return isinstance(layer, _Frozen)


def statistics_layers(model: nn.Module) -> list[Any]:
    """The batch-norm layers whose running statistics are learned in training: not the frozen ones."""
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and not is_frozen(layer)
    ]
