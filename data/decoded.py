"""Decoded data sets on disk: decoded once, and in memory once per machine.

`<data_dir>/.decoded/` holds plain .npy arrays, which may be deleted at any time. Every process maps the same file, so
that the page cache has the one copy of it, and a start has nothing to decode.
"""

import contextlib
import hashlib
import io
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

VERSION = 2  # of the decoding in images.py: after a change there, what was stored before is not used any more
HEADER_SIZE = 128  # bytes that NumPy puts before an array of up to four axes
ABANDONED = 600  # seconds without a write after which the writer of a temporary file is taken for dead


def decode_once(
    root: Path,
    name: str,
    sources: Sequence[str],
    shape: tuple[int, ...],
    dtype: np.dtype | type | str,
    decode: Callable[[], Any],
) -> np.ndarray:
    """The array that `decode()` returns, from the file of an earlier call if there is one.

    The array is mapped copy-on-write: all processes share its memory, a write to it stays in the process. Where
    nothing can be written (a read-only folder, a full disk), it is in private memory. What `decode` raises is raised.

    Args:
        root: data_dir; the file is root/.decoded/<name>-<digest>.npy. A new one replaces those of the same name.
        name: what the array is, among all arrays of that folder.
        sources: paths of the files that it is made from, all below root. If a name, a size or a time of change among
            them is not as it was, or another Pillow decodes them, the array is decoded anew.
        shape: of the array; the first number may be -1 for any.
        decode: returns the values, anything that NumPy makes an array of.
    """
    folder = root / ".decoded"
    path = folder / f"{name}-{_digest(root, sources)}.npy"
    _delete(file for file in folder.glob("*.tmp") if _age(file) > ABANDONED)
    stored = _map(path, shape, np.dtype(dtype))
    if stored is not None:
        return stored
    array = np.ascontiguousarray(decode(), dtype)
    try:
        _write(path, array)
    except OSError:
        return array
    _delete(file for file in folder.glob(f"{name}-{'?' * 16}.npy") if file != path)
    stored = _map(path, shape, np.dtype(dtype))
    return array if stored is None else stored


def _digest(root: Path, sources: Sequence[str]) -> str:
    """16 characters that change with the files and with what decodes them, not with where root is."""
    digest = hashlib.sha256(f"{VERSION} {PIL.__version__}".encode())
    for source in sources:
        try:
            status = os.stat(source)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "unreadable"  # decoding it says why
        name = source.removeprefix(str(root)).lstrip(os.sep)
        digest.update(os.fsencode(f"\n{name} {state}"))
    return digest.hexdigest()[:16]


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The stored array, or None if there is none or it is damaged.

    The file is not parsed: its header must be, byte for byte, the one that was written.
    """
    try:
        if not path.is_file():  # a pipe would be waited on
            return None
        if shape[0] < 0:
            item_size = dtype.itemsize * math.prod(shape[1:])
            shape = ((path.stat().st_size - HEADER_SIZE) // item_size, *shape[1:])
        with open(path, "rb") as file:
            if file.read(HEADER_SIZE) != _header(shape, dtype):
                return None
            mapped = np.memmap(file, dtype, "c", HEADER_SIZE, shape)
    except (OSError, ValueError):  # a file that is too short for its header is a ValueError
        return None
    return np.asarray(mapped)  # as a plain array: indexing a memmap costs more


def _write(path: Path, array: np.ndarray) -> None:
    """Writes the array durably: after a crash it is there, whole, or it is not.

    It is not decoded into the mapped file, since a disk that fills up would then kill the process.
    """
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(_header(array.shape, array.dtype))
            file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
        # Another machine may have been faster and have mapped its file, which must then stay on a network drive.
        if _map(path, array.shape, array.dtype) is None:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since the last write."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
