"""What Muon costs: training steps of ResNet-18 with SGD and with Muon, in turns.

    python benchmarks/muon.py --batch_size 128                          # fp32
    python benchmarks/muon.py --batch_size 512 --precision bf16
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/muon.py --batch_size 64   # as on a processor without bf16 instructions

A step is forward, loss, backward and update on one batch that lies in memory, in the suite's memory layout and machine
settings. A ratio is taken within a round, since a machine's speed drifts.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import create_model
from utils.config import TrainConfig
from utils.system.runtime import create_accelerator
from utils.training.optimizers import create_optimizer, set_learning_rate

KINDS = ("sgd", "muon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="of forward and backward; no: fp32")
    parser.add_argument("--rounds", type=int, default=7)
    settings = parser.parse_args()
    device = create_accelerator().device
    steps = {kind: step_of(kind, settings, device) for kind in KINDS}
    for step in steps.values():
        step()  # untimed
    rounds = []
    for turn in range(settings.rounds):
        rounds.append({kind: steps[kind]() for kind in (KINDS if turn % 2 else reversed(KINDS))})
    print(f"batch {settings.batch_size}, {settings.precision}, {torch.get_num_threads()} threads")
    for kind in KINDS:
        whole, update = (statistics.median(values) for values in zip(*(turn[kind] for turn in rounds), strict=True))
        print(
            f"{kind}: {whole:.3f} s a step, {update:.3f} s of it the update, {settings.batch_size / whole:.1f} images/s"
        )
    ratios = [turn["sgd"][0] / turn["muon"][0] for turn in rounds]
    print(f"muon over sgd, images/s: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def step_of(kind: str, settings: argparse.Namespace, device: torch.device) -> Callable[[], tuple[float, float]]:
    """What takes one training step, and gives the seconds of all of it and of the optimizer's part."""
    torch.manual_seed(0)
    size = settings.image_size
    model = create_model("resnet18", 10, width=settings.width).to(device, memory_format=torch.channels_last)
    config = TrainConfig(optimizer=kind, momentum=0.8, weight_decay=5e-4, decay_norm_and_bias=True)
    optimizer = create_optimizer(config, model)
    set_learning_rate(optimizer, 0.01)
    images = torch.randn(settings.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (settings.batch_size,), device=device)

    def step() -> tuple[float, float]:
        started = now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = model(images)
        F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        computed = now(device)
        optimizer.step()
        optimizer.zero_grad()
        ended = now(device)
        return ended - started, ended - computed

    return step


def now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
