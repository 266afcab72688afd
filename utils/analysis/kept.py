"""What later calls need not compute again: arrays in <name>.npz, and in <name>.json what they are a function of."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from utils.system.errors import UserError, raise_on_all_ranks
from utils.system.files import replace_file, replacing, to_json
from utils.system.reading import check_size, read_json

Arrays = Mapping[str, np.ndarray]
LONGEST_DIRECTORY = 64 * 1024  # bytes of a zip file's list of contents


class Form(NamedTuple):
    """What an array is to look like: the kind of its numbers (NumPy's f, i or b) and its shape.

    Floats are finite. Whole numbers are positions: from 0 on, and less than `below`.
    """

    kind: str
    shape: tuple[int, ...]
    below: int = 0

    def fits(self, array: np.ndarray) -> bool:
        if (array.dtype.kind, array.shape) != (self.kind, self.shape):
            return False
        if self.kind == "i":
            return bool(((array >= 0) & (array < self.below)).all())
        return bool(np.isfinite(array).all())


def find_or_compute(
    accelerator: Accelerator,
    folders: Sequence[Path],
    name: str,
    fingerprint: Mapping[str, Any],
    forms: Mapping[str, Form],
    compute: Callable[[], Arrays],
) -> Arrays:
    """The arrays of an earlier call with the same fingerprint, else what `compute` returns.

    Looked for in all folders and kept in the first one. `compute` is called on all processes or on none; what it
    returns on the main process is kept.

    Args:
        forms: of the arrays by name; what is kept in another form is computed anew.
    """
    kept = (read(folder, name, fingerprint, forms) for folder in folders)
    found = next((arrays for arrays in kept if arrays is not None), None)
    if all(gather_object([found is not None])):  # or the ranks without it would compute alone
        return found
    arrays = compute()
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            keep(folders[0], name, fingerprint, arrays)
    return arrays


def keep(folder: Path, name: str, fingerprint: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes the arrays, and last the fingerprint by which they are known to be whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
    with replacing(folder / f"{name}.npz") as file:
        np.savez(file, **dict[str, Any](arrays))
    replace_file(folder / f"{name}.json", to_json(fingerprint))


def read(
    folder: Path, name: str, fingerprint: Mapping[str, Any], forms: Mapping[str, Form]
) -> dict[str, np.ndarray] | None:
    """The arrays if they were kept whole, with this fingerprint and of these forms."""
    try:
        if read_json(folder / f"{name}.json") != fingerprint:
            return None
        arrays = _load(folder / f"{name}.npz")
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, MemoryError, BadZipFile, UserError):
        return None
    whole = arrays.keys() == forms.keys() and all(form.fits(arrays[key]) for key, form in forms.items())
    return arrays if whole else None


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of np.savez, which may come from a stranger: they are no larger than the file.

    Raises UserError or ValueError, before memory is taken, for what np.savez does not write: anything compressed, of
    another size than its header says, or with a list of contents that is longer than a few names.
    """
    size = check_size(path, most=None)
    with open(path, "rb") as file:
        file.seek(max(0, size - 42))  # perhaps the record of a large archive, then the one that ends every archive
        tail = file.read().rjust(42, b"\0")
    if tail[:4] == b"PK\6\7" or tail[20:24] != b"PK\5\6" or int.from_bytes(tail[32:36], "little") > LONGEST_DIRECTORY:
        raise ValueError("the list of contents is too long")
    with ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != ZIP_STORED for member in members):
            raise ValueError("something is compressed")
        if sum(member.file_size for member in members) > size:
            raise ValueError("the contents are larger than the file")
        for member in members:
            with archive.open(member) as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype.hasobject or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                    raise ValueError("an array has another size than its header says")
    with np.load(path, allow_pickle=False) as kept:
        return dict(kept)
