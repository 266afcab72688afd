"""Optimizers by name, and their state by parameter name."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.errors import UserError


def create_optimizer(
    name: str,
    model: nn.Module,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    decay_norm_and_bias: bool = True,
) -> Optimizer:
    """One of torch's own optimizers over the model's parameters. The learning rate is set at every step.

    Without `decay_norm_and_bias`, weight decay spares the parameters with fewer than two dimensions.
    """
    groups: list[dict] = [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    if not decay_norm_and_bias:
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
    fused = next(model.parameters()).device.type == "cuda"
    if name == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=1.0, betas=(momentum, 0.999), fused=fused)
    raise UserError(f"optimizer: {name!r} is not allowed; choose from sgd, adamw")


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `<parameter>/<key>`; learning rates and the like come from the config."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what optimizer_tensors gave. Raises UserError where names or shapes do not fit the model."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (tensor.ndim > 0 and tensor.shape != parameter.shape):
            raise UserError(f"resume: the optimizer state {full_name} does not fit the model")
        # Same memory layout as the parameter; scalars such as AdamW's step stay where torch keeps them.
        value = torch.empty_like(parameter).copy_(tensor) if tensor.ndim > 0 else tensor.clone()
        optimizer.state[parameter][key] = value.to(parameter.device) if optimizer.defaults.get("fused") else value
