"""Reads the photos of `--predict`: the user's own images, without labels and without a data set."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.files import SUFFIXES, ImageFiles
from data.images import InMemory
from data.splits import Split
from utils.system.errors import UserError

UNKNOWN = -1  # the label of a photo


def read_photos(names: Sequence[str], size: int, results: Path) -> Split:
    """The named photos, and all in the named folders, decoded like the images of an image folder.

    Each comes once, upright, its shorter side scaled to `size` pixels and its centre cropped. Files in the folder
    `results`, such as the figures of an earlier call, are ignored. Raises UserError for a missing or unreadable file.
    """
    paths = find_photos(names, results)
    try:
        images = InMemory(ImageFiles(paths, size).decode(range(len(paths))))
    except UserError as error:
        raise UserError("predict: " + str(error).removeprefix("data_dir: ")) from error
    return Split(images, np.full(len(paths), UNKNOWN), [str(path) for path in paths])


def find_photos(names: Sequence[str], results: Path) -> list[Path]:
    """The files, in the order of the names and sorted within a folder. Hidden files in a folder are ignored."""
    results = results.resolve()
    found: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if results == (path if path.is_dir() else path.parent).resolve():
            raise UserError(f"output_dir: {results} is not allowed; it holds the photos; name another folder")
        if path.is_dir():
            inside = [file for file in _walk(path) if file.resolve().parent != results]
            if not inside:
                raise UserError(f"predict: {path} holds no photo (looking for {', '.join(sorted(SUFFIXES))})")
        elif path.is_file():
            inside = [path]
        else:
            raise UserError(f"predict: {path} does not exist")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _walk(folder: Path) -> list[Path]:
    """All photos in a folder and its subfolders, sorted."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        files += [Path(place, name) for name in names if name[0] != "." and Path(name).suffix.lower() in SUFFIXES]
    return sorted(files)
