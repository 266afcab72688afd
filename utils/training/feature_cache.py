"""Features of frozen weights, cached beside the decoded images.

They are in <data_dir>/.decoded/features-<split>-<digest>.safetensors; the digest is over all that they are a function
of. A file may come from a stranger, and is read only if it has the size, the shape and the SHA-256 that are expected.
It may be deleted at any time.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from models.saved import UNREADABLE
from utils.system.errors import UserError, one_line
from utils.system.files import digest, replace_file
from utils.system.reading import read_file

KEPT = 4  # files of each split; the ones that were used last
HEADER = 4096  # bytes, at most, of a file besides the features
DIGITS = 16  # of the digest in a name


class FeatureCache:
    """The cache of a data set, for one process.

    Args:
        data_dir: whose subfolder it is.
    """

    def __init__(self, data_dir: Path):
        self.folder = data_dir / ".decoded"
        self._writable = True

    def path(self, name: str, facts: Mapping[str, Any]) -> Path:
        """The file of the features of a split.

        Args:
            facts: all that they are a function of, as JSON has it.
        """
        key = digest([json.dumps(facts, sort_keys=True).encode()])[:DIGITS]
        return self.folder / f"features-{name}-{key}.safetensors"

    def read(self, path: Path, shape: tuple[int, int]) -> np.ndarray | None:
        """The features in a file, float32; None if there is none, or with a warning if it is damaged."""
        if not os.path.lexists(path):
            return None
        size = 4 * shape[0] * shape[1]
        with contextlib.suppress(OSError, UserError, *UNREADABLE):
            if path.is_file() and size < path.stat().st_size <= size + HEADER:
                found = safetensors.numpy.load(read_file(path, size + HEADER))
                features, sha256 = found["features"], found["sha256"]
                intact = (features.dtype, features.shape) == (np.float32, shape)
                if intact and digest([features]) == bytes(sha256).hex():
                    os.utime(path)  # it was used
                    return features
        print(f"warning: {path} is damaged; its features are computed again", file=sys.stderr)
        return None

    def write(self, path: Path, features: np.ndarray) -> None:
        """Caches features, and deletes those of the same split that were used least lately. If the folder cannot be
        written, a line says so once."""
        sha256 = np.frombuffer(bytes.fromhex(digest([features])), np.uint8)
        try:
            self.folder.mkdir(exist_ok=True)
            replace_file(path, safetensors.numpy.save({"features": features, "sha256": sha256}))
            others = self.folder.glob(f"{path.name[: -len('.safetensors') - DIGITS]}*.safetensors")
            for old in sorted(others, key=_last_use)[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            if self._writable:
                print(f"note: features are not cached in {self.folder} ({one_line(error)})", file=sys.stderr)
            self._writable = False


def _last_use(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
