"""Files that are whole or not there."""

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
except ImportError:  # Windows has none; there two runs in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)  # what POSIX says of a lock that another process has
NAMED_WITHIN = 0.2  # seconds after which who has taken a lock has surely written its name


def check_writable(folder: Path, option: str = "output_dir") -> None:
    """Raises UserError where a folder can neither be written to nor be made. Leaves nothing behind.

    Args:
        option: the one that names it, or the variable.
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
    """Gives an OSError inside the name of the file, which that of a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _is_there(path: Path) -> bool:
    """Whether there is something of that name, if only a link that leads nowhere. Raises OSError for no name at all."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_durably(path: Path, content: bytes) -> None:
    """Writes a new file and waits until it is on the disk."""
    with naming(path), open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the folder's entries (new names, renames) are on the disk. Windows opens no folder and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, **text: Any) -> Iterator[Any]:
    """A new file to write to, which then replaces `path` in one step: a reader, or a crash, sees the old or the new.

    Args:
        text: options of a text file, such as encoding; without them it takes bytes.
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
    """Replaces a file in one step: a reader, or a crash, sees the old content or the new."""
    with replacing(path) as file:
        file.write(content)


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 over bytes or contiguous arrays, one after another, in hexadecimal."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def lock_folder(folder: Path) -> BinaryIO:
    """Takes the folder's lock until the returned file is closed or the process dies, however it dies.

    A POSIX record lock, which loader workers do not inherit and shared file systems pass on between hosts. A
    process opens that file here and nowhere else: closing any descriptor of it would give up the lock. Where the file
    system has no locks, there is a warning instead.

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
            f"warning: the file system of {folder} has no locks ({error.strerror}); see to it that nothing else writes "
            "there",
            file=sys.stderr,
        )
    with naming(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file
