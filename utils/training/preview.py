"""What the model gets of some training images: unaugmented, and as it is augmented in the first epochs."""

import dataclasses
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.loaders import DeviceLoader, TrainLoader
from data.splits import Dataset
from utils.config import TrainConfig
from utils.config.resolution import shown_size
from utils.plots.augmentations import augmentation_grid
from utils.system.errors import UserError, raise_on_all_ranks
from utils.system.files import replacing
from utils.system.runtime import create_accelerator
from utils.tracking.tracker import Picture
from utils.training.loading import (
    choose_backend,
    create_train_loader,
    load_once_per_machine,
    read_pipeline_once,
    shortened,
)
from utils.training.plan import Plan
from utils.training.run import Run
from utils.training.start import new_start

IMAGES, DRAWS = 6, 8
FILE = "augmentations.png"
LARGEST_CELL = 96  # pixels of an image in the file of a run, which stays below 2 MB


class Preview(NamedTuple):
    """Training images and what the model gets of them.

    Attributes:
        images: uint8 (IMAGES, 1 + DRAWS, height, width, 3): as the evaluation sees them, then by the draws of epochs 1,
            2, ...; of none of them, if the run augments none.
        classes: the class of each.
        columns: names of the draws.
        lines: what to know about them.
    """

    images: np.ndarray
    classes: list[str]
    columns: list[str]
    lines: list[str]

    def write(self, path: Path, largest_cell: int | None = None) -> None:
        """Writes a PNG file.

        Args:
            largest_cell: as `most` of augmentation_grid.
        """
        page = augmentation_grid(self.images, self.classes, self.columns, self.lines, largest_cell)
        with replacing(path) as file:
            page.save(file, format="PNG")


def write_preview(config: TrainConfig) -> None:
    """Draws what a new run with these options would get into `preview_augment`, without making the run.

    Raises UserError if that is not a PNG file in a writable folder.
    """
    path = Path(str(config.preview_augment))
    accelerator = create_accelerator(peer_timeout=config.peer_timeout)
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            _check_writable(path)
    pipeline = read_pipeline_once(config, accelerator)
    start = new_start(config, accelerator, pipeline)
    config = start.config
    data = shortened(load_once_per_machine(config, accelerator, start.statistics), config)
    with raise_on_all_ranks(accelerator):
        config = dataclasses.replace(config, augment_backend=choose_backend(config, None, data, accelerator))
        loader = create_train_loader(config, data, accelerator, pipeline)
        if accelerator.is_main_process:
            found = preview(config, data, loader)
            found.write(path)
            print("\n".join([f"{path}: {found.lines[0]}", *found.lines[1:]]))
    accelerator.end_training()


def show_augmentations(run: Run) -> None:
    """Writes augmentations.png into the run, unless it is there, and shows it to new trackers. On the main process."""
    path = run.directory.path / FILE
    if not path.exists():
        preview(run.config, run.data, run.loader).write(path, LARGEST_CELL)
    media = {"augmentations": Picture(path)}
    run.directory.track(lambda tracker: tracker.show(media, step=0) if tracker.fresh else None)


def preview(config: TrainConfig, data: Dataset, loader: TrainLoader | DeviceLoader) -> Preview:
    """The images of the run that this loader feeds."""
    plan = Plan(config, len(data.train), data.geometry.size)
    augmented, positions = plan.augmented_epochs, spread(data.train.labels, IMAGES)
    plain = data.train.images.take(positions)
    drawn = [loader.augmented(epoch, positions).cpu().numpy() if augmented else plain for epoch in range(DRAWS)]
    classes = [data.class_names[label] for label in data.train.labels[positions]]
    names = [f"epoch {number}" if number <= augmented else f"draw {number}" for number in range(1, DRAWS + 1)]
    return Preview(np.stack([plain, *drawn], axis=1), classes, ["as evaluated", *names], _lines(config, plan))


def spread(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of `count` images, or of all: one of each class first, and evenly spaced among classes and images."""
    classes = np.unique(labels)
    classes = classes[np.linspace(0, len(classes) - 1, min(count, len(classes))).astype(int)]
    each = -(-count // len(classes))
    members = [np.flatnonzero(labels == label) for label in classes]
    chosen = [own[np.linspace(0, len(own) - 1, min(each, len(own))).astype(int)].tolist() for own in members]
    rounds = [place for places in zip_longest(*chosen) for place in places if place is not None]
    return np.array(rounds[:count])


def _lines(config: TrainConfig, plan: Plan) -> list[str]:
    size, what = shown_size(plan.image_size), config.augment_file or f"augment_backend {config.augment_backend}"
    lines = [f"Training images of {size} pixels as evaluated, and as the model gets them ({what})."]
    if not plan.augmented_epochs:
        lines.append("No epoch is augmented (augment_until).")
    elif plan.augmented_epochs < DRAWS:
        lines.append(f"{plan.augmented_epochs} epochs are augmented; the other draws are what further ones would get.")
    if len(plan.phases) > 1:
        lines.append(f"The model gets them scaled to {shown_size(plan.phases[0].size)} pixels first (resolution).")
    if config.repeated > 1:
        lines.append(f"Of {config.repeated} copies of an image in a batch, the first is shown (repeated).")
    if mixed := [name for name in ("mixup", "cutmix") if getattr(config, name)]:
        lines.append(f"Not shown: {' and '.join(mixed)}, which mix images with each other after this.")
    return lines


def _check_writable(path: Path) -> None:
    remedy = "it must be a PNG file in a folder that exists"
    try:
        if path.suffix.lower() != ".png" or (path.exists() and not path.is_file()):
            raise UserError(f"preview_augment: {path} is not allowed; {remedy}")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"preview_augment: {path} cannot be written ({error.strerror}); {remedy}") from error
