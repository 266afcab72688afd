"""Memory that is free, and what is needed, before it is taken."""

from typing import TYPE_CHECKING, Any

from utils.system.errors import UserError

if TYPE_CHECKING:
    from torch import nn

HELD_MAPS = 3  # that are in memory at a time: a block's input, a layer's and its output; or a map, a copy, its gradient


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


def forward_memory(model: "nn.Module", size: int, images: int = 1, gradients: bool = False) -> int:
    """Bytes for the float32 feature maps of a forward pass over images of that side, with `gradients` for all of them.

    Nothing is computed. 0 where it cannot be told without weights.

    Args:
        model: on the meta device, in eval mode.
    """
    import torch

    maps = [0]

    def note(module: Any, inputs: Any, output: Any) -> None:
        maps.append(output.numel() if isinstance(output, torch.Tensor) else 0)

    handles = [module.register_forward_hook(note) for module in model.modules() if not [*module.children()]]
    try:
        model(torch.zeros(images, 3, size, size, device="meta"))
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError, LookupError):
        return 0
    finally:
        for handle in handles:
            handle.remove()
    return 4 * HELD_MAPS * (sum(maps) if gradients else max(maps))
