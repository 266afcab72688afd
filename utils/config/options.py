"""What an option is: a field of a config with all its facts; which values it takes, how a word is read as one, and how
one is shown. Configs made in Python are checked like any other.
"""

import contextlib
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

from utils.system.errors import UserError, did_you_mean
from utils.system.launch import goes_before_the_script
from utils.system.reading import is_text
from utils.system.secrets import named_secret

LARGEST = 10**9  # of numbers without a limit of their own: a larger one is a mistake and overflows somewhere
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong = 60


class Default(NamedTuple):
    """A default that depends on options declared before: `of(config)` is its value, `words` describe it in `--help`."""

    of: Callable[[Any], Any]
    words: str

    def __str__(self) -> str:
        return self.words


def option(
    group: str,
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open: bool = False,
    choices: Iterable[str] = (),
    path: Literal["folder", "file"] | None = None,
    may_change: bool = False,
    words: bool = False,
    positional: bool = False,
) -> Any:
    """A field of a config.

    Args:
        group, help: where `--help` lists the option, and what it says of it. Range and default are added.
        default: the value, or a Default.
        low, high: its range; with `open`, `low` itself is not in it.
        choices: names that a text or a list of texts is limited to; those of a Literal need not be repeated.
        path: what it names; `~` is expanded, and TAB completes such paths.
        may_change: whether it may differ when a run is resumed.
        words: whether each entry of its list is a word of its own on the command line and may contain commas.
        positional: whether it is positional.
    """
    metadata = {
        "group": group, "help": help, "low": low, "high": high, "open": open, "choices": tuple(choices), "path": path,
        "may_change": may_change, "words": words, "positional": positional,
    }  # fmt: skip
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def in_group(name: str, may_change: bool = False) -> Callable[..., Any]:
    """`option` for the fields of a group: `option(default, help, ...)`; `may_change` unless one says otherwise."""
    return partial(option, name, may_change=may_change)


@dataclass
class Config:
    """The options of a script. Raises UserError naming the option, the value and what is allowed."""

    script: ClassVar[str]

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            setattr(self, option.name, checked(option, value.of(self) if isinstance(value, Default) else value))


def default_of(option: Field, config: Config) -> Any:
    """The option's default beside the others of a config."""
    if option.default_factory is not MISSING:
        return option.default_factory()
    return option.default.of(config) if isinstance(option.default, Default) else option.default


def options_of(kind: type[Config]) -> dict[str, Field]:
    """The options of a config by name."""
    return {option.name: option for option in fields(kind)}


def unknown_option(kind: type[Config], name: str, value: str = "") -> UserError:
    """The error for an unknown name; `value` is quoted if the option is a launcher's."""
    options = options_of(kind)
    if name in options and options[name].metadata["positional"]:
        return UserError(f"{name}: it is positional; give it as the first argument")
    if belongs := goes_before_the_script(name.replace("-", "_"), "" if value.startswith("-") else value, kind.script):
        return UserError(f"{name}: unknown option; {belongs}")
    return UserError(f"{name}: unknown option; {did_you_mean(name, list(options)).strip() or '--help lists them all'}")


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if union else (kind,)


def choices(option: Field) -> list[str]:
    """The names that the option, or each entry of its list, can be, beside numbers and null; empty for free text."""
    kinds = [entry for kind in members(option.type) for entry in (typing.get_args(kind) if _is_list(kind) else [kind])]
    literals = [name for kind in kinds if typing.get_origin(kind) is Literal for name in typing.get_args(kind)]
    return [*option.metadata["choices"], *literals]


def read_word(option: Field, word: str) -> Any:
    """The value that a word of the command line stands for; the word itself, for check_type to refuse, if it has none.

    Numbers are read as Python writes them, since YAML takes 1:30 for 90. A list is `a`, `a,b` or `[a, b]`.
    """
    kinds = members(option.type)
    if type(None) in kinds and (word == "null" or (str not in kinds and word.lower() in ("null", "~"))):
        return None
    if bool in kinds:
        return SWITCHES.get(word.lower(), word)
    if _is_list(kinds[0]):
        names = (name.strip("'\" ") for name in re.split(r"[,\s]+", word.strip("[] ")))
        return [_read_number(typing.get_args(kinds[0]), name) for name in names if name]
    return _read_number(kinds, word)


def _read_number(kinds: Iterable[Any], word: str) -> Any:
    """The number of one of these kinds that a word is; the word itself if it is none."""
    for kind in kinds:
        if kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(word)
    return word


def check_type(option: Field, value: Any) -> None:
    """Raises UserError if the value is not of the option's type."""
    names = choices(option)
    if any(_fits(value, kind, names) for kind in members(option.type)):
        return
    if isinstance(value, list) and names:  # name the entry that is wrong
        value = next((entry for entry in value if entry not in names), value)
    hint = did_you_mean(value, names) if isinstance(value, str) else ""
    raise UserError(f"{option.name}: {shown(value)} is not allowed; {hint}it must be {allowed_text(option)}")


def checked(option: Field, value: Any) -> Any:
    """The value, with `~` expanded in paths, and a number in place of a list of numbers as a list.

    Raises UserError naming the option, the value and what is allowed.
    """
    if option.type == list[float] and type(value) in (int, float):
        value = [value]
    check_type(option, value)
    if isinstance(value, list):
        return [_checked_entry(option, entry) for entry in value]
    return _checked_entry(option, value)


def _checked_entry(option: Field, value: Any) -> Any:
    if isinstance(value, str):
        return _checked_text(option, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(option, value)
    return value


def _checked_text(option: Field, text: str) -> str:
    if not text.strip() and text != option.default:
        raise UserError(f"{option.name}: {text!r} is not allowed; it must not be empty")
    if "\0" in text or not is_text(text):
        raise UserError(f"{option.name}: {shown(text)} is not allowed; it must be text in UTF-8 without NUL")
    if secret := named_secret(text):
        raise UserError(f"{option.name}: contains the value of {secret}; options are written to files and trackers")
    return os.path.expanduser(text) if option.metadata["path"] else text


def _check_range(option: Field, number: float) -> None:
    low, high = option.metadata["low"], option.metadata["high"]
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"{option.name}: {number} is not allowed; it must be a finite number")
    below = low is not None and (number <= low if option.metadata["open"] else number < low)
    if below or (high is not None and number > high):
        raise UserError(f"{option.name}: {shown(number)} is not allowed; it must be {range_text(option)}")
    if high is None and number > LARGEST:
        raise UserError(f"{option.name}: {shown(number)} is not allowed; it must be at most {LARGEST}")


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list


def _fits(value: Any, kind: Any, names: list[str]) -> bool:
    """Whether a value is of a type; a whole number is a number too, but true and false are not."""
    if _is_list(kind):
        return isinstance(value, list) and all(_fits(entry, typing.get_args(kind)[0], names) for entry in value)
    if kind is str or typing.get_origin(kind) is Literal:
        return isinstance(value, str) and (not names or value in names)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def range_text(option: Field) -> str:
    """The option's range in words; empty if it has none."""
    low, high = option.metadata["low"], option.metadata["high"]
    lower = "" if low is None else f"{'greater than' if option.metadata['open'] else 'at least'} {low:g}"
    upper = "" if high is None else f"at most {high:.10g}"
    return " and ".join(filter(None, (lower, upper)))


def allowed_text(option: Field) -> str:
    """What the option accepts, in words."""
    kinds, names = members(option.type), choices(option)
    free = {**TYPE_NAMES, list[float]: "a list of numbers"}
    if not names:
        free |= {str: "text", list[str]: "a list of texts"}
    parts = [free[kind] for kind in kinds if kind in free]
    if parts and (bounds := range_text(option)):
        parts[0] += f" {bounds}"
    if len(names) > 1:
        parts.append(f"one of {', '.join(names)}")
    return " or ".join(parts + names[: len(names) == 1])


def shown(value: Any) -> str:
    """A value as YAML writes it, cut off if it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number with thousands of digits"


def shown_default(option: Field) -> str:
    """The option's default in words; empty if it is unset."""
    return in_words(option.default if option.default_factory is MISSING else option.default_factory())


def in_words(default: Any) -> str:
    """A default as it is written on the command line; empty for None."""
    if isinstance(default, list):
        return ",".join(entry if isinstance(entry, str) else f"{entry:g}" for entry in default)
    return "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def metavar(option: Field) -> str:
    """What stands for the option's value in `--help`."""
    kinds, names = members(option.type), choices(option)
    if names:
        return "{" + ",".join((["X"] if float in kinds else []) + names) + "}"
    path = option.metadata["path"]
    shown = {int: "N", float: "X", bool: "true|false", list[float]: "X,X"}
    return shown.get(kinds[0], path.upper() if path else "TEXT")


def help_line(option: Field) -> str:
    """What an option does, its range and its default, unless that is unset."""
    default = shown_default(option)
    text = "; ".join(filter(None, (range_text(option), default and f"default: {default}")))
    return option.metadata["help"] + (f" ({text})" if text else "")
