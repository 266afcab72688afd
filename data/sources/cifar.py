"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), by torchvision."""

import socket
from collections.abc import Callable, Sequence
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np

from data.decoded import decode_once
from data.images import InMemory
from data.sources import Request, Source
from data.splits import Split
from utils.system.errors import EnvironmentFault, UserError

DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


def cifar_class(name: str):
    """torchvision's class of a data set."""
    from torchvision import datasets

    return getattr(datasets, name.upper())


def download_cifar(name: str, data_dir: Path) -> None:
    """Fetches CIFAR unless it is there with the right checksums. Raises EnvironmentFault."""
    from torchvision.datasets.utils import check_integrity

    kind = cifar_class(name)
    checksums = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    if all(check_integrity(data_dir / kind.base_folder / file, md5) for file, md5 in checksums):
        return
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        kind(str(data_dir), download=True)
    except (URLError, HTTPException, OSError, RuntimeError) as error:
        raise EnvironmentFault(
            f"{name} could not be downloaded ({type(error).__name__}: {error}); put {kind.filename} into "
            f"{data_dir.resolve()}, or train without it: --dataset digits"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def load_cifar(request: Request) -> tuple[Split, tuple[str, ...]]:
    """The original images of 32x32 pixels. Raises UserError if they are missing or changed."""
    name, data_dir, split = request.name, request.data_dir, request.split
    kind = cifar_class(name)

    @cache
    def original():
        """Verified and unpickled: seconds and a gigabyte, which only the first start needs."""
        try:
            return kind(str(data_dir), train=split == "train")
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data_dir: {data_dir.resolve()} does not hold {name} (put {kind.filename} there)"
            ) from error

    files = [file for file, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    paths = [str(data_dir / kind.base_folder / file) for file in files]

    def part(of: str, values: Callable[[], Sequence], shape: tuple[int, ...], dtype: type | str) -> np.ndarray:
        return decode_once(data_dir, f"{name}-{split}-{of}", paths, shape, dtype, values)

    images = part("images", lambda: original().data, (-1, 32, 32, 3), np.uint8)
    labels = part("labels", lambda: original().targets, (-1,), np.int64)
    class_names = part("classes", lambda: original().classes, (-1,), "U32")
    return Split(InMemory(images), labels), tuple(class_names.tolist())


SOURCE = Source(load_cifar, download=download_cifar)
