"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382) that drops the same blocks of the same images however a batch
is divided: timm's layer, with the draws as an input in place of the process's own generator.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Zeroes a block's output for the images that drop it, and divides that of the others by `1 - rate`.

    Identity in eval mode, and as long as no draws are set.

    Attributes:
        draws: of the images of the next forward pass, (n,), uniform in [0, 1); an image with one below `rate` drops
            the block. They stay until they are set again, so that a forward pass can be repeated.
    """

    def __init__(self, rate: float, scale_by_keep: bool = True):
        super().__init__()
        self.rate, self.scale_by_keep = rate, scale_by_keep
        self.draws: Tensor | None = None  # not a buffer, which DDP would copy from rank 0 to the others

    def forward(self, x: Tensor) -> Tensor:
        """Of a block's output (n, ...)."""
        if not self.training or self.draws is None:
            return x
        kept = (self.draws >= self.rate).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return x * (kept / (1 - self.rate) if self.scale_by_keep else kept)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


def put_drop_path(model: nn.Module, rates: Mapping[str, float]) -> None:
    """Gives the blocks of a model these rates, by the names of the layers that drop them; no others drop anything.

    Weights, state dict and names stay what they are.
    """
    from timm.layers import DropPath as TimmDropPath

    own = [name for name, layer in model.named_modules() if isinstance(layer, TimmDropPath)]
    for name in {*own, *rates}:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, DropPath(rates[name]) if name in rates else nn.Identity())


class Draws:
    """Which images drop which blocks of a model, as a function of (seed, step, position in the global batch, block).

    Nothing is drawn for a model without stochastic depth.
    """

    def __init__(self, model: nn.Module, seed: int):
        self.seed = seed
        self.layers = [layer for layer in model.modules() if isinstance(layer, DropPath)]
        self._of_part = torch.empty(0, 0)

    def begin_step(self, step: int, first: int, count: int, device: torch.device) -> None:
        """Draws for `count` images from position `first` of the global batch on."""
        if self.layers:
            generator = np.random.default_rng([self.seed, step, 0, 2])  # apart from mixing and dropout
            draws = generator.random((first + count, len(self.layers)), dtype=np.float32)[first:]
            self._of_part = torch.from_numpy(draws).to(device, non_blocking=True)

    def apply(self, first: int, count: int) -> None:
        """To the next forward pass, of `count` images from position `first` of those on."""
        for block, layer in enumerate(self.layers):
            layer.draws = self._of_part[first : first + count, block]
