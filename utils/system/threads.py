"""Threads of a process: its share of the cores, or fewer if the user asks for fewer.

MKL_NUM_THREADS wins over OMP_NUM_THREADS, as in torch. A launcher sets OMP_NUM_THREADS on its own, which looks the same
as a user's choice: the value that the launcher would have chosen counts as unset (docs/scaling.md).
"""

from collections.abc import Mapping

from utils.system.errors import UserError

VARIABLES = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, limited by its container's quota of CPU time.

    With more threads than the quota, all would be throttled together each time it is used up.
    """
    from joblib import cpu_count

    return cpu_count()


def choose_threads(environ: Mapping[str, str], cores: int, processes: int, workers: int = 0) -> tuple[int, str]:
    """The number of threads of a process, and a warning if that is fewer than the user asked for; empty if not.

    Args:
        environ: the environment's variables.
        cores: of this machine, for all processes of the launch.
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
    """The variable by which the user asks for a number of threads, and the number; ("", 0) if there is none.

    Raises UserError if a value is not a number.
    """
    numbers = {name: _number(name, environ.get(name, "")) for name in VARIABLES}
    if numbers["OMP_NUM_THREADS"] == _launcher_default(environ, processes):
        numbers["OMP_NUM_THREADS"] = 0
    return next(((name, number) for name, number in numbers.items() if number), ("", 0))


def _number(name: str, text: str) -> int:
    """0 if unset, as for Accelerate. OpenMP also takes a list, whose first entry counts."""
    first = text.split(",")[0].strip() or "0"
    if not (first.isascii() and first.isdigit()):
        raise UserError(f"{name}: {text!r} is not allowed; it must be a whole number of threads")
    return int(first)


def _launcher_default(environ: Mapping[str, str], processes: int) -> int:
    """What the launcher sets OMP_NUM_THREADS to if it is unset; 0 if it does not."""
    if "ACCELERATE_DYNAMO_MODE" in environ:  # accelerate launch, which always sets it
        if environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
            return 1
        import psutil

        return max(1, (psutil.cpu_count(logical=False) or 1) // processes)
    return 1 if "TORCHELASTIC_RUN_ID" in environ and processes > 1 else 0  # torchrun
