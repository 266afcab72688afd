"""Optimizers for tests that have no config."""

from types import SimpleNamespace

from torch import nn
from torch.optim import Optimizer

from utils.training import optimizers


def create_optimizer(
    name: str,
    model: nn.Module,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    decay_norm_and_bias: bool = True,
    norm_bias_lr_factor: float = 1.0,
) -> Optimizer:
    """The optimizer of a config with these options."""
    config = SimpleNamespace(
        optimizer=name,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decay_norm_and_bias=decay_norm_and_bias,
        norm_bias_lr_factor=norm_bias_lr_factor,
        layer_decay=1.0,
        head_lr_factor=1.0,
        freeze_epochs=0,
        is_fine_tuned=False,
    )
    return optimizers.create_optimizer(config, model)
