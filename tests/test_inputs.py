"""What the sections are given is the same however it was found."""

import shutil
import subprocess
import sys

import numpy as np

import analyze
from tests.conftest import ROOT
from tests.saved_runs import change
from utils.config import AnalyzeConfig

SECTIONS = ["classes", "gallery", "calibration", "neighbours", "embedding", "robustness"]


def test_two_processes_find_the_same_for_every_section(run, tmp_path):
    change(run / "config.yaml", validation_fraction=0.3)
    other = shutil.copytree(run, tmp_path / "other")
    summary = analyze.main(AnalyzeConfig(run=str(run), only=SECTIONS))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29618"]
    command = [*launcher, "analyze.py", str(other), "--only", ",".join(SECTIONS), "--track", "false"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"temperature", "neighbours", "robustness"} <= set(summary)
    one, two = (np.load(path / "analysis" / "predictions.npz") for path in (run, other))
    for key in ("logits", "labels", "indices", "features"):
        np.testing.assert_array_equal(one[key], two[key])
    tables = ("mistakes.csv", "per_class.csv", "neighbours.csv", "embedding.csv", "robustness.csv")
    for name in ("summary.json", *tables):
        assert (run / "analysis" / name).read_bytes() == (other / "analysis" / name).read_bytes(), name
