"""A finished or stopped run, as analysis reads it: nothing in its folder is trusted, and nothing is written to it."""

import dataclasses
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from data.sources import get_source, load_split
from data.splits import Split
from models.saved import CONFIG, WEIGHTS, ModelConfig, load_model, model_from_files
from utils.config import TrainConfig
from utils.config.files import load_config
from utils.config.images import DATASETS
from utils.runs.checkpoint import MANIFEST, newest_checkpoint, read_checkpoint
from utils.runs.metrics_file import MetricsFile
from utils.system.errors import UserError, nearest
from utils.system.reading import check_files, check_folder, is_number, is_text, read_file, read_json, shown, some

PRECISIONS = ("no", "fp16", "bf16")
SUMMARY_NUMBERS = ("train_seconds", "epochs", "steps", "images_per_second")  # that the report shows
GROUP = ("lr_factor", "weight_decay", "tensors", "parameters")  # numbers that are said of a parameter group
MOST_GROUPS, LONGEST_NAME = 1000, 100
LARGEST_FIGURE, LARGEST_SIDE = 2 * 2**20, 4096  # bytes and pixels


@dataclass(frozen=True)
class SavedRun:
    """A run, or a model without its run.

    Attributes:
        path: what the user named: a run directory, a checkpoint, or a folder with an exported model.
        directory: the run directory; of a model without its run, the model's own folder.
        model_folder: the folder with the weights.
        note: says that these are not the finished model, or that there is no training record; empty for a finished run.
        recorded: whether the training's options, curves and environment are known.
        config: the training's options; the defaults, without meaning, if they are not recorded.
        environment, summary: the training's; empty if missing.
        rows: the lines of metrics.jsonl.
        dataset, data_dir: the images to analyse it with; None if unknown.
        files: of a checkpoint, the verified contents of config.json and model.safetensors.
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
    files: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The run's name in the trackers; of a model without its run, the name of its folder."""
        return self.config.run_name or self.directory.resolve().name

    @property
    def options(self) -> dict[str, Any]:
        """Every option that the run was trained with; empty if they are not recorded."""
        return dataclasses.asdict(self.config) if self.recorded else {}

    @property
    def validation_fraction(self) -> float:
        """The fraction of the "train" images that training held out; 0 if unknown."""
        return self.config.validation_fraction if self.recorded and self.dataset == self.config.dataset else 0.0

    @property
    def lr_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the training as in environment.json; empty if unknown, or not of that form."""
        groups = self.environment.get("lr_groups")
        valid = isinstance(groups, list) and len(groups) <= MOST_GROUPS and all(map(_is_group, groups))
        return groups if valid and isinstance(groups, list) else []

    def load_model(self) -> tuple[nn.Module, ModelConfig]:
        """The model, on the CPU in eval mode. Raises UserError naming the file that is invalid."""
        return model_from_files(self.files, self.model_folder) if self.files else load_model(self.model_folder)

    def figure(self, name: str) -> bytes | None:
        """The content of a figure of the training; None unless it is a PNG of a size that a page can show."""
        try:
            content = read_file(self.directory / name, LARGEST_FIGURE)
            with Image.open(io.BytesIO(content)) as image:
                return content if image.format == "PNG" and max(image.size) <= LARGEST_SIDE else None
        except (OSError, ValueError, SyntaxError, UserError, Image.DecompressionBombError):
            return None

    def split(self, name: str, model_config: ModelConfig) -> Split:
        """The "train" or "test" images at the model's size.

        Raises UserError if the data set is unknown, or its classes are not the model's.
        """
        if self.dataset is None:
            embedded = ", ".join(name for name in DATASETS if not get_source(name).reads_data_dir)
            raise UserError(
                f"dataset: {self.path} does not say which images it is for; name them with --dataset "
                f"({', '.join(DATASETS)}) and, except for {embedded}, --data_dir"
            )
        source = get_source(self.dataset)
        if source.reads_data_dir and not (self.data_dir and os.path.isdir(self.data_dir)):
            where = f"{self.data_dir} is not a folder" if self.data_dir else "the run does not say where the images are"
            raise UserError(f"data_dir: {where}; name the folder of the data set with --data_dir")
        split, class_names = load_split(
            self.dataset, self.data_dir or "", name, model_config.geometry, self.config.memory_fraction
        )
        if class_names != model_config.class_names:
            where = f" in {self.data_dir}" if source.reads_data_dir else ""
            raise UserError(
                f"data_dir: the classes of {self.dataset}{where} ({some(class_names)}) are not those of the model "
                f"({some(model_config.class_names)}); name its data set with --dataset and --data_dir"
            )
        return split


def open_run(path: Path, option: str = "run", dataset: str | None = None, data_dir: str | None = None) -> SavedRun:
    """Reads a run from its directory or one of its checkpoints, or a model from a folder with config.json and weights.

    The model of a run that was stopped before its export is that of the newest valid checkpoint.
    Raises UserError naming what is missing.

    Args:
        option: the option that names `path`, for errors.
        dataset, data_dir: the images to use instead of the run's own.
    """
    if not os.path.isdir(path):  # unlike path.is_dir(), false for names that are too long
        near = nearest(path.name, [folder.name for folder in path.parent.glob("*") if folder.is_dir()])
        hint = f"; did you mean {path.parent / near}?" if near else ""
        raise UserError(f"{option}: {path} is not a folder{hint}")
    directory = _run_directory(path.resolve())
    as_named = _run_directory(Path(os.path.abspath(path)))  # differs if a part of the run is a link
    for folder in dict.fromkeys([path, as_named or path, directory or path]):
        check_folder(folder, option)
    if directory is None and not (path / WEIGHTS).is_file():
        raise UserError(
            f"{option}: {path} is neither a run directory (it has no config.yaml) nor a model (it has no {WEIGHTS})"
        )
    model_folder, files, note = _find_model(path, directory, option)
    if directory is None:
        defaults = TrainConfig(trackers=["none"])
        return SavedRun(path, path, model_folder, note, False, defaults, {}, {}, [], dataset, data_dir, files)
    config = load_config(TrainConfig, directory / "config.yaml")
    environment, summary = _read_json(directory / "environment.json"), _read_summary(directory / "summary.json")
    rows = list(MetricsFile(directory / "metrics.jsonl").rows())
    data_dir = data_dir or (config.data_dir if dataset in (None, config.dataset) else None)
    dataset = dataset or config.dataset
    return SavedRun(
        path, directory, model_folder, note, True, config, environment, summary, rows, dataset, data_dir, files
    )


def trained_precision(path: Path) -> str | None:
    """The mixed precision that a run was trained and tested with; None if it is not recorded."""
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


def _find_model(path: Path, directory: Path | None, option: str) -> tuple[Path, dict[str, bytes], str]:
    """As the attributes of SavedRun: model_folder, files and note."""
    names, files = (CONFIG, WEIGHTS), {}
    if directory is None or (path / WEIGHTS).is_file():
        notes = []
        if (path / MANIFEST).is_file():
            files = read_checkpoint(path, names, option)
            notes.append(f"This is checkpoint {path.resolve().name}, not the finished model.")
        if directory is None:
            notes.append("There is no record of the training beside this model.")
        return path, files, " ".join(notes)
    if (directory / "model" / WEIGHTS).is_file():
        return directory / "model", files, ""
    found = newest_checkpoint(directory / "checkpoints", names, repair=False)
    if found is None:
        raise UserError(f"{option}: {path} holds neither a model/ nor a valid checkpoint yet")
    return *found, f"Training has not finished: this is its newest checkpoint, {found[0].name}."


def _is_group(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_text(value.get("name"))
        and len(value["name"]) <= LONGEST_NAME
        and all(is_number(value.get(key), 0) for key in GROUP)
    )


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if os.path.lexists(path) else {}


def _read_summary(path: Path) -> dict[str, Any]:
    """summary.json of a training, empty if it is missing. Raises UserError for a number that is not one."""
    summary = _read_json(path)
    for name in SUMMARY_NUMBERS if summary else ():
        if not is_number(summary.get(name), 0):
            raise UserError(f"{path}: {name} is {shown(summary.get(name))}, not a number")
    return summary
