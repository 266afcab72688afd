"""How fast the suite fine-tunes photos from disk, beside timm and a bare loop. Prints Markdown; --json: all numbers.

    python benchmarks/fine_tuning_speed.py --data_dir flowers --weights tf_efficientnet_lite0   # about ten minutes
    python benchmarks/fine_tuning_speed.py --data_dir flowers --weights tf_efficientnet_lite0 --quick

Each size and precision has a process of its own, in which all take turns in short rounds whose order alternates. They
have batches of 32 and all cores. bf16 is skipped on a processor that emulates it.

- suite: the steps of train_accelerate.py from its loader, with its defaults for fine-tuning.
- timm: the step of its train.py (v1.0.28) out of timm's own parts: loader with default augmentation and --workers
  processes, AdamW, label smoothing, channels_last, batch norm with the statistics of each batch.
- bare: forward, loss, backward and AdamW on one batch in memory, channels_last, frozen statistics of batch norm: what
  the suite computes. The others differ from it in what their names say.

Loader processes work ahead while others have their turn. So a turn begins with as many batches that are not counted as
can wait.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.seeds import alone, class_count, parser_of
from train_accelerate import train_step
from utils.config import TrainConfig
from utils.runs.directory import RunDirectory
from utils.system.bf16 import emulates_bf16
from utils.system.runtime import create_accelerator
from utils.system.threads import available_cores
from utils.training.build import build
from utils.training.start import choose_start

BATCH, LR, SMOOTHING = 32, 1e-4, 0.1
BARE = {
    "bare": {},
    "bare, batch statistics": {"frozen": False},
    "bare, contiguous": {"memory_format": torch.contiguous_format},
}
QUICK = {"sizes": [32], "rounds": 1, "seconds": 0.1, "rest": 0.0}
Steps = Iterator[int]  # each next() is one training step, and gives the number of its images


def main() -> None:
    settings = parse_arguments()
    precisions = ["no"] if emulates_bf16(torch.device("cpu")) else ["no", "bf16"]
    if len(precisions) == 1:
        print("this processor emulates bf16: skipped")
    results = {}
    for size, precision in itertools.product(settings.sizes, precisions):
        rates = alone(measure, settings, size, precision)
        results[f"{size} px, {'fp32' if precision == 'no' else precision}"] = rates
    print(table(results))
    load = f"; load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"\n{available_cores()} cores, torch {torch.__version__}{load}")
    if settings.json:
        settings.json.write_text(json.dumps(results, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, "runs/fine_tuning_speed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[160, 224], help="sides in pixels")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of timm")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--seconds", type=float, default=8.0, help="least time of a turn")
    parser.add_argument("--rest", type=float, default=1.0, help="seconds between turns, in which loaders work ahead")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--quick", action="store_true", help="small images, once: shows that it works")
    quick, _ = parser.parse_known_args()
    if quick.quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def measure(settings: argparse.Namespace, size: int, precision: str) -> dict[str, list[float]]:
    """Images/s in each round, by name."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with tempfile.TemporaryDirectory(prefix="fine_tuning_speed-") as folder, contextlib.ExitStack() as stack:
        steps = {"suite": suite_steps(settings, size, Path(folder) / "run")}
        stack.callback(steps["suite"].close)
        next(steps["suite"])  # chooses its threads
        threads = {"suite": torch.get_num_threads()}
        steps["timm"] = timm_steps(settings, size, autocast)
        for name, changes in BARE.items():
            steps[name] = bare_steps(settings, size, autocast, **changes)
        rates: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(settings.rounds + 1):
            for name in list(steps) if number % 2 else reversed(steps):
                torch.set_num_threads(threads.get(name, available_cores()))
                rate = turn(steps[name], settings)
                if number:  # the first round warms up
                    rates[name].append(rate)
        return rates


def turn(steps: Steps, settings: argparse.Namespace) -> float:
    """Images/s of one turn."""
    time.sleep(settings.rest)
    for _ in range(2 * settings.workers):  # that a loader holds ready
        next(steps)
    images, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < settings.seconds or not images:
        images += next(steps)
    return images / spent


def suite_steps(settings: argparse.Namespace, size: int, folder: Path) -> Steps:
    config = TrainConfig(
        dataset="imagefolder", data_dir=str(settings.data_dir), init_from=str(settings.weights), head_init="random",
        image_size=size, batch_size=BATCH, epochs=1000, trackers=["none"], output_dir=str(folder), resume="never",
    )  # fmt: skip
    accelerator = create_accelerator()
    with RunDirectory(config, accelerator) as directory:
        run = build(choose_start(config, accelerator, directory), accelerator, directory)
        for epoch in itertools.count():
            for batch in run.loader.epoch(epoch):
                run.meters.add(batch, *train_step(run, batch, LR))
                run.state.step += 1
                yield batch.count


def timm_steps(settings: argparse.Namespace, size: int, autocast: torch.autocast) -> Steps:
    import timm
    from timm.data import create_dataset, create_loader, resolve_model_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    model = network(settings)
    data = resolve_model_data_config(model)
    loader = create_loader(
        create_dataset("", root=str(settings.data_dir), split="train", is_training=True),
        input_size=(3, size, size), batch_size=BATCH, is_training=True, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3],
        hflip=0.5, color_jitter=0.4, interpolation="random", mean=data["mean"], std=data["std"],
        num_workers=settings.workers, device=torch.device("cpu"), persistent_workers=True,
    )  # fmt: skip
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=2e-5)
    criterion = LabelSmoothingCrossEntropy(SMOOTHING)
    losses = timm.utils.AverageMeter()
    while True:
        for images, labels in loader:
            images = images.contiguous(memory_format=torch.channels_last)
            with autocast:
                loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(images))
            optimizer.zero_grad()
            yield len(images)


def bare_steps(
    settings: argparse.Namespace,
    size: int,
    autocast: torch.autocast,
    frozen: bool = True,
    memory_format: torch.memory_format = torch.channels_last,
) -> Steps:
    model = network(settings, memory_format)
    if frozen:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    images = torch.randn(BATCH, 3, size, size).to(memory_format=memory_format)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    while True:
        with autocast:
            logits = model(images)
        F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield BATCH


def network(settings: argparse.Namespace, memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    import timm

    name, classes = f"local-dir:{settings.weights.resolve()}", class_count(settings.data_dir)
    model = timm.create_model(name, pretrained=True, num_classes=classes)
    return model.train().to(memory_format=memory_format)


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Medians with the lowest and the highest round, and the medians of the ratios within a round."""
    names = list(next(iter(results.values())))
    rows = [["images/s", *results], ["---"] * (1 + len(results))]
    rows += [[name, *(spread(rates[name], "{:.1f}") for rates in results.values())] for name in names]
    for other in ("bare", "timm"):
        rows.append([f"suite / {other}", *(spread(ratios(rates, other), "{:.2f}") for rates in results.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def ratios(rates: dict[str, list[float]], other: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(rates["suite"], rates[other], strict=True)]


def spread(values: list[float], form: str) -> str:
    return f"{form} ({form} to {form})".format(statistics.median(values), min(values), max(values))


if __name__ == "__main__":
    main()
