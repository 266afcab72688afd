"""Folders with a MANIFEST.json that holds size and SHA-256 of every other file: read once, and verified."""

import stat
from collections.abc import Collection
from functools import partial
from pathlib import Path

from utils.system.errors import UserError
from utils.system.files import digest
from utils.system.memory import check_memory
from utils.system.reading import read_json, shown

MANIFEST = "MANIFEST.json"
Manifest = dict[str, tuple[int, str]]  # of every file by name: size in bytes, SHA-256


class Damaged(Exception):
    """A folder does not match its manifest; says where."""


def read_verified(folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """The named files that the manifest lists. Raises Damaged, or UserError if all are larger than the free memory."""
    manifest = read_manifest(folder)
    check_memory(sum(size for size, _ in manifest.values()), str(folder))
    return contents(folder, manifest, names)


def contents(folder: Path, manifest: Manifest, names: Collection[str] = ()) -> dict[str, bytes]:
    """The named files. All are compared with their SHA-256, and those that nobody named are not held in memory."""
    found = {}
    for name, (size, sha256) in manifest.items():
        try:
            with open(folder / name, "rb") as file:
                if name in names:
                    found[name] = file.read(size + 1)
                parts = [found[name]] if name in names else iter(partial(file.read, 2**20), b"")
                intact = digest(parts) == sha256
        except OSError as error:
            raise Damaged(f"{type(error).__name__}: {error}") from error
        if not intact:
            raise Damaged(f"{name} does not match its SHA-256")
    return found


def read_manifest(folder: Path) -> Manifest:
    """What the manifest lists, if every file is there in its size. Raises Damaged."""
    manifest = {}
    try:
        files = read_json(folder / MANIFEST).get("files")
        if not isinstance(files, dict) or not files:
            raise Damaged(f"{MANIFEST} lists no file")
        for name, entry in files.items():
            if Path(name).name != name:
                raise Damaged(f"{MANIFEST} names {shown(name)}, which is not a file of this folder")
            status = (folder / name).stat()
            if not stat.S_ISREG(status.st_mode):
                raise Damaged(f"{shown(name)} is not a file")
            if status.st_size != entry["size"]:
                raise Damaged(f"{shown(name)} has {status.st_size} bytes instead of {shown(entry['size'])}")
            manifest[name] = status.st_size, entry["sha256"]
    except UserError as error:  # of read_json
        raise Damaged(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return manifest
