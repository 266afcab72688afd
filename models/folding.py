"""Batch norm with fixed statistics folded into the convolution before it: one pass over the activations less, forward
and backward. The fold is computed anew in every forward pass, differentiable in weight, scale and shift, so that a
training with frozen statistics is the same to rounding.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.frozen_norm import is_frozen
from utils.config.resolution import Size
from utils.evaluation.predict import in_eval_mode

CONVS, NORMS = ("Conv2d", "Conv2dSame"), ("BatchNorm2d", "BatchNormAct2d")  # by name: some are timm's


class _Folded:
    """What is put before a convolution's class: its output is that of the batch norm `norm` after it."""

    norm: tuple[Any]  # in a tuple, or it would be a layer of the convolution

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self
        (norm,) = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        bias = norm.bias - mean * scale
        if _is_same(conv):
            from timm.layers import pad_same

            x, padding = pad_same(x, conv.kernel_size, conv.stride, conv.dilation), (0, 0)
        elif conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return conv._conv_forward(x, weight, bias)
        else:
            padding = conv.padding
        low = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if low and conv.groups > 1 and torch.is_grad_enabled():
            dtype = torch.get_autocast_dtype("cpu")
            inputs = (tensor.to(dtype) for tensor in (x, weight, bias))
            return _Grouped.apply(*inputs, (conv.stride, padding, conv.dilation, False, (0, 0), conv.groups))
        return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)


class _Grouped(torch.autograd.Function):
    """A grouped convolution in bf16 whose gradients are computed in float32 where oneDNN has only its reference kernels
    for bf16: those of the input at a stride, and of the weight. They take several times as long there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, form: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form = form
        return torch.ops.aten.convolution(x, weight, bias, *form)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_x = of_weight = None
        wide = [tensor.float() for tensor in (gradient, x, weight)]

        def back(tensors: list[Tensor], *wanted: bool) -> list[Any]:
            return torch.ops.aten.convolution_backward(*tensors, None, *ctx.form, (*wanted, False))

        if ctx.needs_input_grad[0]:
            strided = max(ctx.form[0]) > 1
            of_x = back(wide if strided else [gradient, x, weight], True, False)[0].to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = back(wide, False, True)[1].to(weight.dtype)
        return of_x, of_weight, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None


class _Absorbed:
    """What is put before a batch norm's class: only the activation that timm's may have is left of it."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self
        return norm.act(norm.drop(x)) if hasattr(norm, "act") else x


def _is_same(conv: nn.Module) -> bool:
    """Whether it is timm's convolution that pads as TensorFlow does."""
    return any(kind.__name__ == "Conv2dSame" for kind in type(conv).__mro__)


@torch.no_grad()
def fold_frozen_norms(model: nn.Module, size: Size) -> int:
    """Folds every frozen batch norm that alone takes the output of a convolution into it, in place. Names, parameters
    and state dict stay what they are.

    Args:
        size: height and width of images; one is passed through the model, to see what follows what.

    Returns how many layers that are.
    """
    pairs = _pairs(model, size)
    for conv, norm in pairs:
        conv.norm = (norm,)
        for layer, part in ((conv, _Folded), (norm, _Absorbed)):
            kind: Any = type(layer)
            layer.__class__ = type(kind.__name__, (part, kind), {})
    return len(pairs)


class _Uses(TorchDispatchMode):
    """Counts the operations that take each tensor, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()
        self._held: list[Any] = []  # or the id of a tensor that is gone would be that of another

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        result = function(*args, **(kwargs or {}))
        self._held.append(result)
        return result


def _pairs(model: nn.Module, size: Size) -> list[tuple[Any, Any]]:
    """Each convolution with the frozen batch norm that is the only one to take its output."""
    norms = [layer for layer in model.modules() if is_frozen(layer) and layer.affine and type(layer).__name__ in NORMS]
    if not norms:
        return []
    convs = [layer for layer in model.modules() if type(layer).__name__ in CONVS]
    outputs: list[tuple[nn.Module, Tensor]] = []
    inputs: list[tuple[nn.Module, Tensor]] = []
    hooks = [conv.register_forward_hook(lambda layer, _, output: outputs.append((layer, output))) for conv in convs]
    hooks += [norm.register_forward_pre_hook(lambda layer, args: inputs.append((layer, args[0]))) for norm in norms]
    first = next(model.parameters())
    try:
        with in_eval_mode(model), _Uses() as uses:
            model(torch.zeros(1, 3, *size, device=first.device, dtype=first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    calls = Counter(id(layer) for layer, _ in (*outputs, *inputs))
    made = {id(output): conv for conv, output in outputs}
    return [
        (made[id(taken)], norm)
        for norm, taken in inputs
        if id(taken) in made and uses.of[id(taken)] == 1 and calls[id(norm)] == calls[id(made[id(taken)])] == 1
    ]
