"""What later calls need not compute again: <results>/cache/<name>.safetensors, one file each.

Its metadata hold the fingerprint of what the arrays are a function of: the model, the images, the settings. The file
may come from a stranger: a fingerprint is compared as text and never parsed, and arrays are checked before use.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from accelerate import Accelerator
from safetensors import safe_open

from models.saved import UNREADABLE, check_header
from utils.system.errors import UserError, raise_on_all_ranks
from utils.system.files import replace_file

Arrays = Mapping[str, np.ndarray]


class Form(NamedTuple):
    """What an array must look like: the kind of its numbers (NumPy's f, i or b) and its shape.

    Floats are finite. Integers are positions: at least 0 and less than `below`.
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


def cached(
    accelerator: Accelerator,
    folders: Sequence[Path],
    name: str,
    fingerprint: Mapping[str, Any],
    forms: Mapping[str, Form],
    compute: Callable[[], Arrays],
) -> Arrays:
    """The arrays of an earlier call with the same fingerprint, or else what `compute` returns. Call on all ranks.

    `compute` is called on all ranks or on none; what it returns on the main process is cached.

    Args:
        folders: of results, all of which are searched; the first one is written to.
        forms: of the arrays, by name; arrays of another form are computed again.
    """
    found = next((arrays for folder in folders if (arrays := read(folder, name, fingerprint, forms))), None)
    everywhere = accelerator.gather(torch.tensor([found is not None], device=accelerator.device))
    if found is not None and everywhere.all():  # a rank without it cannot compute alone
        return found
    computed = compute()
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            path = cache_file(folders[0], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            contiguous = {key: np.ascontiguousarray(array) for key, array in computed.items()}
            replace_file(path, safetensors.numpy.save(contiguous, {"fingerprint": _as_text(fingerprint)}))
    return computed


def read(
    folder: Path, name: str, fingerprint: Mapping[str, Any], forms: Mapping[str, Form]
) -> dict[str, np.ndarray] | None:
    """The cached arrays, if they have this fingerprint and these forms."""
    path = cache_file(folder, name)
    try:
        check_header(path)
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("fingerprint") != _as_text(fingerprint) or set(file.keys()) != set(forms):
                return None
            arrays = {key: file.get_tensor(key) for key in forms}
    except (OSError, UserError, *UNREADABLE):
        return None
    return arrays if all(form.fits(arrays[key]) for key, form in forms.items()) else None


def cache_file(folder: Path, name: str) -> Path:
    return folder / "cache" / f"{name}.safetensors"


def _as_text(fingerprint: Mapping[str, Any]) -> str:
    return json.dumps(fingerprint, sort_keys=True)
