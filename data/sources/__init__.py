"""Data sets by name: one file per kind of source, registered as a line of DATASETS in utils/config/images.py."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from data.decoded import decode_once
from data.files import ImageFiles
from data.photo_cache import cached_photos
from data.preprocessing import Channels, Geometry, channel_statistics, mean_colour, square
from data.splits import Dataset, Split, stratified_split
from utils.config.images import DATASETS
from utils.system.errors import UserError

STATISTICS_SAMPLE = 20_000  # files that mean and std are computed from


@dataclass(frozen=True)
class Request:
    """What a source is asked for.

    Attributes:
        name: of the data set, since a source may serve several.
        data_dir: its folder.
        split: one of the source's splits.
        geometry: what images are fitted to, unless the data set has a size of its own.
        memory_fraction: share of the free memory that the images may take, over all processes of the machine.
    """

    name: str
    data_dir: Path
    split: str
    geometry: Geometry
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
    geometry: Geometry | int = 32,
    validation_fraction: float = 0.0,
    seed: int = 0,
    memory_fraction: float = 0.25,
    train_from_disk: bool = False,
    cache_side: int | None = None,
    exact_decode: bool = False,
    statistics: tuple[Channels, Channels] | None = None,
) -> Dataset:
    """Loads all splits, and measures mean and std on the training images alone.

    `validation_fraction` of the training set is split off, stratified by class and seeded.
    Raises UserError or EnvironmentFault with one line that names the path.

    Args:
        geometry: what images are fitted to; a number means that many pixels a side. Its `fill` becomes the mean colour.
        train_from_disk: training photos stay on disk, unfitted, for an augmentation that needs them so.
        cache_side: those photos come from a cache, their shorter side scaled to at most so many pixels.
        exact_decode: JPEGs are decoded at their full size for that cache.
        statistics: mean and std to use instead.
    """
    geometry = square(geometry) if isinstance(geometry, int) else geometry
    if geometry.fit == "pad" and statistics:
        geometry = dataclasses.replace(geometry, fill=mean_colour(statistics[0]))
    elif geometry.fit == "pad":  # of the whole images alone: what is added around them has their mean colour
        squashed = dataclasses.replace(geometry, fit="squash")
        whole, class_names = load_split(name, data_dir, "train", squashed, memory_fraction=0)
        part, _ = _held_out(whole, class_names, validation_fraction, seed)
        statistics = _statistics(part, squashed, data_dir)
        geometry = dataclasses.replace(geometry, fill=mean_colour(statistics[0]))
    everything, class_names = load_split(
        name, data_dir, "train", geometry, memory_fraction=0 if train_from_disk else memory_fraction
    )
    if cache_side and isinstance(everything.images, ImageFiles):
        cached = cached_photos(everything.images, Path(data_dir), cache_side, exact_decode)
        everything = dataclasses.replace(everything, images=cached)
    test, _ = load_split(name, data_dir, "test", geometry, memory_fraction)
    train, validation = _held_out(everything, class_names, validation_fraction, seed)
    mean, std = statistics or _statistics(train, geometry, data_dir)
    height, width, _ = train.images[0].shape
    geometry = dataclasses.replace(geometry, size=(height, width))
    return Dataset(name, train, validation, test, class_names, geometry, mean, std)


def _held_out(
    everything: Split, class_names: tuple[str, ...], validation_fraction: float, seed: int
) -> tuple[Split, Split | None]:
    """The training and the validation split, if there is one. Raises UserError for a class without training image."""
    if not validation_fraction:
        return everything, None
    rest, held_out = stratified_split(everything.labels, validation_fraction, seed)
    train = everything.subset(rest)
    counts = np.bincount(train.labels, minlength=len(class_names))
    if not counts.all():
        raise UserError(
            f"validation_fraction: {validation_fraction} leaves no training image of class "
            f"{class_names[counts.argmin()]!r}"
        )
    return train, everything.subset(held_out)


def _statistics(train: Split, geometry: Geometry, data_dir: str | Path) -> tuple[Channels, Channels]:
    """Mean and std of each channel. Files are in memory on one machine and on disk on another: they come from the same
    ones on both, and are cached if these must be decoded for it."""
    most = STATISTICS_SAMPLE if train.paths else None
    if not train.paths or train.images.in_memory:
        return channel_statistics(train.images, most)
    name = f"statistics-{geometry.cache_name}"
    mean, std = decode_once(
        Path(data_dir), name, train.paths, (2, 3), np.float64, lambda: channel_statistics(train.images, most)
    ).tolist()
    return tuple(mean), tuple(std)


def load_split(
    name: str, data_dir: str | Path, split: str, geometry: Geometry | int = 32, memory_fraction: float = 0.25
) -> tuple[Split, tuple[str, ...]]:
    """A split of the source, such as "train" or "test", and the class names. Downloads nothing (see download).

    Args:
        geometry: what images are fitted to; a number means that many pixels a side.
        memory_fraction: share of the free memory that images from files may take; 0: they stay on disk.
    """
    source = get_source(name)
    if split not in source.splits:
        raise UserError(f"dataset: {name} has no split {split!r} (it has {', '.join(source.splits)})")
    geometry = square(geometry) if isinstance(geometry, int) else geometry
    return source.load(Request(name, Path(data_dir), split, geometry, memory_fraction))


def download(name: str, data_dir: str | Path) -> None:
    """Fetches what is missing of a data set into data_dir. Call it on one process per machine.

    Raises EnvironmentFault if there is no connection, with what to do instead.
    """
    source = get_source(name)
    if source.reads_data_dir and os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(f"data_dir: {data_dir} is not a folder")
    if source.download:
        source.download(name, Path(data_dir))
