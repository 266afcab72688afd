"""The benchmarks run and hold what they promise; what they measure is published elsewhere."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.peer_cifar import FEWEST, WARM_UP, StepClock
from benchmarks.photos import PEERS
from benchmarks.portrait import CLASSES, FITS, photo
from benchmarks.throughput import ratios, take_turns
from tests.conftest import ROOT
from tests.processes import run

# main.py of kuangliu/pytorch-cifar in miniature: what the shim has to deal with, in the same words.
PEER_MAIN = """
import torch, torchvision, torchvision.transforms as transforms
from models import *
from utils import progress_bar

trainset = torchvision.datasets.CIFAR10(root='./data', train=True, download=True, transform=transforms.Compose([
    transforms.RandomCrop(32, padding=4), transforms.ToTensor()]))
testset = torchvision.datasets.CIFAR10(root='./data', train=False, download=True, transform=transforms.ToTensor())
trainloader = torch.utils.data.DataLoader(trainset, batch_size=128, shuffle=True, num_workers=2)
testloader = torch.utils.data.DataLoader(testset, batch_size=100, shuffle=False, num_workers=2)
assert len(trainset) == 1437 and len(testset) == 360
assert open('./cwd.txt', 'w').write('this folder is its own')
net = SimpleDLA()
for epoch in range(200):
    for loader in trainloader, testloader:
        for batch_idx, (inputs, targets) in enumerate(loader):
            loss = torch.nn.functional.cross_entropy(net(inputs), targets)
            progress_bar(batch_idx, len(loader), 'Loss: %.3f' % loss.item())
"""
PEER_MODELS = """
import torch

def SimpleDLA():
    raise AssertionError('ResNet18 was to stand in')

def ResNet18():
    return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 10))
"""
PEER_UTILS = """
import os
_, term_width = os.popen('stty size', 'r').read().split()

def progress_bar(current, total, msg=None):
    print(int(term_width), current, total, msg)
"""


@pytest.fixture
def peer(tmp_path) -> Path:
    folder = tmp_path / "peer"
    (folder / "models").mkdir(parents=True)
    (folder / "main.py").write_text(PEER_MAIN)
    (folder / "models" / "__init__.py").write_text(PEER_MODELS)
    (folder / "utils.py").write_text(PEER_UTILS)
    return folder


def command(*arguments: str, **changes) -> subprocess.CompletedProcess[str]:
    options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 900}
    return subprocess.run(arguments, check=False, **{**options, **changes})


def leaves(value) -> list:
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in leaves(entry)]
    return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, list) else [value]


@pytest.mark.slow
def test_throughput_measures_all_that_it_promises(tmp_path):
    processes = 1 if torch.cuda.device_count() == 1 else 2
    path = tmp_path / "throughput.json"
    done = command(
        sys.executable, "benchmarks/throughput.py", "--quick", "--processes", str(processes), "--json", str(path)
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    suite = {f"tensor_{processes}", f"albumentations_{processes}"}
    assert results["failures"] == []
    assert set(results["rates"]) == {"matrix_product", "bare"} | suite
    assert set(results["ratios"]) == {f"{name}_over_bare" for name in suite} | {
        "bare_over_matrix_product",
        f"tensor_{processes}_over_matrix_product",
    }
    assert set(results["augmentation_alone"]) == {"tensor", "albumentations", "torchvision_v2"}
    assert set(results["evaluation"]) == {"images", "seconds", "images_per_second"}
    assert set(results["start_up"]) == {"first_step_begun_seconds", "first_step_finished_seconds", "help_seconds"}
    assert set(results["memory"]) >= {"peak_resident_bytes", "train_images", "batch_size"}
    measured = (
        "rates",
        "ratios",
        "augmentation_alone",
        "evaluation",
        "start_up",
        "memory",
        "flops_per_image",
        "seconds",
    )
    for name in measured:
        assert all(number > 0 for number in leaves(results[name])), name
    for rates in [*results["rates"].values(), *results["ratios"].values(), *results["augmentation_alone"].values()]:
        assert rates["low"] <= rates["median"] <= rates["high"]
    assert results["machine"]["versions"]["torch"]
    assert "bare" in done.stdout


def test_what_is_compared_takes_turns_and_a_failure_costs_its_own_numbers_only():
    order: list[str] = []
    rates = {"matrix_product": 100.0, "bare": 4.0, "tensor_1": 2.0}

    def measure(name: str) -> list[float]:
        order.append(name)
        if name == "bare" and order.count("bare") == 2:
            raise RuntimeError("out of luck")
        return [rates[name], rates[name], 10 * rates[name]]

    failures: list[str] = []
    rounds = take_turns({name: partial(measure, name) for name in rates}, 3, failures)
    assert order == [*rates, *reversed(rates), *rates]
    assert failures == ["round 2/3: bare: RuntimeError: out of luck"]
    assert dict(ratios(Namespace(processes=[1]), rounds, flops=5.0)) == {
        "tensor_1_over_bare": [0.5] * 2,
        "bare_over_matrix_product": [0.2] * 2,
        "tensor_1_over_matrix_product": [0.1] * 3,
    }


def test_step_clock_leaves_out_warm_up_and_short_batches():
    clock = StepClock(seconds=1.0)
    for images, seconds in [(128, 9.0)] * WARM_UP + [(128, 0.5), (29, 0.1), (128, 0.25)]:
        assert not clock.enough()
        clock.add(images, seconds)
    assert FEWEST == 3
    assert not clock.enough()
    clock.add(128, 0.5)
    assert clock.enough()
    assert clock.speeds() == [256.0, 512.0, 256.0]


def test_peer_trains_on_our_images_with_its_own_code(peer, tmp_path):
    before = {path: path.read_bytes() for path in peer.rglob("*.*")}
    path = tmp_path / "peer.json"
    done = command(
        sys.executable, "benchmarks/peer_cifar.py", str(peer), "--seconds", "0", "--json", str(path), timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["batch_size"] == 128
    assert len(result["images_per_second"]) == FEWEST
    assert all(speed > 0 for speed in result["images_per_second"])
    assert "80 0 12 Loss" in done.stdout
    assert {path: path.read_bytes() for path in peer.rglob("*.*")} == before


def test_peers_own_losses_are_read_at_the_end_of_each_epoch(peer, tmp_path):
    path = tmp_path / "peer.json"
    done = command(
        sys.executable, "benchmarks/peer_cifar.py", str(peer), "--epochs", "2", "--json", str(path), timeout=300
    )
    assert done.returncode == 0, done.stderr
    passes = json.loads(path.read_text())["passes"]
    last = [line.split(" ", 3)[3] for line in done.stdout.splitlines() if line.startswith(("80 11 12", "80 3 4"))]
    assert len(passes) == 4
    assert passes == last
    assert f"epoch 2: train {passes[2]}; test {passes[3]}" in done.stdout


@pytest.mark.slow
def test_photos_are_read_beside_the_others(tmp_path):
    folder = tmp_path / "photos" / "train"
    for number in range(6):
        (folder / f"class-{number % 2}").mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        photo = Image.fromarray(noise).resize((299 + number, 224), Image.Resampling.BICUBIC)
        photo.save(folder / f"class-{number % 2}" / f"{number}.jpg")
    path = tmp_path / "photos.json"
    done = command(
        *(sys.executable, "benchmarks/photos.py", "--data_dir", str(folder.parent), "--quick", "--photos", "6"),
        *("--json", str(path)),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    assert set(results["speed"]) == set(results["fidelity"]) == {"224 32", "500 32", "2000 32"}
    for rates in results["speed"].values():
        assert {"suite", "suite, exact_decode", *PEERS} <= set(rates)
        assert all(rate > 0 for rate in leaves(rates))
    for found in results["fidelity"].values():
        assert 0 < found["difference_with_rounded_edges"] <= found["difference"]
        assert 0 < found["share"] <= 1
    assert not results["training"] or all(rate > 0 for rate in leaves(results["training"]))
    assert len(results["memory"]["resident"]) == 2
    assert "suite / fastest of the others" in done.stdout


def test_augmentation_is_timed_beside_torchvisions():
    done = command(sys.executable, "benchmarks/augment.py", "--quick")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    header, rule, *rows = (line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("|"))
    assert len(rows) == 2 * 9
    assert all(len(row) == len(header) == len(rule) for row in rows)
    for _, size, *spreads in rows:
        assert int(size) in (16, 24)
        for spread in spreads:
            middle, low, high = (float(number.replace(",", "")) for number in re.findall(r"[\d.,]+", spread))
            assert 0 < low <= middle <= high


def time_the_analysis(path: Path) -> None:
    from benchmarks import analysis

    sys.argv = ["analysis.py", str(path)]
    sys.exit(analysis.main())


@pytest.mark.slow
def test_the_analysis_is_timed_beside_a_bare_forward_pass(digits_run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in digits_run.rglob("*")}
    done = command(sys.executable, "benchmarks/analysis.py", str(digits_run), "--rounds", "1")
    assert done.returncode == 0, done.stderr
    measured = {line[:18].strip(): float(line[18:].split()[0]) for line in done.stdout.splitlines()}
    assert list(measured) == ["bare forward pass", "first call", "second call", "predicting", "everything else"]
    assert measured["first call"] > measured["bare forward pass"] > 0
    assert before == {path: path.stat().st_mtime_ns for path in digits_run.rglob("*")}
    log = tmp_path / "log"
    assert run(time_the_analysis, digits_run / "missing", log=log) == [2]
    lines = [line for line in log.read_text().splitlines() if not line.startswith("note: this CPU emulates bf16")]
    assert len(lines) == 1


@pytest.mark.slow
def test_the_portraits_end_in_a_table_with_a_row_for_every_fit():
    done = command(sys.executable, "benchmarks/portrait.py", "--quick")
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [tuple(row[:2]) for row in rows[2:]] == [(fit, str(size)) for fit, size in FITS]
    assert all(0 <= float(row[2].split("%")[0]) <= 100 for row in rows[2:])


def test_a_portrait_is_a_function_of_its_class_and_number():
    for name in CLASSES:
        first, again, other = (np.asarray(photo(name, number)) for number in (3, 3, 4))
        assert first.shape == (240, 160, 3)
        assert (first == again).all()
        assert (first != other).any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would check the GPU")
def test_gpu_check_claims_nothing_without_a_gpu():
    done = command("benchmarks/gpu_check.sh", env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 0
    assert done.stdout == "no CUDA device here: nothing was checked\n"
