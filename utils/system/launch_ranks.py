"""Whether the variables by which the processes of a launch know their places are complete and agree."""

import re
from collections.abc import Mapping

from utils.system.errors import UserError
from utils.system.ranks import MPIS, PRECISION, RANKS, in_group, whole_number


def check_ranks(environ: Mapping[str, str], num_processes: str) -> None:
    """Raises UserError naming a variable that is missing, invalid or contradicts another.

    Args:
        num_processes: as typed after `accelerate launch`; empty if it was not.
    """
    if in_group():
        return
    if "MASTER_ADDR" in environ and PRECISION in environ and RANKS.rank not in environ:
        raise UserError(
            "accelerate launch was asked for several processes but started only one; on a CPU use --config_file "
            "accelerate_configs/multi_cpu.yaml (if one is meant, MASTER_ADDR comes from elsewhere: unset it)"
        )
    for names in (*MPIS, RANKS):
        for name in names:
            low = 1 if name in (names.world_size, names.local_world_size) else 0
            if name in environ and whole_number(environ, name, -1) < low:
                raise UserError(f"{name}={environ[name]!r} is not allowed; it must be a whole number of at least {low}")
    if "MASTER_PORT" in environ and not 0 < whole_number(environ, "MASTER_PORT", 0) < 65536:
        raise UserError(f"MASTER_PORT={environ['MASTER_PORT']!r} is not allowed; it must be a port from 1 to 65535")
    _check_complete(environ)
    _check_count(environ, num_processes)
    for number, count, beyond in (
        (RANKS.rank, RANKS.world_size, 1),
        (RANKS.local_rank, RANKS.local_world_size, 1),
        (RANKS.local_world_size, RANKS.world_size, 0),
    ):
        if number in environ and count in environ and int(environ[number]) + beyond > int(environ[count]):
            allowed = int(environ[count]) - beyond
            raise UserError(f"{number}={environ[number]} contradicts {count}={environ[count]}; at most {allowed}")


def _check_complete(environ: Mapping[str, str]) -> None:
    given = [name for name in RANKS[:3] if name in environ]
    in_a_group = whole_number(environ, RANKS.world_size, 1) > 1 or RANKS.local_rank in environ
    needed = (*RANKS[:3], "MASTER_ADDR", "MASTER_PORT") if in_a_group else RANKS[:2] if RANKS.rank in environ else ()
    if missing := [name for name in needed if not environ.get(name)]:
        shown = ", ".join(f"{name}={environ[name]}" for name in given)
        raise UserError(
            f"{shown}: {', '.join(missing)} unset; start the processes with accelerate launch or torchrun, or unset it"
        )


def _check_count(environ: Mapping[str, str], typed: str) -> None:
    """The launcher rounds --num_processes down to a multiple of num_machines."""
    started = whole_number(environ, RANKS.world_size, 1)
    if re.fullmatch(r"-?\d+", typed) and (int(typed) < 1 or (RANKS.world_size in environ and int(typed) != started)):
        raise UserError(
            f"--num_processes {typed} is not allowed: {started} started; it must be 1 or more, as many on each machine"
        )
