"""What a section of the report is built from, an Analysis, and what it consists of before it is written anywhere."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor, nn

from data.preprocessing import to_input
from data.splits import Split, stratified_split
from models.saved import ModelConfig
from utils.analysis.cam.maps import Cams
from utils.analysis.views import Views
from utils.config import AnalyzeConfig
from utils.runs.saved_run import SavedRun
from utils.system.files import replace_file, replacing
from utils.tracking.tracker import Media

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Analysis:
    """A run, its model and its images.

    Attributes:
        model: computes in float32, neither compiled nor wrapped, in eval mode and on the device.
        test: the test images, or the photos to predict instead; photos have no labels.
        train_images: the training images, including those held out for validation, if a section needs them.
        other: with `compare`, the run that this one is compared with: the same test images, no CAMs, no sections and no
            `other` of its own.
        sections: names of the sections of the report, in page order.
        folder: where the results go.
    """

    config: AnalyzeConfig
    accelerator: Accelerator
    run: SavedRun
    model: nn.Module
    model_config: ModelConfig
    cams: Cams
    test: Split
    train_images: Split | None
    other: "Analysis | None"
    sections: tuple[str, ...]
    folder: Path

    @property
    def train(self) -> Split:
        """The training images, including those held out for validation."""
        assert self.train_images is not None, "a section that uses training images must say so in NEEDS"
        return self.train_images

    @cached_property
    def held_out(self) -> np.ndarray:
        """Positions in `train` of the images that training held out for validation, int64."""
        if not self.run.validation_fraction:
            return np.empty(0, np.int64)
        return stratified_split(self.train.labels, self.run.validation_fraction, self.run.config.seed)[1]

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the model's inputs, per channel, on the device."""
        device = self.accelerator.device
        return torch.tensor(self.model_config.mean, device=device), torch.tensor(self.model_config.std, device=device)

    def shown(self, split: Split) -> Views:
        """The images of a split as page and figures show them: as the model sees them or, with `whole`, whole."""
        return Views(split.images, self.model_config.geometry if self.config.whole else None)

    def inputs_of(self, images: np.ndarray) -> Tensor:
        """Images, uint8 (N, H, W, 3), as inputs of the model: float32 (N, 3, h, w) on its device."""
        size = self.model_config.input_size
        return to_input(torch.from_numpy(images), *self.statistics, channels_last=False, size=size)


@dataclass(frozen=True)
class Section:
    """A part of the analysis; sections/<name>.html.jinja shows it.

    Attributes:
        summary: goes into summary.json.
        page: values for the section's template.
        figures: each is written as <key>.png and <key>.svg, and shown on the page and in the trackers.
        tables: each is written as <key>.csv, with the keys of its first row as columns, and shown in the trackers.
        image_tables: as `tables`, with too many rows for a tracker, such as one for each test image.
        texts: each is written as <key>.txt.
        media: shown in the trackers besides figures and tables.
    """

    summary: Mapping[str, Any] = field(default_factory=dict)
    page: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    image_tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    media: Mapping[str, Media] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes figures, tables and texts into the folder; returns the figures' PNG files by name."""
        files = {}
        for name, figure in self.figures.items():
            files[name] = folder / f"{name}.png"
            with replacing(files[name]) as file:
                figure.savefig(file, format="png")
            figure.set_layout_engine("none")  # laid out once, for both
            with replacing(folder / f"{name}.svg") as file:
                figure.savefig(file, format="svg", metadata={"Date": None})
        for name, rows in {**self.tables, **self.image_tables}.items():
            write_table(folder / f"{name}.csv", rows)
        for name, text in self.texts.items():
            replace_file(folder / f"{name}.txt", f"{text}\n".encode())
        return files


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file with a header; empty if there are no rows."""
    with open_table(path) as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def open_table(path: Path) -> AbstractContextManager[TextIO]:
    """A CSV file to write to, from which every cell is read back unchanged.

    A name that begins with `=` stays as it is: like pandas and Python's csv, this leaves it to the reader to tell a
    spreadsheet that the columns are text. Bytes of a file name that are not UTF-8 are written as Python shows them.
    """
    return replacing(path, newline="", encoding="utf-8", errors="backslashreplace")
