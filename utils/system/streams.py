"""Standard output that goes away: a reader that ended (`| head`), a full log disk, a lost terminal, closed descriptors.

It costs its lines, never the run. Imports nothing heavy: it is for the first lines of a script.
"""

import contextlib
import io
import os
import sys

STREAMS = ("stdin", "stdout", "stderr")  # of the descriptors 0, 1 and 2
# RuntimeError: a signal's handler prints while the same stream is being written to ("reentrant call").
LOST = (OSError, ValueError, RuntimeError)


class ExpendableStream(io.TextIOWrapper):
    """A standard stream on which nothing raises: what cannot be written is dropped.

    Every write is tried, so lines come again when a full disk has room again. A letter that the encoding lacks is
    escaped.
    """

    def __init__(self, stream: io.TextIOWrapper):
        super().__init__(
            stream.buffer,
            stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._shared_with = stream  # freed, it would close the buffer

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except LOST:
            return len(text)

    def flush(self) -> None:
        """Never raises, so that the interpreter, which flushes as it ends, keeps the exit code."""
        with contextlib.suppress(*LOST):
            super().flush()


def keep_streams() -> None:
    """Makes stdout and stderr expendable, for Python and all libraries. Call it first; again, it changes nothing.

    A missing descriptor is opened on the null device: the next file opened, a checkpoint or the lock, would take its
    number, and all that libraries in C and child processes print would go into that file.
    """
    for descriptor, name in enumerate(STREAMS):
        if getattr(sys, name) is None:
            _open_null_device(descriptor, name)
    for name in STREAMS[1:]:
        stream = getattr(sys, name)
        own = stream is getattr(sys, f"__{name}__")  # not one of a notebook or of pytest
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
