"""Standard streams that break: a reader that ended (`| head`), a full log disk, a lost terminal, closed descriptors.

Lines are lost, never the run. Imports nothing heavy: scripts call it first.
"""

import contextlib
import io
import os
import sys

STREAMS = ("stdin", "stdout", "stderr")  # of the descriptors 0, 1 and 2
# RuntimeError: a signal's handler prints while the same stream is being written to ("reentrant call").
LOST = (OSError, ValueError, RuntimeError)


class ExpendableStream(io.TextIOWrapper):
    """A standard stream that never raises: what cannot be written is dropped.

    Every write is tried, so lines appear again once a full disk has room. A letter that the encoding lacks is escaped.
    """

    def __init__(self, stream: io.TextIOWrapper):
        super().__init__(
            stream.buffer,
            stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._shared_with = stream  # its destructor would close the buffer

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except LOST:
            return len(text)

    def flush(self) -> None:
        """Never raises, so that the interpreter, which flushes as it ends, returns our exit code."""
        with contextlib.suppress(*LOST):
            super().flush()


def keep_streams() -> None:
    """Makes stdout and stderr expendable, for Python and all libraries. Call it first; idempotent.

    A closed descriptor is opened on the null device: else the next file opened, a checkpoint or the lock, would take
    its number, and whatever C libraries and child processes print would go into that file.
    """
    for descriptor, name in enumerate(STREAMS):
        if getattr(sys, name) is None:
            _open_null_device(descriptor, name)
    for name in STREAMS[1:]:
        stream = getattr(sys, name)
        own = stream is getattr(sys, f"__{name}__")  # not a notebook's or pytest's
        if own and type(stream) is io.TextIOWrapper:
            _set(name, ExpendableStream(stream))


def _open_null_device(descriptor: int, name: str) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    os.set_inheritable(descriptor, True)
    _set(name, open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _set(name: str, stream: io.TextIOBase) -> None:
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)  # which the interpreter flushes last
