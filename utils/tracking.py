"""Experiment trackers through Accelerate: W&B, TensorBoard, trackio. Metrics go to metrics.jsonl in any case."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from utils.errors import UserError

Config = Mapping[str, Any]
Line = tuple[int, str]  # (step, split) of a line in metrics.jsonl


def configured_trackers(names: list[str]) -> list[str]:
    """The tracker names as Accelerate takes them. Raises UserError for one whose package is missing."""
    trackers = [name for name in names if name != "none"]
    for name in trackers:
        if find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed; pip install -r requirements-optional.txt")
    return trackers


def start_trackers(
    accelerator: Accelerator, output_dir: Path, project_name: str, run_name: str, run_id: str, config: Config
) -> None:
    """Opens every tracker on the main process, in the same W&B run (`run_id`) for the whole life of the run.

    W&B works online where a key is there and offline elsewhere; it never asks.
    """
    names = [str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with]
    options: dict[str, dict[str, Any]] = {}
    if accelerator.is_main_process and "wandb" in names:
        options["wandb"] = {
            "dir": str(output_dir),
            "id": run_id,
            "name": run_name,
            "job_type": "train",
            "resume": "allow",
            "mode": wandb_mode(output_dir),
        }
    if accelerator.is_main_process and "trackio" in names:
        os.environ.setdefault("TRACKIO_DIR", str(output_dir / "trackio"))
        options["trackio"] = {"name": run_name, "resume": "allow"}
    accelerator.init_trackers(project_name, _plain(config), options)
    for tracker in accelerator.trackers:
        if tracker.name == "wandb" and accelerator.is_main_process:
            tracker.run.define_metric("*", step_metric="step")


def wandb_mode(output_dir: Path) -> str:
    """ "online" if W&B knows a key, else "offline" (said once); WANDB_MODE wins. Keeps W&B's files in output_dir."""
    os.environ.setdefault("WANDB_DATA_DIR", str(output_dir / "wandb" / "data"))
    os.environ.setdefault("WANDB_SILENT", "true")
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    import wandb

    if wandb.login(prompt=False):
        return "online"
    print(
        f"W&B: not logged in, so the run is kept offline; `wandb sync {output_dir}/wandb/offline-run-*` sends it",
        file=sys.stderr,
    )
    return "offline"


def track(accelerator: Accelerator, row: Mapping[str, Any], known: Mapping[str, set[Line]]) -> None:
    """Logs a line of metrics.jsonl as `<split>/<key>` to the trackers that do not have it (see known_lines).

    W&B gets the step as a value: a resumed run may not go back in its own.
    """
    step, epoch, split = row["step"], row["epoch"], row["split"]
    values = {f"{split}/{key}": value for key, value in row.items() if key not in ("step", "epoch", "split")}
    for tracker in accelerator.trackers:
        if (step, split) in known.get(tracker.name, ()):
            continue
        if tracker.name == "wandb":
            tracker.log({**values, "epoch": epoch, "step": step})
        else:
            tracker.log({**values, "epoch": epoch}, step=step)


def known_lines(accelerator: Accelerator, output_dir: Path, told: set[Line]) -> dict[str, set[Line]]:
    """The lines that each tracker has from before a resume.

    A tracker cannot forget, so what it was told is not repeated. But an offline W&B run that was killed may have lost
    what it was told: there the files say what is known.
    """
    if not told:  # a fresh start: nothing to read back
        return {}
    offline = any(
        tracker.name == "wandb" and tracker.run.settings.mode == "offline" for tracker in accelerator.trackers
    )
    return {
        tracker.name: _lines_in_offline_runs(output_dir) if tracker.name == "wandb" and offline else told
        for tracker in accelerator.trackers
    }


def _lines_in_offline_runs(output_dir: Path) -> set[Line]:
    lines = set()
    for folder in output_dir.glob("wandb/offline-run-*"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        for text in printed.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                item = json.loads(text)["history"]["item"]
                lines |= {(item["step"], key.removesuffix("/loss")) for key in item if key.endswith("/loss")}
    return lines


def track_summary(accelerator: Accelerator, summary: Mapping[str, Any], step: int) -> None:
    """The run's final numbers: W&B's summary; ordinary values in the other trackers."""
    numbers = {f"final/{key}": value for key, value in summary.items() if isinstance(value, (int, float))}
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            if accelerator.is_main_process:
                tracker.run.summary.update(dict(summary))
        else:
            tracker.log(numbers, step=step)


def _plain(config: Config) -> dict[str, Any]:
    """TensorBoard takes numbers and text only."""
    return {
        key: value
        if isinstance(value, (int, float, str, bool))
        else ("null" if value is None else ",".join(map(str, value)))
        for key, value in config.items()
    }
