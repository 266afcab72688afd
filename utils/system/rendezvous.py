"""How the processes of a launch find each other, and one line with the remedy if they do not."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as distributed

from utils.system.errors import EnvironmentFault, as_fault, one_line
from utils.system.ranks import in_group, rank, world_size

POLL_SECONDS = 0.1
NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def joining(timeout: timedelta) -> Iterator[None]:
    """Wraps the forming of the process group: first, all processes meet at MASTER_ADDR:MASTER_PORT.

    Raises EnvironmentFault with the address, how many came within `timeout`, and what to check. On one machine only the
    first process prints it (utils.system.errors.first_rank_first).
    """
    if world_size() == 1 or in_group() or any(name not in os.environ for name in NAMES):
        yield
        return
    store = _meet(timeout)  # hosted by rank 0, and needed until the group is formed
    try:
        yield
    except RuntimeError as error:
        if as_fault(error) is None:
            raise
        raise EnvironmentFault(
            f"rank {rank()} met the other processes at {_address()} but cannot connect to them; "
            "GLOO_SOCKET_IFNAME (GPUs: NCCL_SOCKET_IFNAME) must name the network interface that leads to the others"
        ) from error
    del store


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"


def _meet(timeout: timedelta) -> distributed.Store:
    """Waits for all processes."""
    within = f"within {timeout.total_seconds():.0f} s"
    deadline = time.monotonic() + timeout.total_seconds()
    hosts = rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        if not hosts:
            _reach(deadline)
        store = distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=hosts,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,  # Accelerate opens the same store in this process
        )
    except (OSError, RuntimeError) as error:
        reason = one_line(str(error).split("\n")[0])
        what = f"rank 0 cannot listen at {_address()}: {reason}; choose another port, the same on every machine"
        if not hosts:
            what = (
                f"rank {rank()} did not reach {_address()} {within}: {reason}; check that machine 0 has been started, "
                "that this is its address and the port is open; a larger --peer_timeout waits longer"
            )
        raise EnvironmentFault(what) from error
    # torch's elastic agent may keep its store over a restart.
    meeting = distributed.PrefixStore(f"meeting {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    came = 0
    with contextlib.suppress(RuntimeError):  # rank 0 has given up, and its store is gone
        came = meeting.add("came", 1)
        while came < world_size() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            came = meeting.add("came", 0)
    if came < world_size():
        raise EnvironmentFault(
            f"only {came} of {world_size()} processes came to {_address()} {within}; check that every machine has been "
            "started with this address and port; a larger --peer_timeout waits longer"
        )
    return meeting


def _reach(deadline: float) -> None:
    """Waits until something listens there; each attempt of torch's own would print a page. Raises OSError."""
    while True:
        left = max(POLL_SECONDS, deadline - time.monotonic())
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), left).close()
            return
        except OSError:
            if time.monotonic() + POLL_SECONDS > deadline:
                raise
        time.sleep(POLL_SECONDS)
