"""Stops training at random moments, resumes it, and compares the result with a run that was never stopped.

    python benchmarks/kill_test.py                        # 30 stops, half with one process and half with two

Each trial starts a run through `accelerate launch`, stops it once at a moment drawn uniformly over the whole life of
the reference run (start-up, training, evaluation, writing of checkpoints), in a way drawn from WAYS, and resumes with
`--resume auto`. It survives if the final weights and optimizer state are bit for bit those of the reference run and
metrics.jsonl is the same but for timings.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {
    "dataset": "digits",
    "image_size": 16,
    "width": 16,
    "epochs": 3,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.1,
    "cutout": 4,
    "checkpoint_every_steps": 5,
    "log_every_steps": 3,
    "trackers": "none",
}
WAYS = (
    "SIGKILL to one rank",
    "SIGKILL to all ranks",
    "SIGKILL to everything",
    "SIGTERM to the launcher",
    "SIGINT to the launcher",
    "SIGTERM to one rank",
    "SIGINT to one rank",
)
TIMINGS = {"images_per_second", "cpu_cores"}


def launch(folder: Path, processes: int) -> subprocess.Popen:
    topology = "cpu" if processes == 1 else "multi_cpu"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [f"accelerate_configs/{topology}.yaml", "--num_processes", str(processes), "train_accelerate.py"]
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in OPTIONS.items()), f"--output_dir={folder}"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def ranks(launcher: psutil.Process) -> list[psutil.Process]:
    """The training processes under a launcher."""
    found = []
    for process in launcher.children(recursive=True):
        try:
            if "train_accelerate.py" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def stop(launcher: psutil.Process, way: str, choose: random.Random) -> None:
    """Sends the signal and waits until nothing of the run is left."""
    workers = ranks(launcher)
    everything = [launcher, *launcher.children(recursive=True)]
    signum = getattr(signal, way.split()[0])
    if way.endswith("everything"):
        targets = everything
    elif way.endswith("all ranks"):
        targets = workers or everything
    elif way.endswith("one rank"):
        targets = [choose.choice(workers)] if workers else [launcher]
    else:
        targets = [launcher]
    for process in targets:
        try:
            process.send_signal(signum)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(everything, timeout=60)
    if alive:
        raise SystemExit(f"{way}: {alive} did not end within a minute")


def outcome(folder: Path) -> dict[str, object]:
    """What must not depend on having been stopped."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": (folder / "model" / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "metrics": [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows],
    }


def run_trials(processes: int, trials: int, choose: random.Random, folder: Path) -> Counter:
    """Prints one line per trial; counts "identical" and "different"."""
    reference = folder / f"reference-{processes}"
    started = time.monotonic()
    launch(reference, processes).wait()
    life = time.monotonic() - started
    expected = outcome(reference)
    results: Counter = Counter()
    for trial in range(trials):
        target = folder / f"trial-{processes}-{trial}"
        moment, way = choose.uniform(0.2, life), choose.choice(WAYS)
        launcher = launch(target, processes)
        try:
            launcher.wait(moment)
        except subprocess.TimeoutExpired:
            stop(psutil.Process(launcher.pid), way, choose)
        launcher.wait()
        steps = sorted(path.name for path in (target / "checkpoints").glob("step-*"))
        code = launch(target, processes).wait()
        same = code == 0 and all(value == expected[name] for name, value in outcome(target).items())
        results["identical" if same else "different"] += 1
        at = f"{way} after {moment:.1f} of {life:.1f} s, newest checkpoint {steps[-1] if steps else 'none'}"
        print(f"{processes} process(es), trial {trial + 1}: {at}: {'identical' if same else 'DIFFERENT'}", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="stops in all")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="process counts to divide them over")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and ways")
    arguments = parser.parse_args()
    choose, total = random.Random(arguments.seed), Counter()
    shares = [arguments.kills // len(arguments.processes)] * len(arguments.processes)
    shares[0] += arguments.kills - sum(shares)
    with tempfile.TemporaryDirectory() as folder:
        for processes, share in zip(arguments.processes, shares, strict=True):
            total += run_trials(processes, share, choose, Path(folder))
    print(f"{total['identical']} of {arguments.kills} stopped runs ended identical to the run that was never stopped")
    return 0 if total["identical"] == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
