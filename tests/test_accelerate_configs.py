"""Every file in accelerate_configs/ starts what it says: launched where this machine can, else read by Accelerate."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from utils.system import runtime
from utils.system.errors import UserError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "accelerate_configs"
LAUNCHED = {  # processes and precision that summary.json must report
    "cpu": (1, "no"),
    "multi_cpu": (2, "no"),
    "bf16": (1, "bf16"),
}
READ = {  # type, processes, machines and precision as Accelerate's loader understands them
    "single_gpu": ("NO", 1, 1, "no"),
    "multi_gpu": ("MULTI_GPU", 8, 1, "bf16"),
    "multi_node": ("MULTI_GPU", 16, 2, "bf16"),
    "fp16": ("NO", 1, 1, "fp16"),
    "mps": ("NO", 1, 1, "no"),
    "tpu": ("XLA", 8, 1, "bf16"),
}
TINY = ["train_accelerate.py", "--dataset=digits", "--width=16", "--image_size=16", "--max_steps=3", "--batch_size=64"]
TINY += ["--trackers=none"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ON_THE_CPU = {**os.environ, "ACCELERATE_USE_CPU": "1"}  # where there is a GPU too


def launch(output_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs a tiny training on the CPU through `accelerate launch` with the launcher's `options`."""
    return subprocess.run(
        [*LAUNCH, *options, *TINY, f"--output_dir={output_dir}"],
        cwd=ROOT,
        env=ON_THE_CPU,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_every_file_is_covered():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(LAUNCHED) | set(READ)


@pytest.mark.parametrize("name", sorted(LAUNCHED))
@pytest.mark.slow
@pytest.mark.timeout(320)
def test_launched_config_trains_with_its_processes_and_precision(name, tmp_path):
    done = launch(tmp_path, "--config_file", str(CONFIGS / f"{name}.yaml"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["world_size"], summary["mixed_precision"]) == LAUNCHED[name]
    assert summary["steps"] == 3
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == "cpu"


@pytest.mark.parametrize("name", sorted(READ))
def test_config_means_its_topology_to_accelerate(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    precision = config.mixed_precision
    assert (config.distributed_type.value, config.num_processes, config.num_machines, precision) == READ[name]
    assert not config.use_cpu


@pytest.mark.parametrize("name", sorted(LAUNCHED | READ))
def test_config_shows_its_launch_command(name):
    comments = [line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(f"accelerate launch --config_file accelerate_configs/{name}.yaml" in line for line in comments)


@pytest.mark.slow
@pytest.mark.timeout(620)
def test_two_machines_without_gpus_form_one_group(tmp_path):
    config = str(CONFIGS / "multi_node.yaml")
    options = ["--config_file", config, "--mixed_precision", "no", "--num_processes", "2"]
    options += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    machines = [
        subprocess.Popen(
            [*LAUNCH, *options, "--machine_rank", str(rank), *TINY, f"--output_dir={tmp_path / str(rank)}"],
            cwd=ROOT,
            env=ON_THE_CPU,
            stdin=subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]
    try:
        assert [machine.wait(timeout=300) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.kill()
    assert json.loads((tmp_path / "0" / "summary.json").read_text())["world_size"] == 2


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_launch_that_starts_one_process_instead_of_two_is_refused(tmp_path):
    """`--cpu --num_processes 2` and MULTI_CPU: Accelerate's launcher starts one process and says nothing."""
    multi_cpu = yaml.safe_load((CONFIGS / "multi_cpu.yaml").read_text())
    config = tmp_path / "multi_cpu.yaml"
    config.write_text(yaml.safe_dump({**multi_cpu, "distributed_type": "MULTI_CPU"}))
    for options in (["--cpu", "--num_processes", "2"], ["--config_file", str(config)]):
        done = launch(tmp_path / "run", *options)
        assert done.returncode != 0
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "started only one" in lines[0]
        assert "accelerate_configs/multi_cpu.yaml" in lines[0]
        assert not (tmp_path / "run" / "summary.json").exists()


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    """What `--multi_gpu` makes of a plain Accelerator() without a GPU: each process would train on its own."""
    group = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in {**group, "LOCAL_WORLD_SIZE": 2}.items():  # which would be added, and stay for other tests
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(runtime, "joining", lambda _: contextlib.nullcontext())  # the other process does not come here
    alone = SimpleNamespace(num_processes=1, state=SimpleNamespace())
    monkeypatch.setattr(runtime, "Accelerator", lambda **_: alone)
    with pytest.raises(UserError, match="2 processes were started but 1 found each other"):
        runtime.create_accelerator()


def test_processes_of_a_group_leave_without_the_interpreters_shutdown():
    """In which gloo's threads sometimes abort: the training is done, and its launch would be said to have failed."""
    script = (
        "import atexit, os; from utils.system.errors import run_script; atexit.register(os.abort); run_script(print, 1)"
    )
    group = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    left = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=group, capture_output=True, text=True)
    assert (left.returncode, left.stdout) == (0, "1\n")


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_main_runs_on_two_processes_from_a_notebook(tmp_path):
    """accelerate.notebook_launcher forks, so it gets a process of its own, as fresh as a notebook's kernel."""
    script = f"""
from accelerate import notebook_launcher
from train_accelerate import main
from utils.config import TrainConfig
config = TrainConfig(
    dataset="digits", width=16, image_size=16, max_steps=3, batch_size=64, trackers=["none"],
    output_dir={str(tmp_path)!r},
)
notebook_launcher(main, (config,), num_processes=2, use_port="{free_port()}")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=ON_THE_CPU,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["world_size"] == 2
