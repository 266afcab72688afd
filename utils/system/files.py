"""Writing files so that a reader, or a crash, never sees half of one; locking a folder."""

import contextlib
import errno
import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.system.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows two runs in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)  # POSIX: another process holds the lock
NAMED_WITHIN = 0.2  # seconds after which the holder of a lock has written its name


def check_writable(folder: Path, option: str = "output_dir") -> None:
    """Raises UserError if a folder is not writable and cannot be made. Leaves nothing behind.

    Args:
        option: the option or variable that names it.
    """
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if _is_there(place))
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        other = f"with --{option}" if option.islower() else f"in {option}"
        raise UserError(
            f"{option}: {folder} cannot be written to ({error.strerror}); name another folder {other}"
        ) from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of the file to an OSError inside, which that of a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _is_there(path: Path) -> bool:
    """Whether the path exists, even as a dangling link. Raises OSError for an invalid name."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_durably(path: Path, content: bytes) -> None:
    """Writes a new file and syncs it to disk."""
    with naming(path), open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Syncs the folder's entries (new names, renames) to disk. Windows cannot, and need not."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, **text: Any) -> Iterator[Any]:
    """A new file to write to, which then replaces `path` atomically.

    Args:
        text: `open`'s options for a text file, such as encoding; without them it takes bytes.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path), open(temporary, "w" if text else "wb", **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file atomically: a reader, or a crash, sees the old content or the new."""
    with replacing(path) as file:
        file.write(content)


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 over the concatenation of bytes or contiguous arrays, in hexadecimal."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def lock_folder(folder: Path) -> BinaryIO:
    """Locks the folder until the returned file is closed or the process dies, however it dies.

    A POSIX record lock: loader workers do not inherit it, and shared file systems pass it on between hosts. The file is
    opened nowhere else, since closing any descriptor of it releases the lock. On a file system without locks, warns.

    Raises UserError naming the holder.
    """
    path = folder / LOCK
    no_link = getattr(os, "O_NOFOLLOW", 0)
    file = open(os.open(path, os.O_RDWR | os.O_CREAT | no_link, 0o666), "r+b", buffering=0)  # noqa: SIM115
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            time.sleep(NAMED_WITHIN)
            holder = file.read(200).decode(errors="replace").partition("\n")[0] or "another process"
            file.close()
            raise UserError(f"output_dir: {folder} is in use by {holder}") from error
        print(
            f"warning: the file system of {folder} has no locks ({error.strerror}); make sure that nothing else "
            "writes there",
            file=sys.stderr,
        )
    with naming(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file
