"""Stopping on SIGTERM, SIGINT and SIGHUP (a lost terminal): every rank at the same step, after saving."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator

from utils.system.errors import leave
from utils.system.ranks import rank

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([HANGUP] if HANGUP else []))
REPEAT_SECONDS = 1.0  # Ctrl-C reaches a rank from the terminal and again from the launcher's agent; that is one request


class StopRequest:
    """Records stop signals, and lets all ranks agree on them at a step boundary. Use as a context manager.

    A second SIGINT ends the process at once.

    Attributes:
        answer: printed when a signal arrives: what happens next at this point of the program.
    """

    answer = "stopping when the set-up is done"

    def __init__(self, accelerator: Accelerator, peer_timeout: int = 600):
        self.signum = 0
        self._process = os.getpid()
        self._received_at = 0.0
        self._before: dict[int, object] = {}
        self._group: Any = None
        self._many = accelerator.num_processes > 1
        if self._many and torch.distributed.get_backend() != "gloo":
            # On the CPU, so that asking at every step never waits for the device.
            self._group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=peer_timeout))

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            under_nohup = HANGUP and signal.getsignal(HANGUP) is signal.SIG_IGN  # nothing to stop for
            handled = [signum for signum in STOP_SIGNALS if not (under_nohup and signum == HANGUP)]
            self._before = {signum: signal.signal(signum, self._record) for signum in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _record(self, signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader worker, which Ctrl-C and Slurm reach too: it ends with this process
            return
        from_agent = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._received_at < REPEAT_SECONDS
        if self.signum and signum == signal.SIGINT and not from_agent:
            leave(128 + signal.SIGINT, "interrupted twice: stopped at once, without saving")
        if not self.signum:
            self.signum, self._received_at = signum, time.monotonic()
            if rank() == 0:
                print(f"\n{signal.Signals(signum).name} received: {self.answer}", file=sys.stderr)

    @contextlib.contextmanager
    def answering(self, answer: str) -> Iterator[None]:
        """Sets `answer` for the block."""
        before, self.answer = self.answer, answer
        try:
            yield
        finally:
            self.answer = before

    def agreed(self) -> int:
        """The signal to stop for, the same on every rank, or 0. To be called on every rank at the same step."""
        if not self._many:
            return self.signum
        flag = torch.tensor(self.signum)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(flag)
