"""Optimizers by name, and their state by parameter name."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models import classifier
from utils.config.train import OPTIMIZERS, TrainConfig
from utils.system.errors import UserError, suggestion
from utils.system.reading import shown
from utils.training.groups import parts
from utils.training.muon import Muon

STEP = "step"  # a single number; all other state of a parameter has its shape
STATE = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"exp_avg", "exp_avg_sq", STEP}}
NORM_LAYERS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm),
)


def create_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """SGD or AdamW, torch's own, or Muon with torch's AdamW, over the parameters that are trained.

    The learning rate is set at every step.

    - Without `decay_norm_and_bias`, parameters with fewer than two dimensions have no weight decay, nor have those that
      a timm model names in `no_weight_decay`, such as position embeddings.
    - The biases of norm layers learn at `norm_bias_lr_factor` times the lr, with the same decay per step (Page 2018; 64
      in Jordan 2024, arXiv:2404.00498).
    - Layers and head have lrs of their own with `layer_decay` and `head_lr_factor` (groups.py). Their decay per step
      follows their lr, as in timm.
    - muon is for convolution filters and the matrices inside a transformer; everything else gets AdamW at the same lr
      (see muon.py).

    Groups have a `name` and the factor `lr_factor` of their lr. Raises UserError for another optimizer, and for
    `layer_decay` on a model whose layers are not known.
    """
    name, momentum = config.optimizer, config.momentum
    norm_biases = {module.bias for module in model.modules() if isinstance(module, NORM_LAYERS)}
    without_decay: Collection[str] = getattr(model, "no_weight_decay", tuple)()
    part_of = parts(config, model)
    groups: dict[tuple, dict] = {}
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = config.decay_norm_and_bias or (parameter.ndim >= 2 and full_name not in without_decay)
        decay = config.weight_decay if decays else 0.0
        factor = config.norm_bias_lr_factor if parameter in norm_biases else 1.0
        part = part_of[full_name]
        if (part, decay, factor) not in groups:
            words = ["norm biases"] * (factor != 1) + ["no decay"] * (decay == 0 < config.weight_decay)
            groups[part, decay, factor] = {
                "name": ", ".join([part.name, *words]),
                "params": [],
                "weight_decay": decay / factor,
                "lr_factor": part.lr_factor * factor,
            }
        groups[part, decay, factor]["params"].append(parameter)
    # On a CPU for fine-tuning alone: another rounding would change runs that began without it.
    fused = next(model.parameters()).device.type in (("cuda", "cpu") if config.is_fine_tuned else ("cuda",))
    if name == "sgd":
        nesterov = config.nesterov and momentum > 0
        return torch.optim.SGD(groups.values(), lr=1.0, momentum=momentum, nesterov=nesterov, fused=fused)
    if name == "adamw":
        return torch.optim.AdamW(groups.values(), lr=1.0, betas=(momentum, 0.999), fused=fused)
    if name == "muon":
        return Muon(groups.values(), inner_weights(model), momentum=momentum, fused=fused)
    raise UserError(f"optimizer: {name!r} is not allowed; {suggestion(name, list(OPTIMIZERS))}")


def inner_weights(model: nn.Module) -> set[Tensor]:
    """Convolution filters, and the matrices of linear layers that do not make the logits: no embeddings, no tokens."""
    last = classifier(model) if hasattr(model, "fc") or hasattr(model, "get_classifier") else model
    return {
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and module is not last)
    }


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `<parameter>/<key>`; learning rates and the like come from the config."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restores the state from optimizer_tensors. Raises UserError for state that this optimizer does not have."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    expected = _expected_state(optimizer)
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or not _fits(tensor, key, parameter, expected):
            raise UserError(f"resume: the optimizer state {shown(full_name)} does not fit the model")
        # Same memory layout as the parameter; scalars such as AdamW's step stay where torch keeps them.
        value = tensor.clone() if key == STEP else torch.empty_like(parameter).copy_(tensor)
        optimizer.state[parameter][key] = value.to(parameter.device) if optimizer.defaults.get("fused") else value
    for name, parameter in model.named_parameters():
        missing = expected.get(parameter, set()) - optimizer.state.get(parameter, {}).keys()
        if missing and parameter in optimizer.state:
            raise UserError(f"resume: the optimizer state {name}/{min(missing)} is missing")


def _fits(tensor: Tensor, key: str, parameter: Tensor, expected: Mapping[Tensor, Collection[str]]) -> bool:
    """Whether a tensor can be the state of this name; `expected` as from _expected_state."""
    if expected and key not in expected.get(parameter, ()):
        return False
    if key == STEP:
        return tensor.dtype == torch.float32 and tensor.ndim == 0 and bool(tensor.isfinite()) and tensor.item() >= 0
    return tensor.is_floating_point() and tensor.shape == parameter.shape


def _expected_state(optimizer: Optimizer) -> dict[Tensor, set[str]]:
    """The names of each parameter's state once it was updated; empty for optimizers that are not in STATE."""
    kind = type(getattr(optimizer, "optimizer", optimizer))  # in Accelerate's wrapper
    return {
        parameter: STATE[torch.optim.SGD if group.get("muon") else torch.optim.AdamW if kind is Muon else kind]
        for group in optimizer.param_groups
        for parameter in group["params"]
        if kind in (Muon, *STATE)
    }
