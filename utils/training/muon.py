"""Muon on the weights inside a network, AdamW on everything else, as one optimizer.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix. A filter (out, in,
height, width) is one of (out, in * height * width), in the same memory.
"""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

# Of x -> a x + b x^3 + c x^5, a line for each iteration. Of all compositions of quintics chosen one after another this
# one stays closest to 1 on [REACH, 1]: 0.845 to 1.155 (Polar Express, Amsel et al. 2025, arXiv:2505.16932).
REACH = 0.015
COEFFICIENTS = (
    (7.897655, -22.848976, 16.832933),
    (3.406791, -2.554052, 0.517480),
    (2.383019, -1.741878, 0.426726),
)
WIDE = 1.5  # columns for each row from which on the Gram form takes fewer operations than the direct one
SMALLEST = 1e-30  # of a squared norm: a gradient below it gives no update


class Muon(Optimizer):
    """Muon and AdamW at one learning rate, AdamW's: Muon's updates are scaled to the size of AdamW's (Liu et al. 2025,
    arXiv:2502.16982). Weight decay is decoupled in both.

    Args:
        groups: parameter groups with `weight_decay`; inner weights and others may be in the same group.
        inner: the filters and matrices that are for Muon.
        momentum: Muon's, with Nesterov's look ahead, and AdamW's beta1.
        fused: whether AdamW is one kernel.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], inner: Collection[Tensor], momentum: float = 0.95, fused: bool = False
    ):
        split = []
        for group in groups:
            for for_muon in (True, False):
                if members := [p for p in group["params"] if (p in inner) == for_muon]:
                    split.append({**group, "params": members, "muon": for_muon})
        super().__init__(split, {"lr": 1.0, "weight_decay": 0.0})
        self._momentum = momentum
        self._adamw = None
        if others := self._groups(muon=False):
            self._adamw = AdamW([{"params": group["params"]} for group in others], betas=(momentum, 0.999), fused=fused)
        self.defaults["fused"] = fused

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all parameters that have a gradient."""
        for group in self._groups(muon=True):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])
        if self._adamw is None:
            return
        for own, group in zip(self._adamw.param_groups, self._groups(muon=False), strict=True):
            own["lr"], own["weight_decay"] = group["lr"], group["weight_decay"]
        self._adamw.state = self.state
        self._adamw.step()

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - self._momentum)
        rows = _as_rows(gradient.lerp(momentum, self._momentum), like=parameter)  # Nesterov's look ahead
        update = orthogonalised(rows.flatten(1)).view_as(rows)
        parameter.mul_(1 - lr * weight_decay)
        _as_rows(parameter, like=parameter).add_(update, alpha=-0.2 * lr * math.sqrt(max(len(rows), rows[0].numel())))


def _as_rows(weight: Tensor, like: Tensor) -> Tensor:
    """A view of a weight, or of a tensor of its shape, whose rows (out, ...) lie in memory as those of `like` do."""
    channels_last = like.ndim == 4 and not like.is_contiguous()
    return weight.permute(0, 2, 3, 1) if channels_last else weight


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near 1, by an odd polynomial of each; of its shape and dtype.

    Values of at least REACH times the largest come to between 0.845 and 1.155, smaller ones grow by at most 64. In
    place of the largest stands the Schatten norm of order 8, which costs nothing here and was at most 1.13 times as
    large on the gradients of a training, where the usual Frobenius norm is mostly 2 to 3 times: hence three iterations,
    not Jordan's five.

    Products are made on the small side, of the Gram matrix (`_by_gram`). In float32 the result is within 2e-4 of
    float64's whatever the singular values: rounding grows with the square of the slope at 0, which is 64. On CUDA
    devices with bfloat16 they are direct and in that, as torch.optim.Muon's: its Gram matrix would lose small values.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    if _computes_in_bf16(matrix.device):
        update = _directly(wide.bfloat16()).to(matrix.dtype)
    else:
        update = _by_gram(wide) if wide.shape[1] >= WIDE * len(wide) else _directly(wide)
    return update if wide is matrix else update.T


def muon_arithmetic(device: torch.device) -> str:
    """How Muon computes its updates on a device; the text changes whenever the result would."""
    form = "bf16 products" if _computes_in_bf16(device) else "fp32 Gram matrix"
    return f"{len(COEFFICIENTS)} iterations, {form}"


def _computes_in_bf16(device: torch.device) -> bool:
    """True on CUDA devices that do not emulate bfloat16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _by_gram(wide: Tensor) -> Tensor:
    """All iterations as polynomials of the Gram matrix, which commute, and one product with the matrix at the end."""
    gram, square, squared_norm = _normalised_gram(wide)
    total = factor = _factor(gram, square, *COEFFICIENTS[0])
    for coefficients in COEFFICIENTS[1:]:
        gram = factor @ gram @ factor
        factor = _factor(gram, gram @ gram, *coefficients)
        total = total @ factor
    return (total * squared_norm.rsqrt()) @ wide


def _factor(gram: Tensor, square: Tensor, a: float, b: float, c: float) -> Tensor:
    """a + b G + c G^2, by which an iteration multiplies the matrix."""
    factor = (b * gram).add_(square, alpha=c)
    factor.diagonal().add_(a)
    return factor


def _directly(wide: Tensor) -> Tensor:
    """The iterations on the matrix itself."""
    gram, square, squared_norm = _normalised_gram(wide)
    wide = wide * squared_norm.rsqrt()
    for position, (a, b, c) in enumerate(COEFFICIENTS):
        if position:
            gram = wide @ wide.T
            square = gram @ gram
        wide = torch.addmm(wide, (b * gram).add_(square, alpha=c), wide, beta=a)
    return wide


def _normalised_gram(wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The Gram matrix of the rows after division by a norm no smaller than the largest singular value, its square, and
    that norm squared."""
    gram = wide @ wide.T
    energy = gram.trace().clamp(min=SMALLEST)
    gram /= energy
    square = gram @ gram
    bound = square.norm().sqrt().clamp(min=1e-6)  # less only where the matrix is zero
    return gram / bound, square / bound**2, energy * bound
