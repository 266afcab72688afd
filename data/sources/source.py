"""What a source of images says about itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.splits import Split


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
