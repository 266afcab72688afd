"""Two machines: network namespaces with addresses of their own, joined by a link that can be cut."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import tiny_config
from tests.test_resume import logged_steps

ADDRESSES = {"suite0": "10.77.0.1", "suite1": "10.77.0.2"}
PORT = 29577


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Two namespaces; the link between them is called `cable` in both."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        ip("netns", "add", "suite0")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", "suite1")
        ip("link", "add", "cable", "netns", "suite0", "type", "veth", "peer", "name", "cable", "netns", "suite1")
        for name, address in ADDRESSES.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")
        yield list(ADDRESSES)
    finally:
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def launch(hosts: list[str], folders: list[Path], logs: list[Path], **changes) -> list[subprocess.Popen]:
    """`accelerate launch` with multi_node.yaml on both hosts, as docs/scaling.md says."""
    launchers = []
    for rank, (host, folder, log) in enumerate(zip(hosts, folders, logs, strict=True)):
        config = tiny_config(folder, image_size=8, epochs=2, checkpoint_every_steps=5, peer_timeout=8, **changes)
        options = [
            f"--{name}={value}" for name, value in vars(config).items() if value is not None and name != "trackers"
        ]
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", "accelerate_configs/multi_node.yaml", "--mixed_precision", "no"]
        command += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
        command += ["--main_process_ip", ADDRESSES["suite0"], "--main_process_port", str(PORT)]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "cable"}
        with open(log, "w") as file:
            launchers.append(
                subprocess.Popen(
                    [*command, "train_accelerate.py", *options, "--trackers=none"],
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=file,
                )
            )
    return launchers


@pytest.mark.slow
def test_cut_link_ends_both_sides_with_one_line_and_the_run_resumes(hosts, tmp_path):
    """First with a folder on each machine, of which only the first is written to; then with a shared one."""
    folders = [tmp_path / "run", tmp_path / "run-of-machine-1"]
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    launchers = launch(hosts, folders, logs)
    deadline = time.monotonic() + 90
    while logged_steps(folders[0]) < 12 and time.monotonic() < deadline:
        time.sleep(0.05)
    ip("-n", "suite1", "link", "set", "cable", "down")
    for launcher in launchers:
        assert launcher.wait(120) != 0
    for log in logs:
        lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, log.read_text()
        assert "lost another process" in lines[0]
    ip("-n", "suite1", "link", "set", "cable", "up")
    assert not folders[1].exists()
    for launcher in launch(hosts, [folders[0], folders[0]], logs):
        assert launcher.wait(120) == 0, logs[0].read_text() + logs[1].read_text()
    assert "resumed from" in logs[0].read_text()
    rows = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 47))
    assert json.loads((folders[0] / "summary.json").read_text())["world_size"] == 2
    assert (folders[0] / "model" / "model.safetensors").exists()
