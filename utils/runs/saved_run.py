"""What analysis knows of a run: its folder, read and never written to outside the results folder."""

import dataclasses
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data.datasets import SOURCES, Split, load_split
from models.saved import WEIGHTS, ModelConfig
from utils.config import TrainConfig
from utils.config.options import load_config
from utils.runs.checkpoint import MANIFEST, damage, newest_checkpoint
from utils.runs.metrics_file import MetricsFile
from utils.system.errors import UserError, nearest
from utils.system.reading import check_files, check_folder, is_number, read_file, read_json, shown

MOST_BYTES = 2 * 2**20  # of lr_finder.png
LARGEST_SIDE = 4096  # of lr_finder.png, in pixels
PRECISIONS = ("no", "fp16", "bf16")
SUMMARY_NUMBERS = ("train_seconds", "epochs", "steps", "images_per_second")  # that the report shows


@dataclass(frozen=True)
class SavedRun:
    """A run as its folder tells it, or a model without its run.

    Attributes:
        path: what the user named: a run directory, a checkpoint, or a folder with an exported model.
        directory: the run directory; of a model without its run, the model's own folder.
        model_folder: has the weights to look at.
        note: says where these are not the finished model, or that there is no training record.
        recorded: whether the options, the curves and the machine of the training are known.
        config: the options that it was trained with; without a record they are the defaults and mean nothing.
        environment, summary: of the training; empty where it left none.
        rows: the lines of metrics.jsonl.
        dataset, data_dir: whose images it is to be analysed with; None where nobody has named them.
    """

    path: Path
    directory: Path
    model_folder: Path
    note: str
    recorded: bool
    config: TrainConfig
    environment: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    dataset: str | None
    data_dir: str | None

    @property
    def name(self) -> str:
        """The run's name in the trackers; of a model without its run, the name of its folder."""
        return self.config.run_name or self.directory.resolve().name

    @property
    def options(self) -> dict[str, Any]:
        """Every option that the run was trained with; empty where there is no record of them."""
        return dataclasses.asdict(self.config) if self.recorded else {}

    @property
    def validation_fraction(self) -> float:
        """The share of the "train" images that training held out; 0 where that is not known of these images."""
        return self.config.validation_fraction if self.recorded and self.dataset == self.config.dataset else 0.0

    def range_test_figure(self) -> bytes | None:
        """The PNG file that the learning-rate range test left; None if it is missing or not such a file."""
        try:
            content = read_file(self.directory / "lr_finder.png", MOST_BYTES)
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                return content if max(image.size) <= LARGEST_SIDE else None
        except (OSError, ValueError, SyntaxError, UserError, Image.DecompressionBombError):
            return None

    def split(self, name: str, model_config: ModelConfig) -> Split:
        """The "train" or "test" images at the size of the model.

        Raises UserError where nobody has named the data set, or its classes are not those of the model.
        """
        if self.dataset is None:
            embedded = ", ".join(name for name, source in SOURCES.items() if not source.in_folder)
            raise UserError(
                f"dataset: {self.path} does not say which images it is for; name them with --dataset "
                f"({', '.join(SOURCES)}) and, except for {embedded}, --data_dir"
            )
        source = SOURCES[self.dataset]
        if source.in_folder and not (self.data_dir and os.path.isdir(self.data_dir)):
            where = f"{self.data_dir} is not a folder" if self.data_dir else "it is not known where the images are"
            raise UserError(f"data_dir: {where}; name the folder of the data set with --data_dir")
        split, class_names = load_split(
            self.dataset, self.data_dir or "", name, model_config.image_size, self.config.memory_fraction
        )
        if class_names != model_config.class_names:
            where = f" in {self.data_dir}" if source.in_folder else ""
            raise UserError(
                f"data_dir: the classes of {self.dataset}{where} ({some(class_names)}) are not those of the model "
                f"({some(model_config.class_names)}); name its data set with --dataset and --data_dir"
            )
        return split


def open_run(path: Path, option: str = "run", dataset: str | None = None, data_dir: str | None = None) -> SavedRun:
    """Reads a run from its directory or one of its checkpoints, or a model from a folder with config.json and weights.

    A run that was stopped before it exported a model is represented by its newest whole checkpoint.
    Raises UserError naming what is missing.

    Args:
        option: the one that names `path`, for errors.
        dataset, data_dir: the images to use instead of the run's own test and training images.
    """
    if not os.path.isdir(path):  # unlike path.is_dir(), false for names that are too long
        near = nearest(path.name, [folder.name for folder in path.parent.glob("*") if folder.is_dir()])
        hint = f"; did you mean {path.parent / near}?" if near else ""
        raise UserError(f"{option}: {path} is not a folder{hint}")
    directory = _run_directory(path.resolve())
    as_named = _run_directory(Path(os.path.abspath(path)))  # another one where a part of the run is a link of its maker
    for folder in dict.fromkeys([path, as_named or path, directory or path]):
        check_folder(folder, option)
    if directory is None and not (path / WEIGHTS).is_file():
        raise UserError(
            f"{option}: {path} is neither a run directory (it has no config.yaml) nor a model (it has no {WEIGHTS})"
        )
    model_folder, note = _find_model(path, directory, option)
    if directory is None:
        defaults = TrainConfig(trackers=["none"])
        return SavedRun(path, path, model_folder, note, False, defaults, {}, {}, [], dataset, data_dir)
    config = load_config(TrainConfig, directory / "config.yaml")
    return SavedRun(
        path,
        directory,
        model_folder,
        note,
        True,
        config,
        _read_json(directory / "environment.json"),
        _read_summary(directory / "summary.json"),
        list(MetricsFile(directory / "metrics.jsonl").rows()),
        dataset or config.dataset,
        data_dir or (config.data_dir if dataset in (None, config.dataset) else None),
    )


def trained_precision(path: Path) -> str | None:
    """The mixed precision that a run was trained and tested with; None where its folder does not say."""
    directory = _run_directory(path.resolve()) if os.path.isdir(path) else None
    if directory is None:
        return None
    try:
        check_files(directory, ["environment.json"], "run")
        precision = read_json(directory / "environment.json").get("mixed_precision")
    except (OSError, UserError):
        return None
    return precision if precision in PRECISIONS else None


def _run_directory(path: Path) -> Path | None:
    """The folder with config.yaml: `path` itself, or the one whose model/ or checkpoints/step-000123/ it is."""
    candidates = [path]
    if path.name == "model":
        candidates.append(path.parent)
    if path.parent.name == "checkpoints":
        candidates.append(path.parent.parent)
    return next((folder for folder in candidates if (folder / "config.yaml").is_file()), None)


def _find_model(path: Path, directory: Path | None, option: str) -> tuple[Path, str]:
    """The folder with the weights, and a note where they are not those of a finished and recorded run."""
    if directory is None or (path / WEIGHTS).is_file():
        notes = []
        if (path / MANIFEST).is_file():
            if problem := damage(path):
                raise UserError(f"{option}: {path} is not a whole checkpoint ({problem})")
            notes.append(f"This is checkpoint {path.resolve().name}, not the finished model.")
        if directory is None:
            notes.append("There is no record of the training beside this model.")
        return path, " ".join(notes)
    if (directory / "model" / WEIGHTS).is_file():
        return directory / "model", ""
    checkpoint = newest_checkpoint(directory / "checkpoints", repair=False)
    if checkpoint is None:
        raise UserError(f"{option}: {path} holds neither a model/ nor a whole checkpoint yet")
    return checkpoint, f"Training has not finished: this is its newest checkpoint, {checkpoint.name}."


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if os.path.lexists(path) else {}


def _read_summary(path: Path) -> dict[str, Any]:
    """summary.json of a training, empty where there is none. Raises UserError unless its numbers are some."""
    summary = _read_json(path)
    for name in SUMMARY_NUMBERS if summary else ():
        if not is_number(summary.get(name), 0):
            raise UserError(f"{path}: {name} is {shown(summary.get(name))}, not a number")
    return summary


def some(names: tuple[str, ...], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
