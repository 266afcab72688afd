"""What predictions are a function of, as digests: where none has changed, they need not be made again."""

import hashlib
import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data.datasets import ImageFiles, Split

BLOCK = 1024  # images that are in memory at a time


def model_digest(folder: Path) -> str:
    """SHA-256 over the two files of an exported model."""
    return _digest((folder / name).read_bytes() for name in ("config.json", "model.safetensors"))


def images_digest(split: Split) -> str:
    """SHA-256 over images and labels; of images that stay on disk, over paths, sizes and times of change."""
    if isinstance(split.images, ImageFiles):
        files = [(str(path), Path(path).stat()) for path in split.images.paths]
        described = [(path, status.st_size, status.st_mtime_ns) for path, status in files]
        return _digest([json.dumps(described).encode(), split.labels.tobytes()])
    blocks = (split.images[start : start + BLOCK] for start in range(0, len(split), BLOCK))
    return _digest(chain(map(np.ascontiguousarray, blocks), [split.labels.tobytes()]))


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
