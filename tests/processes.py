"""Real training processes for tests, forked from a server that has the libraries loaded, so that each starts soon."""

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.config import TrainConfig

CONTEXT = multiprocessing.get_context("forkserver")
# The program itself, and what every training imports on its way.
LATER = ["sklearn.datasets", "sklearn.model_selection", "scipy.stats", "huggingface_hub.repocard", "jinja2"]
LATER += ["torch._dynamo"]  # which the first optimizer loads
# pytest too: a process that calls a function of a file of tests imports that file.
CONTEXT.set_forkserver_preload(["train_accelerate", "torch.distributed", "pytest", *LATER])

TINY = {
    "dataset": "digits",
    "image_size": 16,
    "width": 16,
    "epochs": 3,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.1,
    "decay_norm_and_bias": True,
    "schedule": "onecycle",
    "warmup_fraction": 0.25,
    "horizontal_flip": "none",
    "cutout": 4,
    "crop_padding": 1,
    "log_every_steps": 1,
    "trackers": ["none"],
}


def tiny_config(output_dir: Path, **changes: Any) -> TrainConfig:
    """A run of 69 steps that takes seconds and learns the digits."""
    return TrainConfig(**{**TINY, "output_dir": str(output_dir), **changes})


def train_script(config: TrainConfig, environment: Mapping[str, str] | None = None) -> None:
    """train_accelerate.py with this config and these variables, errors and exit codes included."""
    os.environ.update(environment or {})
    from train_accelerate import main
    from utils.system.errors import run_script

    run_script(main, config)


def start(function: Callable[..., Any], *arguments: Any, world_size: int = 1, log: Path | None = None) -> list:
    """Starts `function(*arguments)` on every rank of a gloo group; returns the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    processes = []
    for rank in range(world_size):
        environment = {**group, "RANK": rank, "LOCAL_RANK": rank} if world_size > 1 else {}
        process = CONTEXT.Process(target=_rank, args=(environment, log, function, arguments))
        process.start()
        processes.append(process)
    return processes


def run(function: Callable[..., Any], *arguments: Any, world_size: int = 1, log: Path | None = None) -> list[int]:
    """As start, and waits; returns the exit codes."""
    processes = start(function, *arguments, world_size=world_size, log=log)
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
            raise AssertionError("a rank did not end within two minutes")
    return [process.exitcode for process in processes]


def wait_for(condition: Callable[[], bool], processes: list, seconds: float = 60) -> None:
    """Waits for something that the processes do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert any(process.is_alive() for process in processes), "the run ended before"
        time.sleep(0.02)


def join(processes: list) -> list[int]:
    """Waits for their end; returns the exit codes."""
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def _rank(environment: dict[str, Any], log: Path | None, function: Callable[..., Any], arguments: tuple) -> None:
    os.environ.pop("WANDB_SERVICE", None)  # of tests that used W&B in pytest's own process
    os.environ.update({name: str(value) for name, value in environment.items()})
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)
