"""Memory: how much is free and how much is needed, before it is allocated."""

from typing import TYPE_CHECKING, Any

from utils.system.errors import UserError

if TYPE_CHECKING:
    from torch import nn

HELD_MAPS = 3  # in memory at a time: a block's input, a layer's input and its output; or a map, a copy and its gradient


def free_memory(device: Any = None) -> int:
    """Free bytes of a CUDA device, or of this machine."""
    import psutil

    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_memory(size: float, what: str, device: Any = None) -> None:
    """Raises UserError if `what` needs more bytes than are free."""
    free = free_memory(device)
    if size > free:
        raise UserError(f"{what} needs {size / 2**30:,.1f} GiB of memory, of which {free / 2**30:,.1f} GiB are free")


def forward_memory(model: "nn.Module", size: tuple[int, int], images: int = 1, gradients: bool = False) -> int:
    """Bytes of the float32 feature maps that a forward pass holds at a time. Nothing is computed.

    0 if the pass fails on the meta device: the size is unknown, and the real pass says what is wrong.

    Args:
        model: on the meta device, in eval mode.
        size: height and width of the images in pixels.
        gradients: whether all maps are held, for a backward pass.
    """
    import torch

    maps = [0]

    def note(module: Any, inputs: Any, output: Any) -> None:
        maps.append(output.numel() if isinstance(output, torch.Tensor) else 0)

    handles = [module.register_forward_hook(note) for module in model.modules() if not [*module.children()]]
    try:
        model(torch.zeros(images, 3, *size, device="meta"))
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError):  # whatever a model checks of its input
        return 0
    finally:
        for handle in handles:
            handle.remove()
    return 4 * HELD_MAPS * (sum(maps) if gradients else max(maps))
