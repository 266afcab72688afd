"""Whether bfloat16 saves time on the device in use: a processor without its instructions emulates it."""

import sys
import time

import torch
from accelerate import Accelerator

SHAPE = (256, 1152, 256)  # rows, summed over, columns of the product: under a millisecond in float32
REPEATS = 5
SLOW = 1.3  # times as long as in float32, from which on there is a warning
EMULATED = 8.0  # as before, between processors with the instructions (below 2) and without (above 40)


def bf16_slowdown(device: torch.device) -> float:
    """How many times as long as in float32 a matrix product takes in bfloat16 there; under 1 where it is worth it.

    Takes milliseconds; where bfloat16 is emulated, about half a second.
    """
    return _seconds(torch.bfloat16, device) / _seconds(torch.float32, device)


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest of REPEATS products, after one that does not count."""
    rows, inner, columns = SHAPE
    left, right = (
        torch.ones(rows, inner, dtype=dtype, device=device),
        torch.ones(inner, columns, dtype=dtype, device=device),
    )
    times = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def emulates_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is not worth trying there: the same on every processor of a kind, whatever else it does."""
    return bf16_slowdown(device) > EMULATED


def check_bf16(accelerator: Accelerator) -> float | None:
    """The slowdown of a launch in bf16, the highest of all ranks and so the same on each; None for other precisions.

    A warning says where it is slow; training goes on. To be called on every rank.
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
