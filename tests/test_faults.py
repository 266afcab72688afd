"""Two at once, and faults of disk, memory, clock, processes and network: the table in docs/reliability.md.

Each is made by the kernel itself, in namespaces where it would concern the whole machine.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from data.augment import ImagePipeline
from data.images import InMemory
from data.loaders import Steps, TrainLoader
from data.splits import Split
from tests.conftest import ROOT, augmentations
from tests.namespaces import Namespaces
from tests.processes import CONTEXT, join, run, start, tiny_config, train_script, wait_for
from tests.saved_runs import refusal
from tests.test_resume import logged_steps, outcome
from utils.config import AnalyzeConfig, TrainConfig
from utils.runs.checkpoint import list_checkpoints
from utils.system import files
from utils.system.errors import UserError, run_script
from utils.system.files import LOCK, lock_folder

# Of 45 steps, each of some milliseconds; without end where the test ends it.
OPTIONS = {"image_size": 8, "batch_size": 32, "epochs": 1, "checkpoint_every_steps": 5, "keep_checkpoints": 3}
ENDLESS = OPTIONS | {"epochs": 1000}
BY_WORKERS = ENDLESS | {"augment_backend": "albumentations", "num_workers": 2}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert run(train_script, tiny_config(folder, **OPTIONS)) == [0]
    return folder


@pytest.fixture
def machine() -> Iterator[Namespaces]:
    with Namespaces() as namespaces:
        yield namespaces


def lines(log: Path, start: str = "") -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith(start) and line.strip()]


def saved_step(folder: Path) -> int:
    return max([int(path.name[5:]) for path in list_checkpoints(folder / "checkpoints")], default=0)


def halt(process, folder: Path) -> None:
    """SIGSTOP, but not while a checkpoint is written or deleted."""
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, [process])
        root = folder / "checkpoints"
        if not list(root.glob(".step-*")) and len(list_checkpoints(root)) <= OPTIONS["keep_checkpoints"]:
            return
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.01)


# -- two at once ------------------------------------------------------------------------------------------------------


def hold(folder: Path, ready: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        ready.touch()
        time.sleep(600)


def test_a_run_of_another_host_that_shares_the_folder_is_named_on_one_line(machine, tmp_path):
    machine.run("hostname", "elsewhere")
    folder, log = tmp_path / "run", tmp_path / "log"
    (holder,) = start(*machine.within(hold), folder, tmp_path / "ready")
    wait_for((tmp_path / "ready").exists, [holder])
    assert run(train_script, tiny_config(folder), world_size=2, log=log) == [2, 2]
    assert lines(log, "error: ") == [f"error: output_dir: {folder} is in use by process {holder.pid} on elsewhere"]
    assert [path.name for path in folder.iterdir()] == [LOCK]
    holder.kill()
    join([holder])
    lock_folder(folder).close()


ROUNDS, AT_ONCE = 10, 8


def race(folder: Path, together, results) -> None:
    for number in range(ROUNDS):
        together.wait()
        try:
            lock, line = lock_folder(folder / str(number)), ""
        except UserError as error:
            lock, line = None, str(error)
        results.put((number, os.getpid(), line))
        together.wait()  # nobody gives up the lock before all have tried
        if lock:
            lock.close()


def test_of_eight_that_start_together_one_wins_and_the_others_name_it(tmp_path):
    """Also where a killed run has left its name."""
    for number in range(ROUNDS):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / LOCK).write_text("process 1 on a-host-that-is-gone\n" * (number % 2))
    results = CONTEXT.Queue()
    arguments = (race, tmp_path, CONTEXT.Barrier(AT_ONCE), results)
    processes = [process for _ in range(AT_ONCE) for process in start(*arguments)]
    found = [results.get(timeout=60) for _ in range(ROUNDS * AT_ONCE)]
    assert join(processes) == [0] * AT_ONCE
    for number in range(ROUNDS):
        (winner,) = [pid for where, pid, line in found if where == number and not line]
        refused = {line for where, _, line in found if where == number and line}
        holder = f"process {winner} on {os.uname().nodename}"
        assert refused == {f"output_dir: {tmp_path / str(number)} is in use by {holder}"}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, capsys, code):
    """None that is at hand has no locks, so here the answer of the kernel is made up."""

    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "lockf", refused)
    with lock_folder(tmp_path):
        pass
    warning = f"warning: the file system of {tmp_path} has no locks ({os.strerror(code)})"
    assert capsys.readouterr().err.startswith(warning)


def test_what_reads_a_run_does_not_disturb_it(tmp_path):
    """As analyze.py does, while checkpoints come and go."""
    from utils.analysis.setup import open_model  # here, so that not every process of these tests imports it

    folder, log = tmp_path / "run", tmp_path / "log"
    (process,) = start(train_script, tiny_config(folder, **ENDLESS), log=log)
    wait_for(lambda: saved_step(folder) > 0, [process])
    seen = set()
    while len(seen) < 4:
        found, _, _ = open_model(AnalyzeConfig(), folder, "run")
        seen.add(found.model_folder.name)
    process.kill()
    join([process])
    assert lines(log, "warning") == []


def test_a_second_analysis_into_the_same_folder_is_refused(unbroken, tmp_path, capsys):
    folder = tmp_path / "analysis"
    (holder,) = start(hold, folder, tmp_path / "ready")
    wait_for((tmp_path / "ready").exists, [holder])
    line = refusal(capsys, run=str(unbroken), output_dir=str(folder), track=False)
    assert line.startswith(f"error: output_dir: {folder} is in use by process {holder.pid} on ")
    assert [path.name for path in folder.iterdir()] == [LOCK]
    holder.kill()
    join([holder])


# -- the disk ---------------------------------------------------------------------------------------------------------


def fill(disk: Path) -> None:
    """Takes what is free, so that a file still grows to the end of its last page and no further."""
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    assert shutil.disk_usage(disk).free == 0


def protect(machine: Namespaces, disk: Path) -> None:
    """As a file system becomes that has found an error in itself."""
    machine.run("mount", "--bind", disk, disk)
    machine.run("mount", "-o", "remount,ro,bind", disk)


DISK_FAULTS = {
    "full": (lambda machine, disk, seen: fill(seen), lambda machine, disk, seen: (seen / "filler").unlink()),
    "read-only": (
        lambda machine, disk, seen: protect(machine, disk),
        lambda machine, disk, seen: machine.run("umount", "--lazy", disk),
    ),
}


@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_disk_that_fails_for_a_while_costs_warnings_and_nothing_else(unbroken, machine, tmp_path, fault):
    disk, log = tmp_path / "disk", tmp_path / "log"
    seen = machine.mount(disk, "64m")
    (process,) = start(*machine.within(train_script), tiny_config(disk / "run", **OPTIONS), log=log)
    wait_for(lambda: logged_steps(seen / "run") >= 10, [process])
    halt(process, seen / "run")
    begin, end = DISK_FAULTS[fault]
    begin(machine, disk, seen)
    os.kill(process.pid, signal.SIGCONT)
    told = ("warning: checkpoint at step ", "warning: metrics.jsonl cannot be written ")
    wait_for(lambda: all(lines(log, what) for what in told), [process])
    os.kill(process.pid, signal.SIGSTOP)
    end(machine, disk, seen)
    os.kill(process.pid, signal.SIGCONT)
    assert join([process]) == [0]
    assert outcome(seen / "run") == outcome(unbroken)
    assert len(lines(log, told[1])) == 1
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[fault]
    assert all(reason in line and str(disk) in line for line in lines(log, "warning"))


def train_and_fill_at_the_end(config: TrainConfig, disk: Path) -> None:
    import train_accelerate

    finish = train_accelerate.finish

    def full(*arguments):
        fill(disk)
        return finish(*arguments)

    train_accelerate.finish = full
    train_script(config)


def analyse_full_and_free(run: Path, disk: Path) -> None:
    import analyze

    config = AnalyzeConfig(run=str(run), only=["classes"], track=False)
    with pytest.raises(SystemExit, match="1"):
        run_script(analyze.main, config)
    (disk / "filler").unlink()
    run_script(analyze.main, config)


def test_each_line_of_a_full_disk_says_how_to_go_on_and_it_is_so(unbroken, machine, tmp_path):
    """From the start, in a stop by a signal (which reaches a process that is stopped itself), at the export, in the
    analysis."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    seen, config = machine.mount(disk, "64m"), tiny_config(disk / "run", **OPTIONS)
    filler = seen / "filler"

    fill(seen)
    assert run(*machine.within(train_script), config, log=log) == [1]
    assert lines(log) == [f"error: [Errno 28] No space left on device: '{disk}/run/{LOCK}'"]
    filler.unlink()

    (process,) = start(*machine.within(train_script), config, log=log)
    wait_for(lambda: saved_step(seen / "run") >= 10, [process])
    halt(process, seen / "run")
    fill(seen)
    kept = saved_step(seen / "run")
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    assert join([process]) == [128 + signal.SIGTERM]
    assert lines(log, "stopped at step ")[0].endswith(f"; the same command resumes from step-{kept:06d}")
    filler.unlink()

    log.unlink()
    assert run(*machine.within(train_and_fill_at_the_end), config, disk, log=log) == [1]
    assert f"(step {kept})" in lines(log, "resumed from ")[0]
    (line,) = lines(log, "error: ")
    assert line.startswith(f"error: [Errno 28] No space left on device: '{disk}/run/model/")
    assert line.endswith("; the same command resumes from step-000045")
    filler.unlink()
    assert run(*machine.within(train_script), config) == [0]
    assert outcome(seen / "run") == outcome(unbroken)

    fill(seen)
    log.unlink()
    assert run(*machine.within(analyse_full_and_free), disk / "run", disk, log=log) == [0]
    (line,) = lines(log, "error: ")
    assert line.startswith(f"error: [Errno 28] No space left on device: '{disk}/run/analysis/")
    assert "accuracy" in json.loads((seen / "run" / "analysis" / "summary.json").read_text())


def test_a_read_only_folder_is_refused_before_any_work(machine, tmp_path):
    log, folder = tmp_path / "log", tmp_path / "disk" / "run"
    machine.mount(tmp_path / "disk", "1m")
    machine.run("mount", "-o", "remount,ro", tmp_path / "disk")
    assert run(*machine.within(train_script), tiny_config(folder), log=log) == [2]
    (line,) = lines(log)
    assert line.startswith(f"error: output_dir: {folder} cannot be written to (Read-only file system)")


@pytest.mark.parametrize("removed", ["checkpoints", "."])
def test_a_folder_that_is_removed_is_made_anew(unbroken, tmp_path, removed):
    """The training itself loses nothing; of metrics.jsonl, the lines from before are gone."""
    folder, log = tmp_path / "run", tmp_path / "log"
    (process,) = start(train_script, tiny_config(folder, **OPTIONS), log=log)
    wait_for(lambda: logged_steps(folder) >= 10, [process])
    halt(process, folder)
    before = logged_steps(folder)
    shutil.rmtree(folder / removed)
    os.kill(process.pid, signal.SIGCONT)
    wait_for(lambda: saved_step(folder) > 0, [process])
    halt(process, folder)
    with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
        lock_folder(folder)
    os.kill(process.pid, signal.SIGCONT)
    assert join([process]) == [0]
    found, expected = outcome(folder), outcome(unbroken)
    if removed == ".":
        first = found["metrics"][0]["step"]
        assert first <= before + 2  # the file may have gone between its opening and a line
        expected["metrics"] = [row for row in expected["metrics"] if row["step"] >= first]
        assert any(f"{folder / LOCK} was removed" in line for line in lines(log, "warning"))
    else:
        assert lines(log, "warning") == []
    assert found == expected
    assert json.loads((folder / "summary.json").read_text())["steps"] == 45
    assert {"config.yaml", "environment.json"} <= {path.name for path in folder.iterdir()}


# -- the clock --------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_and_forward_changes_nothing(unbroken, tmp_path):
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("needs libfaketime (`apt install faketime`): the clock of the machine is not ours to set")
    folder, clock, log = tmp_path / "run", tmp_path / "clock", tmp_path / "log"
    clock.write_text("+0")
    options = vars(tiny_config(folder, **OPTIONS))
    code = "import atexit; from tests.processes import *; atexit.register(lambda: print('clock', time.time()))"
    code += f"; train_script(TrainConfig(**{options!r}))"
    environment = {
        **os.environ,
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # which setting the clock does not change either
    }
    started = time.monotonic()
    with open(log, "w") as output:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=output)
    for steps, jump in [(10, "-30d"), (25, "+400d")]:
        while logged_steps(folder) < steps and process.poll() is None:
            time.sleep(0.02)
        clock.write_text(jump)
    assert process.wait(120) == 0
    assert float(lines(log, "clock ")[0].split()[1]) > time.time() + 300 * 86400  # it was set
    assert outcome(folder) == outcome(unbroken)
    assert 0 < json.loads((folder / "summary.json").read_text())["train_seconds"] < time.monotonic() - started
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["images_per_second"] < math.inf for row in rows if row["split"] == "train")


# -- loader workers ---------------------------------------------------------------------------------------------------


def load(result: Path) -> None:
    """What two workers, and none, give of an epoch."""
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    split, pipeline = (
        Split(InMemory(images), np.arange(60)),
        ImagePipeline(augmentations(32, 4, "random", 8, (0.5,) * 3)),
    )
    found = [
        [batch.images.numpy() for batch in TrainLoader(split, pipeline, Steps(60, 20, 0, 0, 1), workers).epoch(0)]
        for workers in (2, 0)
    ]
    np.save(result, np.array(found))


def test_little_shared_memory_slows_loading_down_and_changes_nothing(machine, tmp_path):
    machine.mount(Path("/dev/shm"), "64k")
    log = tmp_path / "log"
    assert run(*machine.within(load), tmp_path / "found.npy", log=log) == [0]
    assert len(lines(log, "warning: shared memory (/dev/shm) is too small for the loader workers")) == 1
    by_workers, alone = np.load(tmp_path / "found.npy")
    np.testing.assert_array_equal(by_workers, alone)


def test_shared_memory_that_fills_up_during_a_run_costs_a_warning_and_room_for_no_worker_an_error(machine, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    shared = machine.mount(Path("/dev/shm"), "2m")
    (process,) = start(*machine.within(train_script), tiny_config(folder, **BY_WORKERS), log=log)
    wait_for(lambda: saved_step(folder) >= 5, [process])
    fill(shared)
    wait_for(lambda: lines(log, "warning: shared memory "), [process])
    kept = saved_step(folder)
    wait_for(lambda: saved_step(folder) > kept, [process])
    process.kill()
    join([process])

    log.unlink()
    assert run(*machine.within(train_script), tiny_config(folder, **BY_WORKERS), log=log) == [1]
    (line,) = lines(log, "error: ")
    assert "the loader workers cannot be started ([Errno 28] No space left on device" in line
    assert f"--num_workers 0 loads without them; the same command resumes from step-{saved_step(folder):06d}" in line


def test_a_killed_loader_worker_ends_the_run_with_one_line_and_it_goes_on(tmp_path):
    """SIGKILL is what the kernel's out-of-memory killer sends. The second time all get a SIGTERM, as from Slurm."""
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, **BY_WORKERS)
    (process,) = start(train_script, config, log=log)
    wait_for(lambda: saved_step(folder) >= 5, [process])
    psutil.Process(process.pid).children()[0].kill()
    assert join([process]) == [1]
    (line,) = lines(log, "error: ")
    assert line.startswith("error: a loader worker died (")
    assert "--num_workers" in line
    kept = saved_step(folder)
    assert line.endswith(f"; the same command resumes from step-{kept:06d}")

    log.unlink()
    (process,) = start(train_script, config, log=log)
    wait_for(lambda: saved_step(folder) > kept, [process])
    for each in (*psutil.Process(process.pid).children(), process):
        os.kill(each.pid, signal.SIGTERM)
    assert join([process]) == [128 + signal.SIGTERM]
    assert len(lines(log, "SIGTERM received")) == 1
    assert "Traceback" not in log.read_text()
    steps = [json.loads(line)["step"] for line in lines(folder / "metrics.jsonl") if '"train"' in line]
    assert steps == list(range(1, saved_step(folder) + 1))


# -- other processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rank_that_stands_still_for_a_while_is_waited_for(tmp_path):
    options = OPTIONS | {"max_steps": 20, "peer_timeout": 60}
    assert run(train_script, tiny_config(tmp_path / "unbroken", **options), world_size=2) == [0, 0]
    processes = start(train_script, tiny_config(tmp_path / "run", **options), world_size=2)
    wait_for(lambda: logged_steps(tmp_path / "run") >= 6, processes)
    os.kill(processes[1].pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(processes[1].pid, signal.SIGCONT)
    assert join(processes) == [0, 0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_rank_that_stands_still_too_long_is_given_up_and_the_run_goes_on(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, **ENDLESS, peer_timeout=6)
    processes = start(train_script, config, world_size=2, log=log)
    wait_for(lambda: saved_step(folder) >= 5, processes)
    os.kill(processes[1].pid, signal.SIGSTOP)
    processes[0].join(30)
    assert processes[0].exitcode == 1
    assert lines(log, "error: ") == [
        "error: rank 0 lost another process (dead, or silent for longer than --peer_timeout); the same command resumes "
        f"from step-{saved_step(folder):06d}"
    ]
    os.kill(processes[1].pid, signal.SIGCONT)
    assert join(processes) == [1, 1]
    assert "Traceback" not in log.read_text()
    assert run(train_script, tiny_config(folder, **ENDLESS, max_steps=saved_step(folder) + 2)) == [0]


# -- the network ------------------------------------------------------------------------------------------------------

KEYS = {"WANDB_API_KEY": "a" * 40, "HF_TOKEN": "hf_nobody"}  # in the form of keys; they belong to nobody


@pytest.mark.slow
def test_without_a_network_a_run_is_kept_offline_and_its_model_is_not_uploaded(machine, tmp_path):
    """No name is resolved there. The host itself can still be talked to, as the parts of W&B do among themselves."""
    machine.run("ip", "link", "set", "lo", "up")
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, **OPTIONS, max_steps=3, trackers=["wandb"], push_to_hub="nobody/digits")
    assert run(*machine.within(train_script), config, {**KEYS, "HF_HOME": str(tmp_path / "hf")}, log=log) == [0]
    text = log.read_text()
    assert "Traceback" not in text
    assert not any(key in text for key in KEYS.values())
    assert text.count("logging offline") == 1
    assert len(lines(log, "warning: push_to_hub: ")) == 1
    assert len(lines(log, f"warning: {folder / 'model'} was not uploaded (")) == 1
    assert list((folder / "wandb").glob("offline-run-*"))
    assert (folder / "summary.json").exists()


def test_a_download_without_a_network_is_one_line(machine, tmp_path):
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "run", dataset="cifar10", data_dir=str(tmp_path / "datasets"))
    assert run(*machine.within(train_script), config, log=log) == [1]
    (line,) = lines(log)
    assert line.startswith("error: cifar10 could not be downloaded (URLError: ")
    assert not (tmp_path / "run").exists()
