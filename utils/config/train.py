"""The options of train_accelerate.py. A data set, an optimizer or a tracker is added by one line here."""

from typing import NamedTuple


class DatasetEntry(NamedTuple):
    """Where a data set comes from.

    Attributes:
        module: the module with its Source, imported when the data set is loaded.
        image_size: side in pixels of images that have one size of their own; None: they are resized to `image_size`.
    """

    module: str
    image_size: int | None = None


class OptimizerDefaults(NamedTuple):
    """What the options are for an optimizer unless they are set."""

    lr: float
    momentum: float
    weight_decay: float


DATASETS = {
    "cifar10": DatasetEntry("data.sources.cifar", image_size=32),
    "cifar100": DatasetEntry("data.sources.cifar", image_size=32),
    "digits": DatasetEntry("data.sources.digits"),
    "imagefolder": DatasetEntry("data.sources.imagefolder"),
}
OPTIMIZERS = {
    "sgd": OptimizerDefaults(lr=0.4, momentum=0.9, weight_decay=5e-4),
    "adamw": OptimizerDefaults(lr=0.001, momentum=0.9, weight_decay=0.05),
    "muon": OptimizerDefaults(lr=0.02, momentum=0.8, weight_decay=0.5),
}
# Module and class, imported when a run uses the tracker; the name is that of the package that must be installed.
TRACKERS = {
    "wandb": ("utils.tracking.wandb_tracker", "WandbTracker"),
    "tensorboard": ("utils.tracking.tensorboard_tracker", "TensorBoardTracker"),
    "trackio": ("utils.tracking.trackio_tracker", "TrackioTracker"),
}
