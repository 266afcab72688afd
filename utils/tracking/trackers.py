"""All trackers of a run at once. Metrics are in metrics.jsonl in any case."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.config import TrainConfig
from utils.config.train import TRACKERS
from utils.system.errors import UserError, one_line
from utils.system.reading import shown
from utils.tracking.tracker import Identity, Tracker
from utils.tracking.wandb_tracker import check_settings, switched_off

# Keys of environment.json that identify the run in its trackers, from the first start on. Their values must be names,
# never paths: a run directory may come from a stranger.
TRACKED_AS = ("run_id", "wandb_project", "wandb_entity")
NAME = re.compile(r"[^\s./\\:;,#?'\"][^/\\:;,#?'\"]{0,127}")  # that W&B accepts


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError for a tracker whose package is missing."""
    for name in names:
        if name != "none" and find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed; pip install -r requirements-optional.txt")


def check_trackers(config: TrainConfig, environment: Mapping[str, str]) -> None:
    """Raises UserError for an option or variable that a tracker would refuse."""
    if "wandb" not in config.trackers or switched_off(environment):
        return
    check_settings(vars(config), environment)
    run_id = environment.get("WANDB_RUN_ID")
    if run_id and not _is_name(run_id):
        raise UserError(
            f"WANDB_RUN_ID: {shown(run_id)} is not allowed; it has up to 128 characters, none of / \\ : ; , # ? ' \", "
            "and begins with neither a dot nor a space"
        )


class Trackers:
    """Passes everything to each tracker. The first error of each is a warning; a run never fails because of one."""

    def __init__(self, names: Sequence[str] = (), identity: Identity | None = None):
        """Opens the named trackers; without any, every method does nothing."""
        self._open: list[Tracker] = []
        self._warned: set[str] = set()
        if identity is None:
            return
        for name in names:
            if name == "wandb" and (variable := switched_off(os.environ)):
                print(f"W&B: off ({variable})", file=sys.stderr)
            elif name != "none" and (tracker := self._attempt(name, partial(_create, name, identity))):
                self._open.append(tracker)

    def each(self, act: Callable[[Tracker], Any]) -> list[Any]:
        """Calls `act` with every tracker; returns the results of those that did not fail."""
        results = [self._attempt(tracker.name, partial(act, tracker)) for tracker in self._open]
        return [result for result in results if result is not None]

    def close(self, finished: bool) -> None:
        """Closes all records; `finished`: the run is complete."""
        self.each(lambda tracker: tracker.close(finished))
        self._open = []

    def _attempt(self, name: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            if name not in self._warned:
                self._warned.add(name)
                reason = one_line(error) or type(error).__name__
                print(f"warning: {name} failed ({reason}); the run directory has everything", file=sys.stderr)
            return None


def _create(name: str, identity: Identity) -> Tracker:
    module, kind = TRACKERS[name]
    return getattr(import_module(module), kind)(identity)


def tracked_as(environment: Mapping[str, Any]) -> dict[str, str]:
    """What identifies a run in its trackers, from environment.json; invalid names are ignored."""
    known = {key: environment.get(key) for key in TRACKED_AS}
    return {key: value for key, value in known.items() if isinstance(value, str) and _is_name(value)}


def _is_name(text: str) -> bool:
    return text.isprintable() and NAME.fullmatch(text) is not None


def identify_run(config: TrainConfig, directory: Path, known: Mapping[str, str], job_type: str = "train") -> Identity:
    """The identity of a run directory in the trackers, from its options and the result of tracked_as."""
    project = known.get("wandb_project") or config.project_name or os.environ.get("WANDB_PROJECT")
    return Identity(
        directory=directory,
        id=known["run_id"],
        project=project or "image-classification",
        name=config.run_name or os.environ.get("WANDB_NAME") or directory.resolve().name,
        group=config.run_group,
        tags=config.run_tags,
        entity=known.get("wandb_entity"),
        job_type=job_type,
    )
