"""What later calls need not compute again: arrays in <name>.npz, and in <name>.json what they are a function of."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from utils.errors import together
from utils.files import replace_file, to_json

Arrays = Mapping[str, np.ndarray]


def find_or_compute(
    accelerator: Accelerator,
    folders: Sequence[Path],
    name: str,
    fingerprint: Mapping[str, Any],
    compute: Callable[[], Arrays],
) -> Arrays:
    """The arrays of an earlier call with the same fingerprint, else what `compute` returns.

    Looked for in all folders and kept in the first one. `compute` is called on all processes or on none; what it
    returns on the main process is kept.
    """
    kept = (read(folder, name, fingerprint) for folder in folders)
    found = next((arrays for arrays in kept if arrays is not None), None)
    if all(gather_object([found is not None])):  # or the ranks without it would compute alone
        return found
    arrays = compute()
    with together(accelerator):
        if accelerator.is_main_process:
            keep(folders[0], name, fingerprint, arrays)
    return arrays


def keep(folder: Path, name: str, fingerprint: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes the arrays, and last the fingerprint by which they are known to be whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    replace_file(folder / f"{name}.json", to_json(fingerprint))


def read(folder: Path, name: str, fingerprint: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays if they were kept whole and with this fingerprint."""
    try:
        if json.loads((folder / f"{name}.json").read_bytes()) != fingerprint:
            return None
        with np.load(folder / f"{name}.npz", allow_pickle=False) as kept:
            return dict(kept)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
