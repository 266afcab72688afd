"""Muon on the weights inside a network, AdamW on everything else, as one optimizer.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix. torch's takes
matrices only, so a filter (out, in, height, width) is shown to it as (out, in * height * width), in the same memory.
"""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer


class Muon(Optimizer):
    """Muon and AdamW at one learning rate, AdamW's: Muon's updates are scaled to the size of AdamW's (Liu et al. 2025,
    arXiv:2502.16982). Weight decay is decoupled in both.

    Args:
        groups: parameter groups with `weight_decay`; inner weights and others may be in the same group.
        inner: the filters and matrices that are for Muon.
        momentum: Muon's, with Nesterov's look ahead, and AdamW's beta1.
        fused: AdamW's kernel, for CUDA.
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
        self._matrices = {p: torch.nn.Parameter(_matrix(p.detach(), like=p)) for p in self._parameters(muon=True)}
        self._muon = self._adamw = None
        if self._matrices:
            self._muon = torch.optim.Muon(
                [{"params": [self._matrices[p] for p in group["params"]]} for group in self._groups(muon=True)],
                momentum=momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        if others := self._groups(muon=False):
            self._adamw = AdamW([{"params": group["params"]} for group in others], betas=(momentum, 0.999), fused=fused)
        self.defaults["fused"] = fused

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]

    def _parameters(self, muon: bool) -> list[Tensor]:
        return [p for group in self._groups(muon) for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all parameters that have a gradient."""
        for optimizer, muon in ((self._muon, True), (self._adamw, False)):
            if optimizer is None:
                continue
            for own, group in zip(optimizer.param_groups, self._groups(muon), strict=True):
                own["lr"], own["weight_decay"] = group["lr"], group["weight_decay"]
            if muon:
                self._show_matrices(optimizer)
            else:
                optimizer.state = self.state
            optimizer.step()
        for matrix in self._matrices.values():
            matrix.grad = None

    def _show_matrices(self, optimizer: Optimizer) -> None:
        """Gradients and momenta of the inner weights as matrices; the momenta live in this optimizer's state."""
        for parameter, matrix in self._matrices.items():
            if parameter.grad is None:
                continue
            matrix.data = _matrix(parameter.detach(), like=parameter)
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            matrix.grad = _matrix(parameter.grad, like=parameter)
            optimizer.state[matrix]["momentum_buffer"] = _matrix(
                self.state[parameter]["momentum_buffer"], like=parameter
            )


def _matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """An inner weight, or a tensor of its shape, as (out, the rest), in the order in which `like` lies in memory."""
    return (tensor if like.is_contiguous() else tensor.permute(0, 2, 3, 1)).reshape(len(tensor), -1)
