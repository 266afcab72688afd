"""What one part of the analysis found, before it is written anywhere."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from matplotlib.figure import Figure

from utils.system.files import replace_file, replacing

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the analysis, named as in `--only`; report/<name>.html.jinja shows it.

    Attributes:
        summary: goes into summary.json.
        page: values for the section's template.
        figures: each is written as <key>.png and <key>.svg, and shown on the page and in W&B.
        tables: each is written as <key>.csv; the keys of the first row are its columns.
        texts: each is written as <key>.txt.
    """

    name: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    page: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes figures, tables and texts into the folder; returns the PNG files by name."""
        pictures = {}
        for name, figure in self.figures.items():
            pictures[name] = folder / f"{name}.png"
            with replacing(pictures[name]) as file:
                figure.savefig(file, format="png")
            figure.set_layout_engine("none")  # laid out once, for both
            with replacing(folder / f"{name}.svg") as file:
                figure.savefig(file, format="svg", metadata={"Date": None})
        for name, rows in self.tables.items():
            write_table(folder / f"{name}.csv", rows)
        for name, text in self.texts.items():
            replace_file(folder / f"{name}.txt", f"{text}\n".encode())
        return pictures


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file with a header; empty where there is no row."""
    with open_table(path) as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def open_table(path: Path) -> AbstractContextManager[TextIO]:
    """A CSV file to write to, from which every cell is read back as it went in.

    So a name that begins with `=` is not changed; like pandas and Python's csv, this leaves it to a spreadsheet to be
    told that the columns are text. Of a file's name, bytes that are not UTF-8 are written as Python shows them.
    """
    return replacing(path, newline="", encoding="utf-8", errors="backslashreplace")
