"""What is changed in a network while it is trained: none of it is in its weights or in its saved arguments."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.drop_path import put_drop_path
from models.frozen_norm import freeze_statistics
from models.timm_models import PREFIX, drop_path_rates
from utils.config import TrainConfig
from utils.config.options import default_of, options_of
from utils.system.errors import UserError


def prepare_network(model: nn.Module, config: TrainConfig, arguments: Mapping[str, Any]) -> None:
    """Prepares a model of create_model, in place: frozen norm statistics, stochastic depth, gradient checkpointing.

    Args:
        arguments: that it was made with.

    Raises UserError for an option that the model does not take.
    """
    if config.norm_statistics == "frozen":
        freeze_statistics(model)
    if config.drop_path is not None and not config.model.startswith(PREFIX):
        raise UserError(f"drop_path: {config.drop_path} is not allowed with {config.model}; it is for timm: models")
    if config.drop_path is not None or (config.is_fine_tuned and config.model.startswith(PREFIX)):
        put_drop_path(model, drop_path_rates(config.model, arguments, config.drop_path))
    if config.grad_checkpointing:
        _checkpoint_gradients(model, config.model)


def _checkpoint_gradients(model: nn.Module, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UserError(
            f"grad_checkpointing: true is not allowed with {name}, which does not offer it; a smaller "
            "micro_batch_size saves memory too"
        ) from error


def unused_statistics(model: nn.Module, config: TrainConfig) -> str:
    """That `norm_statistics` was set for a model without batch norm; empty if not."""
    chosen = config.norm_statistics != default_of(options_of(type(config))["norm_statistics"], config)
    batch_norm = any(isinstance(layer, _BatchNorm) for layer in model.modules())
    return (
        "" if batch_norm or not chosen else f"no effect: norm_statistics with {config.model}, which has no batch norm"
    )
