"""The Accelerator of a launch, and what of the machine a run records: devices, threads, versions."""

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
from accelerate.state import is_initialized
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, is_torch_xla_available

from utils.system.bf16 import emulates_bf16
from utils.system.compilation import compiled_as, no_compilation
from utils.system.errors import SuiteError, UserError, as_fault, one_line
from utils.system.launch import notes, read_launch
from utils.system.launch_table import DEVICE
from utils.system.ranks import PRECISION, local_rank, local_world_size, rank, world_size
from utils.system.rendezvous import joining
from utils.system.threads import available_cores, choose_threads

# Packages whose versions can change a result, or what is read and written.
PACKAGES = (
    *("torch", "torchvision", "accelerate", "timm", "safetensors", "huggingface_hub", "numpy", "scipy", "pillow"),
    *("albumentations", "opencv-python-headless", "scikit-learn", "grad-cam", "wandb"),
)


def create_accelerator(default_precision: str | None = None, peer_timeout: int = 600) -> Accelerator:
    """The Accelerator of this launch: precision, processes and device are the launcher's.

    Without any accelerator device, several processes form a gloo group on the CPU. Raises UserError if the launch asks
    for something that is not supported (`utils/system/launch_table.py`), or if the processes did not find each other:
    each would silently train on its own.

    Args:
        default_precision: no, fp16 or bf16, if the launch names none. A CPU has no fp16, and many emulate bf16.
        peer_timeout: seconds after which a process that does not answer counts as lost.
    """
    launch = read_launch(os.environ)
    devices = torch.cuda.device_count()
    if 0 < devices < local_world_size() and not launch.wants_cpu:
        raise UserError(f"{local_world_size()} processes were started on {devices} GPUs; use --num_processes {devices}")
    _check_device(os.environ.get(DEVICE, "cpu"))
    on_cpu = launch.wants_cpu or not (torch.accelerator.is_available() or is_torch_xla_available())
    if on_cpu and os.environ.get(PRECISION) == "fp16":
        raise UserError("mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no")
    launched = PRECISION in os.environ or is_initialized()
    if on_cpu and not launched and default_precision in ("fp16", "bf16"):
        default_precision = _on_a_cpu(default_precision)
    timeout = timedelta(seconds=peer_timeout)
    with joining(timeout), _refusals_in_one_line():
        _join_after_restart("gloo" if on_cpu else "nccl", timeout)
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=None if launched else default_precision,
            # utils/training/micro_batch.py accumulates; with more than 1 here, Accelerate would divide each gradient.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=no_compilation(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        )
    accelerator.state.dynamo_plugin = no_compilation()  # else that of an earlier training in this process
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
    """The precision that a CPU computes in unless the launch names one."""
    if precision == "bf16" and not emulates_bf16(torch.device("cpu")):
        return "bf16"
    if precision == "bf16" and local_rank() == 0:
        print("note: this CPU emulates bf16, which is many times slower; computing in fp32", file=sys.stderr)
    return "no"


def _check_device(device: str) -> None:
    """Raises UserError if the launch names a device that this machine lacks."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{DEVICE}={device}: this machine has no such device; unset it or name one it has") from error


@contextlib.contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    """Turns what Accelerate's constructor raises into one line with the variables that the launch has set."""
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
    """Forms the process group of a launch that torch's elastic agent has restarted, under its own keys.

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
    """Sets torch's threads to this process's share of the cores, less one for each of its loader workers.

    Fewer if OMP_NUM_THREADS or MKL_NUM_THREADS asks for fewer (utils/system/threads.py); UserError if one is invalid.
    """
    threads, line = choose_threads(os.environ, available_cores(), local_world_size(), loader_workers)
    torch.set_num_threads(threads)
    if line and local_rank() == 0:
        print(f"warning: {line}", file=sys.stderr)


def keep_freed_memory() -> None:
    """Makes glibc hold on to freed memory instead of returning it to the system.

    By default every large tensor is mapped and unmapped, and the kernel clears its pages each time: 16 % of a training
    step of ResNet-18 with 512 images on two cores (93 instead of 107 images/s).
    """
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def default_workers(accelerator: Accelerator) -> int:
    """Loader workers per training process; none on a CPU, where they would take cores from the training."""
    if accelerator.device.type == "cpu":
        return 0
    return min(8, max(1, available_cores() // local_world_size() - 1))


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: environment.json."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    device = accelerator.device
    return {
        "versions": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "world_size": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "compile": compiled_as(accelerator.state.dynamo_plugin),
        "platform": platform.platform(),
        "command": [Path(sys.executable).name, *sys.argv],
    }


def git_remote() -> str | None:
    """The URL of the git remote, without the user and password that may be in it."""
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


def processor_name() -> str:
    """The model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
