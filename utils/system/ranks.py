"""The place of this process among those of its launch, from the launcher's variables.

Imports nothing of ours, so that any module may ask. A malformed variable counts as unset here; launch_table.py refuses
it.
"""

import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple


class MPI(NamedTuple):
    """The variables in which an MPI's `mpirun` gives each process its place."""

    rank: str
    world_size: str
    local_rank: str
    local_world_size: str


MPIS = (  # as Accelerate reads them on a CPU
    MPI("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # Intel MPI and MPICH
    MPI("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    MPI("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
RANKS = MPI("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # torch's own, which everything here reads
PRECISION = "ACCELERATE_MIXED_PRECISION"  # which `accelerate launch` always sets
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_PORT = "29500"  # torch's and Accelerate's


def rank() -> int:
    """This process's number among all, from 0."""
    return whole_number(os.environ, RANKS.rank, 0)


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return whole_number(os.environ, RANKS.local_rank, 0)


def world_size() -> int:
    """Processes of the launch, over all machines."""
    return max(1, whole_number(os.environ, RANKS.world_size, 1))


def local_world_size() -> int:
    """Processes of the launch on this machine."""
    return max(1, whole_number(os.environ, RANKS.local_world_size, 1))


def whole_number(environ: Mapping[str, str], name: str, default: int) -> int:
    """The variable's value if it is a whole number from 0 on, else `default`."""
    value = environ.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() else default


def adopt_ranks(environ: MutableMapping[str, str]) -> None:
    """Sets torch's variables from those of an MPI if the launch has none of torch's, and what follows from them.

    Processes that meet at a loopback address are all on this machine and share its cores.
    """
    if not any(name in environ for name in RANKS):
        for mpi in MPIS:
            if whole_number(environ, mpi.world_size, 1) > 1:
                given = zip(RANKS, mpi, strict=True)
                environ.update({name: environ[source] for name, source in given if source in environ})
                if environ.get(RANKS.local_world_size) == environ[RANKS.world_size]:
                    environ.setdefault("MASTER_ADDR", "127.0.0.1")
                environ.setdefault("MASTER_PORT", DEFAULT_PORT)
                break
    if environ.get("MASTER_ADDR") in LOOPBACK and RANKS.world_size in environ:
        environ.setdefault(RANKS.local_world_size, environ[RANKS.world_size])


def in_group() -> bool:
    """Whether this process has joined the others of its launch already."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
