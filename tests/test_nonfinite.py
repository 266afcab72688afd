"""Numbers that are not finite: the run stops and says where, or goes back and leaves the bad steps out."""

import json
import math
import os
import re
import signal
from pathlib import Path

import pytest
import torch

import train_accelerate
from models.saved import load_model
from tests.processes import run, tiny_config
from tests.test_resume import outcome
from utils.runs.checkpoint import list_checkpoints
from utils.runs.metrics_file import MetricsFile
from utils.system.errors import SuiteError, run_script
from utils.training.nonfinite import MAX_ROLLBACKS

OPTIONS = {"image_size": 8, "checkpoint_every_steps": 5, "log_every_steps": 4, "keep_checkpoints": 3, "epochs": 2}
BAD = 13  # the step that goes wrong; the last checkpoint is of step 10, and it is noticed where the next is due


def train_badly(
    config, rank: int = 0, spoil: str = "images", terminate_at: int = 0, bad: int = BAD, damage: bool = False
) -> None:
    """The script, with images, or norm statistics after the step, that are NaN on one rank at one step.

    With `damage`, the newest checkpoint is no longer whole then.
    """
    proper = train_accelerate.train_step
    here = Path(config.output_dir)

    def train_step(run, batch, rate):
        step, mean = run.state.step + 1, run.mean.clone()
        if step == terminate_at and not (here / "terminated").exists():
            (here / "terminated").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        spoilt = step == bad and run.accelerator.process_index == rank
        if damage and spoilt:
            (list_checkpoints(here / "checkpoints")[-1] / "optimizer.safetensors").write_bytes(b"")
        if spoilt and spoil == "images":
            run.mean.fill_(math.nan)
        given = proper(run, batch, rate)
        run.mean.copy_(mean)
        if spoilt and spoil == "norm statistics":
            run.model.norm1.running_mean.fill_(math.inf)
        return given

    train_accelerate.train_step = train_step
    run_script(train_accelerate.main, config)


def train_lines(folder: Path) -> list[dict]:
    return [row for row in MetricsFile(folder / "metrics.jsonl").rows() if row["split"] == "train"]


@pytest.mark.parametrize(("world_size", "spoil"), [(2, "images"), (1, "norm statistics")])
def test_run_stops_and_names_step_rate_and_last_good_checkpoint(tmp_path, world_size, spoil):
    """Of two processes the second has the bad images: both end, the line is printed once."""
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, **OPTIONS, schedule="constant", nan_patience=1)
    ended = run(train_badly, config, world_size - 1, spoil, world_size=world_size, log=log)
    assert ended == [1] * world_size
    text = log.read_text()
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "not finite since step 13 (learning rate 0.1); last good checkpoint: step-000010;" in line
    saved = [path.name for path in list_checkpoints(folder / "checkpoints")]
    assert saved == ["step-000005", "step-000010"]
    assert [row["step"] for row in train_lines(folder)] == [4, 8, 12]


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory) -> tuple[Path, str]:
    """A run that went back by itself, and what it printed."""
    folder = tmp_path_factory.mktemp("rolled") / "run"
    log = folder.with_name("log")
    assert run(train_badly, tiny_config(folder, **OPTIONS, on_nan="rollback"), log=log) == [0]
    return folder, log.read_text()


def test_rollback_leaves_out_the_steps_since_the_last_checkpoint_and_goes_on(rolled_back):
    folder, text = rolled_back
    (line,) = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert re.search(r"not finite since step 13 .*; rolled back to step-000010, skipping steps 11 to 15$", line)
    assert [row["step"] for row in train_lines(folder)] == [4, 8, 12, 16, 20, 23, 24, *range(28, 46, 4), 46]
    assert all(math.isfinite(row["loss"]) for row in train_lines(folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["skipped_steps"], summary["steps"]) == (5, 46)
    tensors = load_model(folder / "model")[0].state_dict().values()
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_epoch_counts_only_images_that_the_weights_have_seen(rolled_back):
    folder, text = rolled_back
    lines = [row for row in train_lines(folder) if row["epoch"] == 1 and row["step"] != 12]
    images = sum(row["images"] for row in lines)
    assert images == 1437 - 5 * 64
    mean = sum(row["loss"] * row["images"] for row in lines) / images
    assert f"epoch 1/2  train loss {mean:.4f} " in text


@pytest.mark.parametrize("stopped_by", ["on_nan", "SIGTERM among the bad steps"])
def test_rolled_back_run_is_the_same_after_a_stop(rolled_back, tmp_path, stopped_by):
    config = tiny_config(tmp_path / "run", **OPTIONS, on_nan="rollback")
    log = tmp_path / "log"
    if stopped_by == "on_nan":
        first = tiny_config(tmp_path / "run", **OPTIONS)
        assert run(train_badly, first, log=log) == [1]
        assert "--on_nan rollback" in log.read_text()
    else:
        assert run(train_badly, config, 0, "images", 14, log=log) == [128 + signal.SIGTERM]
        assert "stopped at step 14, not saved: its numbers are not finite" in log.read_text()
    assert run(train_badly, config) == [0]
    assert outcome(tmp_path / "run") == outcome(rolled_back[0])


def test_rollback_to_an_earlier_epoch_counts_the_epochs_on(tmp_path):
    """The checkpoint of the epoch's end is damaged, so it goes back to that of the epoch before."""
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, image_size=8, epochs=3, log_every_steps=5, on_nan="rollback", nan_patience=1)
    assert run(train_badly, config, 0, "images", 0, 48, True, log=log) == [0]
    assert "rolled back to step-000023, skipping steps 24 to 48" in log.read_text()
    evaluated = [row["step"] for row in MetricsFile(folder / "metrics.jsonl").rows() if row["split"] == "test"]
    assert evaluated == [23, 46, 69]
    lines = train_lines(folder)
    assert [row["step"] for row in lines] == sorted({row["step"] for row in lines})
    assert [row["epoch"] for row in lines if row["step"] > 46] == [3] * 5
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["skipped_steps"]) == (3, 69, 25)
    assert load_model(list_checkpoints(folder / "checkpoints")[-1])


def test_rollback_at_the_end_of_an_epoch_leaves_nothing_for_the_next(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, **{**OPTIONS, "checkpoint_every_steps": 6}, on_nan="rollback")
    assert run(train_badly, config, 0, "images", 0, 21, log=log) == [0]
    assert "rolled back to step-000018, skipping steps 19 to 23" in log.read_text()
    assert {row["step"]: row["images"] for row in train_lines(folder)}[24] == 64


def test_rollback_keeps_the_best_epoch(tmp_path):
    """All of the second epoch is skipped, so that its accuracy is that of the first and no better."""
    options = {**OPTIONS, "checkpoint_every_steps": None, "validation_fraction": 0.2, "on_nan": "rollback"}
    assert run(train_badly, tiny_config(tmp_path, **options, nan_patience=1), 0, "images", 0, 36) == [0]
    assert json.loads((tmp_path / "summary.json").read_text())["skipped_steps"] == 18
    first, second = [row for row in MetricsFile(tmp_path / "metrics.jsonl").rows() if row["split"] == "validation"]
    assert first["accuracy"] == second["accuracy"]
    state = json.loads((list_checkpoints(tmp_path / "checkpoints")[-1] / "trainer.json").read_text())["state"]
    assert (state["best_accuracy"], state["best_step"]) == (first["accuracy"], 18)


def test_run_that_is_bad_everywhere_ends_after_some_rollbacks(tmp_path, capsys):
    config = tiny_config(tmp_path, lr=1e9, schedule="constant", on_nan="rollback", nan_patience=2)
    with pytest.raises(SuiteError, match=f"after {MAX_ROLLBACKS} rollbacks; try a lower --lr"):
        train_accelerate.main(config)
    assert capsys.readouterr().err.count("warning: ") == MAX_ROLLBACKS
    for checkpoint in list_checkpoints(tmp_path / "checkpoints"):
        assert all(tensor.isfinite().all() for tensor in load_model(checkpoint)[0].state_dict().values())


@pytest.mark.parametrize(("patience", "ends"), [(20, None), (3, "not finite since step 1 ")])
def test_overflows_of_a_gradient_scaler_are_normal_until_they_are_too_many(tmp_path, monkeypatch, patience, ends):
    """fp16 as on a GPU, with a first scale that is too large: each overflow halves it."""
    proper = train_accelerate.create_accelerator

    def with_scaler(**options):
        accelerator = proper(**options)
        monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")  # Accelerate itself refuses it on a CPU
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        return accelerator

    monkeypatch.setattr(train_accelerate, "create_accelerator", with_scaler)
    # fp16 is emulated on a CPU, at a hundred times the time: few pixels.
    config = tiny_config(tmp_path, nan_patience=patience, max_steps=12, image_size=8, crop_padding=0, batch_size=16)
    if ends:
        with pytest.raises(SuiteError, match=ends):
            train_accelerate.main(config)
        return
    train_accelerate.main(config)
    lines = train_lines(tmp_path)
    overflown = [line["step"] for line in lines if "gradient_norm" not in line]
    assert overflown[:4] == [1, 2, 3, 4]  # a later one, at a scale that is nearly right, depends on the processor
    assert len(overflown) < 12
    assert all(math.isfinite(line["loss"]) for line in lines)
