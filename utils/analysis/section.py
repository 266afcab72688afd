"""What a section of the report consists of, before it is written anywhere."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from matplotlib.figure import Figure

from utils.system.files import replace_file, replacing
from utils.tracking.tracker import Media

Row = Mapping[str, Any]


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
