"""Checkpoints that are whole or not there. Tensors in safetensors, the rest in JSON: a file of a run directory is data
and never executed, and may come from a stranger.

A checkpoint is a folder `step-000123/` with a MANIFEST.json that holds size and SHA-256 of every other file. It is
written under a temporary name, read back, and renamed when it is on the disk; only then are older ones deleted.
"""

import contextlib
import shutil
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from models.saved import FORMAT_VERSION
from utils.system.errors import UserError, one_line
from utils.system.files import digest, sync_folder, to_json, write_durably
from utils.system.memory import check_memory
from utils.system.reading import (
    read_file,
    read_json,
    shown,
)

MANIFEST = "MANIFEST.json"


def write_checkpoint(root: Path, step: int, files: Mapping[str, bytes], keep: int) -> Path:
    """Writes root/step-<step> from file contents and deletes all but the newest `keep` checkpoints.

    Raises OSError (disk full, read-only, no folder to make root in) and leaves what was there before.
    """
    final = root / f"step-{step:06d}"
    temporary, aside = root / f".{final.name}.tmp", root / f".{final.name}.old"
    for left_over in root.glob(".step-*.tmp"):  # of a run that was killed while it wrote
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        root.mkdir(exist_ok=True)
        temporary.mkdir()
        manifest = {name: {"size": len(content), "sha256": digest([content])} for name, content in files.items()}
        for name, content in files.items():
            write_durably(temporary / name, content)
        write_durably(
            temporary / MANIFEST, to_json({"format_version": FORMAT_VERSION, "step": step, "files": manifest})
        )
        if problem := damage(temporary, own=True):
            raise OSError(f"{final}: reading back what was written failed: {problem}")
        sync_folder(temporary)
        _recover(root)
        if final.exists():
            final.rename(aside)
        temporary.rename(final)
        sync_folder(root)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            _recover(root)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    # A damaged checkpoint of a later step, which the resume passed over, takes no place among those that are kept.
    for old in [path for path in list_checkpoints(root) if _step(path) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _recover(root: Path) -> None:
    """Puts back a checkpoint that a crash left set aside, before the new one of the same step had its name."""
    for aside in root.glob(".step-*.old"):
        final = aside.with_name(aside.stem[1:])
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, oldest step first, whole or not."""
    folders = [path for path in root.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(folders, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def newest_checkpoint(root: Path, repair: bool = True) -> Path | None:
    """The newest checkpoint that is whole; each damaged one is named in a warning on stderr.

    Args:
        repair: also put back what a crash left set aside; for the run that has the folder's lock, not for its readers.
    """
    if repair:
        _recover(root)
    for folder in reversed(list_checkpoints(root)):
        problem = damage(folder)
        if problem is None:
            return folder
        print(f"warning: checkpoint {folder} is damaged ({one_line(problem)}) and was passed over", file=sys.stderr)
    return None


def damage(folder: Path, own: bool = False) -> str | None:
    """What is wrong with a checkpoint, judged by its manifest; None if nothing is.

    Raises UserError where its files are larger than the free memory: it is then neither read nor passed over.

    Args:
        own: this process has just written it and will not read it into memory.
    """
    try:
        files = _manifest(folder)
        sizes = {}
        for name, entry in files.items():
            if Path(name).name != name:
                return f"{MANIFEST} names {shown(name)}, which is not a file of this folder"
            status = (folder / name).stat()
            if not stat.S_ISREG(status.st_mode):
                return f"{shown(name)} is not a file"
            sizes[name] = status.st_size
            if sizes[name] != entry["size"]:
                return f"{shown(name)} has {sizes[name]} bytes instead of {shown(entry['size'])}"
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    if not own:
        check_memory(sum(sizes.values()), str(folder))
    try:
        for name, entry in files.items():
            if _digest_of_file(folder / name) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
    except (OSError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file of a checkpoint. Raises ValueError, KeyError or UserError without them."""
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{MANIFEST} lists no file")
    return files


def read_checkpoint(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files of a whole checkpoint; files that its manifest does not list are left out.

    Raises UserError where it is not whole, or is larger than the free memory.
    """
    if problem := damage(folder):
        raise UserError(f"resume: {folder} is not a whole checkpoint ({problem})")
    listed = _manifest(folder)
    return {name: read_file(folder / name, most=None) for name in names if name in listed}


def _digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return digest(iter(lambda: file.read(2**20), b""))
