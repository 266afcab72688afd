"""YAML files of options: recipes, and the config.yaml of a run."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from utils.config.options import Config, check_type, members, options_of, read_word, unknown_option
from utils.system.errors import UserError, nearest, one_line
from utils.system.files import replace_file
from utils.system.reading import parse_yaml

AnyConfig = TypeVar("AnyConfig", bound=Config)
LARGEST_FILE = 100_000  # bytes


def to_yaml(options: dict[str, Any]) -> str:
    """Options as a file that `--config` reads back unchanged."""
    return yaml.safe_dump(options, sort_keys=False)


def write_config(config: Config, path: Path) -> None:
    """Writes the resolved options; `--config <path>` repeats the run."""
    replace_file(path, to_yaml(dataclasses.asdict(config)).encode())


def load_config(kind: type[AnyConfig], path: Path) -> AnyConfig:
    """Reads what write_config wrote. Raises UserError."""
    return kind(**read_options(kind, str(path)))


def read_options(kind: type[Config], path: str) -> dict[str, Any]:
    """The values in a YAML file, each of its option's type. Raises UserError naming the file."""
    options, values = options_of(kind), {}
    for name, value in _read_mapping(path).items():
        try:
            if name not in options:
                raise unknown_option(kind, str(name), str(value))
            option = options[name]
            text = str in members(option.type) or option.metadata["words"]
            values[name] = read_word(option, value) if isinstance(value, str) and not text else value
            check_type(option, values[name])
        except UserError as error:
            raise UserError(f"{error} (in {path})") from error
    return values


def header(path: str) -> str:
    """The comment at the top of a recipe. Raises UserError naming the file."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), _read_text(path).splitlines())
    return "\n".join(line.lstrip("#") for line in lines)


def _read_text(path: str) -> str:
    if not os.path.isfile(path):  # opening a pipe would wait
        what = "not a file" if os.path.exists(path) else "missing"
        raise UserError(f"config: {path or repr(path)} is {what}; {_near_file(path)}it must be a YAML file")
    try:
        if os.path.getsize(path) > LARGEST_FILE:
            raise UserError(f"config: {path} has more than {LARGEST_FILE} bytes; it must be a YAML file of options")
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"config: {path} cannot be read ({error.strerror}); it must be a YAML file") from error
    except ValueError as error:
        raise UserError(f"config: {path} is not a YAML file ({one_line(error)})") from error


def _read_mapping(path: str) -> dict[Hashable, Any]:
    text = _read_text(path)
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"config: {path} is not a YAML file ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"config: {path} contains no options; it must be a YAML file of lines `option: value`")
    return content


def _near_file(path: str) -> str:
    """A question naming the recipe or neighbouring YAML file that was likely meant; empty if none is near."""
    files: dict[str, str] = {}
    for folder in (Path("recipes"), Path(path).parent):
        with contextlib.suppress(OSError, ValueError):
            files |= {file.stem: str(file) for file in sorted(folder.glob("*.yaml"))}
    near = nearest(Path(path).stem, list(files))
    return f"did you mean {files[near]}? " if near else ""
