"""The run directory while the run is written: options, environment, metrics and trackers, checkpoints, summary.

Only the main process touches the files; the other ranks call the same methods and learn the outcome.
"""

import dataclasses
import os
import sys
import uuid
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

from accelerate import Accelerator

from data.splits import Dataset
from utils.config import TrainConfig
from utils.config.files import write_config
from utils.runs.checkpoint import Checkpoint, list_checkpoints, newest_checkpoint, read_checkpoint, write_checkpoint
from utils.runs.metrics_file import MetricsFile
from utils.system.errors import EnvironmentFault, UserError, as_fault, one_line, raise_on_all_ranks
from utils.system.exchange import broadcast_bytes, broadcast_files
from utils.system.files import LOCK, check_writable, lock_folder, replace_file, to_json
from utils.system.reading import check_files, check_folder, is_number, read_json
from utils.system.runtime import describe_environment
from utils.tracking.tracker import Line, Tracker
from utils.tracking.trackers import Trackers, identify_run, tracked_as


class RunDirectory(AbstractContextManager["RunDirectory"]):
    """`output_dir` of one run, as a context manager: leaving it closes the trackers and releases the folder.

    Attributes:
        environment: what environment.json says of machine, launch and data; on the main process, from `start` on.
        failed_save: why the last checkpoint could not be written; empty if it was.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.path = Path(config.output_dir)
        self.metrics = MetricsFile(self.path / "metrics.jsonl")
        self.environment: dict[str, Any] = {}
        self.failed_save = ""
        self._checkpoints = self.path / "checkpoints"
        self._phase: Literal["set-up", "training", "finished"] = "set-up"
        self._lock: BinaryIO | None = None
        self._on_failed_setup = ExitStack()
        self._trackers = Trackers()
        self._tracked_as: dict[str, str] = {}

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Appends how to resume to a fault of the environment during training."""
        self._trackers.close(self._phase == "finished")
        self._on_failed_setup.close()
        if self._lock:
            self._lock.close()
        fault = as_fault(error) if self._phase != "set-up" else None
        if fault and not fault.silent:
            raise EnvironmentFault(f"{fault}; {self.how_to_resume()}") from error

    # -- before training ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Before any work: raises UserError if the folder is not writable, or `resume` is not a folder."""
        if not self.accelerator.is_main_process:
            return
        check_writable(self.path)
        resume = self.config.resume
        if resume not in ("auto", "never") and not os.path.isdir(resume):
            raise UserError(f"resume: {resume} is not allowed; it must be auto, never or a checkpoint folder")

    def find_resume(self, names: Collection[str]) -> Checkpoint | None:
        """Locks the folder. The checkpoint to resume from and its named files on every rank, None for a fresh start.

        Rank 0 alone reads it, so machines need not share the folder.
        """
        return self._on_every_rank(partial(self._find_checkpoint, names))

    def read_newest(self, names: Collection[str]) -> Checkpoint:
        """The newest valid checkpoint and its named files, on every rank."""
        found = self._on_every_rank(partial(newest_checkpoint, self._checkpoints, names))
        if found is None:
            silent = not self.accelerator.is_main_process
            raise EnvironmentFault(f"{self._checkpoints} has no valid checkpoint to roll back to", silent)
        return found

    def _on_every_rank(self, find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """What the main process finds, on every rank."""
        found = None
        with raise_on_all_ranks(self.accelerator):
            if self.accelerator.is_main_process:
                found = find()
        folder, files = found or ("", {})
        folder = os.fsdecode(broadcast_bytes(self.accelerator, os.fsencode(folder)))
        return (Path(folder), broadcast_files(self.accelerator, files)) if folder else None

    def _take_folder(self) -> None:
        """Makes and locks the folder. A new one is removed again if set-up fails."""
        new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        check_files(self.path, [LOCK], "output_dir")
        self._lock = lock_folder(self.path)
        if new:
            self._on_failed_setup.callback(self._remove_unused)
        check_folder(self.path, "output_dir")

    def _remove_unused(self) -> None:
        with suppress(OSError):
            (self.path / LOCK).unlink()
            self.path.rmdir()

    def _find_checkpoint(self, names: Collection[str]) -> Checkpoint | None:
        self._take_folder()
        resume, existing = self.config.resume, list_checkpoints(self._checkpoints)
        if resume == "auto":
            return newest_checkpoint(self._checkpoints, names)
        if resume == "never":
            if existing or self.metrics.path.exists():
                raise UserError(
                    f"resume: {self.path} already holds a run; use --resume auto or choose another --output_dir"
                )
            return None
        folder = Path(resume)
        check_folder(_run_of(folder), "resume")
        if existing and existing[-1].resolve() != folder.resolve():
            raise UserError(
                f"resume: {self.path} is already at {existing[-1].name}; use --resume auto or another --output_dir"
            )
        return folder, read_checkpoint(folder, names)

    def start(
        self, config: TrainConfig, metrics_size: int, source: Path | None, data: Dataset, more: dict[str, Any]
    ) -> None:
        """Writes options and environment, cuts metrics.jsonl back to `metrics_size` bytes and opens the trackers.

        Args:
            source: the checkpoint that the run resumes from, if any.
            more: how numbers are computed, and what else environment.json says of the run.
        """
        self.config = config
        with raise_on_all_ranks(self.accelerator):
            if self.accelerator.is_main_process:
                logged = self._take_over_metrics(metrics_size, source)
                self.environment = {**describe_environment(self.accelerator), **more, "data": data.describe()}
                self._open_trackers(logged)
        self._on_failed_setup.pop_all()
        self._phase = "training"

    def _take_over_metrics(self, size: int, source: Path | None) -> set[Line]:
        """Cuts metrics.jsonl back; of a fork, copies the original's. Returns all lines that were ever logged here."""
        logged = {(row["step"], row["split"]) for row in self.metrics.rows()}
        origin = _run_of(source) / "metrics.jsonl" if source else None
        if origin and origin.is_file() and origin.resolve() != self.metrics.path.resolve():
            self.metrics.take(origin, size)
        self.metrics.truncate(size)
        return logged

    def _open_trackers(self, logged: set[Line]) -> None:
        """Also writes config.yaml and environment.json, and logs what a tracker is missing."""
        self._tracked_as = tracked_as(_read_or_empty(self.path / "environment.json"))
        self._tracked_as.setdefault("run_id", os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
        self._write_description()
        self._trackers = Trackers(self.config.trackers, identify_run(self.config, self.path, self._tracked_as))
        for found in self._trackers.each(lambda tracker: tracker.identify()):
            self._tracked_as |= found
        self._write_description()
        described = {**dataclasses.asdict(self.config), "environment": self.environment}
        self._trackers.each(lambda tracker: tracker.describe(described))
        self._trackers.each(lambda tracker: tracker.recall(logged))
        self._trackers.each(lambda tracker: tracker.use_data(self.environment["data"]) if tracker.fresh else None)
        for row in self.metrics.rows():
            self._trackers.each(methodcaller("line", row))

    def _write_description(self) -> None:
        replace_file(self.path / "environment.json", to_json({**self.environment, **self._tracked_as}))
        write_config(self.config, self.path / "config.yaml")

    def finished_accuracy(self, step: int) -> float | None:
        """The test accuracy of a run that already finished at this step; None if it did not."""
        summary = _read_or_empty(self.path / "summary.json")
        accuracy = summary.get("test_accuracy")
        return accuracy if summary.get("steps") == step and is_number(accuracy, 0, 1) else None

    # -- during training ----------------------------------------------------------------------------------------------

    def log(self, split: str, step: int, epoch: int, loss: float, accuracy: float, **more: float) -> None:
        """One line in metrics.jsonl, and the same values as `<split>/<key>` in the trackers."""
        if self.accelerator.is_main_process:
            row = {"step": step, "epoch": epoch, "split": split, "loss": loss, "accuracy": accuracy, **more}
            self.metrics.append(row)
            self._trackers.each(methodcaller("line", row))

    def track(self, act: Callable[[Tracker], Any]) -> None:
        """Calls `act` with every tracker, on the main process alone."""
        self._trackers.each(act)

    def save_checkpoint(self, step: int, files: Callable[[int], dict[str, bytes]]) -> None:
        """Writes a checkpoint. A full or lost disk costs a warning, not the run: the next save tries again.

        Raises UserError if the folder was removed and another run holds it now.

        Args:
            files: returns the contents of the files, given the size of metrics.jsonl in bytes.
        """
        if not self.accelerator.is_main_process:
            return
        try:
            self._restore_folder()
            content = files(self.metrics.size())
            write_checkpoint(self._checkpoints, step, content, self.config.keep_checkpoints)
            self.failed_save = ""
        except OSError as error:
            self.failed_save = one_line(error)
            newest = self.last_checkpoint_name()
            _warn(f"checkpoint at step {step} could not be written ({self.failed_save}); the newest is {newest}")

    def _restore_folder(self) -> None:
        """Makes and locks the folder again if it was removed or moved during the run."""
        path = self.path / LOCK
        if self._lock and not (path.exists() and os.fstat(self._lock.fileno()).st_nlink):
            self.path.mkdir(parents=True, exist_ok=True)
            removed, self._lock = self._lock, lock_folder(self.path)
            removed.close()
            _warn(f"{path} was removed; missing files are written again, except earlier lines of metrics.jsonl")
        if not (self.path / "config.yaml").exists():
            self._write_description()

    def last_checkpoint_name(self) -> str:
        names = [path.name for path in list_checkpoints(self._checkpoints)]
        return names[-1] if names else "none"

    def how_to_resume(self) -> str:
        """What to say of a run that ends early."""
        if not self.accelerator.is_main_process:  # the other ranks may not see the folder
            return "the same command resumes from the newest checkpoint"
        newest = self.last_checkpoint_name()
        return "the same command starts over" if newest == "none" else f"the same command resumes from {newest}"

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json; raises EnvironmentFault if the last checkpoint could not be written."""
        if self.accelerator.is_main_process:
            self.metrics.size()  # writes lines that are still waiting
            replace_file(self.path / "summary.json", to_json(summary))
            self._trackers.each(lambda tracker: tracker.summarise(summary, summary["steps"]))
            self._phase = "finished"
        if self.failed_save:
            raise EnvironmentFault(f"the last checkpoint could not be written ({self.failed_save})")


def _run_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint is in; the checkpoint itself if it is in none."""
    folder = checkpoint.resolve()
    run = folder.parent.parent
    return run if folder.parent.name == "checkpoints" and (run / "config.yaml").is_file() else folder


def _read_or_empty(path: Path) -> dict[str, Any]:
    """A JSON file of an earlier start; empty if it is missing or invalid."""
    try:
        return read_json(path)
    except (OSError, UserError):
        return {}


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
