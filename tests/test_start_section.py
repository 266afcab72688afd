"""The report says what a run started from and what training added to it, if it started from weights."""

import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import analyze
from models import classifier
from models.saved import load_model
from tests.processes import run as run_processes
from tests.processes import train_script
from tests.saved_runs import change
from utils.analysis.sections.start import TRAINED, Stage, gain
from utils.config import AnalyzeConfig, TrainConfig
from utils.evaluation.scores import accuracy_interval

WEIGHTS = {
    "source": "hf-hub:someone/<b>model</b>@main", "file": "model.safetensors", "repository": "someone/model",
    "revision": "0123456789abcdef", "license": "apache-2.0", "sha256": "f" * 64,
}  # fmt: skip
ACCURACY = 0.5  # of the model


def fine_tuned(run: Path, summary: dict[str, Any], **options: Any) -> Path:
    """The run as one that started from weights."""
    change(run / "config.yaml", init_from="hf-hub:someone/model", head_init="probe", **options)
    change(run / "environment.json", start_weights=WEIGHTS)
    change(run / "summary.json", test_accuracy_without_tta=ACCURACY, **summary)
    return run


def analysed(run: Path, **options: Any) -> tuple[dict[str, Any], str]:
    """The summary, and the text of the page."""
    summary = analyze.main(AnalyzeConfig(run=str(run), only=["curves", "start"], track=False, **options))
    page = (run / "analysis/report.html").read_text()
    assert "<b>model</b>" not in page
    return summary, html.unescape(" ".join(re.sub("<[^>]+>", " ", page).split())).replace("\xa0", " ")


def test_a_run_from_random_weights_has_no_such_section(run):
    summary, page = analysed(run)
    assert "start" not in summary
    assert "Start weights" not in page
    assert "What it started from" not in page


def test_origin_and_the_classifiers_before_training_are_shown(run):
    summary, page = analysed(fine_tuned(run, {"start_knn_accuracy": 0.25, "probe_accuracy": 0.4}))
    for value in (*WEIGHTS.values(), "made anew, fitted to the features"):
        assert value in page
    rows = [("10 nearest neighbours", 0.25), ("the probe: logistic regression", 0.4), ("this model, trained", ACCURACY)]
    for name, accuracy in rows:
        low, high = (f"{100 * edge:.2f}" for edge in accuracy_interval(round(360 * accuracy), 360))
        assert re.search(rf"{name}[^%]* {100 * accuracy:.2f} % {low}–{high} %", page), name
    assert "Training added 10.00 points." in page.replace(", which may be chance: the intervals overlap", "")
    assert summary["start"] == {
        "source": WEIGHTS["source"], "sha256": WEIGHTS["sha256"], "knn": 0.25, "start": 0.4, "model": ACCURACY,
    }  # fmt: skip


def test_a_training_that_lost_is_told(run):
    _, page = analysed(fine_tuned(run, {"start_knn_accuracy": 0.25, "probe_accuracy": 0.9}))
    assert "Training lost 40.00 points. Try a smaller lr or fewer epochs, or keep the probe: --freeze backbone." in page


def test_what_may_be_chance_is_told():
    before, after = (Stage(name, correct / 100, accuracy_interval(correct, 100)) for name, correct in
                     (("probe", 90), (TRAINED, 92)))  # fmt: skip
    assert gain([before, after]) == "Training added 2.00 points, which may be chance: the intervals overlap."
    assert gain([after]) == gain([before]) == ""


def test_a_probe_alone_is_shown_as_the_model_and_no_training_is(run):
    found = {"start_knn_accuracy": 0.25, "probe_accuracy": ACCURACY}
    _, page = analysed(fine_tuned(run, found, freeze="backbone"))
    assert "this model: the probe, logistic regression on the untouched features 50.00 %" in page
    assert not re.search("Training (added|lost)", page)


def test_a_kept_head_is_no_probe(run):
    _, page = analysed(fine_tuned(run, {"start_knn_accuracy": None, "probe_accuracy": 0.4}, keep_head=True))
    assert "Head kept" in page
    assert "before training, with the head of the weights 40.00 %" in page
    assert "nearest neighbours" not in page


@pytest.mark.parametrize("summary", [{}, {"probe_accuracy": "high", "start_knn_accuracy": 7}, {"test_count": None}])
def test_a_run_that_recorded_nothing_of_its_start_is_read(run, summary):
    found, page = analysed(fine_tuned(run, summary))
    assert WEIGHTS["revision"] in page
    assert (found["start"]["start"], found["start"]["knn"]) == (None, None)


def test_what_is_no_origin_is_not_shown(run):
    change(run / "environment.json", start_weights=["x"])
    assert "What it started from" not in analysed(run)[1]
    change(run / "environment.json", start_weights={"source": {"a": 1}, "sha256": 3, "license": "x" * 10_000})
    assert "x" * 200 not in analysed(run)[1]


def test_a_run_without_a_training_step_is_analysed(run):
    """As the probe alone leaves it: its only lines are those before the first step."""
    fine_tuned(run, {"probe_accuracy": ACCURACY, "steps": 0, "epochs": 0}, freeze="backbone")
    line = {"step": 0, "epoch": 0, "split": "test", "loss": 1.5, "accuracy": ACCURACY}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    summary, page = analysed(run)
    assert summary["start"]["model"] == ACCURACY
    assert "this model: the probe" in page


@pytest.mark.slow
def test_a_fine_tuned_run_is_analysed_with_the_features_of_its_pooled_layer(tmp_path):
    timm = pytest.importorskip("timm")
    name, folder, run, log = "test_efficientnet", tmp_path / "weights", tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    safetensors.torch.save_file(timm.create_model(name).state_dict(), folder / "model.safetensors")
    size, centre = [3, 48, 48], [0.5, 0.5, 0.5]
    cfg = {"input_size": size, "mean": centre, "std": centre, "interpolation": "bicubic", "crop_pct": 0.95}
    (folder / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": cfg}))
    config = TrainConfig(
        dataset="digits", init_from=str(folder), epochs=1, max_steps=2, tta="flip", trackers=["none"],
        output_dir=str(run),
    )  # fmt: skip
    assert run_processes(train_script, config, log=log) == [0], log.read_text()
    summary = analyze.main(AnalyzeConfig(run=str(run), images=10))
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (summary["start"]["source"], summary["start"]["sha256"]) == (str(folder), sha256)
    assert sha256 in (run / "analysis/report.html").read_text()
    model, saved = load_model(run / "model")
    found = np.load(run / "analysis/predictions.npz")
    assert found["features"].shape == (360, classifier(model).in_features)
    assert saved.tta == "flip"
    with torch.no_grad():  # linear, so that logits of the mean of two features are the mean of their logits
        again = classifier(model)(torch.from_numpy(found["features"]).float()).numpy()
    np.testing.assert_allclose(again, found["logits"], atol=0.02)
