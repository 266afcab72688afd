"""The cache of decoded images: decoded once, and in memory once per machine.

`<data_dir>/.decoded/` holds plain .npy arrays, which may be deleted at any time. Every process maps the same file, so
the page cache holds a single copy of it, and a start has nothing to decode.
"""

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import PIL

VERSION = 3  # of the decoding in files.py and preprocessing.py: a change there makes older caches invalid
DIGITS = 16  # of the digest in a name
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
    path = cache_file(root, name, sources)
    cached = map_array(path, shape, np.dtype(dtype))
    if cached is not None:
        return cached
    array = np.ascontiguousarray(decode(), dtype)
    try:
        with replacing(path, array.shape, array.dtype) as file:
            np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    except OSError:
        return array
    cached = map_array(path, shape, np.dtype(dtype))
    return array if cached is None else cached


def cache_file(root: Path, name: str, sources: Sequence[str]) -> Path:
    """The file of the cache; arguments as for decode_once. Deletes what writers left behind that were killed."""
    folder = root / ".decoded"
    _delete(file for file in folder.glob("*.tmp") if _age(file) > ABANDONED)
    return folder / f"{name}-{_digest(root, sources)}.npy"


def _digest(root: Path, sources: Sequence[str]) -> str:
    """DIGITS characters that depend on the files and on what decodes them, not on where root is."""
    digest = hashlib.sha256(f"{VERSION} {PIL.__version__}".encode())
    for source in sources:
        try:
            status = os.stat(source)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "unreadable"  # decoding it says why
        name = source.removeprefix(str(root)).lstrip(os.sep)
        digest.update(os.fsencode(f"\n{name} {state}"))
    return digest.hexdigest()[:DIGITS]


def map_array(path: Path, shape: tuple[int, ...], dtype: np.dtype, mode: Literal["c", "r"] = "c") -> np.ndarray | None:
    """The cached array, or None if it is missing, damaged or not what is expected.

    The header, which may come from a stranger, is read by NumPy in the one format whose length is bounded (64 KB), and
    compared before anything is mapped: no pickle, no array of another size.

    Args:
        mode: c: copy-on-write; r: read-only, which an array larger than the memory needs.
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
            mapped = np.memmap(file, dtype, mode, file.tell(), stored)
    except Exception:  # on damaged headers NumPy raises errors of almost every kind
        return None
    return np.asarray(mapped)  # as a plain array: indexing a memmap costs more


@contextlib.contextmanager
def replacing(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[BinaryIO]:
    """A file to write an array to, durably: after a crash the cache is complete or missing. Raises OSError.

    Older caches of the same name are deleted. A mapped file is not written to, since a disk that fills up would then
    kill the process.
    """
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # Another machine may have been faster and have mapped its file, which on a network drive must not be replaced.
        if map_array(path, shape, dtype) is None:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    name = path.stem[:-DIGITS]
    _delete(file for file in path.parent.glob(f"{name}{'?' * DIGITS}.npy") if file != path)


def _age(path: Path) -> float:
    """Seconds since the last write."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
