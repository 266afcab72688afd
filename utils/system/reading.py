"""Reading what may come from a stranger: files of a run directory, a checkpoint or a model folder.

Malicious ones are links out of the folder, pipes that block, or of unbounded size or nesting. Reading is bounded here,
and an invalid file ends in one line that names it.
"""

import contextlib
import json
import math
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.system.errors import UserError, one_line
from utils.system.memory import check_memory

MOST_BYTES = 16 * 2**20  # of a JSON file; parsed, it may take 30 times as much memory
MOST_DIGITS = 18  # of a whole number
MOST_SHOWN = 100  # characters of a value in an error
WANDB_LINK = "wandb/*run-*/logs/debug-core.log"  # which W&B makes, into the user's cache; nothing opens it


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write out a number of some thousand digits."""
        return "a number of many digits" if x.bit_length() > 1000 else super().repr_int(x, level)


_short = _Short()
_short.maxstring = _short.maxother = MOST_SHOWN


# -- what may lie in a folder -----------------------------------------------------------------------------------------


def check_folder(folder: Path, option: str) -> None:
    """Raises UserError for anything in a folder, at any depth, but files, folders, and links to those inside.

    Call it before anything in the folder is read or written: a link could lead outside, a pipe would block. `folder`
    itself, which the user named, may be a link.
    """
    places = [os.fspath(folder)]
    while places:
        with contextlib.suppress(FileNotFoundError), os.scandir(places.pop()) as entries:  # a run may be writing
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    places.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    _check_special(Path(entry.path), folder, option)


def check_files(folder: Path, names: Iterable[str], option: str) -> None:
    """As check_folder, for these files alone, if nothing else in the folder is touched."""
    for path in (folder / name for name in names):
        if os.path.lexists(path) and not (path.is_file() and not path.is_symlink()):
            _check_special(path, folder, option)


def _check_special(path: Path, folder: Path, option: str) -> None:
    if not path.is_symlink():
        raise UserError(f"{option}: {path} is neither a file nor a folder")
    if path.match(WANDB_LINK):
        return
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(place) for place in _places(folder)):
        raise UserError(f"{option}: {path} is a link to {target}, outside of {folder}")
    try:
        path.stat()
    except FileNotFoundError:
        return
    except OSError as error:  # a link to itself
        raise UserError(f"{option}: {path} is a link that leads nowhere ({error.strerror})") from error


def _places(folder: Path) -> list[Path]:
    """Where links of a folder may lead: into itself. The Hugging Face cache has the files of a snapshot beside it."""
    root = Path(os.path.realpath(folder))
    return [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]


# -- bounded content --------------------------------------------------------------------------------------------------


def read_file(path: Path, most: int | None = MOST_BYTES) -> bytes:
    """The content of a file of at most `most` bytes; None: as many as there is free memory.

    Raises UserError if it is missing, not a regular file, or larger.
    """
    check_size(path, most)
    with open(path, "rb") as file:
        return file.read(-1 if most is None else most)


def check_size(path: Path, most: int | None = MOST_BYTES) -> int:
    """The size of a file in bytes, without reading it. Raises UserError as read_file does."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is missing") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a file")
    if most is None:
        check_memory(status.st_size, str(path))
    elif status.st_size > most:
        raise UserError(f"{path}: {status.st_size:,} bytes are more than such a file has ({most:,})")
    return status.st_size


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError as read_file and parse_json do."""
    return parse_json(read_file(path), path)


def parse_json(content: bytes, source: Path) -> dict[str, Any]:
    """The object in a JSON text. Raises UserError naming the source if it is invalid or anything else."""
    try:
        value = json.loads(content, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not a JSON file ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise UserError(f"{source}: not a JSON file of this suite (it holds {shown(value)})")
    return value


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def parse_yaml(text: str) -> Any:
    """The value in a YAML text: plain data, of which nothing is executed. Raises ValueError with the reason if invalid.

    Repeated keys, of which the last would win silently, and aliases, a few lines of which can expand beyond all memory,
    are invalid.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    # PyYAML's own errors, and Python's, which it lets through for tagged values such as `!!bool x`.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(one_line(error)) from error


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"*{self.peek_event().anchor} is an alias; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in counts.items():
            if count > 1:
                raise yaml.YAMLError(f"{name} is given more than once")
        return super().construct_mapping(node, deep)


# -- single values ----------------------------------------------------------------------------------------------------


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value of a JSON file is a finite number in a range; true and false are not."""
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def is_count(value: Any) -> bool:
    """Whether a value of a JSON file is a whole number from 0 on."""
    return type(value) is int and value >= 0


def is_text(value: Any) -> bool:
    """Whether a value of a JSON file is a string that can be encoded: one without lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(value: Any) -> str:
    """A value for an error message, truncated however large or deep it is."""
    text = value if isinstance(value, str) else _short.repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
