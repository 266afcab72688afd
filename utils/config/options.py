"""What an option is: a field of a config with all its facts. Configs made in Python are checked like any other."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, NamedTuple

from utils.config.values import checked
from utils.system.errors import UserError, did_you_mean
from utils.system.launch import goes_before_the_script


class Default(NamedTuple):
    """A default that depends on options declared before: `of(config)` is its value, `words` describe it in `--help`."""

    of: Callable[[Any], Any]
    words: str

    def __str__(self) -> str:
        return self.words


def option(
    default: Any,
    group: str,
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
        default: the value, or a Default.
        group, help: where `--help` lists the option, and what it says of it. Range and default are added.
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
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class Config:
    """The options of a script. Raises UserError naming the option, the value and what is allowed."""

    script: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            setattr(self, field.name, checked(field, value.of(self) if isinstance(value, Default) else value))


def options_of(kind: type[Config]) -> dict[str, dataclasses.Field]:
    """The options of a config by name."""
    return {field.name: field for field in dataclasses.fields(kind)}


def unknown_option(kind: type[Config], name: str, value: str = "") -> UserError:
    """The error for an unknown name; `value` is quoted if the option is a launcher's."""
    options = options_of(kind)
    if name in options and options[name].metadata["positional"]:
        return UserError(f"{name}: it is positional; give it as the first argument")
    if belongs := goes_before_the_script(name.replace("-", "_"), "" if value.startswith("-") else value, kind.script):
        return UserError(f"{name}: unknown option; {belongs}")
    return UserError(f"{name}: unknown option; {did_you_mean(name, list(options)).strip() or '--help lists them all'}")
