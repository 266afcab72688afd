"""Checkpoints: complete or absent. Tensors in safetensors, the rest in JSON: data that is never executed, and that may
come from a stranger.

A checkpoint is a folder `step-000123/` with a MANIFEST.json that holds size and SHA-256 of every other file. It is
written under a temporary name, read back, synced to disk and renamed; only then are older ones deleted. Each file is
read once, and the bytes that were verified are the ones that are used.
"""

import contextlib
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from models.saved import FORMAT_VERSION
from utils.system.errors import UserError, one_line
from utils.system.files import digest, sync_folder, to_json, write_durably
from utils.system.manifest import MANIFEST, Damaged, contents, read_manifest, read_verified

Checkpoint = tuple[Path, dict[str, bytes]]  # its folder, and the contents of files by name


def write_checkpoint(root: Path, step: int, files: Mapping[str, bytes], keep: int) -> Path:
    """Writes root/step-<step> from the contents of its files and deletes all but the newest `keep` checkpoints.

    Raises OSError (disk full, read-only, no parent folder) and leaves the checkpoints that were there.
    """
    final = root / f"step-{step:06d}"
    temporary, aside = root / f".{final.name}.tmp", root / f".{final.name}.old"
    for left_over in root.glob(".step-*.tmp"):  # of a run that was killed while writing
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        root.mkdir(exist_ok=True)
        temporary.mkdir()
        listed = {name: {"size": len(content), "sha256": digest([content])} for name, content in files.items()}
        manifest = to_json({"format_version": FORMAT_VERSION, "step": step, "files": listed})
        for name, content in {**files, MANIFEST: manifest}.items():
            write_durably(temporary / name, content)
        try:
            contents(temporary, read_manifest(temporary))
        except Damaged as error:
            raise OSError(f"{final}: reading back what was written failed: {error}") from error
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
    # A damaged checkpoint of a later step, which the resume skipped, does not count.
    for old in [path for path in list_checkpoints(root) if _step(path) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _recover(root: Path) -> None:
    """Renames back what a crash left set aside, before the new checkpoint of the same step had taken the name."""
    for aside in root.glob(".step-*.old"):
        final = aside.with_name(aside.stem[1:])
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first, damaged or not."""
    folders = [path for path in root.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(folders, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def newest_checkpoint(root: Path, names: Collection[str] = (), repair: bool = True) -> Checkpoint | None:
    """The newest undamaged checkpoint and its named files; each damaged one is skipped with a warning on stderr.

    Raises UserError where a checkpoint is larger than the free memory; that does not count as damage.

    Args:
        names: files to return; those that the manifest does not list are missing from the result.
        repair: also put back what a crash left set aside. Only for the run that holds the folder's lock.
    """
    if repair:
        _recover(root)
    folders = list_checkpoints(root)
    for folder in reversed(folders):
        try:
            return folder, read_verified(folder, names)
        except Damaged as error:
            print(f"warning: checkpoint {folder} is damaged ({one_line(error)}), skipping it", file=sys.stderr)
    # A run in progress deletes old checkpoints only after it has written a newer one.
    return newest_checkpoint(root, names, repair) if list_checkpoints(root) != folders else None


def read_checkpoint(folder: Path, names: Collection[str], option: str = "resume") -> dict[str, bytes]:
    """The named files of a checkpoint; those that its manifest does not list are missing from the result.

    Raises UserError naming the option if any of its files is damaged, or all are larger than the free memory.
    """
    try:
        return read_verified(folder, names)
    except Damaged as error:
        raise UserError(f"{option}: {folder} is not a valid checkpoint ({error})") from error
