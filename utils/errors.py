"""Errors as part of the interface: one clear line on stderr, an exit code, no traceback.

Exit codes: 2 for what a user can get wrong, 1 for faults of the environment (disk, network, a dead peer),
128 + signal for a stop by signal. A traceback means a bug of ours, or `--debug`.
"""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


class SuiteError(Exception):
    """Ends the program with its message as one line and `exit_code`.

    `silent` is set on the ranks that learned of the error from another rank, so that the line is printed once.
    """

    exit_code = 1

    def __init__(self, message: str, silent: bool = False):
        super().__init__(message)
        self.silent = silent


class UserError(SuiteError):
    """Something that the user can put right: an option, a file, a folder."""

    exit_code = 2


class EnvironmentFault(SuiteError):
    """Something around the program failed: disk, network, another process."""

    exit_code = 1


class Interrupted(BaseException):
    """A stop signal was answered: everything is saved, the program ends with 128 + `signum`."""

    def __init__(self, signum: int, message: str = ""):
        super().__init__(message)
        self.signum = signum


# What the communication back ends say when the process at the other end is gone.
LOST_PEER = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket closed|timed out|timeout|no route to host"
    r"|nccl.*(abort|remote)|failed to recv|DistStoreError|DistNetworkError|recvValue failed",
    re.IGNORECASE,
)


def one_line(message: object) -> str:
    """The message without its line breaks; from a data-loader worker's report, the error itself."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    if any(line.startswith("Caught ") and "worker process" in line for line in lines):
        lines = [re.sub(r"^[\w.]*(Error|Fault): ", "", lines[-1])]
    return " ".join(lines)


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """The likeliest of the allowed names instead of a wrong one; None where none is near."""
    close = {candidate.lower(): candidate for candidate in allowed}
    match = get_close_matches(name.lower(), close, n=1)
    return close[match[0]] if match else None


def did_you_mean(name: str, allowed: Sequence[str]) -> str:
    """A question with the nearest of the allowed names, and a space; nothing where none is near."""
    near = nearest(name, allowed)
    return f"did you mean {near}? " if near else ""


def suggestion(name: str, allowed: Sequence[str]) -> str:
    """What to choose from instead of a wrong name, the likeliest first."""
    return f"{did_you_mean(name, allowed)}choose from {', '.join(allowed)}"


@contextlib.contextmanager
def together(accelerator: Any) -> Iterator[None]:
    """Runs the block on every rank; if it fails on one, it fails on all, and the line is printed once.

    Without it the ranks that did not fail would wait for the failed one in their next collective call.
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
    from accelerate.utils import gather_object

    mine = None if error is None else (type(error).__name__, one_line(error), isinstance(error, UserError))
    failures = [(rank, failure) for rank, failure in enumerate(gather_object([mine])) if failure is not None]
    if not failures:
        return
    rank, (_, message, users_fault) = failures[0]
    kind = UserError if users_fault else EnvironmentFault
    raise kind(message, silent=rank != accelerator.process_index) from error


def run_script(main: Callable[[Any], Any], config: Any) -> NoReturn:
    """Runs `main(config)` as a script and turns whatever ends it into one line and an exit code."""
    try:
        main(config)
    except Interrupted as stop:
        leave(128 + stop.signum, str(stop) if int(os.environ.get("RANK", 0)) == 0 else "")
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT, "interrupted")
    except SuiteError as error:
        if config.debug:
            traceback.print_exc()
        leave(error.exit_code, "" if error.silent else f"error: {one_line(error)}")
    except OSError as error:
        if config.debug:
            traceback.print_exc()
        leave(1, f"error: {one_line(error)}")
    except RuntimeError as error:
        if config.debug or not (int(os.environ.get("WORLD_SIZE", 1)) > 1 and LOST_PEER.search(str(error))):
            raise
        rank = os.environ.get("RANK", "?")
        leave(
            1,
            f"error: rank {rank} lost another process; --resume auto goes on from the last checkpoint",
        )
    sys.exit(0)


def leave(code: int, line: str) -> NoReturn:
    """Prints the line, flushes, and ends at once where other ranks may already be gone.

    In a group of processes the interpreter's own shutdown would wait for peers that no longer answer.
    """
    if line:
        print(line, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        os._exit(code)
    sys.exit(code)
