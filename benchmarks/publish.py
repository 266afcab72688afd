"""Puts finished runs into docs/results/, and writes its table and plot from what lies there.

    python benchmarks/publish.py runs/resnet18                          # docs/results/resnet18/, then table and plot
    python benchmarks/publish.py runs/speedrun-0 --as speedrun/seed-0   # one seed of several
    python benchmarks/publish.py                                        # table and plot alone

A run has been analysed before (`analyze.py RUN`). Its records and small figures are copied, its weights are not. The
numbers come from the copied summary.json and metrics.jsonl; the table has its place in the README and, with the
commands, in docs/results/README.md.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import create_model, model_arguments
from utils.analysis.comparison import history
from utils.config import TrainConfig
from utils.evaluation.scores import accuracy_interval
from utils.plots.figures import COLOURS, GREY, new_figure
from utils.runs.metrics_file import MetricsFile
from utils.system.duration import duration
from utils.system.reading import check_folder

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
RECORDS = ("config.yaml", "metrics.jsonl", "summary.json", "environment.json")
PICTURES = ("curves", "confusion_matrix", "misclassified", "gradcam", "calibration")
WIDEST = 1000  # pixels of a published figure
BEGIN, END = "<!-- table: written by benchmarks/publish.py -->", "<!-- end of table -->"

# Published elsewhere, for the original CIFAR-10 on other hardware: accuracy, and seconds of training where given.
ANCHORS = {
    "airbench94 (A100)": (0.9401, 3.83),
    "airbench95 (A100)": (0.9501, 10.4),
    "airbench96 (A100)": (0.9603, 34.7),
    "kuangliu/pytorch-cifar, ResNet-18, 200 epochs": (0.9302, None),
    "best of the course, 20 epochs": (0.926, None),
    "the course's own run, 24 epochs": (0.7759, None),
}


@dataclass(frozen=True)
class Result:
    """One seed of one recipe, as its folder in docs/results tells it."""

    recipe: str
    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]
    rows: list[dict[str, Any]]

    @cached_property
    def petaflop(self) -> float:
        """10^15 floating-point operations of the whole training: forward and backward, every image at its size."""
        images: dict[int, int] = {}
        for row in self.rows:
            if row["split"] == "train":
                size = row.get("resolution", self.config["image_size"])
                images[size] = images.get(size, 0) + row["images"]
        return sum(count * flops_per_image(self.config, size) for size, count in images.items()) / 1e15

    def curve(self) -> tuple[list[float], list[float]]:
        """Minutes of training and test error (0 to 1) after each epoch."""
        tested = history(self.rows)
        return [seconds / 60 for seconds in tested.seconds], [1 - accuracy for accuracy in tested.accuracy]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="an analysed run directory")
    parser.add_argument("--as", dest="name", help="its folder below docs/results; unset: the name of the run directory")
    arguments = parser.parse_args()
    if arguments.run:
        copy_run(arguments.run, RESULTS / (arguments.name or arguments.run.name))
    results = read_results(RESULTS)
    error_against_time(results).savefig(RESULTS / "error_against_time.png", dpi=110)
    for page, text in pages(results).items():
        page.write_text(text)


def copy_run(run: Path, folder: Path) -> None:
    """Copies records as they are, and figures with at most WIDEST pixels and 256 colours."""
    check_folder(run, "run")
    folder.mkdir(parents=True, exist_ok=True)
    for name in RECORDS:
        shutil.copyfile(run / name, folder / name)
    for name in PICTURES:
        with Image.open(run / "analysis" / f"{name}.png") as figure:
            figure = figure.convert("RGB")
            figure.thumbnail((WIDEST, 100 * WIDEST), Image.Resampling.LANCZOS)
            figure.quantize(256, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)


def read_results(folder: Path) -> dict[str, list[Result]]:
    """The published seeds of each recipe, in the order of their accuracy."""
    results: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("**/summary.json")):
        recipe = path.relative_to(folder).parts[0]
        read = {name: json.loads((path.parent / f"{name}.json").read_bytes()) for name in ("summary", "environment")}
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        rows = list(MetricsFile(path.parent / "metrics.jsonl").rows())
        results.setdefault(recipe, []).append(Result(recipe, path.parent, config, **read, rows=rows))
    return dict(sorted(results.items(), key=lambda item: -mean_accuracy(item[1])))


def mean_accuracy(seeds: list[Result]) -> float:
    return statistics.mean(result.summary["test_accuracy"] for result in seeds)


def pages(results: dict[str, list[Result]]) -> dict[Path, str]:
    """The pages that show the table, as they should be: the README at the top, and the results with their commands."""
    commands = "\n".join(f"    {command(seeds[0])}" for seeds in results.values())
    texts = {
        ROOT / "README.md": table(results, ROOT),
        RESULTS / "README.md": f"{table(results, RESULTS)}\n\nThe commands, in the same order:\n\n{commands}",
    }
    return {page: with_table(page, text) for page, text in texts.items()}


def table(results: dict[str, list[Result]], folder: Path) -> str:
    """One line a recipe, linked from `folder`. The interval is that of the images (Wilson), the spread the seeds'."""
    lines = [
        "| recipe | test accuracy | 95 % interval | seeds | epochs | training time | images/s | PFLOP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for recipe, seeds in results.items():
        accuracies = [result.summary["test_accuracy"] for result in seeds]
        count = seeds[0].summary["test_count"]
        mean = statistics.mean(accuracies)
        low, high = accuracy_interval(round(mean * count), count)
        shown = f"**{mean:.2%}**" + (f" ± {100 * statistics.stdev(accuracies):.2f}" if len(seeds) > 1 else "")
        plain = [result.summary.get("test_accuracy_without_tta") for result in seeds]
        if seeds[0].config.get("tta", "none") != "none" and None not in plain:
            shown += f" ({statistics.mean(plain):.2%} without test-time augmentation)"
        seconds = statistics.mean(result.summary["train_seconds"] for result in seeds)
        speed = statistics.mean(result.summary["images_per_second"] for result in seeds)
        lines.append(
            f"| [{recipe}]({seeds[0].folder.relative_to(folder).as_posix()}/) | {shown} | {low:.2%} – {high:.2%} "
            f"| {', '.join(str(result.summary['seed']) for result in seeds)} | {seeds[0].summary['epochs']} "
            f"| {duration(seconds)} | {speed:.0f} | {seeds[0].petaflop:.2f} |"
        )
    return "\n".join(lines)


def command(result: Result) -> str:
    """What was typed, as far as it bears on the result: without trackers, checkpoints, the run's folder and seed."""
    words = result.environment["command"][1:]
    changed = []
    for option, value in zip(words[1::2], words[2::2], strict=True):
        if option not in ("--trackers", "--output_dir", "--seed", "--resume", "--checkpoint_every_steps"):
            changed += [option, value]
    launch = "accelerate launch"
    if result.environment["mixed_precision"] == "bf16":
        launch += " --config_file accelerate_configs/bf16.yaml"
    return " ".join([launch, words[0], *changed])


def with_table(page: Path, text: str) -> str:
    """What the page says, with this text between the two marks."""
    old = page.read_text()
    if BEGIN not in old or END not in old:
        raise SystemExit(f"error: {page} lacks the line {BEGIN} or {END}")
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{text}\n{END}", old, flags=re.DOTALL)


def flops_per_image(config: dict[str, Any], size: int) -> int:
    """Floating-point operations of one image forward and backward, as torch counts them (a multiply-add is two)."""
    arguments = model_arguments(options := TrainConfig(**config), options.size)
    model = create_model(config["model"], 10, **arguments).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() // 2


def error_against_time(results: dict[str, list[Result]]) -> Any:
    """Test error over training time, one line a seed, ending in its final error; the anchors in grey."""
    figure = new_figure(8.2, 5.4)
    axes = figure.subplots()
    colours = [*COLOURS.values(), "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
    for (recipe, seeds), colour in zip(results.items(), colours, strict=False):
        for position, result in enumerate(seeds):
            minutes, errors = result.curve()
            final = 1 - result.summary["test_accuracy"]
            axes.plot(minutes, errors, color=colour, linewidth=1, alpha=0.8)
            label = f"{recipe} ({1 - mean_accuracy(seeds):.1%})" if position == 0 else None
            axes.plot([minutes[-1]], [final], "o", color=colour, markersize=5, label=label)
    for name, (accuracy, seconds) in ANCHORS.items():
        text = {"s": f"{name}: {1 - accuracy:.1%}", "color": GREY, "fontsize": 7}
        if seconds is None:
            axes.axhline(1 - accuracy, color=GREY, linestyle=":", linewidth=1)
            below = "top" if name.startswith("kuangliu") else "bottom"  # two lines lie close together
            axes.text(0.99, 1 - accuracy, ha="right", va=below, transform=axes.get_yaxis_transform(), **text)
        else:
            axes.plot([seconds / 60], [1 - accuracy], "D", color=GREY, markersize=4, markerfacecolor="none")
            axes.text(1.15 * seconds / 60, 1 - accuracy, va="center", **text)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="training time in minutes (2 CPU cores; log scale)",
        ylabel="test error (log scale)",
        title="CIFAR-10 (JPEG copy): test error against training time\n"
        "grey: published elsewhere, original CIFAR-10, other hardware",
    )
    axes.set_yticks([0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(title="recipe (final test error)", fontsize=8, loc="upper left")
    return figure


if __name__ == "__main__":
    main()
