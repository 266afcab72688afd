"""Folders of images: DIR/train/<class>/* and DIR/test/<class>/* (or DIR/val)."""

import math
import os
import unicodedata
from itertools import chain
from pathlib import Path

import numpy as np

from data.decoded import decode_once
from data.files import SUFFIXES, ImageFiles
from data.images import Images, InMemory
from data.paths import Paths
from data.sources import Request, Source
from data.splits import Split
from utils.system.errors import UserError
from utils.system.memory import free_memory
from utils.system.ranks import local_world_size


def load_folder(request: Request) -> tuple[Split, tuple[str, ...]]:
    """Classes by sorted name of the training folders; images in memory if they fit into memory_fraction of it."""
    root, split, geometry = request.data_dir, request.split, request.geometry
    if not os.path.isdir(root):  # unlike root.is_dir(), false for names that are too long
        raise UserError(f"data_dir: {root} is not a folder")
    folders = {"train": root / "train", "test": root / "test" if (root / "test").is_dir() else root / "val"}
    if not folders["train"].is_dir():
        raise UserError(f"data_dir: {root} has no folder train/<class>/")
    if not folders["test"].is_dir():
        raise UserError(f"data_dir: {root} has neither a folder test/ nor val/")
    classes = _class_folders(folders["train"])
    if split == "test":
        found = _class_folders(folders["test"])
        for name in sorted(set(classes) ^ set(found)):
            where, there = (folders["test"], found) if name in classes else (folders["train"], classes)
            same = any(unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other) for other in there)
            hint = "; its name is there, in another Unicode normal form (NFC, NFD)" if same else ""
            raise UserError(f"data_dir: class {name!r} has no folder in {where}{hint}")
    paths_of = [_image_files(folders[split] / name) for name in classes]
    paths = Paths(chain.from_iterable(paths_of))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in paths_of])
    files = ImageFiles(paths, geometry)
    images: Images = files
    shape = (len(files), *geometry.size, 3)
    if math.prod(shape) <= request.memory_fraction * free_memory() / local_world_size():
        name = f"{split}-{geometry.cache_name}"
        array = decode_once(root, name, paths, shape, np.uint8, lambda: files.decode(range(len(files))))
        images = InMemory(array, files)
    return Split(images, labels, paths), tuple(classes)


def _image_files(folder: Path) -> list[str]:
    """Sorted paths, as strings: of a million images they take a fraction of the time and memory of Path objects."""
    names = [name for name in _listed(folder) if os.path.splitext(name)[1].lower() in SUFFIXES and name[0] != "."]
    if not names:
        raise UserError(f"data_dir: {folder} holds no image (looking for {', '.join(sorted(SUFFIXES))})")
    return [os.path.join(folder, name) for name in sorted(names)]


def _class_folders(folder: Path) -> list[str]:
    names = sorted(name for name in _listed(folder) if name[0] != "." and os.path.isdir(folder / name))
    if not names:
        raise UserError(f"data_dir: {folder} has no class folders")
    for name in names:
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
            raise UserError(
                f"data_dir: {folder} has a class {name!r}; the name of a class may not contain control characters, "
                "line breaks or bytes that are not UTF-8"
            )
    return names


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(f"data_dir: {folder} cannot be read ({error.strerror})") from error


SOURCE = Source(load_folder)
