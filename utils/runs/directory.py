"""The run directory while a run is written: options, environment, metrics and trackers, checkpoints, summary.

Only the main process touches the files; the other ranks call the same methods and learn the outcome.
"""

import contextlib
import dataclasses
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.datasets import Dataset
from data.fingerprint import describe_dataset
from utils.config import TrainConfig
from utils.config.files import write_config
from utils.runs.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint, write_checkpoint
from utils.runs.metrics_file import MetricsFile
from utils.system.errors import EnvironmentFault, UserError, as_fault, one_line, raise_on_all_ranks
from utils.system.files import LOCK, check_writable, lock_folder, replace_file, to_json
from utils.system.reading import check_files, check_folder, is_number, read_json
from utils.system.runtime import describe_environment
from utils.tracking.tracker import Line, Tracker
from utils.tracking.trackers import Trackers, identify_run, tracked_as


class RunDirectory:
    """`output_dir` of one run. Use as a context manager: its end closes the trackers and frees the folder."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.path = Path(config.output_dir)
        self.metrics = MetricsFile(self.path / "metrics.jsonl")
        self.failed_save = ""
        self.environment: dict[str, Any] = {}
        self._identity: dict[str, Any] = {}
        self._told: set[Line] = set()
        self._trackers = Trackers()
        self._unwritten = False
        self._new = self._started = self._finished = False
        self._lock: BinaryIO | None = None

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """To a fault of the environment during training it adds how to go on."""
        self._trackers.close(self._finished)
        if self._lock:
            if self._new and not self._started:
                with contextlib.suppress(OSError):
                    (self.path / LOCK).unlink()
                    self.path.rmdir()
            self._lock.close()
        fault = as_fault(error) if self._started else None
        if fault and not fault.silent:
            raise EnvironmentFault(f"{fault}; {self.how_to_go_on()}") from error

    # -- before training ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Before any work: raises UserError where the folder cannot be written to, or `resume` is no folder."""
        if not self.accelerator.is_main_process:
            return
        check_writable(self.path)
        resume = self.config.resume
        if resume not in ("auto", "never") and not os.path.isdir(resume):
            raise UserError(f"resume: {resume} is not allowed; it must be auto, never or a checkpoint folder")

    def find_resume(self, names: tuple[str, ...]) -> tuple[Path, dict[str, bytes]] | None:
        """The checkpoint to go on from and its files, the same on every rank, or None for a fresh start.

        Rank 0 alone reads it, so that machines need not share the folder.
        """
        found: list[Any] = [None]
        with raise_on_all_ranks(self.accelerator):
            if self.accelerator.is_main_process:
                self._new = not self.path.exists()
                self.path.mkdir(parents=True, exist_ok=True)
                check_files(self.path, [LOCK], "output_dir")
                self._lock = lock_folder(self.path)
                check_folder(self.path, "output_dir")
                folder = self._resume_folder()
                found = [(folder, read_checkpoint(folder, names))] if folder else [None]
        return broadcast_object_list(found)[0]

    def read_newest(self, names: tuple[str, ...]) -> tuple[Path, dict[str, bytes]]:
        """The newest whole checkpoint and its files, the same on every rank."""
        found: list[Any] = [None]
        with raise_on_all_ranks(self.accelerator):
            if self.accelerator.is_main_process:
                folder = newest_checkpoint(self.path / "checkpoints")
                if folder is None:
                    raise EnvironmentFault(f"{self.path / 'checkpoints'} has no whole checkpoint to go back to")
                found = [(folder, read_checkpoint(folder, names))]
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
        check_folder(_run_of(folder), "resume")
        existing = list_checkpoints(root)
        if existing and existing[-1].resolve() != folder.resolve():
            raise UserError(
                f"resume: {self.path} has gone on to {existing[-1].name}; use --resume auto or another --output_dir"
            )
        return folder

    def start(self, metrics_size: int, resumed_from: Path | None, data: Dataset, arithmetic: Mapping[str, Any]) -> None:
        """Writes options and environment, cuts metrics.jsonl back to `metrics_size` bytes and opens the trackers.

        `arithmetic`: what environment.json says of how numbers are computed, beside what it finds out itself.
        """
        with raise_on_all_ranks(self.accelerator):
            if self.accelerator.is_main_process:
                self._take_over_metrics(metrics_size, resumed_from)
                self.environment = {
                    **describe_environment(self.accelerator),
                    **arithmetic,
                    "data": describe_dataset(data),
                }
                self._describe(self.environment)
        self._started = True

    def _take_over_metrics(self, size: int, resumed_from: Path | None) -> None:
        self._told = {(row["step"], row["split"]) for row in self.metrics.rows()}
        origin = _run_of(resumed_from) / "metrics.jsonl" if resumed_from else None
        if origin and origin.is_file() and origin.resolve() != self.metrics.path.resolve():
            self.metrics.take(origin, size)
        self.metrics.truncate(size)

    def _describe(self, environment: dict[str, Any]) -> None:
        """config.yaml, environment.json and the trackers, which are told what they have missed."""
        known = tracked_as(_saved(self.path / "environment.json"))
        known.setdefault("run_id", os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
        self._write_identity(known)
        self._trackers = Trackers(self.config.trackers, identify_run(self.config, self.path, known))
        for found in self._trackers.each(lambda tracker: tracker.identify()):
            known |= found
        self._write_identity(known)
        described = {**dataclasses.asdict(self.config), "environment": environment}
        self._trackers.each(lambda tracker: tracker.describe(described))
        self._trackers.each(lambda tracker: tracker.recall(self._told))
        self._trackers.each(lambda tracker: tracker.use_data(environment["data"]) if tracker.fresh else None)
        for row in self.metrics.rows():
            self._trackers.each(methodcaller("line", row))

    def _write_identity(self, known: dict[str, Any]) -> None:
        self._identity = known
        replace_file(self.path / "environment.json", to_json({**self.environment, **known}))
        write_config(self.config, self.path / "config.yaml")

    def finished_accuracy(self, step: int) -> float | None:
        """The test accuracy of a run that was finished at this step before; None if it was not."""
        summary = _saved(self.path / "summary.json")
        accuracy = summary.get("test_accuracy")
        return accuracy if summary.get("steps") == step and is_number(accuracy, 0, 1) else None

    # -- during training ----------------------------------------------------------------------------------------------

    def log(self, split: str, step: int, epoch: int, loss: float, accuracy: float, **more: float) -> None:
        """One line in metrics.jsonl, and the same values as `<split>/<key>` in the trackers.

        A full or lost disk costs a warning, not the run: the line is written later.
        """
        if not self.accelerator.is_main_process:
            return
        row = {"step": step, "epoch": epoch, "split": split, "loss": loss, "accuracy": accuracy, **more}
        try:
            self.metrics.append(row)
            self._unwritten = False
        except OSError as error:
            if not self._unwritten:
                self._warn(f"metrics.jsonl cannot be written ({one_line(error)}); its lines are kept until it can")
            self._unwritten = True
        self._trackers.each(lambda tracker: tracker.line(row))

    def track(self, act: Callable[[Tracker], Any]) -> None:
        """Does something with every tracker, on the main process alone."""
        self._trackers.each(act)

    def save_checkpoint(self, step: int, files: Callable[[int], dict[str, bytes]]) -> None:
        """Writes a checkpoint. A full or lost disk costs a warning, not the run: the next save tries again.

        Raises UserError where the folder was removed and another run has it now.

        Args:
            files: gives their content, from the bytes that metrics.jsonl has then.
        """
        if not self.accelerator.is_main_process:
            return
        try:
            self._hold()
            content = files(self.metrics.size())
            write_checkpoint(self.path / "checkpoints", step, content, self.config.keep_checkpoints)
            self.failed_save = ""
        except OSError as error:
            self.failed_save = one_line(error)
            newest = self.last_checkpoint_name()
            self._warn(f"checkpoint at step {step} could not be written ({self.failed_save}); the newest is {newest}")

    def _hold(self) -> None:
        """Makes the folder anew, with its lock, where somebody has removed or moved it."""
        path = self.path / LOCK
        if self._lock and not (path.exists() and os.fstat(self._lock.fileno()).st_nlink):
            self.path.mkdir(parents=True, exist_ok=True)
            removed, self._lock = self._lock, lock_folder(self.path)
            removed.close()
            self._warn(f"{path} was removed; what is missing there is written anew, but for lines of metrics.jsonl")
        if not (self.path / "config.yaml").exists():
            self._write_identity(self._identity)

    def _warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    def last_checkpoint_name(self) -> str:
        names = [path.name for path in list_checkpoints(self.path / "checkpoints")]
        return names[-1] if names else "none"

    def how_to_go_on(self) -> str:
        """What to say of a run that ends early."""
        if not self.accelerator.is_main_process:  # which alone has the folder
            return "the same command goes on from the newest checkpoint"
        newest = self.last_checkpoint_name()
        return "the same command starts anew" if newest == "none" else f"the same command goes on from {newest}"

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json; raises EnvironmentFault if the last checkpoint could not be written."""
        if self.accelerator.is_main_process:
            self.metrics.size()  # writes what is still unwritten
            replace_file(self.path / "summary.json", to_json(summary))
            self._trackers.each(lambda tracker: tracker.summarise(summary, summary["steps"]))
            self._finished = True
        if self.failed_save:
            raise EnvironmentFault(f"the last checkpoint could not be written ({self.failed_save})")


def _run_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint is in; the checkpoint itself where it is in none."""
    folder = checkpoint.resolve()
    run = folder.parent.parent
    return run if folder.parent.name == "checkpoints" and (run / "config.yaml").is_file() else folder


def _saved(path: Path) -> dict[str, Any]:
    """A JSON file of an earlier start; empty where there is none, or none that can be read."""
    try:
        return read_json(path)
    except (OSError, UserError):
        return {}
