"""Processors without bfloat16's instructions: found out, said, and not waited for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import run, tiny_config, train_script
from utils.system.bf16 import EMULATED, SLOW

WITHOUT = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # oneDNN then computes as on a processor with AVX2 alone
BF16 = {"ACCELERATE_MIXED_PRECISION": "bf16"}
MUON = {"optimizer": "muon", "lr": 0.02, "momentum": 0.8, "max_steps": 2}


def environment(folder: Path) -> dict:
    return json.loads((folder / "environment.json").read_text())


def test_probe_finds_emulation():
    script = "import torch; from utils.system.bf16 import bf16_slowdown; print(bf16_slowdown(torch.device('cpu')))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **WITHOUT}, capture_output=True, text=True, check=True)
    assert float(done.stdout) > EMULATED


@pytest.mark.parametrize("world_size", [1, 2])
def test_launch_in_bf16_where_it_is_emulated_is_warned_of_once_and_trains(tmp_path, world_size):
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "run", image_size=8, max_steps=1, batch_size=8)
    assert run(train_script, config, {**BF16, **WITHOUT}, world_size=world_size, log=log) == [0] * world_size
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: bf16 is slow on this device: a matrix product takes ")
    assert "--mixed_precision no" in line
    assert environment(tmp_path / "run")["bf16_slowdown"] > SLOW


def test_fp32_is_not_probed_and_muon_computes_in_it_on_a_cpu(tmp_path):
    log = tmp_path / "log"
    assert run(train_script, tiny_config(tmp_path / "run", **MUON), WITHOUT, log=log) == [0]
    assert "bf16" not in log.read_text()
    found = environment(tmp_path / "run")
    assert found["bf16_slowdown"] is None
    assert found["muon_arithmetic"] == "3 iterations, fp32 Gram matrix"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["launches"][0]["muon_arithmetic"] == found["muon_arithmetic"]


def default_precision(folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from utils.system.runtime import create_accelerator

    (folder / "precision").write_text(create_accelerator(default_precision="bf16").mixed_precision)


def test_analysis_of_a_run_in_bf16_computes_in_fp32_where_bf16_is_emulated(tmp_path):
    log = tmp_path / "log"
    assert run(default_precision, tmp_path, WITHOUT, log=log) == [0]
    assert (tmp_path / "precision").read_text() == "no"
    assert log.read_text() == "note: this CPU emulates bf16, which is many times slower; computing in fp32\n"
