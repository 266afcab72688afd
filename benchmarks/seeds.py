"""Trainings of several seeds in one table: what the benchmarks of fine-tuning share.

    python benchmarks/seeds.py RESULTS --reach 0.86 0.92      # the table of what lies there

RESULTS holds <training>/seed-<n>/result.json. A result that is there is not measured again, so the same command
continues a benchmark that was interrupted. Python alone is needed, since some peers are installed apart.
"""

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

RESULT = "result.json"


def parser_of(description: str | None, output_dir: str) -> argparse.ArgumentParser:
    """The options that all benchmarks of fine-tuning have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with train/<class>/ and test/ or val/")
    parser.add_argument("--weights", type=Path, required=True, help="timm folder: config.json and model.safetensors")
    parser.add_argument("--image_size", type=int, default=160, help="side in pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir), help="folder of the results")
    return parser


def test_split(data_dir: Path) -> str:
    """The name of the folder that is tested on."""
    return "test" if (data_dir / "test").is_dir() else "val"


def class_count(data_dir: Path) -> int:
    return sum(path.is_dir() and path.name[0] != "." for path in (data_dir / "train").iterdir())


def measured(folder: Path, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The content of folder/result.json; if it is missing, that of `measure(folder)` in an emptied folder.

    A result has at least `accuracy` (0 to 1) and `seconds` of wall time, and `scores`: [seconds, accuracy] of each
    evaluation. What else ran at its beginning is noted as `load_average`.
    """
    if not (folder / RESULT).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        result = {**measure(folder), "load_average": load, "cores": os.cpu_count()}
        part = folder / f"{RESULT}.part"
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(folder / RESULT)
        print(f"{folder}: {result['accuracy']:.2%} in {result['seconds']:.0f} s", flush=True)
    return json.loads((folder / RESULT).read_text())


def measure_seeds(
    settings: argparse.Namespace, name: str, measure: Callable[[argparse.Namespace, int, Path], dict[str, Any]]
) -> None:
    """Measures `measure(settings, seed, folder)` for the seeds of a training, and prints the table of all.

    Args:
        settings: with the options of parser_of.
    """
    for seed in settings.seeds:
        measured(settings.output_dir / name / f"seed-{seed}", functools.partial(measure, settings, seed))
    print(table(settings.output_dir))


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a process of its own, which starts loader processes as a script does."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_default_start_method) as pool:
        return pool.submit(function, *arguments).result()


def _default_start_method() -> None:
    """The system's own, instead of the one by which this process was started."""
    multiprocessing.set_start_method(None, force=True)


def watched(
    command: Sequence[str | os.PathLike[str]], log: Path, accuracies: Callable[[], list[float]], cwd: Path
) -> tuple[float, list[list[float]]]:
    """Runs a command to its end; what it prints goes to `log`.

    Args:
        accuracies: all scores so far; asked whenever the command prints a line.

    Returns the seconds it took, and when each score was there: [seconds, accuracy]. Raises RuntimeError if it fails.
    """
    started, scores = time.perf_counter(), []

    def look() -> None:
        spent = time.perf_counter() - started
        scores.extend([round(spent, 2), accuracy] for accuracy in accuracies()[len(scores) :])

    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        open(log, "w") as text,
        subprocess.Popen(command, cwd=cwd, env=environment, text=True, errors="replace", **pipes) as process,
    ):
        for line in process.stdout or ():
            text.write(line)
            look()
    look()
    if process.returncode:
        raise RuntimeError(f"it ended with {process.returncode}; the end of {log}:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - started, scores


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by training, in the order of their accuracy, the best first."""
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"*/seed-*/{RESULT}")):
        results.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text()))
    return dict(sorted(results.items(), key=lambda item: -mean(item[1], "accuracy")))


def mean(results: Iterable[dict[str, Any]], key: str) -> float:
    return statistics.mean(result[key] for result in results)


def table(folder: Path, reach: Sequence[float] = (), split: str = "test") -> str:
    """One line of Markdown for each training below `folder`.

    Args:
        reach: accuracies to which the time is given.
    """
    titles = ["training", f"{split} accuracy", "probe", "seconds", *(f"seconds to {level:.1%}" for level in reach), "n"]
    rows = [titles, ["---"] * len(titles)]
    for name, results in read_results(folder).items():
        probe = f"{mean(results, 'probe'):.1%}" if all(result.get("probe") for result in results) else "-"
        seconds = [f"{mean(results, 'seconds'):.0f}", *(seconds_to(results, level) for level in reach)]
        rows.append([name, spread([result["accuracy"] for result in results]), probe, *seconds, str(len(results))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def spread(accuracies: Sequence[float]) -> str:
    """The mean with the lowest and the highest."""
    shown = f"{statistics.mean(accuracies):.1%}"
    return f"{shown} ({min(accuracies):.1%} to {max(accuracies):.1%})" if len(accuracies) > 1 else shown


def seconds_to(results: Iterable[dict[str, Any]], level: float) -> str:
    """Mean time until an evaluation was at least so good; `-` if a seed never was."""
    first = [next((seconds for seconds, accuracy in each["scores"] if accuracy >= level), None) for each in results]
    return "-" if None in first else f"{statistics.mean(first):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder that benchmarks wrote to")
    parser.add_argument("--reach", type=float, nargs="*", default=[], help="accuracies to which the time is given")
    parser.add_argument("--split", default="test", help="what the accuracies are of, for the title")
    settings = parser.parse_args()
    print(table(settings.results, settings.reach, settings.split))


if __name__ == "__main__":
    main()
