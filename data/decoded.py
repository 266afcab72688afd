"""The cache of decoded images: decoded once, and in memory once per machine.

`<data_dir>/.decoded/` holds plain .npy arrays, which may be deleted at any time. Every process maps the same file, so
the page cache holds a single copy of it, and a start has nothing to decode.
"""

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

VERSION = 2  # of the decoding in files.py and preprocessing.py: a change there makes older caches invalid
ABANDONED = 600  # seconds without a write after which the writer of a temporary file is presumed dead


def decode_once(
    root: Path,
    name: str,
    sources: Sequence[str],
    shape: tuple[int, ...],
    dtype: np.dtype | type | str,
    decode: Callable[[], Any],
) -> np.ndarray:
    """The array that `decode()` returns, cached in a file.

    The array is mapped copy-on-write: all processes share its memory, and a write to it stays in the process. If the
    cache cannot be written (a read-only folder, a full disk), it is in private memory. Raises what `decode` raises.

    Args:
        root: data_dir; the file is root/.decoded/<name>-<digest>.npy. A new one replaces older ones of the same name.
        name: of the array in that folder.
        sources: paths of the files that it is decoded from, all below root. A changed name, size or time of
            modification, or another version of Pillow, makes the cache invalid.
        shape: of the array; the first number may be -1 for any.
        decode: returns the values, as anything that NumPy converts to an array.
    """
    folder = root / ".decoded"
    path = folder / f"{name}-{_digest(root, sources)}.npy"
    _delete(file for file in folder.glob("*.tmp") if _age(file) > ABANDONED)
    cached = _map(path, shape, np.dtype(dtype))
    if cached is not None:
        return cached
    array = np.ascontiguousarray(decode(), dtype)
    try:
        _write(path, array)
    except OSError:
        return array
    _delete(file for file in folder.glob(f"{name}-{'?' * 16}.npy") if file != path)
    cached = _map(path, shape, np.dtype(dtype))
    return array if cached is None else cached


def _digest(root: Path, sources: Sequence[str]) -> str:
    """16 characters that depend on the files and on what decodes them, not on where root is."""
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


def _map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The cached array, or None if it is missing, damaged or not what is expected.

    The header, which may come from a stranger, is read by NumPy in the one format whose length is bounded (64 KB), and
    compared before anything is mapped: no pickle, no array of another size.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for a writer
            return None
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            stored, fortran_order, stored_dtype = np.lib.format.read_array_header_1_0(file)
            expected = stored[:1] + shape[1:] if shape[0] < 0 else shape
            if (stored, fortran_order, stored_dtype) != (expected, False, dtype):
                return None
            mapped = np.memmap(file, dtype, "c", file.tell(), stored)
    except Exception:  # on damaged headers NumPy raises errors of almost every kind
        return None
    return np.asarray(mapped)  # as a plain array: indexing a memmap costs more


def _write(path: Path, array: np.ndarray) -> None:
    """Writes the array durably: after a crash the file is complete or missing.

    The array is not decoded into a mapped file, since a disk that fills up would then kill the process.
    """
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        # Another machine may have been faster and have mapped its file, which on a network drive must not be replaced.
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
