"""The run directory while a run is written: options, environment, metrics and trackers, checkpoints, summary.

Only the main process touches the files; the other ranks call the same methods and learn the outcome.
"""

import dataclasses
import json
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.datasets import Dataset
from data.fingerprint import describe_dataset
from utils.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint, write_checkpoint
from utils.config import TrainConfig, write_config
from utils.errors import SuiteError, UserError, one_line, together
from utils.files import lock_folder, replace_file, to_json
from utils.metrics import MetricsFile
from utils.runtime import describe_environment
from utils.tracking.tracker import Line, Tracker
from utils.tracking.trackers import TRACKED_AS, Trackers, identify_run


class RunDirectory:
    """`output_dir` of one run."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.path = Path(config.output_dir)
        self.metrics = MetricsFile(self.path / "metrics.jsonl")
        self.failed_save = ""
        self.environment: dict[str, Any] = {}
        self._told: set[Line] = set()
        self._trackers = Trackers()
        self._finished = False
        self._lock: TextIO | None = None

    # -- before training ----------------------------------------------------------------------------------------------

    def find_resume(self, names: tuple[str, ...]) -> tuple[Path, dict[str, bytes]] | None:
        """The checkpoint to go on from and its files, the same on every rank, or None for a fresh start.

        Rank 0 alone reads it, so that machines need not share the folder.
        """
        found: list[Any] = [None]
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = lock_folder(self.path)
                folder = self._resume_folder()
                found = [(folder, read_checkpoint(folder, names))] if folder else [None]
        return broadcast_object_list(found)[0]

    def _resume_folder(self) -> Path | None:
        root, resume = self.path / "checkpoints", self.config.resume
        if resume == "auto":
            return newest_checkpoint(root)
        if resume == "never":
            if list_checkpoints(root) or self.metrics.path.exists():
                raise UserError(
                    f"resume: {self.path} already holds a run; go on with --resume auto or choose another --output_dir"
                )
            return None
        folder = Path(resume)
        if not folder.is_dir():
            raise UserError(f"resume: {resume} is not allowed; it must be auto, never or a checkpoint folder")
        existing = list_checkpoints(root)
        if existing and existing[-1].resolve() != folder.resolve():
            raise UserError(
                f"resume: {self.path} has gone on to {existing[-1].name}; use --resume auto or another --output_dir"
            )
        return folder

    def start(self, metrics_size: int, resumed_from: Path | None, data: Dataset) -> None:
        """Writes options and environment, cuts metrics.jsonl back to `metrics_size` bytes and opens the trackers."""
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                self._take_over_metrics(metrics_size, resumed_from)
        if self.accelerator.is_main_process:
            self.environment = {**describe_environment(self.accelerator), "data": describe_dataset(data)}
            self._describe(self.environment)

    def _take_over_metrics(self, size: int, resumed_from: Path | None) -> None:
        self._told = {(row["step"], row["split"]) for row in self.metrics.rows()}
        origin = resumed_from.resolve().parent.parent / "metrics.jsonl" if resumed_from else None
        if origin and origin.exists() and origin != self.metrics.path.resolve():
            self.metrics.path.write_bytes(origin.read_bytes()[:size])
        self.metrics.truncate(size)

    def _describe(self, environment: dict[str, Any]) -> None:
        """config.yaml, environment.json and the trackers, which are told what they have missed."""
        path = self.path / "environment.json"
        saved = _saved_environment(path)
        known = {key: value for key, value in saved.items() if key in TRACKED_AS}
        known.setdefault("run_id", os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
        replace_file(path, to_json({**environment, **known}))
        write_config(self.config, self.path / "config.yaml")
        self._trackers = Trackers(self.config.trackers, identify_run(self.config, self.path, known))
        for found in self._trackers.each(lambda tracker: tracker.identify()):
            known |= found
        replace_file(path, to_json({**environment, **known}))
        described = {**dataclasses.asdict(self.config), "environment": environment}
        self._trackers.each(lambda tracker: tracker.describe(described))
        self._trackers.each(lambda tracker: tracker.recall(self._told))
        self._trackers.each(lambda tracker: tracker.use_data(environment["data"]) if tracker.fresh else None)
        for row in self.metrics.rows():
            self._trackers.each(lambda tracker, row=row: tracker.line(row))

    # -- during training ----------------------------------------------------------------------------------------------

    def log(self, split: str, step: int, epoch: int, loss: float, accuracy: float, **more: float) -> None:
        """One line in metrics.jsonl, and the same values as `<split>/<key>` in the trackers."""
        if not self.accelerator.is_main_process:
            return
        row = {"step": step, "epoch": epoch, "split": split, "loss": loss, "accuracy": accuracy, **more}
        self.metrics.append(row)
        self._trackers.each(lambda tracker: tracker.line(row))

    def track(self, act: Callable[[Tracker], Any]) -> None:
        """Does something with every tracker, on the main process alone."""
        self._trackers.each(act)

    def save_checkpoint(self, step: int, files: dict[str, bytes]) -> None:
        """Writes a checkpoint. A full or lost disk costs a warning, not the run: the next save tries again."""
        if not self.accelerator.is_main_process:
            return
        try:
            write_checkpoint(self.path / "checkpoints", step, files, self.config.keep_checkpoints)
            self.failed_save = ""
        except OSError as error:
            self.failed_save = one_line(error)
            print(
                f"warning: checkpoint at step {step} could not be written ({self.failed_save}); training goes on",
                file=sys.stderr,
            )

    def last_checkpoint_name(self) -> str:
        names = [path.name for path in list_checkpoints(self.path / "checkpoints")]
        return names[-1] if names else "none"

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json; raises SuiteError if the last checkpoint could not be written."""
        if self.accelerator.is_main_process:
            replace_file(self.path / "summary.json", to_json(summary))
            self._trackers.each(lambda tracker: tracker.summarise(summary, summary["steps"]))
            self._finished = True
        if self.failed_save:
            raise SuiteError(f"the last checkpoint could not be written ({self.failed_save})")

    def close(self) -> None:
        """Closes the trackers and frees the folder; on every rank, once."""
        self._trackers.close(self._finished)
        if self._lock:
            self._lock.close()


def _saved_environment(path: Path) -> dict[str, Any]:
    """environment.json of an earlier start; empty where there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
