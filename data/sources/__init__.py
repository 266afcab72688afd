"""Data sets by name: one file per kind of source, registered as a line of DATASETS in utils/config/train.py."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from data.preprocessing import channel_statistics
from data.splits import Dataset, Split, stratified_split
from utils.config.train import DATASETS
from utils.system.errors import UserError

STATISTICS_SAMPLE = 20_000  # files that mean and std are computed from


@dataclass(frozen=True)
class Request:
    """What a source is asked for.

    Attributes:
        name: of the data set, since a source may serve several.
        data_dir: its folder.
        split: one of the source's splits.
        image_size: pixels of a side that images are fitted to, unless the data set has a size of its own.
        memory_fraction: share of the free memory that the images may take, over all processes of the machine.
    """

    name: str
    data_dir: Path
    split: str
    image_size: int
    memory_fraction: float


@dataclass(frozen=True)
class Source:
    """One kind of data set. Its module in data/sources/ has one, as SOURCE.

    Attributes:
        load: the images, labels and paths of a split, and the class names. Raises UserError or EnvironmentFault with
            one line that names the path.
        splits: the splits that it has.
        download: (name, data_dir): fetches what is missing in data_dir; None if there is nothing to fetch.
        reads_data_dir: whether it is read from data_dir.
    """

    load: Callable[[Request], tuple[Split, tuple[str, ...]]]
    splits: tuple[str, ...] = ("train", "test")
    download: Callable[[str, Path], None] | None = None
    reads_data_dir: bool = True


def get_source(name: str) -> Source:
    """The source of a data set in DATASETS."""
    return import_module(DATASETS[name].module).SOURCE


def load_dataset(
    name: str,
    data_dir: str | Path,
    image_size: int = 32,
    validation_fraction: float = 0.0,
    seed: int = 0,
    memory_fraction: float = 0.25,
) -> Dataset:
    """Loads all splits and measures mean and std on the training images alone.

    `validation_fraction` of the training set is split off, stratified by class and seeded.
    Raises UserError or EnvironmentFault with one line that names the path.
    """
    train, class_names = load_split(name, data_dir, "train", image_size, memory_fraction)
    test, _ = load_split(name, data_dir, "test", image_size, memory_fraction)
    validation = None
    if validation_fraction > 0:
        rest, held_out = stratified_split(train.labels, validation_fraction, seed)
        train, validation = train.subset(rest), train.subset(held_out)
        counts = np.bincount(train.labels, minlength=len(class_names))
        if not counts.all():
            raise UserError(
                f"validation_fraction: {validation_fraction} leaves no training image of class "
                f"{class_names[counts.argmin()]!r}"
            )
    # Files are in memory on one machine and on disk on another: mean and std come from the same ones on both.
    mean, std = channel_statistics(train.images, STATISTICS_SAMPLE if train.paths else None)
    return Dataset(name, train, validation, test, class_names, train.images[0].shape[0], mean, std)


def load_split(
    name: str, data_dir: str | Path, split: str, image_size: int = 32, memory_fraction: float = 0.25
) -> tuple[Split, tuple[str, ...]]:
    """A split of the source, such as "train" or "test", and the class names. Downloads nothing (see download)."""
    source = get_source(name)
    if split not in source.splits:
        raise UserError(f"dataset: {name} has no split {split!r} (it has {', '.join(source.splits)})")
    return source.load(Request(name, Path(data_dir), split, image_size, memory_fraction))


def download(name: str, data_dir: str | Path) -> None:
    """Fetches what is missing of a data set into data_dir. Call it on one process per machine.

    Raises EnvironmentFault if there is no connection, with what to do instead.
    """
    source = get_source(name)
    if source.reads_data_dir and os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(f"data_dir: {data_dir} is not a folder")
    if source.download:
        source.download(name, Path(data_dir))
