"""The norm layers that every family offers under the same names."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from utils.system.errors import UserError


def choose_norm(norm: str, width: int, **batch_norm: Any) -> Callable[[int], nn.Module]:
    """What makes a norm layer of that kind from its number of channels.

    Args:
        norm: "batch", or "group" (32 groups or fewer; Wu and He 2018, arXiv:1803.08494), without batch statistics.
        width: what every number of channels is a multiple of.
        batch_norm: arguments for batch norm alone, such as its momentum.

    Raises UserError for another kind.
    """
    if norm == "batch":
        return partial(nn.BatchNorm2d, **batch_norm)
    if norm == "group":
        groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if width % groups == 0)
        return partial(nn.GroupNorm, groups)
    raise UserError(f"norm: {norm!r} is not allowed; choose from batch, group")


def with_synchronised_batch_norm(model: nn.Module) -> nn.Module:
    """The model with batch norm over the parts that all processes have of a batch; for CUDA.

    Some of timm's layers are a norm and its activation, which torch's conversion would lose.
    """
    if type(model).__module__.partition(".")[0] == "timm":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
