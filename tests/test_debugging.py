"""The short cuts for those who change the code."""

import json
from pathlib import Path

import pytest

from tests.processes import tiny_config
from train_accelerate import main
from utils.runs.metrics_file import MetricsFile


def test_fast_dev_run_does_everything_once_and_keeps_nothing(tmp_path, capsys):
    config = tiny_config(tmp_path / "run", fast_dev_run=True, validation_fraction=0.2, tta="flip")
    summary = main(config)
    assert summary["steps"] == 1
    assert summary["test_count"] == 360
    assert summary["best_validation_accuracy"] is not None
    assert "everything runs" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_overfit_batches_sees_only_their_images_and_learns_them(tmp_path):
    config = tiny_config(tmp_path, overfit_batches=2, batch_size=20, epochs=30, lr=0.05, log_every_steps=2)
    main(config)
    rows = [row for row in MetricsFile(Path(tmp_path) / "metrics.jsonl").rows() if row["split"] == "train"]
    assert [row["images"] for row in rows] == [40] * 30
    assert rows[-1]["accuracy"] > 0.95
    assert rows[-1]["loss"] < 0.2 < rows[0]["loss"]


@pytest.mark.parametrize("steps", [2, 12])
def test_profile_names_the_operations_and_changes_nothing(tmp_path, steps):
    plain = main(tiny_config(tmp_path / "plain", image_size=8, max_steps=steps))
    profiled = main(tiny_config(tmp_path / "profiled", image_size=8, max_steps=steps, profile=True))
    assert profiled["test_loss"] == plain["test_loss"]
    folder = tmp_path / "profiled" / "profile"
    if steps < 10:  # nothing was recorded yet
        assert not folder.exists()
        return
    assert "convolution" in (folder / "operations.txt").read_text()
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert "aten::convolution" in names
