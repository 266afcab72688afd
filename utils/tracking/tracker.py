"""What a tracker is: where a run's numbers, pictures and tables are shown besides its own directory.

To add one: a subclass of Tracker, a line in TRACKERS of `utils/config/train.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.system.memory import check_memory

MEMORY_PER_BYTE = 10  # of a tracker's files, when they are read back
SPLITS = ("train", "validation", "test")
Line = tuple[int, str]  # (step, split) of a line in metrics.jsonl


@dataclass(frozen=True)
class Identity:
    """Which run of a tracker it is, for its whole life.

    Attributes:
        directory: the run directory; the trackers' own files lie in it.
        id: chosen at the first start.
        group, tags: unset: what the tracker itself takes, such as WANDB_RUN_GROUP.
        entity: user or team that it belongs to in W&B, once that is known.
        job_type: train, or analysis.
    """

    directory: Path
    id: str
    project: str
    name: str
    group: str | None = None
    tags: Sequence[str] = ()
    entity: str | None = None
    job_type: str = "train"


# -- what can be shown besides numbers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A PNG file, or an image, uint8 (H, W, 3)."""

    image: Path | np.ndarray
    caption: str = ""

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        if isinstance(self.image, Path):
            with Image.open(self.image) as image:
                return np.asarray(image.convert("RGB"))
        return self.image


@dataclass(frozen=True)
class Table:
    """Rows of numbers, texts, pictures and None."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Confusion:
    """How often each class (row) was taken for each (column): `counts`, int (classes, classes)."""

    class_names: Sequence[str]
    counts: np.ndarray

    def table(self) -> Table:
        """A row for every pair of classes that occurs."""
        pairs = np.argwhere(self.counts).tolist()
        rows = [[self.class_names[true], self.class_names[got], int(self.counts[true, got])] for true, got in pairs]
        return Table(["true", "predicted", "images"], rows)


@dataclass(frozen=True)
class Text:
    """Plain text, shown as it is."""

    text: str


@dataclass(frozen=True)
class Page:
    """A whole HTML page, and the file that holds it."""

    html: str
    path: Path


Media = Picture | Sequence[Picture] | Table | Confusion | Text | Page


def check_records(folder: Path, pattern: str = "*") -> None:
    """Raises UserError where the files in which a tracker kept a run are more than the memory for reading them holds.

    A run directory may come from a stranger; what is wrong with these files costs no more than a warning.
    """
    sizes = [path.stat().st_size for path in folder.rglob(pattern) if path.is_file()]
    check_memory(MEMORY_PER_BYTE * sum(sizes), str(folder))


class Tracker(ABC):
    """One tracker's record of one run; it lives on the main process alone.

    A constructor opens the record, new or for going on. What a method raises costs a warning, never the run.
    """

    name: str

    def __init__(self) -> None:
        self._known: set[Line] = set()

    def recall(self, told: set[Line]) -> None:
        """Takes note of the lines that it has from before a resume; `told` are those that it was ever given.

        A tracker cannot forget, so they are not repeated; one that may have lost some looks for itself.
        """
        self._known = told

    @property
    def fresh(self) -> bool:
        """Whether it has no line from before."""
        return not self._known

    def line(self, row: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, as `<split>/<key>`, unless it is there already."""
        step, split = row["step"], row["split"]
        if (step, split) not in self._known:
            values = {f"{split}/{key}": value for key, value in row.items() if key not in ("step", "epoch", "split")}
            self.log_line({**values, "epoch": row["epoch"]}, step, split)

    @abstractmethod
    def describe(self, config: Mapping[str, Any]) -> None:
        """The resolved options, and machine, versions, code and data under `environment`."""

    @abstractmethod
    def log_line(self, values: Mapping[str, float], step: int, split: str) -> None:
        """Numbers of an optimizer step."""

    @abstractmethod
    def show(self, content: Mapping[str, float | Media], step: int) -> None:
        """Numbers and media that belong to the run as it is after a step."""

    @abstractmethod
    def summarise(self, summary: Mapping[str, Any], step: int) -> None:
        """The run's best and last numbers."""

    def keep_files(  # noqa: B027 -- a tracker need not
        self, name: str, folder: Path, aliases: Sequence[str], metadata: Mapping[str, Any]
    ) -> None:
        """A version of a model: the files of a folder. Only W&B keeps files."""

    def use_data(self, identity: Mapping[str, Any]) -> None:  # noqa: B027 -- a tracker need not
        """The data set that the run uses, by name, counts and digests. Only W&B keeps track of that."""

    def identify(self) -> dict[str, str]:
        """What must be known to find the record again."""
        return {}

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Ends the record of this process; `finished`: the run has come to its end, and not only this process."""
