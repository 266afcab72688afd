"""Completion by TAB of the options of both scripts, and of their values.

    eval "$(python -m utils.config.completion bash)"     # or zsh, after compinit

What it prints can be kept in a file that ~/.bashrc or ~/.zshrc reads. The scripts are completed wherever they
stand on the line, after `python` as after `accelerate launch` and its options.
"""

import dataclasses
from pathlib import Path
from typing import Any

from utils.config import AnalyzeConfig, TrainConfig
from utils.config.options import FOLDERS, Parser, allowed_names, build_parser
from utils.system.errors import SuiteError, UserError, leave

SCRIPTS = {"train_accelerate.py": TrainConfig, "analyze.py": AnalyzeConfig}
COMMANDS = "accelerate python python3"  # what a script is started with

# Hands the line from the script on to the function that shtab wrote for it. Before the script, names of files follow.
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
    """What a shell evaluates to complete both scripts. Raises UserError where shtab is not installed."""
    try:
        import shtab
    except ImportError as error:
        raise UserError("shtab is not installed; pip install -r requirements-optional.txt") from error

    parts = []
    for script, kind in SCRIPTS.items():
        types = {spec.name: spec.type for spec in dataclasses.fields(kind)}
        parser = build_parser(kind)
        parser.prog = script
        actions: list[Any] = parser._actions
        for action in actions:
            if action.dest in FOLDERS:
                action.complete = shtab.DIRECTORY
            elif action.dest == "predict":
                action.complete = shtab.FILE
            elif action.dest == "config":
                action.complete = shtab.glob("*.yaml")
            elif kind_of_value := types.get(action.dest):
                action.choices = ["true", "false"] if kind_of_value is bool else allowed_names(kind_of_value) or None
        parts.append(shtab.complete(parser, shell, root_prefix=Path(script).stem))
    return "\n".join(parts) + DISPATCH[shell] % {"names": "|".join(SCRIPTS), "commands": COMMANDS}


def main() -> None:
    parser = Parser({}, description=__doc__)
    parser.add_argument("shell", choices=list(DISPATCH))
    try:
        print(completion_script(parser.parse_args().shell))
    except SuiteError as error:
        leave(error.exit_code, f"error: {error}")


if __name__ == "__main__":
    main()
