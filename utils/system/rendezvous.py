"""How the processes of a launch find each other, and what to say if they do not."""

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as distributed

from utils.errors import EnvironmentFault, as_fault

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def joining(timeout: timedelta) -> Iterator[None]:
    """To be put around what forms the process group: first all processes meet at MASTER_ADDR:MASTER_PORT.

    Raises EnvironmentFault with the address, how many came within `timeout`, and what to check.
    """
    if (
        int(os.environ.get("WORLD_SIZE", 1)) == 1
        or distributed.is_initialized()
        or any(name not in os.environ for name in NAMES)
    ):
        yield
        return
    store = _meet(timeout)  # which rank 0 may be the host of, also while the group is formed
    try:
        yield
    except RuntimeError as error:
        if as_fault(error) is None:
            raise
        raise EnvironmentFault(
            f"rank {os.environ['RANK']} met the other processes at {_address()} but cannot connect to them; "
            "GLOO_SOCKET_IFNAME (GPUs: NCCL_SOCKET_IFNAME) must name the network interface that leads to the others"
        ) from error
    del store


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"


def _meet(timeout: timedelta) -> distributed.Store:
    """Waits for all processes; the first of a machine speaks, the others wait a second longer and stay silent."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    silent = int(os.environ.get("LOCAL_RANK", 0)) > 0
    deadline = time.monotonic() + timeout.total_seconds() + silent
    within = f"within {timeout.total_seconds():.0f} s"
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def left() -> timedelta:
        return timedelta(seconds=max(1.0, deadline - time.monotonic()))

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store: distributed.Store = distributed.TCPStore(
            address, port, is_master=hosts, timeout=left(), wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        if hosts:
            text = f"rank 0 cannot listen at {_address()}; is the port in use? choose another one on every machine"
        else:
            text = (
                f"rank {rank} did not reach {_address()} {within}; check that machine 0 has been started, that this is "
                "its address and the port is open; a larger --peer_timeout waits longer"
            )
        raise EnvironmentFault(text, silent) from error
    # With its static rendezvous, torch's elastic agent keeps its store over a restart.
    store = distributed.PrefixStore(f"meeting {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    came = "some"
    try:
        if store.add("came", 1) == world_size:
            store.set("all", "yes")
        store.wait(["all"], left())
    except RuntimeError as error:
        with contextlib.suppress(RuntimeError):
            came = str(store.add("came", 0))
        raise EnvironmentFault(
            f"only {came} of {world_size} processes came to {_address()} {within}; check that every machine has been "
            "started with this address and port; a larger --peer_timeout waits longer",
            silent,
        ) from error
    return store
