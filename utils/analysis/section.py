"""What one part of the analysis found, before it is written anywhere."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

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
            figure.savefig(pictures[name])
            figure.set_layout_engine("none")  # laid out once, for both
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        for name, rows in self.tables.items():
            write_table(folder / f"{name}.csv", rows)
        for name, text in self.texts.items():
            (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        return pictures


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file with a header; empty where there is no row."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
