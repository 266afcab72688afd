"""What analysis knows of a run: its folder, read and never written to outside the results folder."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.datasets import Split, load_split
from utils.checkpoint import MANIFEST, ModelConfig, damage, newest_checkpoint
from utils.config import TrainConfig, load_config
from utils.errors import UserError
from utils.metrics import MetricsFile

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class SavedRun:
    """A run as its folder tells it.

    `path` is what the user named: the run directory, its `model/`, or one of its checkpoints. `directory` is the run
    directory, `model_folder` holds the weights to look at, and `note` says where these are not the finished model.
    `rows` are the lines of metrics.jsonl; `summary` is empty where training has not finished.
    """

    path: Path
    directory: Path
    model_folder: Path
    note: str
    config: TrainConfig
    environment: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The run's name in the trackers."""
        return self.config.run_name or self.directory.name

    @property
    def options(self) -> dict[str, Any]:
        """Every option that the run was trained with."""
        return dataclasses.asdict(self.config)

    def split(self, name: str, model_config: ModelConfig, data_dir: str | None = None) -> Split:
        """The "train" or "test" images at the size of the model.

        `data_dir` is where the data set is now. Raises UserError where its classes are not those of the model.
        """
        folder = data_dir or self.config.data_dir
        if self.config.dataset != "digits" and not Path(folder).is_dir():
            raise UserError(
                f"data_dir: {folder} is not a folder; name where the data set is now with --data_dir"
                if data_dir
                else f"data_dir: {folder}, where the run found its data set, is not there; "
                "name its folder with --data_dir"
            )
        split, class_names = load_split(
            self.config.dataset, folder, name, model_config.image_size, self.config.memory_fraction
        )
        if class_names != model_config.class_names:
            raise UserError(
                f"data_dir: the classes in {folder} ({_some(class_names)}) are not those of the model "
                f"({_some(model_config.class_names)}); name the run's data set with --data_dir"
            )
        return split


def open_run(path: Path) -> SavedRun:
    """Reads a run from its directory, its `model/` or one of its checkpoints.

    A run that was stopped before it exported a model is represented by its newest whole checkpoint.
    Raises UserError naming what is missing.
    """
    if not path.is_dir():
        raise UserError(f"run: {path} is not a folder")
    directory = _run_directory(path)
    if directory is None:
        raise UserError(f"run: {path} is not a run directory (it has no config.yaml)")
    model_folder, note = _find_model(path, directory)
    return SavedRun(
        path,
        directory,
        model_folder,
        note,
        load_config(TrainConfig, directory / "config.yaml"),
        _read_json(directory / "environment.json"),
        _read_json(directory / "summary.json"),
        list(MetricsFile(directory / "metrics.jsonl").rows()),
    )


def trained_precision(path: Path) -> str | None:
    """The mixed precision that a run was trained and tested with; None where its folder does not say."""
    directory = _run_directory(path)
    try:
        return json.loads((directory / "environment.json").read_bytes())["mixed_precision"] if directory else None
    except (OSError, ValueError, KeyError):
        return None


def _run_directory(path: Path) -> Path | None:
    """The folder with config.yaml: `path` itself, or above it where it is model/ or checkpoints/step-000123/."""
    path = path.resolve()
    candidates = [path, *list(path.parents)[:2]] if (path / WEIGHTS).is_file() else [path]
    return next((folder for folder in candidates if (folder / "config.yaml").is_file()), None)


def _find_model(path: Path, directory: Path) -> tuple[Path, str]:
    """The folder with the weights, and a note where they are not those of the finished run."""
    if (path / WEIGHTS).is_file():
        if not (path / MANIFEST).is_file():
            return path, ""
        if problem := damage(path):
            raise UserError(f"run: {path} is not a whole checkpoint ({problem})")
        return path, f"This is checkpoint {path.resolve().name}, not the finished model."
    if (directory / "model" / WEIGHTS).is_file():
        return directory / "model", ""
    checkpoint = newest_checkpoint(directory / "checkpoints")
    if checkpoint is None:
        raise UserError(f"run: {path} holds neither a model/ nor a whole checkpoint yet")
    return checkpoint, f"Training has not finished: this is its newest checkpoint, {checkpoint.name}."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error


def _some(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
