"""trackio: a local dashboard over a database in RUN/trackio (`TRACKIO_DIR=RUN/trackio trackio show`)."""

import contextlib
import io
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.system.errors import UserError
from utils.tracking.tracker import Identity, Line, Media, Page, Picture, Table, Text, Tracker


class TrackioTracker(Tracker):
    name = "trackio"

    def __init__(self, identity: Identity):
        super().__init__()
        os.environ.setdefault("TRACKIO_DIR", str(identity.directory / "trackio"))  # read when trackio is imported
        import trackio

        self._check_databases(identity.directory / "trackio")
        self._library, self._identity = trackio, identity
        with contextlib.redirect_stdout(io.StringIO()):  # a dozen lines, one of them useful
            self._run = trackio.init(
                identity.project, name=identity.name, group=identity.group, resume="allow", embed=False
            )
        if identity.job_type == "train":
            print(f"trackio: `TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show` opens the dashboard")

    def _check_databases(self, folder: Path) -> None:
        """Raises UserError for databases that are too large, or have triggers or views, which are a stranger's SQL."""
        self.check_records(folder)
        for path in folder.glob("*.db"):
            with contextlib.closing(sqlite3.connect(path)) as database:
                if database.execute("SELECT 1 FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone():
                    raise UserError(f"{path} has triggers or views, which trackio never makes")

    def describe(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(config)

    def recall(self, logged: set[Line]) -> None:
        """From the database, which may lack the last lines of a killed process."""
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs(self._identity.project, self._identity.name) if logged else []
        lines = {(row["step"], key.removesuffix("/loss")) for row in rows for key in row if key.endswith("/loss")}
        self._known = lines & logged

    def log_line(self, values: Mapping[str, float], step: int, split: str) -> None:
        self._run.log(dict(values), step=step)

    def show(self, content: Mapping[str, float | Media], step: int) -> None:
        self._run.log({key: self._convert(value) for key, value in content.items()}, step=step)

    def _convert(self, value: float | Media) -> Any:
        library = self._library
        if value is None or isinstance(value, (int, float, str)):
            return value
        if isinstance(value, Picture):
            return library.Image(value.pixels(), caption=value.caption or None)
        if isinstance(value, Table):
            rows = [[self._convert(cell) for cell in row] for row in value.rows]
            return library.Table(columns=list(value.columns), data=rows)
        if isinstance(value, Text):
            return library.Markdown(f"```\n{value.text}\n```")
        if isinstance(value, Page):
            return library.Html(value.html)
        return self._convert(Table(["image", "caption"], [[picture, picture.caption] for picture in value]))

    def close(self, finished: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
