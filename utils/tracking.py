"""Experiment trackers through Accelerate: W&B, TensorBoard, trackio. Metrics go to metrics.jsonl in any case."""

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from utils.errors import UserError

Config = Mapping[str, Any]


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


def track(accelerator: Accelerator, values: Mapping[str, Any], step: int) -> None:
    """Logs values at an optimizer step. W&B gets the step as a value: a resumed run may not go back in its own."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.log({**values, "step": step})
        else:
            tracker.log(dict(values), step=step)


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
