"""The command line of a script, with the YAML files that it names, as a config.

Precedence: command line > `--config` YAML > default. A mistake is one line that names the option, the value and what is
allowed. Nothing heavy is imported here, so that `--help` answers at once.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from utils.config.files import AnyConfig, header, read_options, to_yaml
from utils.config.options import Config, allowed_text, help_line, metavar, options_of, read_word, unknown_option
from utils.system.errors import SuiteError, UserError, first_rank_first, one_line
from utils.system.launch import read_launch
from utils.system.ranks import adopt_ranks
from utils.system.secrets import without_secrets


def parse_config(
    kind: type[AnyConfig],
    argv: Sequence[str] | None = None,
    description: str = "",
    completed: Callable[[AnyConfig], AnyConfig] = lambda config: config,
) -> AnyConfig:
    """Builds the config from the command line, and checks the launch.

    On a mistake in either it prints one line and exits with code 2.

    Args:
        completed: for --print_config: the config with what else is known once files are read.
    """
    adopt_ranks(os.environ)
    try:
        config = read_config(kind, sys.argv[1:] if argv is None else argv, description, completed)
        read_launch(os.environ)
        return config
    except SuiteError as error:
        first_rank_first()
        print(f"error: {without_secrets(one_line(error))}", file=sys.stderr)
        sys.exit(error.exit_code)


def read_config(
    kind: type[AnyConfig],
    argv: Sequence[str],
    description: str = "",
    completed: Callable[[AnyConfig], AnyConfig] = lambda config: config,
) -> AnyConfig:
    """As parse_config, but raises UserError."""
    parser, actions = build_parser(kind, description)
    try:
        namespace, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise _without_value(kind, str(error.argument_name).removeprefix("--"), str(error)) from error
    given = vars(namespace)
    files = given.pop("config", [])
    if given.pop("help", False):
        headers = [f"\n\n{path}:\n{text}" for path in files if (text := header(path))]
        parser.description = description + "".join(headers)
        parser.print_help()
        sys.exit(0)
    if rest:
        raise _unexpected(kind, rest, argv)
    print_config = given.pop("print_config", False)
    values: dict[str, Any] = {}
    for path in files:
        values |= read_options(kind, path)
    config = kind(**(values | given))
    for name, action in actions.items():
        if not action.option_strings and name not in given:
            raise _without_value(kind, name)
    if print_config:
        print(to_yaml(dataclasses.asdict(completed(config))), end="")
        sys.exit(0)
    return config


def build_parser(
    kind: type[Config], description: str = ""
) -> tuple[argparse.ArgumentParser, dict[str, argparse.Action]]:
    """The parser of a script, whose namespace has only what the command line gives, and its actions by name."""
    options = options_of(kind)
    positional = [f"{name.upper()} " for name, option in options.items() if option.metadata["positional"]]
    parser = argparse.ArgumentParser(
        prog=kind.script,
        usage=f"%(prog)s {''.join(positional)}[--config FILE.yaml] [--OPTION VALUE ...]",
        description=description,
        epilog='TAB completes options and values after: eval "$(python -m utils.config.completion bash)" (or zsh)',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    actions: dict[str, argparse.Action] = {}
    groups: dict[str, Any] = {}
    actions["help"] = parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    actions["config"] = parser.add_argument(
        "--config",
        action="append",
        metavar="FILE.yaml",
        help="recipe or other YAML file of options; the command line wins; with --help its header is shown",
    )
    actions["print_config"] = parser.add_argument(
        "--print_config", action="store_true", help="print all options as YAML that --config reads, and exit"
    )
    for name, option in options.items():
        help = help_line(option).replace("%", "%%")
        if option.metadata["positional"]:
            actions[name] = parser.add_argument(name, metavar=name.upper(), help=help)
            actions[name].required = False  # read_config says that it is missing, as of all others
            continue
        group = option.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        value: dict[str, Any] = {"type": partial(read_word, option), "metavar": metavar(option)}
        if option.type is bool:
            value |= {"nargs": "?", "const": True}
        if option.metadata["words"]:
            value |= {"nargs": "+", "type": str}
        actions[name] = groups[group].add_argument(f"--{name}", help=help, **value)
    return parser, actions


def _without_value(kind: type[Config], name: str, message: str = "") -> UserError:
    """The error for an option without a value; `message` is argparse's, for --help and the like."""
    options = options_of(kind)
    if name not in options and name != "config":
        return UserError(message)
    allowed = allowed_text(options[name]) if name in options else "a YAML file"
    return UserError(f"{name}: the value is missing; it must be {allowed}")


def _unexpected(kind: type[Config], rest: Sequence[str], argv: Sequence[str]) -> UserError:
    """The error for words that belong to no option."""
    if match := re.match(r"--([^-\s=][^\s=]*)=?(.*)", rest[0]):
        after = argv[argv.index(rest[0]) + 1 :][:1]
        return unknown_option(kind, match[1], match[2] or "".join(after))
    return UserError(f"{' '.join(rest).strip() or repr('')}: unexpected argument; options are written --name value")
