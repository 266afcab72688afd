"""The interface of a tracker, which shows a run's numbers, images and tables somewhere besides its own directory.

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

MEMORY_PER_BYTE = 10  # of a tracker's files, while they are read back
SPLITS = ("train", "validation", "test")
Line = tuple[int, str]  # (step, split) of a line in metrics.jsonl


@dataclass(frozen=True)
class Identity:
    """Identifies a run in its trackers, across all its resumes.

    Attributes:
        directory: the run directory, which also holds the trackers' own files.
        id: chosen at the first start.
        group, tags: if unset, the tracker's own default, such as WANDB_RUN_GROUP.
        entity: W&B user or team, once it is known.
        job_type: train or analysis.
    """

    directory: Path
    id: str
    project: str
    name: str
    group: str | None = None
    tags: Sequence[str] = ()
    entity: str | None = None
    job_type: str = "train"


# -- media -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """An image: a PNG file, or uint8 (H, W, 3)."""

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
    """Rows of numbers, texts, images and None."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Confusion(Table):
    """A confusion matrix, with a row for every pair of classes that occurs.

    Args:
        counts: int (classes, classes), of true class (row) and prediction (column).
    """

    def __init__(self, class_names: Sequence[str], counts: np.ndarray):
        pairs = np.argwhere(counts).tolist()
        rows = [[class_names[true], class_names[got], int(counts[true, got])] for true, got in pairs]
        super().__init__(["true", "predicted", "images"], rows)


@dataclass(frozen=True)
class Text:
    """Plain text, shown verbatim."""

    text: str


@dataclass(frozen=True)
class Page:
    """An HTML page, and the file that holds it."""

    html: str
    path: Path


Media = Picture | Sequence[Picture] | Table | Text | Page


class Tracker(ABC):
    """One tracker's record of one run, on the main process alone.

    The constructor opens the record, new or to be continued. What a method raises costs a warning, never the run.
    """

    name: str

    def __init__(self) -> None:
        self._known: set[Line] = set()

    def recall(self, logged: set[Line]) -> None:
        """Before a resume: which lines the record already has, and are not logged again.

        Args:
            logged: all lines ever passed to it. A tracker that may have lost some looks into its own record.
        """
        self._known = logged

    @staticmethod
    def check_records(folder: Path, pattern: str = "*") -> None:
        """Raises UserError if a tracker's files of a run need more memory to read back than is free.

        A run directory may come from a stranger. Whatever is wrong with these files costs a warning.
        """
        sizes = [path.stat().st_size for path in folder.rglob(pattern) if path.is_file()]
        check_memory(MEMORY_PER_BYTE * sum(sizes), str(folder))

    @property
    def fresh(self) -> bool:
        """Whether the record has no line of an earlier start."""
        return not self._known

    def line(self, row: Mapping[str, Any]) -> None:
        """Logs a line of metrics.jsonl as `<split>/<key>`, unless the record has it."""
        step, split = row["step"], row["split"]
        if (step, split) not in self._known:
            values = {f"{split}/{key}": value for key, value in row.items() if key not in ("step", "epoch", "split")}
            self.log_line({**values, "epoch": row["epoch"]}, step, split)

    @abstractmethod
    def describe(self, config: Mapping[str, Any]) -> None:
        """Records the resolved options, and machine, versions, code and data under `environment`."""

    @abstractmethod
    def log_line(self, values: Mapping[str, float], step: int, split: str) -> None:
        """Logs numbers of an optimizer step."""

    @abstractmethod
    def show(self, content: Mapping[str, float | Media], step: int) -> None:
        """Logs numbers and media of the run after a step."""

    def summarise(self, summary: Mapping[str, Any], step: int) -> None:
        """Records the run's best and final numbers."""
        self.show({f"summary/{key}": value for key, value in summary.items() if isinstance(value, (int, float))}, step)

    def keep_files(  # noqa: B027 -- optional
        self, name: str, folder: Path, aliases: Sequence[str], metadata: Mapping[str, Any]
    ) -> None:
        """Uploads the files of a folder as a version of a model. Only W&B stores files."""

    def use_data(self, identity: Mapping[str, Any]) -> None:  # noqa: B027 -- optional
        """Records the data set that the run uses: name, counts, digests. Only W&B has a place for it."""

    def identify(self) -> dict[str, str]:
        """What is needed to find the record again, for environment.json."""
        return {}

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Closes the record; `finished`: the run is complete, not only this process."""
