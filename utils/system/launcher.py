"""This process, its share of the machine, and the launcher that started it.

Imports nothing heavy: it is asked before the libraries are loaded.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def stop_with_launcher() -> None:
    """Asks Linux for a SIGTERM when the launcher that started this process dies.

    `accelerate launch` does not pass a SIGTERM on to a single process: it would train on, and nobody would know.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its container's quota of CPU time.

    Threads beyond a quota would be stopped together, each time it is used up.
    """
    from joblib import cpu_count

    return cpu_count()
