"""Watches a training for an hour or more: do memory, open files, threads and speed stay where they are?

    accelerate launch train_accelerate.py --output_dir runs/soak &
    python benchmarks/soak.py runs/soak --minutes 60

The process that holds the run's lock is looked at every few seconds from outside, with all its children. Prints the
first and the last quarter of the time and the trend; writes soak.csv and soak.png into --output_dir.
"""

import argparse
import csv
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from utils.plots.figures import new_figure
from utils.runs.metrics_file import MetricsFile
from utils.system.files import LOCK

MEASURES = {"memory_mib": "memory, MiB", "files": "open files", "threads": "threads", "images_per_second": "images/s"}
WARM_UP = 300  # seconds that the trend leaves out: allocators and caches fill


def trainer_of(run: Path) -> psutil.Process:
    """The process that trains in the folder."""
    try:
        return psutil.Process(int(re.match(r"process (\d+) ", (run / LOCK).read_text()).group(1)))
    except (OSError, AttributeError, psutil.NoSuchProcess):
        sys.exit(f"nothing trains in {run}")


def samples(run: Path, seconds: float, every: float) -> Iterator[dict[str, Any]]:
    """A row every so many seconds until the time is over or the training ends."""
    trainer, metrics = trainer_of(run), MetricsFile(run / "metrics.jsonl")
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        try:
            family = [trainer, *trainer.children(recursive=True)]
            row = {
                "seconds": round(passed, 1),
                "memory_mib": round(sum(process.memory_info().rss for process in family) / 2**20, 1),
                "files": sum(process.num_fds() for process in family),
                "threads": sum(process.num_threads() for process in family),
            }
        except psutil.NoSuchProcess:
            return
        last = [line for line in metrics.rows() if line["split"] == "train"][-1:]
        yield row | ({"step": last[0]["step"], "images_per_second": last[0]["images_per_second"]} if last else {})
        time.sleep(every)


def report(rows: list[dict[str, Any]]) -> list[str]:
    """Of each measure: mean of the first and the last quarter after the warm-up, range, and trend by least squares."""
    text = [f"{len(rows)} samples in {rows[-1]['seconds'] / 60:.0f} minutes, the first {WARM_UP // 60} skipped below"]
    for name, label in MEASURES.items():
        measured = [(row["seconds"] / 3600, row[name]) for row in rows if row["seconds"] >= WARM_UP and name in row]
        hours, values = np.array(measured).T
        quarter = max(1, len(values) // 4)
        slope = np.polyfit(hours, values, 1)[0]
        text.append(
            f"{label}: {values[:quarter].mean():.1f} at first, {values[-quarter:].mean():.1f} at last, "
            f"{values.min():.1f} to {values.max():.1f}, {slope:+.2f} an hour"
        )
    return text


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Every measure against time, from zero."""
    figure = new_figure(8, 7)
    for axes, (name, label) in zip(figure.subplots(len(MEASURES), sharex=True), MEASURES.items(), strict=True):
        points = [(row["seconds"] / 60, row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.15 * max(value for _, value in points))
        axes.grid(alpha=0.3)
    axes.set_xlabel("minutes")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=10, help="seconds between two samples")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/soak_report"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with open(options.output_dir / "soak.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["seconds", "step", *MEASURES])
        writer.writeheader()
        for row in samples(options.run, 60 * options.minutes, options.every):
            rows.append(row)
            writer.writerow(row)
            file.flush()
    print("\n".join(report(rows)))
    draw(rows, options.output_dir / "soak.png")


if __name__ == "__main__":
    main()
