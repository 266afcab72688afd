"""Completion of the options of both scripts and of their values by TAB.

    eval "$(python -m utils.config.completion bash)"     # or zsh, after compinit

The output can be saved to a file that ~/.bashrc or ~/.zshrc sources. The scripts are completed anywhere on the line,
after `python` as after `accelerate launch` and its options.
"""

import sys
from pathlib import Path
from typing import Any

from utils.config import AnalyzeConfig, TrainConfig
from utils.config.options import choices, options_of
from utils.config.parser import build_parser
from utils.system.errors import SuiteError, UserError, leave

CONFIGS = (TrainConfig, AnalyzeConfig)
COMMANDS = "accelerate python python3"  # that start a script

# Passes the line from the script on to the function that shtab wrote for it. Before the script, file names follow.
DISPATCH = {
    "bash": """
_suite_complete() {
  local place
  for ((place = 0; place < COMP_CWORD; place++)); do
    case "${COMP_WORDS[place]##*/}" in
      %(names)s)
        local function="_shtab_${COMP_WORDS[place]##*/}"
        COMP_WORDS=("${COMP_WORDS[@]:place}")
        COMP_CWORD=$((COMP_CWORD - place))
        "${function%%.py}"
        return ;;
    esac
  done
}
complete -o bashdefault -o default -F _suite_complete %(commands)s
""",
    "zsh": """
_suite_complete() {
  local place
  for ((place = 1; place < CURRENT; place++)); do
    case ${words[place]:t} in
      %(names)s)
        local function=_shtab_${words[place]:t:r}
        words=("${(@)words[place,-1]}")
        ((CURRENT -= place - 1))
        $function
        return ;;
    esac
  done
  _files
}
compdef _suite_complete %(commands)s
""",
}


def completion_script(shell: str) -> str:
    """What a shell evaluates to complete both scripts. Raises UserError if shtab is not installed."""
    try:
        import shtab
    except ImportError as error:
        raise UserError("shtab is not installed; pip install -r requirements-optional.txt") from error

    paths = {"folder": shtab.DIRECTORY, "file": shtab.FILE}
    parts = []
    for kind in CONFIGS:
        parser, actions = build_parser(kind)
        completed: dict[str, Any] = dict(actions)  # shtab reads an attribute that argparse does not declare
        completed["config"].complete = shtab.glob("*.yaml")
        for name, option in options_of(kind).items():
            if option.metadata["path"]:
                completed[name].complete = paths[option.metadata["path"]]
            else:
                completed[name].choices = ["true", "false"] if option.type is bool else choices(option) or None
        parts.append(shtab.complete(parser, shell, root_prefix=Path(kind.script).stem))
    names = "|".join(kind.script for kind in CONFIGS)
    return "\n".join(parts) + DISPATCH[shell] % {"names": names, "commands": COMMANDS}


def main() -> None:
    try:
        if len(sys.argv) != 2 or sys.argv[1] not in DISPATCH:
            raise UserError(f"usage: python -m utils.config.completion {'|'.join(DISPATCH)}")
        print(completion_script(sys.argv[1]))
    except SuiteError as error:
        leave(error.exit_code, f"error: {error}")


if __name__ == "__main__":
    main()
