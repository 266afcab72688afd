"""Threads of a process: its share of the cores, or fewer where a person asks for fewer.

torch lets MKL_NUM_THREADS win over OMP_NUM_THREADS, and so do we. OMP_NUM_THREADS may also be the launcher's own: the
value that the launcher would have set by itself counts as unset, since nothing tells the two apart (docs/scaling.md).
"""

from collections.abc import Mapping

from utils.system.errors import UserError

VARIABLES = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")


def choose_threads(environ: Mapping[str, str], cores: int, processes: int, workers: int = 0) -> tuple[int, str]:
    """How many threads a process takes, and a line to print where that is fewer than a person asked for.

    Args:
        environ: the environment's variables.
        cores: that this machine gives to all processes of the launch.
        processes: of the launch on this machine.
        workers: loader processes of this process, each of which takes a core.
    """
    share = max(1, cores // processes - workers)
    name, asked = asked_threads(environ, processes)
    if not asked or asked <= share:
        return asked or share, ""
    what = f"{cores} core{'s' if cores > 1 else ''}"
    what += (f" for {processes} processes" if processes > 1 else "") + (f" less {workers} workers" if workers else "")
    return share, f"{name}: {asked} threads are too many for {what}; using {share}"


def asked_threads(environ: Mapping[str, str], processes: int) -> tuple[str, int]:
    """The variable by which a person asks for a number of threads, and the number; ("", 0) if none does.

    Raises UserError if a value is no number.
    """
    numbers = {name: _number(name, environ.get(name, "")) for name in VARIABLES}
    if numbers["OMP_NUM_THREADS"] == _launcher_default(environ, processes):
        numbers["OMP_NUM_THREADS"] = 0
    return next(((name, number) for name, number in numbers.items() if number), ("", 0))


def _number(name: str, text: str) -> int:
    """0 if unset, as for Accelerate. OpenMP takes a list too, whose first entry is for us."""
    first = text.split(",")[0].strip() or "0"
    if not (first.isascii() and first.isdigit()):
        raise UserError(f"{name}: {text!r} is not allowed; it must be a whole number of threads")
    return int(first)


def _launcher_default(environ: Mapping[str, str], processes: int) -> int:
    """What the launcher sets OMP_NUM_THREADS to where it is unset; 0 if it leaves it."""
    if "ACCELERATE_DYNAMO_MODE" in environ:  # accelerate launch, which always sets it
        if environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
            return 1
        import psutil

        return max(1, (psutil.cpu_count(logical=False) or 1) // processes)
    return 1 if "TORCHELASTIC_RUN_ID" in environ and processes > 1 else 0  # torchrun
