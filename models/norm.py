"""Norm layers by name, the same for every family."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from utils.system.errors import UserError


def choose_norm(norm: str, width: int, **batch_norm: Any) -> Callable[[int], nn.Module]:
    """A constructor of norm layers that takes the number of channels.

    Args:
        norm: "batch", or "group" (up to 32 groups; Wu and He 2018, arXiv:1803.08494), without batch statistics.
        width: a divisor of every number of channels.
        batch_norm: further arguments of batch norm, such as its momentum.

    Raises UserError for an unknown norm.
    """
    if norm == "batch":
        return partial(nn.BatchNorm2d, **batch_norm)
    if norm == "group":
        return partial(nn.GroupNorm, math.gcd(width, 32))
    raise UserError(f"norm: {norm!r} is not allowed; choose from batch, group")


def with_synchronised_batch_norm(model: nn.Module) -> nn.Module:
    """The model with SyncBatchNorm: statistics over all processes' parts of a batch; needs CUDA.

    Some of timm's norm layers include an activation, which torch's conversion would lose.
    """
    if type(model).__module__.partition(".")[0] == "timm":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
