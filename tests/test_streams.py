"""Output that goes away costs its lines, never the run."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading

import pytest

from tests.conftest import ROOT
from tests.processes import join, run, start, tiny_config, train_script, wait_for
from tests.test_resume import logged_steps, outcome
from utils.config import TrainConfig
from utils.runs.checkpoint import list_checkpoints
from utils.system.streams import ExpendableStream

OPTIONS = {"image_size": 8, "epochs": 2}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, object]:
    """What a run gives whose output is read."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert run(train_script, tiny_config(folder, **OPTIONS)) == [0]
    return outcome(folder)


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def pipe_without_a_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def terminal_that_is_gone() -> int:
    master, terminal = pty.openpty()
    os.close(master)
    return terminal


def print_to(output: int) -> None:
    """Has stdout and stderr of this process lead there, as if it had been started so."""
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(output, descriptor)
        stream = open(descriptor, "w", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def train_into(lost, config: TrainConfig) -> None:
    print_to(lost())
    train_script(config)


@pytest.mark.parametrize("lost", [full_disk, pipe_without_a_reader, terminal_that_is_gone])
def test_lost_output_costs_the_run_nothing(unbroken, tmp_path, lost):
    assert run(train_into, lost, tiny_config(tmp_path / "run", **OPTIONS)) == [0]
    assert outcome(tmp_path / "run") == unbroken


def command_line(config: TrainConfig) -> list[str]:
    values = {**vars(config), "trackers": "none"}
    options = [f"--{name}={value}" for name, value in values.items() if value is not None and value != []]
    return [sys.executable, "train_accelerate.py", *options]


@pytest.mark.slow
def test_closed_descriptors_cost_the_run_nothing(unbroken, tmp_path):
    """Whose numbers the next files would get."""
    config = tiny_config(tmp_path / "run", **OPTIONS)
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command_line(config)]
    assert subprocess.run(closed, cwd=ROOT, timeout=120).returncode == 0
    assert outcome(tmp_path / "run") == unbroken


def test_help_to_a_reader_that_ends_is_no_error():
    """Of what is written, the interpreter has the rest in its buffer when it ends: exit code 120, and a complaint."""
    script = "import sys; from utils.system.streams import keep_streams; keep_streams(); print('x' * 10**6)"
    for descriptor in (full_disk(), pipe_without_a_reader()):
        ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=descriptor, stderr=subprocess.PIPE)
        os.close(descriptor)
        assert (ended.returncode, ended.stderr) == (0, b"")


def train_in_terminal(config: TrainConfig, name: str, nohup: bool) -> None:
    """As a shell starts it: at the head of a session, with a terminal that has a window."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    print_to(terminal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    train_script(config)


@pytest.mark.parametrize("nohup", [False, True])
def test_a_window_that_is_closed_saves_and_stops_the_run_unless_nohup_started_it(unbroken, tmp_path, nohup):
    folder, config = tmp_path / "run", tiny_config(tmp_path / "run", **OPTIONS)
    window, terminal = pty.openpty()
    (process,) = start(train_in_terminal, config, os.ttyname(terminal), nohup)
    wait_for(lambda: logged_steps(folder) >= 8, [process])
    os.close(terminal)
    os.close(window)
    assert join([process]) == [0 if nohup else 128 + signal.SIGHUP]
    if not nohup:
        saved = json.loads((list_checkpoints(folder / "checkpoints")[-1] / "trainer.json").read_text())["state"]["step"]
        assert saved == logged_steps(folder) >= 8
        assert run(train_script, config) == [0]
    assert outcome(folder) == unbroken


def test_lines_come_again_when_the_disk_has_room_again(tmp_path):
    """And a letter that the encoding lacks is escaped."""
    descriptor = full_disk()
    stream = ExpendableStream(open(descriptor, "w", encoding="ascii"))  # noqa: SIM115
    print("lost" * 10_000, file=stream, flush=True)
    os.dup2(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), descriptor)
    print("here again \u2713", file=stream, flush=True)
    assert (tmp_path / "log").read_text().endswith("here again \\u2713\n")


def test_a_handler_may_print_while_a_slow_reader_holds_a_line_up():
    """Python's own streams raise RuntimeError there ("reentrant call"), in the middle of a training."""
    reading, writing = os.pipe()
    stream, handled = ExpendableStream(open(writing, "w")), threading.Event()  # noqa: SIM115

    def handler(*_: object) -> None:
        print("SIGUSR1 received", file=stream, flush=True)
        handled.set()

    def interrupt_and_close() -> None:
        while not handled.wait(0.1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        os.close(reading)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=interrupt_and_close)
    thread.start()
    print("x" * 10**6, file=stream, flush=True)  # more than the pipe holds: it waits for the reader
    thread.join()
    signal.signal(signal.SIGUSR1, before)
    assert handled.is_set()
