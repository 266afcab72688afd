"""How busy training keeps the machine."""

import time
from importlib.util import find_spec

import torch


class MachineUse:
    """Use of the processor and of the GPU by this process since the last reading."""

    def __init__(self, device: torch.device):
        self._device = device
        self._has_gpu_sensor = device.type == "cuda" and find_spec("pynvml") is not None and _answers(device)
        self._mark = (time.perf_counter(), time.process_time())

    def read(self) -> dict[str, float]:
        """`cpu_cores` (busy, on average); on a CUDA device also `gpu_memory_gib` (peak) and, with NVIDIA's library
        installed, `gpu_percent` (of the time in which some kernel ran)."""
        now = (time.perf_counter(), time.process_time())
        elapsed, worked = (new - old for new, old in zip(now, self._mark, strict=True))
        self._mark = now
        use = {"cpu_cores": round(worked / elapsed, 2)}
        if self._device.type == "cuda":
            use["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated(self._device) / 2**30, 3)
        if self._has_gpu_sensor:
            use["gpu_percent"] = torch.cuda.utilization(self._device)
        return use


def _answers(device: torch.device) -> bool:
    """Whether NVIDIA's library knows the use of this GPU; of a part of one (MIG) it does not."""
    try:
        torch.cuda.utilization(device)
    except Exception:  # of its own kinds, which are known only if it is installed
        return False
    return True
