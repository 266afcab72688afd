"""Whether bfloat16 is faster than float32 on a device: processors without bf16 instructions emulate it."""

import sys
import time

import torch
from accelerate import Accelerator

SHAPE = (256, 1152, 256)  # rows, summed over, columns of the product: under a millisecond in float32
REPEATS = 5
SLOW = 1.3  # slowdown from which on there is a warning
EMULATED = 8.0  # slowdown between processors with the instructions (below 2) and without (above 40)


def bf16_slowdown(device: torch.device) -> float:
    """Time of a matrix product in bfloat16 relative to float32; below 1 if bfloat16 is faster.

    The measurement takes milliseconds, half a second if bfloat16 is emulated.
    """
    return _seconds(torch.bfloat16, device) / _seconds(torch.float32, device)


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest of REPEATS products, after a warm-up."""
    rows, inner, columns = SHAPE
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(inner, columns, dtype=dtype, device=device)
    times = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def emulates_bf16(device: torch.device) -> bool:
    """Whether the device emulates bfloat16; the margin makes the answer independent of its load."""
    return bf16_slowdown(device) > EMULATED


def check_bf16(accelerator: Accelerator) -> float | None:
    """The highest bf16_slowdown of all ranks if the launch is in bf16, else None. Call it on every rank.

    Warns if bf16 is slow.
    """
    if accelerator.mixed_precision != "bf16":
        return None
    mine = torch.tensor([bf16_slowdown(accelerator.device)], device=accelerator.device)
    slowdown = round(float(accelerator.gather(mine).max()), 2)
    if slowdown > SLOW and accelerator.is_main_process:
        print(
            f"warning: bf16 is slow on this device: a matrix product takes {slowdown:.3g} times as long as in fp32; "
            "accelerate launch --mixed_precision no trains in fp32",
            file=sys.stderr,
        )
    return slowdown
