"""Data sets as arrays of uint8 RGB images with labels; every set brings class names, size, mean and std.

To add one: a function that loads its splits, a line in SOURCES, and its name in utils/config (docs/extending/).
"""

import math
import os
import socket
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
from PIL import Image

from data.decoded import decode_once
from data.images import SUFFIXES, ImageFiles, Images, Split, as_square
from utils.system.errors import EnvironmentFault, UserError
from utils.system.memory import check_memory, free_memory
from utils.system.ranks import local_world_size

STATISTICS_SAMPLE = 20_000  # images of a folder that mean and std are computed from
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on. `mean` and `std` are per channel, on a scale of 0 to 1."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


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
        left = np.bincount(train.labels, minlength=len(class_names))
        if not left.all():
            raise UserError(
                f"validation_fraction: {validation_fraction} leaves no training image of class "
                f"{class_names[left.argmin()]!r}"
            )
    # A folder's images are in memory on one machine and on disk on another: the same of them count on both.
    mean, std = channel_statistics(train.images, STATISTICS_SAMPLE if train.paths else None)
    return Dataset(name, train, validation, test, class_names, train.images[0].shape[0], mean, std)


def load_split(
    name: str, data_dir: str | Path, split: str, image_size: int = 32, memory_fraction: float = 0.25
) -> tuple[Split, tuple[str, ...]]:
    """The "train" or "test" split and the class names. Downloads nothing (see download)."""
    return SOURCES[name].load(Path(data_dir), split, image_size, memory_fraction)


def download(name: str, data_dir: str | Path) -> None:
    """Fetches a data set into data_dir unless it is there. Call it on one process per machine.

    Raises EnvironmentFault where there is no connection, with what to do instead.
    """
    if SOURCES[name].in_folder and os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(f"data_dir: {data_dir} is not a folder")
    SOURCES[name].download(Path(data_dir))


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of the larger and of the smaller part; a function of its arguments alone."""
    from sklearn.model_selection import train_test_split

    try:
        rest, held_out = train_test_split(
            np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise UserError(f"validation_fraction: {fraction} cannot be split off {len(labels)} images: {error}") from error
    return np.sort(rest), np.sort(held_out)


def channel_statistics(
    images: Images, most: int | None = None
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, on a scale of 0 to 1; over at most so many evenly spaced images."""
    counts = np.zeros((3, 256))
    for block in _blocks(images, min(most or len(images), len(images))):
        for channel in range(3):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share @ values**2 - mean**2).clip(min=1e-6))  # images of one colour have none
    return tuple(mean.tolist()), tuple(std.tolist())


def _blocks(images: Images, count: int, pixels: int = 2_000_000) -> Iterator[np.ndarray]:
    """So many evenly spaced images, in arrays that have about `pixels` pixels each."""
    size = max(1, pixels // images[0][..., 0].size)
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    take = images.decode if isinstance(images, ImageFiles) else images.__getitem__
    yield from (take(chosen[start : start + size]) for start in range(0, count, size))


# -- scikit-learn's handwritten digits: embedded, no download ---------------------------------------------------------


def _digits(data_dir: Path, split: str, image_size: int, memory_fraction: float) -> tuple[Split, tuple[str, ...]]:
    """1,437 training and 360 test images of 8x8 grey pixels, upscaled to image_size, as RGB."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, test = stratified_split(bunch.target, 0.2, seed=0)
    indices = train if split == "train" else test
    check_memory(math.prod((len(indices), image_size, image_size, 3)), f"image_size: {image_size}")
    small = (bunch.images[indices] * (255 / 16)).round().astype(np.uint8)
    images = np.stack([as_square(Image.fromarray(image), image_size) for image in small])
    return Split(images, bunch.target[indices].astype(np.int64)), tuple(str(name) for name in bunch.target_names)


# -- CIFAR ------------------------------------------------------------------------------------------------------------

CIFAR_ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


def _cifar_class(name: str):
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]


def _download_cifar(name: str, data_dir: Path) -> None:
    """Fetches CIFAR unless it is there with the right checksums."""
    from torchvision.datasets.utils import check_integrity

    kind = _cifar_class(name)
    checksums = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    if all(check_integrity(data_dir / kind.base_folder / file, md5) for file, md5 in checksums):
        return
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        kind(str(data_dir), download=True)
    except (URLError, HTTPException, OSError, RuntimeError) as error:
        raise EnvironmentFault(
            f"{name} could not be downloaded ({type(error).__name__}: {error}); put {CIFAR_ARCHIVES[name]} into "
            f"{data_dir.resolve()}, or go on without it: --dataset digits"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _cifar(
    name: str, data_dir: Path, split: str, image_size: int, memory_fraction: float
) -> tuple[Split, tuple[str, ...]]:
    kind = _cifar_class(name)

    @cache
    def source():
        """The original, checked and unpickled: seconds and a gigabyte, which only the first start needs."""
        try:
            return kind(str(data_dir), train=split == "train")
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data_dir: {data_dir.resolve()} does not hold {name} (put {CIFAR_ARCHIVES[name]} there)"
            ) from error

    files = [file for file, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    sources = [str(data_dir / kind.base_folder / file) for file in files]

    def part(of: str, values: Callable[[], Sequence], shape: tuple[int, ...], dtype: type | str) -> np.ndarray:
        return decode_once(data_dir, f"{name}-{split}-{of}", sources, shape, dtype, values)

    images = part("images", lambda: source().data, (-1, 32, 32, 3), np.uint8)
    labels = part("labels", lambda: source().targets, (-1,), np.int64)
    class_names = part("classes", lambda: source().classes, (-1,), "U32")
    return Split(images, labels), tuple(class_names.tolist())


# -- folders of images ------------------------------------------------------------------------------------------------


def _image_folder(root: Path, split: str, size: int, memory_fraction: float) -> tuple[Split, tuple[str, ...]]:
    """root/train/<class>/* and root/test/<class>/* (or root/val); classes by sorted name of the training folders."""
    if not os.path.isdir(root):  # unlike root.is_dir(), false for names that are too long
        raise UserError(f"data_dir: {root} is not a folder")
    folders = {"train": root / "train", "test": root / "test" if (root / "test").is_dir() else root / "val"}
    if not folders["train"].is_dir():
        raise UserError(f"data_dir: {root} has no folder train/<class>/")
    if not folders["test"].is_dir():
        raise UserError(f"data_dir: {root} has neither a folder test/ nor val/")
    classes = _class_folders(folders["train"])
    if split == "test":
        found = _class_folders(folders["test"])
        for name in sorted(set(classes) ^ set(found)):
            where, there = (folders["test"], found) if name in classes else (folders["train"], classes)
            same = any(unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other) for other in there)
            hint = "; its name is there, in another Unicode normal form (NFC, NFD)" if same else ""
            raise UserError(f"data_dir: class {name!r} has no folder in {where}{hint}")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _image_files(folders[split] / name)
        paths += found
        labels += [label] * len(found)
    files = ImageFiles(paths, size)
    images: Images = files
    shape = (len(files), size, size, 3)
    if math.prod(shape) <= memory_fraction * free_memory() / local_world_size():
        images = decode_once(root, f"{split}-{size}", paths, shape, np.uint8, lambda: files.decode(range(len(files))))
    return Split(images, np.asarray(labels, dtype=np.int64), paths), tuple(classes)


def _image_files(folder: Path) -> list[str]:
    """Sorted paths, as strings: of a million images they take a fraction of the time and memory of Path objects."""
    names = [name for name in _listed(folder) if os.path.splitext(name)[1].lower() in SUFFIXES and name[0] != "."]
    if not names:
        raise UserError(f"data_dir: {folder} holds no image (looking for {', '.join(sorted(SUFFIXES))})")
    return [os.path.join(folder, name) for name in sorted(names)]


def _class_folders(folder: Path) -> list[str]:
    names = sorted(name for name in _listed(folder) if name[0] != "." and os.path.isdir(folder / name))
    if not names:
        raise UserError(f"data_dir: {folder} has no class folders")
    for name in names:
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
            raise UserError(
                f"data_dir: {folder} has a class {name!r}; control characters, line breaks and what is not UTF-8 "
                "are not allowed in the name of a class"
            )
    return names


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(f"data_dir: {folder} cannot be read ({error.strerror})") from error


# -- all of them, by name ---------------------------------------------------------------------------------------------


def _nothing(data_dir: Path) -> None:
    """Downloads nothing."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        load: (data_dir, split, image_size, memory_fraction) to the "train" or "test" split and the class names.
        download: fetches it into data_dir unless it is there.
        in_folder: whether it is read from data_dir.
    """

    load: Callable[[Path, str, int, float], tuple[Split, tuple[str, ...]]]
    download: Callable[[Path], None] = _nothing
    in_folder: bool = True


SOURCES = {
    "cifar10": Source(partial(_cifar, "cifar10"), partial(_download_cifar, "cifar10")),
    "cifar100": Source(partial(_cifar, "cifar100"), partial(_download_cifar, "cifar100")),
    "digits": Source(_digits, in_folder=False),
    "imagefolder": Source(_image_folder),
}
