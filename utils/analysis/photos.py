"""Pictures of the user's own, for which there is no label and no data set."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.images import SUFFIXES, ImageFiles, Split
from utils.system.errors import UserError

UNKNOWN = -1  # the label of a picture that has none


def read_pictures(names: Sequence[str], size: int, results: Path) -> Split:
    """The pictures that are named, and all in the folders that are, as the images of a folder are read.

    Each comes once, upright, its shorter side scaled to `size` pixels and its middle cut out. What lies in the folder
    `results`, such as the figures of an earlier call, is no picture of the user's. Raises UserError for what is missing
    or no picture.
    """
    paths = find_pictures(names, results)
    try:
        images = ImageFiles(paths, size).decode(range(len(paths)))
    except UserError as error:
        raise UserError("predict: " + str(error).removeprefix("data_dir: ")) from error
    return Split(images, np.full(len(paths), UNKNOWN), [str(path) for path in paths])


def find_pictures(names: Sequence[str], results: Path) -> list[Path]:
    """The files, in the order of the names and sorted within a folder. Hidden files of a folder are passed over."""
    results = results.resolve()
    found: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if results == (path if path.is_dir() else path.parent).resolve():
            raise UserError(f"output_dir: {results} has the pictures in it; name another folder with --output_dir")
        if path.is_dir():
            inside = [file for file in _walk(path) if file.resolve().parent != results]
            if not inside:
                raise UserError(f"predict: {path} holds no picture (looking for {', '.join(sorted(SUFFIXES))})")
        elif path.is_file():
            inside = [path]
        else:
            raise UserError(f"predict: {path} does not exist")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _walk(folder: Path) -> list[Path]:
    """All pictures in a folder and the folders in it, sorted."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        files += [Path(place, name) for name in names if name[0] != "." and Path(name).suffix.lower() in SUFFIXES]
    return sorted(files)
