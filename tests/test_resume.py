"""Promise 2: stopped anywhere, nothing lost."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.kill_test import TIMINGS
from models.saved import FORMAT_VERSION
from tests.processes import join, run, start, tiny_config, train_script, wait_for
from tests.saved_runs import change, reseal, training_refusal
from utils.config import TrainConfig
from utils.config.files import load_config
from utils.runs.checkpoint import list_checkpoints
from utils.system.files import digest

OPTIONS = {
    "image_size": 8, "checkpoint_every_steps": 5, "cutout": 4, "horizontal_flip": "random", "keep_checkpoints": 3,
}  # fmt: skip


def outcome(folder: Path) -> dict[str, object]:
    """What must not depend on having been stopped: weights, averages, optimizer state, metrics without timings."""
    last = list_checkpoints(folder / "checkpoints")[-1]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((last / "trainer.json").read_text())["state"]
    return {
        "exported": digest([(folder / "model" / "model.safetensors").read_bytes()]),
        "tensors": {path.name: digest([path.read_bytes()]) for path in last.glob("*.safetensors")},
        "state": {key: value for key, value in state.items() if key not in ("train_seconds", "metrics_size")},
        "metrics": [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows],
    }


def logged_steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[int, Path]:
    """Runs that were never stopped, by number of processes."""
    runs = {}
    for world_size in (1, 2):
        runs[world_size] = tmp_path_factory.mktemp("unbroken") / str(world_size)
        assert set(run(train_script, tiny_config(runs[world_size], **OPTIONS), world_size=world_size)) == {0}
    return runs


@pytest.mark.parametrize(("world_size", "at_step"), [(1, 30), (2, 8)])
def test_killed_run_ends_with_the_same_weights(unbroken, tmp_path, world_size, at_step):
    config = tiny_config(tmp_path / "run", **OPTIONS)
    processes = start(train_script, config, world_size=world_size)
    wait_for(lambda: logged_steps(tmp_path / "run") >= at_step, processes)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    join(processes)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9999, "spl')  # a line torn by the crash
    assert set(run(train_script, config, world_size=world_size)) == {0}
    assert outcome(tmp_path / "run") == outcome(unbroken[world_size])


POLICIES = {
    "averages of a progressive resolution": (
        {
            "ema_decay": 0.99,
            "lookahead_steps": 4,
            "image_size": 16,
            "resolution": "8@0.3,12@0.6,16",
            "tta": "flip_translate",
        },
        {"unaveraged.safetensors", "lookahead.safetensors"},
    ),
    "muon, mixing by albumentations, and a validation split": (
        {
            "optimizer": "muon",
            "lr": 0.01,
            "validation_fraction": 0.2,
            "augment_backend": "albumentations",
            "horizontal_flip": "alternating",
            "mixup": 0.4,
            "cutmix": 1.0,
        },
        {"best.safetensors"},
    ),
    "speednet": ({"model": "speednet", "norm_bias_lr_factor": 16.0, "padding_mode": "reflect"}, set()),
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_goes_on_exactly(tmp_path, name):
    options, files = POLICIES[name]
    options = OPTIONS | options | {"epochs": 2}
    assert run(train_script, tiny_config(tmp_path / "unbroken", **options)) == [0]
    config = tiny_config(tmp_path / "run", **options)
    for at_step in (8, 24):  # before and after the sizes of the images change
        (process,) = start(train_script, config)
        wait_for(lambda steps=at_step: logged_steps(tmp_path / "run") >= steps, [process])
        os.kill(process.pid, signal.SIGKILL)
        join([process])
    assert run(train_script, config) == [0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "unbroken")
    always = {"model.safetensors", "optimizer.safetensors"}
    assert outcome(tmp_path / "run")["tensors"].keys() == always | files


@pytest.mark.parametrize(("world_size", "signum"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_signal_saves_within_a_step_and_the_run_goes_on_exactly(unbroken, tmp_path, world_size, signum):
    folder, log = tmp_path / "run", tmp_path / "log"
    processes = start(train_script, tiny_config(folder, **OPTIONS), world_size=world_size, log=log)
    wait_for(lambda: logged_steps(folder) >= 12, processes)
    os.kill(processes[-1].pid, signum)  # with two processes, only rank 1 hears of it
    at_signal = logged_steps(folder)
    assert join(processes) == [128 + signum] * world_size
    saved = json.loads((list_checkpoints(folder / "checkpoints")[-1] / "trainer.json").read_text())["state"]["step"]
    assert at_signal <= saved <= at_signal + 2
    assert "Traceback" not in log.read_text()
    assert log.read_text().count(f"stopped at step {saved}") == 1
    assert set(run(train_script, tiny_config(folder, **OPTIONS), world_size=world_size)) == {0}
    assert outcome(folder) == outcome(unbroken[world_size])


def train_and_stop_while_evaluating(config, signum: int) -> None:
    """The signal arrives in the second evaluation."""
    import train_accelerate
    from utils.system.errors import run_script

    evaluate, calls = train_accelerate.evaluate, []

    def interrupted(run, split, between_batches):
        calls.append(split)
        if len(calls) == 2:
            os.kill(os.getpid(), signum)
        return evaluate(run, split, between_batches)

    train_accelerate.evaluate = interrupted
    run_script(train_accelerate.main, config)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_stop_or_kill_during_evaluation_loses_no_training(unbroken, tmp_path, signum, code):
    config = tiny_config(tmp_path / "run", **OPTIONS)
    code = -signum if signum == signal.SIGKILL else 128 + signum
    assert run(train_and_stop_while_evaluating, config, signum) == [code]
    assert logged_steps(tmp_path / "run") == 46
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000046"
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"test"') == 1
    assert run(train_script, config) == [0]
    assert outcome(tmp_path / "run") == outcome(unbroken[1])


def train_and_stop(config, where: str) -> None:
    """SIGTERM arrives in the range test or in the final evaluation."""
    import train_accelerate
    from utils.system.errors import run_script

    name = {"range test": "train_step", "final evaluation": "finish"}[where]
    called, ordinary = [], getattr(train_accelerate, name)

    def interrupted(*arguments):
        called.append(arguments)
        if len(called) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return ordinary(*arguments)

    setattr(train_accelerate, name, interrupted)
    run_script(train_accelerate.main, config)


def test_stop_in_the_final_evaluation_is_answered_soon_and_the_same_command_completes_the_run(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, **OPTIONS, max_steps=4, tta="flip")
    assert run(train_and_stop, config, "final evaluation", log=log) == [128 + signal.SIGTERM]
    text = log.read_text()
    assert "SIGTERM received: stopping; training is finished" in text
    assert "saving" not in text
    assert text.endswith(
        "stopped in the final evaluation, after all training; the same command resumes from step-000004\n"
    )
    assert not (folder / "summary.json").exists()
    assert run(train_script, config, log=log) == [0]
    assert "training is complete (4 steps of 69: max_steps); evaluating and exporting" in log.read_text()
    assert (folder / "model" / "model.safetensors").exists()


def test_stop_in_the_range_test_says_that_nothing_is_saved(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, **OPTIONS, find_lr=True, max_steps=4)
    assert run(train_and_stop, config, "range test", log=log) == [128 + signal.SIGTERM]
    assert "SIGTERM received: stopping; nothing has been trained yet" in log.read_text()
    assert log.read_text().endswith("stopped in the range test, before training; the same command starts over\n")
    assert "saving" not in log.read_text()
    assert run(train_script, config) == [0]


def test_second_interrupt_stops_at_once(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    processes = start(train_script, tiny_config(folder, **OPTIONS, epochs=200), log=log)
    wait_for(lambda: logged_steps(folder) >= 3, processes)
    os.kill(processes[0].pid, signal.SIGSTOP)  # so that both signals are pending before the step ends
    os.kill(processes[0].pid, signal.SIGINT)
    os.kill(processes[0].pid, signal.SIGCONT)
    time.sleep(0.001)
    os.kill(processes[0].pid, signal.SIGINT)
    assert join(processes) == [128 + signal.SIGINT]
    assert "Traceback" not in log.read_text()


# 14 whole batches and one of a single image, whose step spoils the model: every epoch's end is worse than what it
# stops before.
SPOILED = {
    **OPTIONS, "validation_fraction": 0.2, "batch_size": 82, "epochs": 2, "norm": "group", "momentum": 0.0, "lr": 0.05,
    "schedule": "constant", "warmup_fraction": 0.0,
}  # fmt: skip


def exported_and_summary(folder: Path) -> tuple[bytes, dict]:
    return (folder / "model/model.safetensors").read_bytes(), json.loads((folder / "summary.json").read_text())


def test_stop_by_max_steps_inside_an_epoch_does_not_compete_for_the_best(tmp_path):
    """Without an epoch's end the last model is reported, else that of the best end; the resumed run ends as ever."""
    assert run(train_script, tiny_config(tmp_path / "unbroken", **SPOILED)) == [0]
    folder = tmp_path / "run"
    assert run(train_script, tiny_config(folder, **SPOILED, max_steps=14)) == [0]
    exported, summary = exported_and_summary(folder)
    assert exported == (folder / "checkpoints/step-000014/model.safetensors").read_bytes()
    assert summary["best_validation_accuracy"] is None
    assert "The weights are those after the last step." in (folder / "model/README.md").read_text()

    assert run(train_script, tiny_config(folder, **SPOILED, max_steps=29)) == [0]
    exported, summary = exported_and_summary(folder)
    assert exported == (folder / "checkpoints/step-000029/best.safetensors").read_bytes()
    rows = outcome(folder)["metrics"]
    accuracy = {row["step"]: row["accuracy"] for row in rows if row["split"] == "validation"}
    assert summary["best_validation_accuracy"] == accuracy[15] < min(accuracy[14], accuracy[29])

    assert run(train_script, tiny_config(folder, **SPOILED)) == [0]
    result, expected = outcome(folder), outcome(tmp_path / "unbroken")
    result["metrics"] = [row for row in result["metrics"] if row["split"] == "train" or row["step"] not in (14, 29)]
    assert result == expected
    ours, theirs = (exported_and_summary(path)[1] for path in (folder, tmp_path / "unbroken"))
    assert [ours[name] for name in ours if name not in ("train_seconds", *TIMINGS)] == [
        theirs[name] for name in theirs if name not in ("train_seconds", *TIMINGS)
    ]


def test_best_epoch_on_smaller_images_is_not_reported_at_the_larger_size(tmp_path):
    """Where max_steps ends the run before the first epoch's end on the larger ones, the last model is."""
    config = tiny_config(tmp_path / "run", **SPOILED | {"image_size": 12, "resolution": "8@0.6,12", "max_steps": 20})
    assert run(train_script, config) == [0]
    exported, summary = exported_and_summary(tmp_path / "run")
    assert exported == (tmp_path / "run/checkpoints/step-000020/model.safetensors").read_bytes()
    assert summary["best_validation_accuracy"] is None
    assert json.loads((tmp_path / "run/model/config.json").read_text())["resolution"] == 12


def test_resume_with_other_processes_workers_and_micro_batches_goes_on(unbroken, tmp_path):
    """The order of the data goes on as if nothing had changed; without batch statistics so does the loss."""
    folder, options = tmp_path / "run", {**OPTIONS, "norm": "group", "lr": 0.001, "max_steps": 36}
    assert run(train_script, tiny_config(folder, **{**options, "max_steps": 28})) == [0]
    changed = tiny_config(folder, **options, num_workers=1, micro_batch_size=10)
    assert run(train_script, changed, world_size=2) == [0, 0]
    straight = tmp_path / "straight"
    assert run(train_script, tiny_config(straight, **options)) == [0]
    found, expected = (
        {row["step"]: row["loss"] for row in outcome(path)["metrics"] if row["split"] == "train"}
        for path in (folder, straight)
    )
    assert found.keys() == expected.keys() == set(range(1, 37))
    for step in (29, 30, 31, 32):  # later steps drift apart by the rounding of the first
        assert found[step] == pytest.approx(expected[step], rel=1e-3)


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(unbroken, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert run(train_script, tiny_config(folder, **OPTIONS, max_steps=30)) == [0]
    newest = list_checkpoints(folder / "checkpoints")[-1]
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    assert run(train_script, tiny_config(folder, **OPTIONS), log=log) == [0]
    warnings = [line for line in log.read_text().splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert str(newest) in warnings[0]
    assert "SHA-256" in warnings[0]
    result, expected = outcome(folder), outcome(unbroken[1])
    assert result == expected


def train_with_small_disk(config, limit: int) -> None:
    """Every file over `limit` bytes fails to be written, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train_script(config)


def test_full_disk_keeps_the_older_checkpoint_and_training_goes_on(unbroken, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert run(train_script, tiny_config(folder, **OPTIONS, max_steps=20)) == [0]
    before = list_checkpoints(folder / "checkpoints")
    assert run(train_with_small_disk, tiny_config(folder, **OPTIONS), 1_000_000, log=log) == [1]
    text = log.read_text()
    assert "the newest is step-000020" in text
    assert text.count("Traceback") == 0
    assert text.strip().splitlines()[-1].startswith("error: ")
    assert list_checkpoints(folder / "checkpoints") == before
    assert run(train_script, tiny_config(folder, **OPTIONS)) == [0]
    assert outcome(folder)["tensors"] == outcome(unbroken[1])["tensors"]


def test_dead_rank_ends_the_others_within_seconds_and_one_line(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    processes = start(train_script, tiny_config(folder, image_size=8, epochs=200), world_size=3, log=log)
    wait_for(lambda: logged_steps(folder) >= 5, processes)
    os.kill(processes[2].pid, signal.SIGKILL)
    started = time.monotonic()
    codes = join(processes)
    assert time.monotonic() - started < 10
    assert codes == [1, 1, -signal.SIGKILL]
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert 1 <= len(errors) <= 2  # each survivor may be the first to notice
    assert all("lost another process" in line for line in errors)
    assert "Traceback" not in log.read_text()


def test_finished_run_is_not_trained_again(unbroken, tmp_path):
    shutil.copytree(unbroken[1], tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    log = tmp_path / "log"
    assert run(train_script, tiny_config(tmp_path / "run", **OPTIONS), log=log) == [0]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"]
    assert f"run is finished (69 steps, test accuracy {accuracy:.2%}); nothing to train\n" in log.read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.2}, ["lr", "0.2", "0.1"]),
        (
            {"epochs": 30},
            ["epochs: 30 differs from 3", "resume with --epochs 3, or", "--epochs 30 --output_dir NEW"],
        ),
        ({"batch_size": 32}, ["batch_size: 32", "micro_batch_size"]),
        ({"width": 32}, ["width", "32", "16"]),
        ({"resume": "never"}, ["already holds a run", "--resume auto"]),
        ({"resume": "nowhere"}, ["nowhere", "auto, never or a checkpoint folder"]),
    ],
)
def test_what_does_not_fit_the_saved_run_is_refused_in_one_line(unbroken, tmp_path, changes, words):
    shutil.copytree(unbroken[1], tmp_path / "run")
    files = {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"
    }
    log = tmp_path / "log"
    assert run(train_script, tiny_config(tmp_path / "run", **{**OPTIONS, **changes}), log=log) == [2]
    (line,) = [line for line in log.read_text().splitlines() if line.strip()]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("resume", ["auto", "a path"])
@pytest.mark.parametrize(
    ("changes", "saved", "words"),
    [
        ({"model": "resnet34"}, {}, ["model: resnet34", "resnet18"]),
        ({"width": 32}, {}, ["width: 32", "16"]),
        ({"dataset": "cifar10"}, {}, ["dataset: cifar10", "digits"]),
        ({"image_size": 24}, {}, ["image_size: 24", "16"]),
        ({"validation_fraction": 0.1}, {}, ["validation_fraction: 0.1", "0.0"]),
        ({}, {"trainer.json": {"format_version": FORMAT_VERSION + 1}}, [f"version {FORMAT_VERSION + 1} is newer"]),
        ({}, {"trainer.json": {"format_version": 0}}, ["format version 0"]),
        ({}, {"trainer.json": {"train_count": 1436}}, ["1436 images", "1437"]),
        ({}, {"config.json": {"format_version": FORMAT_VERSION + 1}}, [f"version {FORMAT_VERSION + 1} is newer"]),
        ({}, {"config.json": {"architecture": "resnet34"}}, ["architecture", "resnet34", "resnet18"]),
        ({}, {"config.json": {"arguments": {"norm": "batch", "width": 32}}}, ["arguments", "32", "16"]),
        ({}, {"config.json": {"class_names": ["cat", "dog"]}}, ["class_names", "cat", "'0', '1'"]),
        ({}, {"config.json": {"class_names": list("0123456788")}}, ["class_names", "must all be different"]),
        ({}, {"config.json": {"image_size": 32}}, ["image_size", "32", "16"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_another_checkpoint_than_the_run_asks_for_is_named_before_any_download(
    digits_run, tmp_path, capsys, changes, saved, words, resume
):
    run = Path(shutil.copytree(digits_run, tmp_path / "run"))
    newest = list_checkpoints(run / "checkpoints")[-1]
    for name, values in saved.items():
        change(newest / name, **values)
        reseal(newest)
    folder = {"output_dir": str(run if resume == "auto" else tmp_path / "fork"), "data_dir": str(tmp_path / "data")}
    folder["resume"] = "auto" if resume == "auto" else str(newest)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    line = training_refusal(
        capsys, dataclasses.replace(load_config(TrainConfig, run / "config.yaml"), **folder, **changes)
    )
    for word in words:
        assert word in line
    assert {path.name for path in tmp_path.iterdir()} == {"run"}  # no download, no fork
    assert {path: path.read_bytes() for path in before} == before


def test_options_that_an_older_version_lacked_were_what_are_now_the_defaults(digits_run, tmp_path, capsys):
    run = Path(shutil.copytree(digits_run, tmp_path / "run"))
    newest = list_checkpoints(run / "checkpoints")[-1]
    options = json.loads((newest / "trainer.json").read_text())["options"]
    change(newest / "trainer.json", options={name: value for name, value in options.items() if name != "policy"})
    reseal(newest)
    config = dataclasses.replace(load_config(TrainConfig, run / "config.yaml"), output_dir=str(run), policy="trivial")
    assert "policy: trivial differs from none" in training_refusal(capsys, config)


def test_second_run_on_a_folder_is_refused_and_names_the_first(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    processes = start(train_script, tiny_config(folder, epochs=200))
    wait_for(lambda: logged_steps(folder) >= 1, processes)
    assert run(train_script, tiny_config(folder, epochs=200), log=log) == [2]
    assert f"in use by process {processes[0].pid}" in log.read_text()
    os.kill(processes[0].pid, signal.SIGKILL)
    join(processes)
    assert run(train_script, tiny_config(folder, epochs=200, max_steps=10)) == [0]  # the lock died with its owner


def test_fork_from_a_checkpoint_takes_the_curves_along(unbroken, tmp_path):
    source = list_checkpoints(unbroken[1] / "checkpoints")[0]
    config = tiny_config(tmp_path / "fork", **OPTIONS, resume=str(source))
    assert run(train_script, config) == [0]
    assert outcome(tmp_path / "fork") == outcome(unbroken[1])


def has_ended(process: psutil.Process) -> bool:
    """Also where nobody asks how: its parent has died before."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["cpu", "multi_cpu"])
def test_sigterm_to_the_launcher_saves(tmp_path, topology):
    folder = tmp_path / "run"
    config = tiny_config(folder, image_size=8, epochs=200)
    options = [f"--{name}={value}" for name, value in vars(config).items() if value is not None]
    options = [option for option in options if not option.startswith("--trackers")] + ["--trackers=none"]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"accelerate_configs/{topology}.yaml",
    ]
    launcher = subprocess.Popen([*command, "train_accelerate.py", *options], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while logged_steps(folder) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    deadline = time.monotonic() + 60
    while not all(map(has_ended, processes)):  # a single process is on its own from here
        assert time.monotonic() < deadline, "it trains on"
        time.sleep(0.05)
    steps = logged_steps(folder)
    assert 5 <= steps < 200 * 23
    assert int(list_checkpoints(folder / "checkpoints")[-1].name[5:]) == steps


@pytest.mark.slow
def test_max_restarts_brings_a_killed_run_back_by_itself(unbroken, tmp_path):
    folder = tmp_path / "run"
    options = [
        f"--{name}={value}"
        for name, value in vars(tiny_config(folder, **OPTIONS)).items()
        if value is not None and name != "trackers"
    ]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/multi_cpu.yaml"]
    launcher = subprocess.Popen([*command, "--max_restarts", "2", "train_accelerate.py", *options, "--trackers=none"])
    deadline = time.monotonic() + 90
    while logged_steps(folder) < 12 and time.monotonic() < deadline:
        time.sleep(0.05)
    psutil.Process(launcher.pid).children()[-1].kill()
    assert launcher.wait(120) == 0
    assert outcome(folder) == outcome(unbroken[2])
