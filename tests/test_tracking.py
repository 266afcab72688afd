"""W&B, TensorBoard and trackio: what they show of a run, and that no fault of theirs costs the run anything."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import join, start, tiny_config, train_script, wait_for
from tests.processes import run as run_processes
from tests.wandb_server import WandbServer
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.parser import read_config
from utils.system.errors import UserError
from utils.tracking.trackers import check_trackers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
WANDB = str(Path(sys.executable).with_name("wandb"))
SPLITS = ("train", "validation", "test")


SECRETS = {
    "WANDB_API_KEY": "5ec4e7" * 6 + "abcd",
    "HF_TOKEN": "hf_notToBeWrittenAnywhere",
    "AWS_SECRET_ACCESS_KEY": "notToBe/written+Either",
    "A_GIT_TOKEN": "ghp_norThisOfTheClone",
}
# As git was told to clone: the token is the user's name.
REMOTE = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "remote.origin.url",
    "GIT_CONFIG_VALUE_0": f"https://{SECRETS['A_GIT_TOKEN']}:x-oauth-basic@example.org/suite.git",
}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    """Neither a key of this machine's user nor a setting of theirs; no prompt either, since there is no terminal."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


# Of 46 steps, each of some milliseconds, in two epochs: 27 lines are a few of the second.
LIFE = {"image_size": 8, "epochs": 2, "checkpoint_every_steps": 10}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines_of(items: list[dict]) -> list[tuple[int, str]]:
    """(step, split) of history lines."""
    return [(item["step"], split) for item in items for split in SPLITS if f"{split}/loss" in item]


def records(folder: Path, kind: str) -> list[dict]:
    """Records of one kind from all offline W&B runs of a run directory, in order."""
    found = []
    for piece in sorted((folder / "wandb").glob("offline-run-*")):
        found += [line[kind] for line in inspect(piece) if line["type"] == kind]
    return found


@functools.cache
def inspect(piece: Path) -> list[dict]:
    """What a W&B run that is over has written, record by record."""
    command = [WANDB, "leet", "inspect", "--json", str(piece)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def merged(updates: list[dict]) -> dict[str, Any]:
    """What updates, one after another, come to."""
    return {key: value for update in updates for key, value in update.get("update", {}).items()}


def kill(processes: list, folder: Path, after: int, signum: int = signal.SIGKILL) -> None:
    """Stops the processes when so many lines are in metrics.jsonl."""
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= after, processes)
    for process in processes:
        os.kill(process.pid, signum)
    join(processes)


# -- a W&B run, record by record --------------------------------------------------------------------------------------


TRACKED = {"image_size": 8, "epochs": 2, "log_every_steps": 6, "validation_fraction": 0.2, "find_lr": True}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Path:
    """A finished run of two processes under all three trackers, and its analysis; W&B offline."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    config = tiny_config(
        folder, **TRACKED, trackers=["wandb", "tensorboard", "trackio"], run_group="seeds", run_tags=["small", "test"],
        track_model="all", project_name="digits",
    )  # fmt: skip
    variables, log = {**SECRETS, **REMOTE, "WANDB_MODE": "offline"}, folder.with_name("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETRC", str(folder / "netrc"))
        assert run_processes(train_script, config, variables, world_size=2, log=log) == [0, 0], log.read_text()
        analysis = [sys.executable, "analyze.py", str(folder), "--images", "10"]
        environment = {**os.environ, **variables}
        done = subprocess.run(analysis, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert "warning" not in done.stderr
    return folder


def test_no_secret_of_the_environment_is_in_any_file(tracked):
    files = [path for path in tracked.rglob("*") if path.is_file()]
    content = {path.relative_to(tracked): path.read_bytes() for path in files}
    assert any(b"example.org/suite.git" in held for held in content.values())
    for name, value in SECRETS.items():
        assert not [path for path, held in content.items() if value.encode() in held], name


def test_wandb_config_tells_how_to_repeat_the_run(tracked):
    config = merged([record for record in records(tracked, "config") if "dataset" in record.get("update", {})])
    assert {"dataset", "lr", "seed", "batch_size", "trackers"} <= config.keys()
    environment = config["environment"]
    assert {"torch", "timm", "safetensors", "huggingface_hub"} <= environment["versions"].keys()
    assert environment["git_commit"]
    assert environment["git_dirty"] in (True, False)
    assert environment["world_size"] == 2
    assert environment["mixed_precision"] == "no"
    assert environment["command"]
    digests = {split: environment["data"][split]["sha256"] for split in SPLITS}
    assert environment["data"]["train"]["images"] + environment["data"]["validation"]["images"] == 1437
    assert len(set(digests.values())) == 3


def test_two_processes_are_one_wandb_run_with_job_types_tags_and_group(tracked):
    runs = records(tracked, "run")
    assert [record["job_type"] for record in runs] == ["train", "analysis"]
    saved = json.loads((tracked / "environment.json").read_text())
    for record in runs:
        assert (record["run_id"], record["project"]) == (saved["run_id"], "digits")
        assert (record["run_group"], record["tags"], record["display_name"]) == ("seeds", ["small", "test"], "run")


def test_wandb_history_is_metrics_jsonl_against_the_optimizer_step(tracked):
    items = [record["item"] for record in records(tracked, "history")]
    assert lines_of(items) == [(row["step"], row["split"]) for row in rows(tracked)]
    (metric, *_) = records(tracked, "metric")
    assert (metric["glob_name"], metric["step_metric"]) == ("*", "step")
    training = [row for row in rows(tracked) if row["split"] == "train"]
    logged = [item for item in items if "train/loss" in item]
    for row, item in zip(training, logged, strict=True):
        for key in ("loss", "accuracy", "lr", "images_per_second", "gradient_norm", "cpu_cores"):
            assert item[f"train/{key}"] == pytest.approx(row[key])
    places = [item["_step"] for item in items]
    assert places == sorted(set(places))  # W&B drops what is logged at a step that it has passed


def test_wandb_summary_has_best_and_last_as_plain_numbers(tracked):
    summary = merged(records(tracked, "summary"))
    best = max((row for row in rows(tracked) if row["split"] == "validation"), key=lambda row: row["accuracy"])
    assert summary["best_validation_accuracy"] == best["accuracy"]
    assert summary["best_step"] == best["step"]
    last = [row for row in rows(tracked) if row["split"] == "test"][-1]
    assert summary["test/accuracy"] == last["accuracy"]
    assert summary["test_accuracy"] == json.loads((tracked / "summary.json").read_text())["test_accuracy"]


def test_wandb_has_augmentations_range_test_and_model_summary(tracked):
    items = merged([{"update": record["item"]} for record in records(tracked, "history")])
    page = next((tracked / "wandb").glob(f"offline-run-*/files/{items['model_summary.path']}"))
    assert "Total params: 701,466" in page.read_text()
    assert next((tracked / "wandb").glob(f"offline-run-*/files/{items['lr_finder.path']}"))
    shown = next((tracked / "wandb").glob(f"offline-run-*/files/{items['augmentations.path']}"))
    assert shown.read_bytes() == (tracked / "augmentations.png").read_bytes()
    assert items["lr_finder_curve.ncols"] == 3


def test_models_are_artifacts_with_aliases_and_metadata(tracked):
    artifacts = [record for record in records(tracked, "artifact") if record["type"] in ("model", "dataset")]
    data, *models = artifacts
    assert (data["type"], data["name"], data["use_after_commit"]) == ("dataset", "digits", True)
    assert json.loads(data["metadata"])["train"]["sha256"]
    run_id = json.loads((tracked / "environment.json").read_text())["run_id"]
    assert [model["name"] for model in models] == [f"checkpoint-{run_id}"] * 2 + [f"model-{run_id}"]
    steps = [row["step"] for row in rows(tracked) if row["split"] == "test"]
    for model, step in zip(models, [*steps, steps[-1]], strict=True):
        assert {"latest", f"step-{step:06d}"} <= set(model["aliases"])
    exported = models[-1]
    files = {entry["path"] for entry in exported["manifest"]["contents"]}
    assert {"config.json", "model.safetensors"} <= files
    metadata = json.loads(exported["metadata"])
    assert "best" in exported["aliases"]
    assert metadata["git_commit"]
    assert metadata["test_accuracy"] == json.loads((tracked / "summary.json").read_text())["test_accuracy"]
    assert {"MANIFEST.json", "optimizer.safetensors"} <= {entry["path"] for entry in models[0]["manifest"]["contents"]}


def test_an_artifact_of_a_checkpoint_can_be_resumed(tracked, tmp_path):
    checkpoint = next(record for record in records(tracked, "artifact") if record["name"].startswith("checkpoint"))
    for entry in checkpoint["manifest"]["contents"]:
        (tmp_path / "checkpoint").mkdir(exist_ok=True)
        shutil.copyfile(entry["local_path"], tmp_path / "checkpoint" / entry["path"])
    config = tiny_config(tmp_path / "fork", resume=str(tmp_path / "checkpoint"), **TRACKED)
    assert run_processes(train_script, config) == [0]
    assert json.loads((tmp_path / "fork" / "summary.json").read_text())["epochs"] == 2


def test_the_analysis_is_in_the_same_run_as_media_that_stay_with_a_copy(tracked, tmp_path):
    copied = Path(shutil.copytree(tracked, tmp_path / "elsewhere"))
    piece = sorted((copied / "wandb").glob("offline-run-*"))[-1]
    item = [record["item"] for record in records(tracked, "history")][-1]  # as in the copy
    shown = {key.removeprefix("analysis/").split(".")[0] for key in item if key.startswith("analysis/")}
    assert {
        "accuracy", "curves", "confusion_matrix", "calibration", "misclassified", "gradcam", "misclassified_images",
        "cam_images", "misclassified_table", "per_class_table", "confusion_table", "report",
    } <= shown  # fmt: skip
    for key in ("curves", "confusion_matrix", "gradcam", "report", "per_class_table", "misclassified_table"):
        assert (piece / "files" / item[f"analysis/{key}.path"]).is_file()
    for gallery in ("misclassified_images", "cam_images"):
        assert all((piece / "files" / name).is_file() for name in item[f"analysis/{gallery}.filenames"])
    assert (piece / "files" / item["analysis/report.path"]).read_text() == (
        tracked / "analysis" / "report.html"
    ).read_text()
    table = json.loads((piece / "files" / item["analysis/misclassified_table.path"]).read_text())
    assert table["columns"][:6] == ["index", "image", "cam", "true", "predicted", "confusion"]
    assert table["columns"][6:] == [f"p({digit})" for digit in range(10)]
    for line in table["data"]:
        assert sum(line[6:]) == pytest.approx(1)
        assert line[5] == f"{line[3]} → {line[4]}"


# -- one run over a whole life ----------------------------------------------------------------------------------------


def test_an_offline_run_of_two_processes_goes_on_after_a_kill_without_a_repeated_or_missing_line(tmp_path):
    folder = tmp_path / "run"
    config = tiny_config(folder, trackers=["wandb"], **LIFE)
    kill(start(train_script, config, world_size=2), folder, after=27)
    assert run_processes(train_script, config, world_size=2) == [0, 0]
    items = [record["item"] for record in records(folder, "history")]
    assert lines_of(items) == [(row["step"], row["split"]) for row in rows(folder)]
    places = [item["_step"] for item in items if "epoch" in item]
    assert places == sorted(set(places))
    runs = records(folder, "run")
    assert {record["run_id"] for record in runs} == {json.loads((folder / "environment.json").read_text())["run_id"]}


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_an_online_run_goes_on_after_a_stop_without_a_repeated_or_missing_line(tmp_path, signum):
    """A killed client has told the server nothing of its last fifteen seconds."""
    folder = tmp_path / "run"
    config = tiny_config(folder, trackers=["wandb"], **LIFE)
    with WandbServer() as server:
        kill(start(train_script, config, server.environment), folder, after=27, signum=signum)
        assert run_processes(train_script, config, server.environment) == [0]
    ((run_id, tracked),) = server.runs.items()
    assert run_id == json.loads((folder / "environment.json").read_text())["run_id"]
    assert lines_of(tracked["history"]) == [(row["step"], row["split"]) for row in rows(folder)]
    assert tracked["exit_code"] == 0
    assert tracked["config"]["dataset"] == "digits"
    assert any("model_summary" in line for line in tracked["history"])
    assert tracked["summary"]["test_accuracy"] == json.loads((folder / "summary.json").read_text())["test_accuracy"]
    used = {artifact["name"]: artifact["used"] for artifact in server.artifacts}
    assert used == {"digits": True, f"model-{run_id}": False}


def test_a_run_that_began_offline_is_whole_online(tmp_path):
    folder = tmp_path / "run"
    config = tiny_config(folder, trackers=["wandb"], **LIFE)
    kill(start(train_script, config), folder, after=27, signum=signal.SIGTERM)
    with WandbServer() as server:
        assert run_processes(train_script, config, server.environment) == [0]
    (tracked,) = server.runs.values()
    assert lines_of(tracked["history"]) == [(row["step"], row["split"]) for row in rows(folder)]


def test_a_copy_of_a_run_directory_is_sent_from_another_machine(tracked, tmp_path):
    copied = Path(shutil.copytree(tracked, tmp_path / "elsewhere"))
    with WandbServer() as server:
        environment = {**os.environ, **server.environment}
        pieces = sorted(map(str, (copied / "wandb").glob("offline-run-*")))
        done = subprocess.run([WANDB, "sync", *pieces], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (sent,) = server.runs.values()
    assert lines_of(sent["history"]) == [(row["step"], row["split"]) for row in rows(tracked)]
    assert sent["job_types"][-1] == "analysis"
    assert (
        server.files[sent["history"][-1]["analysis/report"]["path"]]
        == (tracked / "analysis" / "report.html").read_bytes()
    )


# -- never a prompt, never a hang, never the run ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuse", "hang", "nobody"])
def test_a_run_whose_server_does_not_answer_is_kept_offline_and_says_so_once(tmp_path, fault):
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, trackers=["wandb"], image_size=8, epochs=1)
    with WandbServer(fault) as server:
        environment = {**server.environment, "WANDB_HTTP_TIMEOUT": "2"}
        if fault == "nobody":
            environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"
        assert run_processes(train_script, config, environment, log=log) == [0]
    said = [line for line in log.read_text().splitlines() if "W&B" in line]
    assert len(said) == 1
    assert "logging offline" in said[0]
    assert f"wandb sync {folder}/wandb/*run-*" in said[0]
    items = [record["item"] for record in records(folder, "history")]
    assert lines_of(items) == [(row["step"], row["split"]) for row in rows(folder)]


def test_a_server_that_falls_silent_during_the_run_costs_nothing_but_the_dashboard(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, trackers=["wandb"], image_size=8, epochs=2)
    with WandbServer() as server:
        environment = {**server.environment, "WANDB_HTTP_TIMEOUT": "2", "WANDB_FINISH_TIMEOUT": "3"}
        processes = start(train_script, config, environment, log=log)
        wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= 5, processes)
        server.fault = "hang"
        join(processes)
    assert [process.exitcode for process in processes] == [0]
    assert (folder / "summary.json").exists()
    said = [line for line in log.read_text().splitlines() if "W&B" in line]
    assert len(said) == 1
    assert f"wandb sync {folder}/wandb/*run-*" in said[0]
    (piece,) = (folder / "wandb").glob("run-*")
    items = [line["history"]["item"] for line in inspect(piece) if line["type"] == "history"]
    assert lines_of(items) == [(row["step"], row["split"]) for row in rows(folder)]


def test_a_wrong_key_is_named_and_the_run_kept_offline(tmp_path):
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "run", trackers=["wandb"], image_size=8, max_steps=2)
    assert run_processes(train_script, config, {"WANDB_API_KEY": "short"}, log=log) == [0]
    (said,) = [line for line in log.read_text().splitlines() if "W&B" in line]
    assert "logging offline" in said


def test_wandb_variables_are_respected(tmp_path):
    folder = tmp_path / "run"
    variables = {
        "WANDB_MODE": "offline", "WANDB_PROJECT": "theirs", "WANDB_NAME": "named", "WANDB_RUN_ID": "chosen1",
        "WANDB_RUN_GROUP": "family", "WANDB_TAGS": "one,two", "WANDB_DIR": str(tmp_path / "there"),
    }  # fmt: skip
    (tmp_path / "there").mkdir()
    config = tiny_config(folder, trackers=["wandb"], image_size=8, max_steps=2)
    assert run_processes(train_script, config, variables) == [0]
    assert not list(folder.glob("wandb/*run-*"))
    (record,) = records(tmp_path / "there", "run")
    found = tuple(record[key] for key in ("project", "display_name", "run_id", "run_group", "tags"))
    assert found == ("theirs", "named", "chosen1", "family", ["one", "two"])


@pytest.mark.parametrize(("variable", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_wandb_switched_off_is_said_once(tmp_path, variable, value):
    """Then it is not asked about the tag either."""
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, trackers=["wandb"], image_size=8, max_steps=2)
    assert run_processes(train_script, config, {variable: value, "WANDB_TAGS": "x" * 65}, log=log) == [0]
    assert log.read_text().splitlines().count(f"W&B: off ({variable}={value})") == 1
    assert "warning" not in log.read_text()
    assert not (folder / "wandb").exists()


def test_in_a_sweep_and_with_empty_variables_a_resumed_run_stays_one(tmp_path):
    variables = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep1", "WANDB_RESUME": "must"}
    variables |= dict.fromkeys(("WANDB_RUN_ID", "WANDB_TAGS", "WANDB_PROJECT", "WANDB_CONSOLE", "WANDB_JOB_TYPE"), "")
    for last in (2, 4):
        config = tiny_config(tmp_path / "run", trackers=["wandb"], image_size=8, max_steps=last)
        log = tmp_path / "log"
        assert run_processes(train_script, config, variables, log=log) == [0]
        assert "warning" not in log.read_text()
    first, second = records(tmp_path / "run", "run")
    assert first["run_id"] == second["run_id"]
    items = [record["item"] for record in records(tmp_path / "run", "history")]
    assert lines_of(items) == [(1, "train"), (2, "train"), (2, "test"), (3, "train"), (4, "train"), (4, "test")]


REFUSED = {
    "WANDB_TAGS": f"short,{'x' * 65}", "WANDB_PROJECT": "a/b", "WANDB_ENTITY": "a?b", "WANDB_RUN_ID": "a:b",
    "WANDB_MODE": "nonsense", "WANDB_RESUME": "perhaps", "WANDB_CONSOLE": "loud", "WANDB_SILENT": "maybe",
    "WANDB_BASE_URL": "example", "WANDB_INIT_TIMEOUT": "soon", "WANDB_API_KEY": " key", "WANDB_DIR": "/proc/none",
    "WANDB_FORK_FROM": "run1?_step=1", "WANDB_RESUME_FROM": "run1?_step=1",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_variable_that_wandb_refuses_is_named(name):
    with pytest.raises(UserError, match=f"^{name}: "):
        check_trackers(TrainConfig(), {name: REFUSED[name]})
    check_trackers(TrainConfig(trackers=["tensorboard"]), {name: REFUSED[name]})


@pytest.mark.parametrize("run_id", ["..", ".hidden", "a\\b", 'a"b', "x" * 129])
def test_a_run_id_that_a_resume_would_not_take_is_named(run_id):
    with pytest.raises(UserError, match=r"^WANDB_RUN_ID: "):
        check_trackers(TrainConfig(), {"WANDB_RUN_ID": run_id})


@pytest.mark.parametrize(
    ("option", "value"), [("run_tags", ["x" * 65]), ("project_name", "a#b"), ("project_name", "x" * 129)]
)
def test_an_option_that_wandb_refuses_is_named(option, value):
    with pytest.raises(UserError, match=f"^{option}: "):
        check_trackers(TrainConfig(**{option: value}), {})


def test_what_wandb_takes_is_taken(tmp_path, capsys):
    variables = {
        "WANDB_ANONYMOUS": "must", "WANDB_SILENT": "true", "WANDB_QUIET": "1", "WANDB_CONSOLE": "off",
        "WANDB_NOTES": "a: b", "WANDB_RESUME": "must", "WANDB_DIR": str(tmp_path / "not" / "there"),
        "WANDB_START_METHOD": "thread", "WANDB_BASE_URL": "http://localhost:8080", "WANDB_ENTITY": "a-team",
        "WANDB_USERNAME": "me", "WANDB_SWEEP_ID": "s1", "WANDB_X_DISABLE_STATS": "true", "WANDB_RUN_ID": "one-2.3",
        "WANDB_TAGS": "a,b c", "WANDB_NAME": "a/b: c?", "WANDB_MODE": "dryrun", "WANDB_HTTP_TIMEOUT": "5",
        "WANDB_SAVE_CODE": "false", "WANDB_IGNORE_GLOBS": "*.png", "WANDB_DISABLE_GIT": "true",
        "WANDB_RUN_GROUP": "x" * 200, "WANDB_JOB_TYPE": "", "WANDB_PROJECT": "",
    }  # fmt: skip
    check_trackers(TrainConfig(run_name="a/b: c?", run_group="x" * 200, run_tags=["x" * 64]), variables)
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_what_wandb_refuses_is_refused_before_anything_is_made(tmp_path):
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "run", trackers=["wandb"], run_tags=["x" * 65])
    assert run_processes(train_script, config, world_size=2, log=log) == [2, 2]
    (line,) = [line for line in log.read_text().splitlines() if "error" in line]
    assert line.startswith("error: run_tags: ['xxx")
    assert not (tmp_path / "run").exists()


def test_a_failing_tracker_warns_once_and_the_others_go_on(tmp_path, capsys):
    from utils.tracking.tracker import Identity, Tracker
    from utils.tracking.trackers import TRACKERS, Trackers

    attempts = []

    class Failing(Tracker):
        name = "failing"

        def __init__(self, identity):
            super().__init__()

        def log_line(self, values, step, split):
            attempts.append(step)
            raise RuntimeError("the disk\nis full")

        describe = show = summarise = close = lambda self, *arguments: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "failing", type(sys)("failing"))
        sys.modules["failing"].Failing = Failing
        patch.setitem(TRACKERS, "failing", ("failing", "Failing"))
        trackers = Trackers(["failing", "tensorboard"], Identity(tmp_path, "id", "project", "name"))
        for step in (1, 2):
            row = {"step": step, "epoch": 1, "split": "train", "loss": 1.0}
            trackers.each(lambda tracker, row=row: tracker.line(row))
        trackers.close(finished=True)
    assert attempts == [1, 2]
    assert capsys.readouterr().err == "warning: failing failed (the disk is full); the run directory has everything\n"
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_failing_tracker_does_not_fail_the_analysis(run, monkeypatch, capsys):
    import analyze  # here, so that not every process of these tests imports it

    monkeypatch.setenv("WANDB_MODE", "offline")
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"trackers": ["wandb"]}))
    (run / "wandb").write_text("a file where W&B wants its folder")
    analyze.main(AnalyzeConfig(run=str(run), only=["curves"]))
    assert capsys.readouterr().err.count("warning: wandb failed") == 1
    assert (run / "analysis" / "report.html").exists()


def train_and_look_at_the_modules(config: TrainConfig) -> None:
    from train_accelerate import main

    main(config)
    assert not {"wandb", "torch.utils.tensorboard", "trackio", "torchinfo"} & sys.modules.keys()


def test_without_trackers_their_libraries_are_not_loaded(tmp_path):
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "run", image_size=8, max_steps=1)
    assert run_processes(train_and_look_at_the_modules, config, log=log) == [0], log.read_text()


def test_tracker_that_is_not_installed_is_refused_with_how_to_install_it(monkeypatch):
    from utils.system.errors import UserError
    from utils.tracking.trackers import check_installed

    check_installed(["none"])
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not there
    with pytest.raises(UserError, match="trackio is not installed; pip install"):
        check_installed(["wandb", "trackio"])


# -- TensorBoard and trackio as equals --------------------------------------------------------------------------------


def board(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def trackio_logs(folder: Path) -> list[tuple[int, dict]]:
    """(step, values) of every line in the database."""
    with contextlib.closing(sqlite3.connect(next(folder.glob("trackio/*.db")))) as database:
        return [(step, json.loads(text)) for step, text in database.execute("select step, metrics from metrics")]


def test_the_trackers_have_the_same_names_and_numbers(tracked):
    items = [record["item"] for record in records(tracked, "history")]
    numbers = {key for item in items for key, value in item.items() if "/" in key and isinstance(value, (int, float))}
    numbers = {key for key in numbers if key.split("/")[0] in SPLITS}
    scalars = board(tracked)
    logged = trackio_logs(tracked)
    assert {"train/loss", "train/gradient_norm", "validation/accuracy", "test/loss"} <= numbers
    for key in numbers:
        expected = [(item["step"], item[key]) for item in items if key in item]
        seen = [(event.step, event.value) for event in scalars.Scalars(key)]
        assert [step for step, _ in seen] == [step for step, _ in expected]
        assert [value for _, value in seen] == pytest.approx([value for _, value in expected])
        assert [(step, values[key]) for step, values in logged if key in values] == expected


def test_the_trackers_have_the_same_media(tracked):
    item = [record["item"] for record in records(tracked, "history")][-1]
    kinds = ("image-file", "images/separated")
    pictures = {key.removesuffix("._type") for key, value in item.items() if value in kinds}
    tables = {key.removesuffix("._type") for key, value in item.items() if value == "table-file"}
    scalars = board(tracked)
    assert {"analysis/confusion_matrix", "analysis/misclassified_images"} <= pictures
    assert pictures <= set(scalars.Tags()["images"])
    texts = {tag.removesuffix("/text_summary") for tag in scalars.Tags()["tensors"]}
    assert {"model_summary", "config", "analysis/per_class_table", "analysis/confusion", "analysis/report"} <= texts
    shown = {key for _, values in trackio_logs(tracked) for key in values}
    assert pictures | {"analysis/report", "analysis/confusion", "model_summary", "lr_finder", "augmentations"} <= shown
    assert tables - {"analysis/confusion_table"} <= shown


def test_tensorboard_compares_runs_by_options_and_results(tracked):
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = board(tracked).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    options = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert options["lr"].number_value == 0.1
    assert options["model"].string_value == "resnet18"


def test_the_others_go_on_after_a_kill_without_a_repeated_or_missing_line(tmp_path):
    folder = tmp_path / "run"
    config = tiny_config(folder, trackers=["tensorboard", "trackio"], **LIFE)
    kill(start(train_script, config), folder, after=27)
    assert run_processes(train_script, config) == [0]
    scalars, logged = board(folder), trackio_logs(folder)
    for split in ("train", "test"):
        steps = [row["step"] for row in rows(folder) if row["split"] == split]
        assert [event.step for event in scalars.Scalars(f"{split}/loss")] == steps
        assert sorted(step for step, values in logged if f"{split}/loss" in values) == steps


def test_the_dashboard_of_trackio_shows_the_run_in_a_browser(tracked):
    pytest.importorskip("trackio")
    from tests.browser import open_browser

    environment = {**os.environ, "TRACKIO_DIR": str(tracked / "trackio")}
    code = "import trackio; trackio.show(project='digits', open_browser=False, block_thread=True)"
    dashboard = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://[\w.:/?=]+", next(line for line in dashboard.stdout if "http" in line))
        with open_browser() as browser:
            page = browser.new_page()
            page.goto(address[0])
            page.get_by_text("gradient_norm").first.wait_for()
            page.get_by_text("Media & Tables").click()
            page.get_by_text("analysis/confusion_matrix").first.wait_for()
            page.wait_for_function("[...document.images].filter(image => image.naturalWidth > 500).length >= 5")
    finally:
        dashboard.kill()
        dashboard.wait()


# -- sweep ------------------------------------------------------------------------------------------------------------


def sweep_commands() -> list[list[str]]:
    """Command lines that an agent makes of recipes/sweep.yaml: for the first and for the last value of everything."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "recipes" / "sweep.yaml").read_text())
    commands = []
    for end in (0, -1):
        chosen = {}
        for name, entry in sweep["parameters"].items():
            values = entry.get("values") or [entry["value"]] if "value" in entry or "values" in entry else None
            chosen[name] = {"value": values[end] if values else (entry["min"], entry["max"])[end]}
        flags = create_sweep_command_args({"args": chosen})
        command = create_sweep_command(sweep["command"])
        expanded = [part for word in command for part in (flags["args"] if word == "${args}" else [word])]
        commands.append([word.replace("${program}", sweep.get("program", "")) for word in expanded])
    return commands


def test_the_sweep_runs_as_it_is():
    first, last = sweep_commands()
    config = read_config(TrainConfig, [word for word in last if word.startswith("--")])
    assert (config.validation_fraction, config.lr, config.horizontal_flip) == (0.1, 0.08, "alternating")
    environment = {
        **os.environ, "WANDB_RUN_ID": "sweep1", "WANDB_MODE": "offline",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    tiny = ["--dataset=digits", "--width=16", "--image_size=8", "--batch_size=64", "--fast_dev_run=true"]
    done = subprocess.run([*first, *tiny], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "everything runs" in done.stdout


def test_the_sweep_compares_runs_by_a_number_that_they_log(tracked):
    sweep = yaml.safe_load((ROOT / "recipes" / "sweep.yaml").read_text())
    assert sweep["metric"]["name"] in {key for record in records(tracked, "history") for key in record["item"]}
    assert sweep["metric"]["name"].startswith("validation/")  # the test set chooses nothing
