"""Where the user has no home that can be written to, as in a container: a folder of their own, and no word about it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import run, tiny_config
from tests.test_streams import command_line
from tests.test_tracking import records, rows
from utils.system.home import FOLDERS, provide_home

UNKNOWN = 54321  # a user without an entry in the system's list
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user can write to, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def provide(variables: dict[str, str], found: Path) -> None:
    """As the unknown user, writes the variables that come out."""
    for name in (*FOLDERS, "HOME"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    tempfile.tempdir = None  # as this process has found it
    file = open(found, "w")  # noqa: SIM115 -- as root
    os.setuid(UNKNOWN)
    provide_home()
    json.dump({name: os.environ[name] for name in (*FOLDERS, "HOME") if name in os.environ}, file)
    file.close()


def provided(variables: dict[str, str], folder: Path) -> dict[str, str]:
    assert run(provide, {**variables, "TMPDIR": str(folder)}, folder / "found") == [0]
    return json.loads((folder / "found").read_text())


@needs_root
@pytest.mark.parametrize("variables", [{}, {"HOME": ""}, {"HOME": "/nonexistent"}, {"HOME": "/etc/passwd"}])
def test_a_missing_home_is_a_private_folder(open_folder, variables):
    found = provided(variables, open_folder)
    home = open_folder / f"home-of-user-{UNKNOWN}"
    assert found == {"HOME": str(home)}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert home.stat().st_uid == UNKNOWN


@needs_root
def test_a_home_to_read_only_stays_and_only_what_is_written_goes_elsewhere(open_folder):
    """A login and downloads are read where they are. What the user has set is left alone."""
    home = open_folder / "home"
    (home / ".config" / "wandb").mkdir(parents=True)
    found = provided({"HOME": str(home), "TORCH_HOME": "/mine"}, open_folder)
    elsewhere = open_folder / f"home-of-user-{UNKNOWN}"
    written = {name: str(elsewhere / FOLDERS[name]) for name in ("HF_HOME", "MPLCONFIGDIR", "WANDB_CACHE_DIR")}
    assert found == {"HOME": str(home), "TORCH_HOME": "/mine", **written}
    (home / ".config").chmod(0o777)
    (home / ".cache").mkdir(mode=0o777)
    (home / ".cache").chmod(0o777)
    assert provided({"HOME": str(home)}, open_folder).keys() == {"HOME"}


@needs_root
def test_a_folder_of_somebody_else_is_not_taken_for_ones_own(open_folder):
    theirs = open_folder / f"home-of-user-{UNKNOWN}"
    theirs.mkdir()
    home = Path(provided({}, open_folder)["HOME"])
    assert home != theirs
    assert home.stat().st_uid == UNKNOWN


def test_a_home_is_left_alone(tmp_path, monkeypatch):
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    provide_home()
    assert dict(os.environ) == before


@needs_root
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)")
def test_training_and_analysis_without_a_home_are_silent_and_recorded(open_folder):
    """HOME is unset for one, and / for the other, as `docker run --user` has it."""
    path = open_folder / "run"
    config = tiny_config(path, image_size=8, epochs=1, max_steps=3, find_lr=True)
    train = [*(argument for argument in command_line(config) if "trackers" not in argument), "--trackers=wandb"]
    analyse = [sys.executable, "analyze.py", str(path), "--only", "classes,gradcam"]
    # It may read everything, as this Python may be in a folder of root's, and write nothing.
    user = ["setpriv", f"--reuid={UNKNOWN}", f"--regid={UNKNOWN}", "--clear-groups"]
    user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    variables = {"PATH": os.environ["PATH"], "TMPDIR": str(open_folder)}
    for command, home in ((train, {}), (analyse, {"HOME": "/"})):
        environment = {**variables, **home}
        done = subprocess.run([*user, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("W&B: not logged in, logging offline")
    logged = [record["item"] for record in records(path, "history")]
    assert {item["step"] for item in logged if "train/loss" in item} == {1, 2, 3}
    assert any("analysis/accuracy" in item for item in logged)
    assert len(rows(path)) == 4
