"""TensorBoard: events in RUN/tensorboard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.system.markdown import as_text
from utils.tracking.tracker import Identity, Line, Media, Page, Picture, Table, Text, Tracker

ROWS = 100  # shown of a table


class TensorBoardTracker(Tracker):
    """Numbers as scalars, images as images, tables and texts as text."""

    name = "tensorboard"

    def __init__(self, identity: Identity):
        super().__init__()
        from torch.utils.tensorboard import SummaryWriter

        self._folder = str(identity.directory / "tensorboard")
        self._writer = SummaryWriter(self._folder)
        self._options: dict[str, Any] = {}

    def recall(self, logged: set[Line]) -> None:
        """From the event files, which may lack the last lines of a killed process."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self.check_records(Path(self._folder))
        board = EventAccumulator(self._folder, size_guidance={"scalars": 0})
        board.Reload()
        losses = [tag for tag in board.Tags()["scalars"] if tag.endswith("/loss")]
        lines = {(event.step, tag.removesuffix("/loss")) for tag in losses for event in board.Scalars(tag)}
        self._known = lines & logged

    def describe(self, config: Mapping[str, Any]) -> None:
        options = {key: value for key, value in config.items() if key != "environment"}
        self._options = {
            key: value if isinstance(value, (int, float, str)) else json.dumps(value) for key, value in options.items()
        }
        self._writer.add_text("config", _fixed(json.dumps(config, indent=2)))

    def log_line(self, values: Mapping[str, float], step: int, split: str) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def show(self, content: Mapping[str, float | Media], step: int) -> None:
        for key, value in content.items():
            self._add(key, value, step)
        self._writer.flush()

    def _add(self, key: str, value: float | Media, step: int) -> None:
        if isinstance(value, (int, float)):
            self._writer.add_scalar(key, value, step)
        elif isinstance(value, Picture):
            self._writer.add_image(key, value.pixels(), step, dataformats="HWC")
        elif isinstance(value, Table):
            self._writer.add_text(key, _markdown(value), step)
        elif isinstance(value, Text):
            self._writer.add_text(key, _fixed(value.text), step)
        elif isinstance(value, Page):
            self._writer.add_text(key, f"`{value.path}`", step)
        elif value:
            self._add_gallery(key, value, step)

    def _add_gallery(self, key: str, pictures: Sequence[Picture], step: int) -> None:
        self._writer.add_images(key, np.stack([picture.pixels() for picture in pictures]), step, dataformats="NHWC")
        captions = [[number, picture.caption] for number, picture in enumerate(pictures, 1)]
        self._writer.add_text(f"{key}_captions", _markdown(Table(["image", "caption"], captions)), step)

    def summarise(self, summary: Mapping[str, Any], step: int) -> None:
        numbers = {f"summary/{key}": value for key, value in summary.items() if isinstance(value, (int, float))}
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)
        if "test_accuracy" in summary:  # of a finished run: a row in the table of options and results
            self._writer.add_hparams(self._options, numbers, run_name=".", global_step=step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()


def _markdown(table: Table) -> str:
    """At most ROWS rows; an image is shown by its caption."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows[:ROWS]]
    text = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
    return text + (f"\n\n{len(table.rows) - ROWS} more rows" if len(table.rows) > ROWS else "")


def _cell(value: Any) -> str:
    if isinstance(value, Picture):
        return _cell(value.caption)
    return as_text(f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value))


def _fixed(text: str) -> str:
    """Markdown that shows a text verbatim."""
    return "\n".join("    " + line for line in text.splitlines())
