"""Which images these are, as digests."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data.datasets import Dataset, ImageFiles, Split
from utils.system.files import digest

BLOCK = 1024  # images that are in memory at a time


def describe_dataset(data: Dataset) -> dict[str, Any]:
    """Name, classes, and of each split the number of images and their digest."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    described = {
        name: {"images": len(split), "sha256": images_digest(split)}
        for name, split in splits.items()
        if split is not None
    }
    return {"name": data.name, "classes": len(data.class_names), "image_size": data.image_size, **described}


def images_digest(split: Split) -> str:
    """SHA-256 over images and labels; of images that stay on disk, over paths, sizes and times of change."""
    if isinstance(split.images, ImageFiles):
        files = [(str(path), Path(path).stat()) for path in split.images.paths]
        described = [(path, status.st_size, status.st_mtime_ns) for path, status in files]
        return digest([json.dumps(described).encode(), split.labels.tobytes()])
    blocks = (split.images[start : start + BLOCK] for start in range(0, len(split), BLOCK))
    return digest(chain(map(np.ascontiguousarray, blocks), [split.labels.tobytes()]))
