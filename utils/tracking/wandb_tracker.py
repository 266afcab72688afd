"""Weights & Biases: online if there is a key and the server answers, else offline; no prompt, no long wait.

W&B's own step must increase with every line, over any number of resumes and offline parts: it is `100 * optimizer step`
plus the line's place within that step. Metrics are plotted against `step`, the optimizer's.
"""

import contextlib
import html
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.system.errors import UserError, one_line
from utils.system.files import check_writable
from utils.system.reading import shown
from utils.system.runtime import git_remote
from utils.tracking.tracker import SPLITS, Confusion, Identity, Line, Media, Page, Picture, Table, Text, Tracker

PLACES = 100  # of W&B's steps in an optimizer step
INIT_TIMEOUT = 30  # seconds for the server to accept the run
INSPECT_TIMEOUT = 60  # seconds to read back one offline part
FINISH_TIMEOUT = 120  # seconds to upload the rest at the end; `wandb sync` can do it later
OFFLINE = ("offline", "dryrun")  # W&B's two words for it
YES = ("1", "true", "yes", "on")
SETTINGS = {"project_name": "project", "run_name": "run_name", "run_group": "run_group", "run_tags": "run_tags"}


def switched_off(environment: Mapping[str, str]) -> str:
    """The variable that turns W&B off, with its value; empty if there is none."""
    if environment.get("WANDB_MODE") == "disabled":
        return "WANDB_MODE=disabled"
    disabled = environment.get("WANDB_DISABLED", "")  # not W&B's own, but known from Hugging Face's Trainer
    return f"WANDB_DISABLED={disabled}" if disabled.lower() in YES else ""


def check_settings(options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Raises UserError for an option or a WANDB_* variable that W&B refuses, which would lose the whole record.

    W&B validates them one at a time, so that the error names the right one. An empty variable counts as unset.
    """
    from pydantic import ValidationError
    from wandb import Settings
    from wandb.errors import UsageError

    given = {name: options[name] for name in SETTINGS if options.get(name)}
    variables = {name: value for name, value in environment.items() if name.startswith("WANDB_") and value}
    with contextlib.redirect_stderr(io.StringIO()):  # warnings about obsolete ones
        for name, value in (given | variables).items():
            try:
                if name in given:
                    Settings(**{SETTINGS[name]: value})
                else:
                    Settings(resume="allow").update_from_env_vars({name: value})
            except (UsageError, ValueError) as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                reason = reason.removeprefix("Value error, ")
                raise UserError(f"{name}: {shown(value)} is not allowed; W&B: {reason}") from error
    entity, folder = variables.get("WANDB_ENTITY", ""), variables.get("WANDB_DIR", "")
    if set(entity) & set("/\\#?%:"):
        raise UserError(f"WANDB_ENTITY: {shown(entity)} is not allowed; an entity of W&B has none of / \\ # ? % :")
    if folder:
        check_writable(Path(folder), "WANDB_DIR")


class WandbTracker(Tracker):
    """A W&B run. WANDB_* variables are respected."""

    name = "wandb"

    def __init__(self, identity: Identity):
        super().__init__()
        self._identity = identity
        self._last: int | None = None  # W&B's step of the last line from this process
        self._folder = Path(os.environ.get("WANDB_DIR") or identity.directory)
        defaults = {
            "WANDB_DATA_DIR": str(identity.directory / "wandb" / "data"),  # the files of artifacts belong to the run
            "WANDB_SILENT": "true",
            "WANDB_INIT_TIMEOUT": str(INIT_TIMEOUT),
            "WANDB_FINISH_TIMEOUT": str(FINISH_TIMEOUT),
        }
        empty = [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]
        changes = dict.fromkeys(empty) | {name: defaults[name] for name in defaults if not os.environ.get(name)}
        changes["WANDB_RUN_ID"] = identity.id  # in a sweep, W&B takes the id from nowhere else
        self._before = {name: os.environ.get(name) for name in changes}
        _set_variables(changes)
        try:
            self._run = self._start()
        except BaseException:
            _set_variables(self._before)
            raise
        self._run.define_metric("*", step_metric="step")

    def _start(self) -> Any:
        import wandb

        self._library = wandb
        mode = os.environ.get("WANDB_MODE") or self._mode()
        try:
            return self._init(mode)
        except (wandb.errors.Error, TimeoutError) as error:
            if mode in OFFLINE:
                raise
            self._say(f"the server refused the run ({one_line(error)}), logging offline")
            return self._init("offline")

    def _mode(self) -> str:
        """online if there is a key that the server accepts within ten seconds, else offline."""
        try:
            if self._library.login(prompt=False):
                return "online"
            self._say("not logged in, logging offline")
        except self._library.errors.AuthenticationError as error:
            self._say(f"the server does not answer or refuses the key ({one_line(error)}), logging offline")
        return "offline"

    def _init(self, mode: str) -> Any:
        identity = self._identity
        return self._library.init(
            **{name: getattr(identity, name) for name in ("project", "entity", "id", "name", "group")},
            tags=list(identity.tags) or None,
            job_type=os.environ.get("WANDB_JOB_TYPE") or identity.job_type,
            dir=str(self._folder),
            resume="allow",
            mode=mode,
            settings=self._library.Settings(finish_timeout_raises=True, git_remote_url=git_remote()),
        )

    def _say(self, what: str) -> None:
        folder = min(str(self._folder), os.path.relpath(self._folder), key=len)
        print(f"W&B: {what}; `wandb sync {folder}/wandb/*run-*` uploads it", file=sys.stderr)

    def identify(self) -> dict[str, str]:
        known = {"wandb_project": self._run.project, "wandb_entity": self._run.entity}
        return {key: value for key, value in known.items() if value}

    def describe(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def recall(self, logged: set[Line]) -> None:
        """Online from the server, offline from the files; either may lack the last lines of a killed process."""
        if not self._run.offline:
            self._known = {line for line in logged if place(*line) < self._run.starting_step}
        else:
            self._known = self._lines_in_files() & logged if logged else set()

    def _lines_in_files(self) -> set[Line]:
        lines = set()
        self.check_records(self._folder / "wandb", "*.wandb")
        for folder in self._folder.glob("wandb/*run-*"):
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=INSPECT_TIMEOUT)
            for text in done.stdout.splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    item = json.loads(text)["history"]["item"]
                    lines |= {(item["step"], key.removesuffix("/loss")) for key in item if key.endswith("/loss")}
        return lines

    def log_line(self, values: Mapping[str, float], step: int, split: str) -> None:
        self._log({**values, "step": step}, place(step, split))

    def show(self, content: Mapping[str, float | Media], step: int) -> None:
        converted = {key: self._convert(value) for key, value in content.items()}
        free = self._run.starting_step if self._last is None else self._last + 1
        self._log({**converted, "step": step}, max(place(step, "media"), free))

    def _log(self, values: Mapping[str, Any], where: int) -> None:
        self._run.log(dict(values), step=where)
        self._last = where

    def _convert(self, value: float | Media) -> Any:
        library = self._library
        if value is None or isinstance(value, (int, float, str)):
            return value
        if isinstance(value, Picture):
            image = str(value.image) if isinstance(value.image, Path) else value.image
            return library.Image(image, caption=value.caption or None)
        if isinstance(value, Table):
            rows = [[self._convert(cell) for cell in row] for row in value.rows]
            table = library.Table(columns=list(value.columns), data=rows, allow_mixed_types=True)
            if not isinstance(value, Confusion):
                return table
            fields = {"Actual": "true", "Predicted": "predicted", "nPredictions": "images"}
            return library.plot_table("wandb/confusion_matrix/v1", table, fields, {})
        if isinstance(value, Text):
            return library.Html(f"<pre>{html.escape(value.text)}</pre>")
        if isinstance(value, Page):
            return library.Html(value.html, inject=False)
        return [self._convert(picture) for picture in value]

    def summarise(self, summary: Mapping[str, Any], step: int) -> None:
        self._run.summary.update(dict(summary))

    def keep_files(self, name: str, folder: Path, aliases: Sequence[str], metadata: Mapping[str, Any]) -> None:
        artifact = self._library.Artifact(f"{name}-{self._identity.id}", type="model", metadata=dict(metadata))
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            artifact.add_file(str(path))
        self._run.log_artifact(artifact, aliases=list(aliases))

    def use_data(self, identity: Mapping[str, Any]) -> None:
        """As an artifact without files."""
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in identity["name"])
        artifact = self._library.Artifact(name, type="dataset", metadata=dict(identity))
        # No public method does this: use_artifact, which calls it, refuses to work offline and waits for the server;
        # log_artifact would make the data an output of the run.
        self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def close(self, finished: bool) -> None:
        try:
            self._run.finish(exit_code=0 if finished else 1)
        except TimeoutError:
            self._say("the server did not accept the rest of the run in time, it stays on disk")
        finally:
            _set_variables(self._before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    """Of the environment; None removes one."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def place(step: int, split: str) -> int:
    """W&B's own step for a line: unique, and increasing in the order in which lines are logged; media come last, but
    those of the set-up precede the lines of step 0."""
    if split not in SPLITS:
        return PLACES * step + len(SPLITS)
    return PLACES * step + SPLITS.index(split) + (PLACES // 2 if step == 0 else 0)
