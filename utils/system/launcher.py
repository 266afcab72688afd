"""The launcher that started this process, and the cores that it may use.

Imports nothing heavy: scripts call it before the libraries load.
"""

import ctypes
import os
import signal
import sys

from utils.system.ranks import PRECISION

PR_SET_PDEATHSIG = 1


def stop_with_launcher() -> None:
    """Asks Linux for a SIGTERM when the launcher that started this process dies.

    `accelerate launch` does not pass a SIGTERM on to a single process, which would go on training unnoticed.
    """
    launched = PRECISION in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, limited by its container's quota of CPU time.

    With more threads than the quota, all would be throttled together each time it is used up.
    """
    from joblib import cpu_count

    return cpu_count()
