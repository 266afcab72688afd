"""Reading a launch: its variables, the options after `accelerate launch`, and what the table says of them.

`accelerate launch`, torchrun and mpirun pass most of what they are asked for on as environment variables. Imports
nothing heavy: a launch is checked before the libraries load.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

import yaml

from utils.system.launch_table import ACCUMULATION, ROWS, TRUE, USE_CPU, Launch
from utils.system.ranks import PRECISION, adopt_ranks, whole_number

PR_SET_PDEATHSIG = 1
TORCHRUN = "nproc_per_node|nnodes|node_rank|master_addr|master_port|standalone|rdzv_endpoint|rdzv_id"


def stop_with_launcher() -> None:
    """Asks Linux for a SIGTERM when the launcher that started this process dies.

    `accelerate launch` does not pass a SIGTERM on to a single process, which would continue training unnoticed.
    """
    launched = PRECISION in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def read_launch(environ: MutableMapping[str, str]) -> Launch:
    """Adds to the variables what the launcher knows but does not set, and checks each row of the table.

    Raises UserError for the first row that is refused. Idempotent.
    """
    adopt_ranks(environ)
    if "NPROC" in environ and "MIXED_PRECISION" in environ:  # accelerate.notebook_launcher forgets the prefix
        environ.setdefault(PRECISION, environ["MIXED_PRECISION"])
    options = _launchers_options() if PRECISION in environ else {}
    if steps := options.get("gradient_accumulation_steps"):  # the launcher passes it on to DeepSpeed alone
        environ[ACCUMULATION] = steps
    if options.get("use_cpu", "").lower() in TRUE:  # and this to a single process alone
        environ.setdefault(USE_CPU, "true")
    launch = Launch(environ, options)
    for row in ROWS:
        if row.check:
            row.check(launch)
    return launch


def notes(launch: Launch, device: str) -> list[str]:
    """Lines to print once: what the launch asks for that has no effect on a device of this type."""
    return [line for row in ROWS if row.note and (line := row.note(launch, device))]


def accumulation_steps(environ: Mapping[str, str]) -> int:
    """Micro-batches per step and process that a launch, once read, asks for."""
    return whole_number(environ, ACCUMULATION, 1)


def goes_before_the_script(name: str, value: str, script: str) -> str | None:
    """Where an option of a launcher belongs, with the command; None for any other option."""
    option = f"--{name} {value}".rstrip()
    if re.fullmatch(TORCHRUN, name):
        return f"it is torchrun's and goes before the script: torchrun {option} {script}"
    if any(re.fullmatch(row.options, name) for row in ROWS):
        return f"it is the launcher's and goes before the script: accelerate launch {option} {script}"
    return None


def _launchers_options() -> dict[str, str]:
    """The options typed after the `accelerate launch` that started this process; empty without one."""
    import psutil  # which Accelerate requires

    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            if options := typed_options(process.cmdline(), sys.argv[0]):
                return options_of_file(options.get("config_file", "")) | options
    return {}


def options_of_file(path: str) -> dict[str, str]:
    """Keys of the launcher's YAML or JSON file that the launcher may drop; {} if it cannot be read."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    asked = content if isinstance(content, dict) else {}
    return {name: str(asked[name]) for name in ("num_processes", "use_cpu") if name in asked}


def typed_options(words: Sequence[str], script: str) -> dict[str, str]:
    """The launcher's options in a command line `accelerate launch --OPTION VALUE ... script ...`, without dashes."""
    places = [place for place, word in enumerate(words) if script and Path(word).stem == Path(script).stem]
    before = list(words[: places[0]]) if places else []
    if not any("accelerate" in Path(word).name for word in before):
        return {}
    options = {}
    for word, after in zip(before, [*before[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value if equals or after.startswith("--") else after
    return options
