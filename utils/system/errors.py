"""Errors as part of the interface: one line on stderr, an exit code, no traceback.

Exit codes: 2 for what a user can get wrong, 1 for faults of the environment (disk, network, a dead peer),
128 + signal for a stop by signal. A traceback means a bug of ours, or `--debug`.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from utils.system.ranks import in_group, local_rank, rank, world_size
from utils.system.secrets import without_secrets
from utils.system.streams import keep_streams


class SuiteError(Exception):
    """Ends the program with its message as one line and `exit_code`.

    `silent` is set on ranks that learned of the error from another one, so that the line is printed once.
    """

    exit_code = 1

    def __init__(self, message: str, silent: bool = False):
        super().__init__(message)
        self.silent = silent


class UserError(SuiteError):
    """Something that the user can fix: an option, a file, a folder."""

    exit_code = 2


class EnvironmentFault(SuiteError):
    """Something around the program failed: disk, network, another process."""


class Interrupted(BaseException):
    """A stop signal was answered and everything is saved; the program ends with 128 + `signum`."""

    def __init__(self, signum: int, message: str = ""):
        super().__init__(message)
        self.signum = signum


LONGEST_LINE = 4000  # characters
WAIT_FOR_FIRST_RANK = 10.0  # seconds; processes of one machine start and fail within less
# Of messages by torch and NumPy.
OUT_OF_MEMORY = re.compile(r"out of memory|allocate memory|unable to allocate", re.IGNORECASE)
OUT_OF_SHARED_MEMORY = re.compile(r"shared memory|</torch_")
DEAD_WORKER = re.compile(r"DataLoader worker \(pid.* (?:is killed by signal: (.+?)\.|exited unexpectedly)")

# Of messages by gloo, NCCL and torch's store when the process at the other end is gone.
LOST_PEER = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket closed|timed out|timeout|no route to host"
    r"|nccl.*(abort|remote)|failed to recv|DistStoreError|DistNetworkError|recvValue failed",
    re.IGNORECASE,
)


def one_line(message: object) -> str:
    """The message in one line; from a data-loader worker's report, the error itself.

    Text from a file may be of any length and hold anything: it is truncated, and control characters are escaped.
    """
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    if any(line.startswith("Caught ") and "worker process" in line for line in lines):
        lines = [re.sub(r"^[\w.]*(Error|Fault): ", "", lines[-1])]
    text = " ".join(lines)
    text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """The closest of the allowed names to a wrong one; None if none is close."""
    close = {candidate.lower(): candidate for candidate in allowed}
    match = get_close_matches(name.lower(), close, n=1)
    return close[match[0]] if match else None


def did_you_mean(name: str, allowed: Sequence[str]) -> str:
    """`did you mean X? ` with the closest of the allowed names; empty if none is close."""
    near = nearest(name, allowed)
    return f"did you mean {near}? " if near else ""


def suggestion(name: str, allowed: Sequence[str]) -> str:
    """The remedy for a wrong name: the closest of the allowed ones, then all of them."""
    return f"{did_you_mean(name, allowed)}choose from {', '.join(allowed)}"


@contextlib.contextmanager
def raise_on_all_ranks(accelerator: Any) -> Iterator[None]:
    """Runs the block on every rank; if it fails on one, it raises on all, and the line is printed once.

    Without it, the other ranks would wait for the failed one in their next collective call.
    """
    error: Exception | None = None
    try:
        yield
    except (SuiteError, OSError) as caught:
        error = caught
    if accelerator.num_processes == 1:
        if error is not None:
            raise error
        return
    from utils.system.exchange import gather_texts  # it loads torch, which an error in the options does not wait for

    mine = "" if error is None else json.dumps([isinstance(error, UserError), one_line(error)])
    reports = gather_texts(accelerator, mine)
    failed = next((number for number, report in enumerate(reports) if report), None)
    if failed is None:
        return
    users_fault, message = json.loads(reports[failed])
    kind = UserError if users_fault else EnvironmentFault
    raise kind(message, silent=failed != accelerator.process_index) from error


def as_fault(error: BaseException | None) -> EnvironmentFault | None:
    """The error as a fault of the environment; None if it may be a bug of ours or the user's mistake."""
    if isinstance(error, EnvironmentFault):
        return error
    if isinstance(error, OSError):
        return EnvironmentFault(one_line(error))
    if not isinstance(error, (RuntimeError, MemoryError)):
        return None
    message = str(error)
    if OUT_OF_SHARED_MEMORY.search(message):
        return EnvironmentFault(
            "shared memory (/dev/shm) is too small; `docker run --shm-size 1g` gives more, --num_workers 0 needs less"
        )
    if worker := DEAD_WORKER.search(f"{error.__cause__} {message}"):
        return EnvironmentFault(
            f"a loader worker died ({worker[1] or 'no reason given'}); if memory ran out, lower --num_workers"
        )
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(message):
        return EnvironmentFault(f"out of memory ({one_line(message) or 'no reason given'})")
    if world_size() > 1 and LOST_PEER.search(message):
        return EnvironmentFault(f"rank {rank()} lost another process (dead, or silent for longer than --peer_timeout)")
    return None


def run_script(main: Callable[[Any], Any], config: Any) -> NoReturn:
    """Runs `main(config)` as a script; whatever ends it becomes one line and an exit code."""
    keep_streams()
    try:
        main(config)
    except Interrupted as stop:
        leave(128 + stop.signum, str(stop) if rank() == 0 else "")
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT, "interrupted")
    except Exception as error:
        known = error if isinstance(error, SuiteError) else as_fault(error)
        if known is None:
            raise
        if config.debug:
            print(without_secrets(traceback.format_exc()), file=sys.stderr)
        if not known.silent:
            first_rank_first()
        leave(known.exit_code, "" if known.silent else f"error: {one_line(known)}")
    leave(0, "")


def first_rank_first() -> None:
    """Before the processes have found each other: waits, so that the first one of this machine prints its error.

    Its launcher then ends the others, which most likely have the same error, while they wait here. An error of this
    process alone is printed afterwards.
    """
    if local_rank() > 0 and not in_group():
        time.sleep(WAIT_FOR_FIRST_RANK)


def leave(code: int, line: str) -> NoReturn:
    """Prints the line, flushes and ends; in a group of processes without the interpreter's own shutdown.

    That would wait for peers that are gone, and gloo's threads, which outlive the group, sometimes abort in it (SIGABRT
    after a finished training, torch 2.14).
    """
    if line:
        print(without_secrets(line), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if world_size() > 1:
        os._exit(code)
    sys.exit(code)
