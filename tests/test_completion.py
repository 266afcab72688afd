"""TAB completes options and values of both scripts, in real shells."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> dict[str, str]:
    """What each shell reads, as files."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        command = [sys.executable, "-m", "utils.config.completion", shell]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        (folder / shell).write_text(printed)
    return {shell: str(folder / shell) for shell in ("bash", "zsh")}


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("accelerate launch train_accelerate.py --optimizer ", {"sgd", "adamw", "muon"}),
        ("accelerate launch --num_processes 2 train_accelerate.py --optim", {"--optimizer"}),
        ("python ./train_accelerate.py --epochs 3 --schedule co", {"cosine", "constant"}),
        ("python train_accelerate.py --trackers te", {"tensorboard"}),
        ("python train_accelerate.py --nesterov ", {"true", "false"}),
        ("python train_accelerate.py --config recipes/dig", {"recipes/digits.yaml"}),
        ("python train_accelerate.py --output_dir uti", {"utils"}),
        ("python analyze.py uti", {"utils"}),
        ("python analyze.py runs/x --only em", {"embedding"}),
        ("python analyze.py runs/x --predict READ", {"README.md"}),
        ("python other.py --optim", set()),
    ],
)
def test_bash_completes_the_line(scripts, line, expected):
    words = " ".join(f"'{word}'" for word in line.split(" "))
    commands = f"source {scripts['bash']}; COMP_WORDS=({words}); COMP_CWORD={line.count(' ')}; _suite_complete"
    done = subprocess.run(
        ["bash", "--norc", "-c", f'{commands}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("shell", "command", "start"),
    [
        ("bash", ["--norc", "-i"], "source {script}"),
        ("zsh", ["-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(cat {script})"'),
    ],
)
def test_tab_completes_what_is_typed(scripts, tmp_path, shell, command, start):
    """An option's name and its value end by TAB, and the script takes them."""
    pexpect = pytest.importorskip("pexpect")
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PS1": "ready> ", "TERM": "dumb", "INPUTRC": "/dev/null"}
    terminal = pexpect.spawn(shell, command, cwd=ROOT, env=environment, encoding="utf-8", timeout=30)
    terminal.sendline(start.format(script=scripts[shell]))
    terminal.sendline(f"python train_accelerate.py --optimi\tada\t --print_config > {tmp_path}/printed; echo en''ded")
    terminal.expect("ended")
    terminal.sendline("exit")
    assert "optimizer: adamw" in (tmp_path / "printed").read_text()
