"""The machine under the program: processes, devices, threads, versions."""

import contextlib
import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, is_torch_xla_available

from utils.system.bf16 import emulates_bf16
from utils.system.compilation import compiled_as, no_compilation
from utils.system.errors import SuiteError, UserError, as_fault, one_line
from utils.system.launch import DEVICE, PRECISION, asks_for_cpu, notes, read_launch
from utils.system.launcher import available_cores
from utils.system.ranks import local_rank, local_world_size, rank, world_size
from utils.system.rendezvous import joining
from utils.system.threads import choose_threads


def create_accelerator(
    default_precision: str | None = None,
    peer_timeout: int = 600,
) -> Accelerator:
    """The Accelerator of this launch: precision, processes and device are the launcher's.

    Where the launch names no precision, `default_precision` (no, fp16, bf16) is taken; a CPU has no fp16, and many only
    emulate bf16. Without any accelerator device the processes form a gloo group on the CPU. Raises UserError for what
    cannot be honoured (`utils/system/launch.py`), and where the processes do not form the group that they were started
    as, since each would silently train on its own.

    A process that does not answer the others for `peer_timeout` seconds counts as lost.
    """
    launch = read_launch(os.environ)
    devices = torch.cuda.device_count()
    if 0 < devices < local_world_size() and not asks_for_cpu(launch):
        raise UserError(f"{local_world_size()} processes were started on {devices} GPUs; use --num_processes {devices}")
    _check_device(os.environ.get(DEVICE, "cpu"))
    on_cpu = asks_for_cpu(launch) or not (torch.accelerator.is_available() or is_torch_xla_available())
    if on_cpu and os.environ.get(PRECISION) == "fp16":
        raise UserError("mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no")
    launched = PRECISION in os.environ or AcceleratorState._shared_state
    if on_cpu and not launched and default_precision in ("fp16", "bf16"):
        default_precision = _on_a_cpu(default_precision)
    timeout = timedelta(seconds=peer_timeout)
    with joining(timeout), _refusals_in_one_line():
        _join_after_restart("gloo" if on_cpu else "nccl", timeout)
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=None if launched else default_precision,
            # Pieces of a step are ours (utils/training/micro_batch.py); with more here it would divide each gradient.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=no_compilation(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        )
    accelerator.state.dynamo_plugin = no_compilation()  # of an earlier training in this process it would stay
    if "WORLD_SIZE" in os.environ and world_size() != accelerator.num_processes:
        raise UserError(
            f"{world_size()} processes were started but {accelerator.num_processes} found each other; "
            "see accelerate_configs/"
        )
    for line in notes(launch, accelerator.device.type):
        if accelerator.is_main_process:
            print(f"note: {line}", file=sys.stderr)
    if accelerator.device.type == "cpu":
        use_cores()
        keep_freed_memory()
    elif accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return accelerator


def _on_a_cpu(precision: str) -> str:
    """The precision that a CPU computes in where nobody insists on one."""
    if precision == "bf16" and not emulates_bf16(torch.device("cpu")):
        return "bf16"
    if precision == "bf16" and local_rank() == 0:
        print("note: this CPU emulates bf16, at many times the time; computing in fp32", file=sys.stderr)
    return "no"


def _check_device(device: str) -> None:
    """Raises UserError if the launch names a device that this machine lacks."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{DEVICE}={device}: this machine has no such device; unset it or name one it has") from error


@contextlib.contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    """Turns whatever Accelerate raises while it is made into one line that names what the launch has set."""
    try:
        yield
    except (SuiteError, KeyboardInterrupt):
        raise
    except Exception as error:
        if fault := as_fault(error):
            raise fault from error
        asked = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("ACCELERATE_")]
        raise UserError(f"Accelerate refuses the launch ({', '.join(asked)}): {one_line(error)}") from error


def _join_after_restart(backend: str, timeout: timedelta) -> None:
    """Forms the process group of a launch that torch's elastic agent has restarted, under keys of its own.

    With Accelerate's default, the static rendezvous, the agent keeps its store over a restart, and the new processes
    would look for each other at the addresses of those that died.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if attempt == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or distributed.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.PrefixStore(f"attempt{attempt}", distributed.TCPStore(address, port, timeout=timeout))
    distributed.init_process_group(backend, timeout=timeout, store=store, rank=rank(), world_size=world_size())


def use_cores(loader_workers: int = 0) -> None:
    """Gives torch this process's share of the machine's cores, less one for each of its loader workers.

    Fewer where a person asks for fewer (utils/system/threads.py). Raises UserError where that is no number.
    """
    threads, line = choose_threads(os.environ, available_cores(), local_world_size(), loader_workers)
    torch.set_num_threads(threads)
    if line and local_rank() == 0:
        print(f"warning: {line}", file=sys.stderr)


def keep_freed_memory() -> None:
    """Has glibc keep freed memory instead of handing it back to the system.

    By default it maps and unmaps every large tensor anew, and the kernel clears the pages each time: of a training step
    of ResNet-18 with 512 images on two cores, 16 % of the time (93 instead of 107 images/s).
    """
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def default_workers(accelerator: Accelerator) -> int:
    """Loader processes per training process: on a CPU they would only take cores from the training."""
    if accelerator.device.type == "cpu":
        return 0
    return min(8, max(1, available_cores() // local_world_size() - 1))


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: environment.json."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "accelerate", "albumentations", "grad-cam", "numpy", "wandb"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = accelerator.device
    return {
        "versions": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "world_size": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "compile": compiled_as(accelerator.state.dynamo_plugin),
        "platform": platform.platform(),
        "command": [Path(sys.executable).name, *sys.argv],
    }


def git_remote() -> str | None:
    """Where the code came from, without the user and the password that may be in the address."""
    address = _git("config", "--get", "remote.origin.url")
    return re.sub(r"(?<=://)[^/@]*@", "", address) if address else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
