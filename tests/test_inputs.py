"""The sections are given the same on any number of processes."""

import shutil

import numpy as np

import analyze
from tests.processes import run as run_processes
from tests.saved_runs import change
from utils.analysis.sections import robustness
from utils.config import AnalyzeConfig
from utils.system.errors import run_script

SECTIONS = ["classes", "gallery", "calibration", "neighbours", "embedding", "robustness"]
PROBED = 60  # images of the robustness probe


def analyse(config: AnalyzeConfig) -> None:
    """analyze.py with this config."""
    robustness.IMAGES = PROBED
    run_script(analyze.main, config)


def test_two_processes_find_the_same_for_every_section(run, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "IMAGES", PROBED)
    change(run / "config.yaml", validation_fraction=0.3)
    other, log = shutil.copytree(run, tmp_path / "other"), tmp_path / "log"
    summary = analyze.main(AnalyzeConfig(run=str(run), only=SECTIONS))
    config = AnalyzeConfig(run=str(other), only=SECTIONS, track=False)
    assert run_processes(analyse, config, world_size=2, log=log) == [0, 0], log.read_text()
    assert {"temperature", "neighbours", "robustness"} <= set(summary)
    one, two = (np.load(path / "analysis" / "predictions.npz") for path in (run, other))
    for key in ("logits", "labels", "indices", "features"):
        np.testing.assert_array_equal(one[key], two[key])
    tables = ("mistakes.csv", "per_class.csv", "neighbours.csv", "embedding.csv", "robustness.csv")
    for name in ("summary.json", *tables):
        assert (run / "analysis" / name).read_bytes() == (other / "analysis" / name).read_bytes(), name
