"""Files that are whole or not there."""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has none; there two runs in one folder are not noticed
    fcntl = None  # type: ignore[assignment]


def write_durably(path: Path, content: bytes) -> None:
    """Writes a new file and waits until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the folder's entries (new names, renames) are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file in one step: a reader, or a crash, sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_durably(temporary, content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def lock_folder(folder: Path) -> TextIO:
    """Takes the folder's lock until the returned file is closed or the process dies, however it dies.

    A POSIX record lock, which loader workers do not inherit and shared file systems pass on between hosts.
    Raises UserError naming the holder.
    """
    file = open(folder / ".lock", "a+")  # noqa: SIM115 (it stays open as long as the lock is held)
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"output_dir: {folder} is in use by {holder}") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
