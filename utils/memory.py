"""Memory that is free, and what is needed, before it is taken."""

from typing import Any

from utils.errors import UserError


def free_memory(device: Any = None) -> int:
    """Bytes that are free on a CUDA device, or on this machine."""
    import psutil

    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_memory(size: float, what: str, device: Any = None) -> None:
    """Raises UserError where `size` bytes for `what` are more than are free."""
    free = free_memory(device)
    if size > free:
        raise UserError(f"{what} needs {size / 2**30:,.1f} GiB of memory, of which {free / 2**30:,.1f} GiB are free")
