"""The options of train_accelerate.py. A data set, an optimizer or a tracker is added by one line here."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

from utils.config.options import Config, Default, option
from utils.config.resolution import resolution_phases
from utils.system.errors import UserError


class DatasetEntry(NamedTuple):
    """Where a data set comes from.

    Attributes:
        module: the module with its Source, imported when the data set is loaded.
        image_size: side in pixels of images with a fixed size; None: they are resized to the option `image_size`.
    """

    module: str
    image_size: int | None = None


class OptimizerDefaults(NamedTuple):
    """Defaults of the options of the same names."""

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
# Module and class, imported if a run uses the tracker; each is named after the package that it needs.
TRACKERS = {
    "wandb": ("utils.tracking.wandb_tracker", "WandbTracker"),
    "tensorboard": ("utils.tracking.tensorboard_tracker", "TensorBoardTracker"),
    "trackio": ("utils.tracking.trackio_tracker", "TrackioTracker"),
}
LARGEST_IMAGE = 4096  # pixels of a side
SMALLEST_ALPHA = 0.01  # of a Beta distribution: below it, torch's sampler underflows and draws one half instead


def by_optimizer(name: str) -> Default:
    """The default of an option whose value depends on the optimizer."""
    words = ", ".join(f"{getattr(defaults, name):g} for {optimizer}" for optimizer, defaults in OPTIMIZERS.items())
    return Default(lambda config: getattr(OPTIMIZERS[config.optimizer], name), words)


@dataclass
class TrainConfig(Config):
    """Options of train_accelerate.py. Precision, process count and device come from Accelerate alone."""

    script: ClassVar[str] = "train_accelerate.py"

    # fmt: off
    dataset: str = option(
        "cifar10", "data", "data set; digits needs no download, imagefolder reads data_dir/train and data_dir/test",
        choices=DATASETS,
    )
    data_dir: str = option(
        "datasets", "data", "folder of the data set; downloads go here", path="folder", may_change=True
    )
    image_size: int = option(
        32, "data", "side in pixels; digits and image folders are resized to it", low=8, high=LARGEST_IMAGE
    )
    validation_fraction: float = option(
        0.0, "data", "fraction of the training set held out for validation, stratified and seeded", low=0.0, high=0.9
    )
    memory_fraction: float = option(
        0.25, "data",
        "fraction of the free memory that an image folder may take, over all processes; a larger one is read from disk",
        low=0.0, high=1.0, may_change=True,
    )
    num_workers: int | None = option(
        None, "data", "loader processes per training process, for albumentations; unset: 0 on a CPU, else up to 8",
        low=0, high=256, may_change=True,
    )

    crop_padding: int = option(4, "augmentation", "pixels of padding before the random crop; 0: no crop", low=0)
    padding_mode: Literal["zeros", "reflect"] = option(
        "zeros", "augmentation", "what crop_padding adds; zeros: black; reflect: the image mirrored at its border"
    )
    horizontal_flip: Literal["none", "random", "alternating"] = option(
        "alternating", "augmentation", "none; random: half of the images; alternating: each image in every other epoch"
    )
    cutout: int = option(8, "augmentation", "side in pixels of the CutOut square, filled with the mean; 0: off", low=0)
    mixup: float = option(
        0.0, "augmentation", "alpha of MixUp's Beta distribution, at least 0.01; 0: off", low=0.0, high=1000.0
    )
    cutmix: float = option(
        0.0, "augmentation",
        "alpha of CutMix's Beta distribution, at least 0.01; 0: off; with mixup too, each batch draws one of them",
        low=0.0, high=1000.0,
    )
    augment_backend: Literal["auto", "albumentations", "tensor"] = option(
        "auto", "augmentation",
        "albumentations: image by image on the CPU; tensor: whole batches on the device; auto: tensor if they fit",
    )
    tta: Literal["none", "flip", "flip_translate"] = option(
        "none", "augmentation",
        "test-time augmentation of the final evaluation; flip: mirrored too; flip_translate: also shifted by a pixel",
    )

    model: str = option("resnet18", "model", "architecture: resnet18, resnet34, speednet, or timm:NAME")
    norm: Literal["batch", "group"] = option("batch", "model", "normalisation layers; group has no batch statistics")
    width: int = option(  # at 8, oneDNN 3 corrupts memory (NHWC)
        64, "model", "channels of the first stage; later stages have a multiple", low=16, high=4096
    )

    epochs: int = option(20, "length and batch", "passes over the training set", low=1)
    batch_size: int = option(
        512, "length and batch", "images per optimizer step, over all processes and accumulation", low=1
    )
    micro_batch_size: int | None = option(
        None, "length and batch",
        "images per process and forward pass; unset: on a GPU as large as fits, on a CPU all at once",
        low=1, may_change=True,
    )
    max_steps: int | None = option(
        None, "length and batch", "stop after this many optimizer steps; the schedule still spans all epochs",
        low=1, may_change=True,
    )
    resolution: str | None = option(
        None, "length and batch",
        "smaller images first: 16@0.3,24@0.6,32 takes 16 pixels until 0.3 of the steps, then 24, 32; scaled by "
        "adaptive average pooling",
    )

    optimizer: str = option(
        "muon", "optimizer",
        "muon: for convolution filters and inner matrices, scaled by 0.2 sqrt(max(out, in)) to the RMS of adamw's "
        "updates (Liu et al. 2025, not as in Jordan's code), adamw at the same lr for all other weights",
        choices=OPTIMIZERS,
    )
    lr: float | Literal["auto"] = option(
        by_optimizer("lr"), "optimizer", "peak learning rate, or auto: from a range test", low=0.0, open=True
    )
    momentum: float = option(
        by_optimizer("momentum"), "optimizer", "momentum of sgd and muon, beta1 of adamw", low=0.0, high=0.9999
    )
    nesterov: bool = option(True, "optimizer", "Nesterov momentum of sgd; muon always has it")
    weight_decay: float = option(
        by_optimizer("weight_decay"), "optimizer",
        "an L2 penalty in sgd, decoupled from the gradient in adamw and muon",
        low=0.0,
    )
    decay_norm_and_bias: bool = option(False, "optimizer", "apply weight decay to norm layers and biases too")
    norm_bias_lr_factor: float = option(1.0, "optimizer", "lr of the norm layers' biases, relative to lr", low=0.001)
    label_smoothing: float = option(
        0.1, "optimizer", "fraction of the target spread over all classes", low=0.0, high=0.99
    )
    grad_clip_norm: float | None = option(
        None, "optimizer", "largest L2 norm of the gradient; unset: no clipping", low=0.0, open=True
    )

    schedule: Literal["onecycle", "cosine", "linear", "step", "constant"] = option(
        "linear", "schedule", "learning rate over the run, as a function of the optimizer step"
    )
    warmup_fraction: float = option(0.05, "schedule", "fraction of the steps in which lr warms up", low=0.0, high=0.99)
    find_lr: bool = option(False, "schedule", "run a learning-rate range test first and plot it", may_change=True)

    ema_decay: float | None = option(
        None, "averages of the weights",
        "evaluate an exponential moving average of the weights with this decay per step; unset: off",
        low=0.0, high=0.99999,
    )
    lookahead_steps: int | None = option(
        None, "averages of the weights", "Lookahead: steps between updates of the slow weights; unset: off", low=1
    )
    lookahead_decay: float = option(
        0.95, "averages of the weights", "decay of Lookahead's slow weights per step", low=0.0, high=1.0
    )

    channels_last: bool = option(True, "hardware", "NHWC memory layout", may_change=True)
    compile: bool = option(False, "hardware", "torch.compile the model", may_change=True)
    peer_timeout: int = option(
        600, "hardware", "seconds without an answer after which another process counts as lost", low=1, may_change=True
    )

    seed: int = option(0, "run", "seed of the weights, the data order and the augmentation", low=0, high=2**32 - 1)
    output_dir: str = option("runs/resnet18", "run", "folder of the run", path="folder", may_change=True)
    resume: str = option(
        "auto", "run", "auto: from the newest intact checkpoint of output_dir, if any; never; or a checkpoint folder",
        path="folder", may_change=True,
    )
    checkpoint_every_steps: int | None = option(
        None, "run", "also save a checkpoint every so many steps; unset: only every epoch", low=1, may_change=True
    )
    keep_checkpoints: int = option(2, "run", "how many of the newest checkpoints to keep", low=1, may_change=True)
    on_nan: Literal["stop", "rollback"] = option(
        "stop", "run",
        "if loss or weights are not finite: stop, or roll back to the last checkpoint and skip the steps since",
        may_change=True,
    )
    nan_patience: int = option(
        20, "run",
        "steps in a row of infinite loss or gradient before on_nan acts (fp16 has some); infinite weights: at once",
        low=1, may_change=True,
    )
    export: list[Literal["onnx", "torch"]] = option(
        [], "run", "also write model/model.onnx (onnx) and model/model.pt2 (torch), checked against the checkpoint",
        may_change=True,
    )
    push_to_hub: str | None = option(
        None, "run", "upload model/ at the end to this repository of the Hugging Face Hub, such as user/name",
        may_change=True,
    )

    log_every_steps: int = option(
        50, "tracking", "steps per training line in metrics.jsonl and the trackers", low=1, may_change=True
    )
    trackers: list[str] = option(
        ["wandb"], "tracking", f"{', '.join(TRACKERS)} (several: wandb,tensorboard) or none",
        choices=(*TRACKERS, "none"), may_change=True,
    )
    project_name: str | None = option(
        None, "tracking", "project in the trackers; unset: WANDB_PROJECT, else image-classification", may_change=True
    )
    run_name: str | None = option(
        None, "tracking", "name in the trackers; unset: WANDB_NAME, else the name of output_dir", may_change=True
    )
    run_group: str | None = option(
        None, "tracking", "group of runs in the trackers, such as the seeds of one recipe; unset: WANDB_RUN_GROUP",
        may_change=True,
    )
    run_tags: list[str] = option(
        [], "tracking", "tags in W&B, such as baseline,cifar10; unset: WANDB_TAGS", may_change=True
    )
    track_model: Literal["none", "end", "all"] = option(
        "end", "tracking", "W&B artifacts: the exported model at the end; all: also the checkpoint of every epoch",
        may_change=True,
    )

    fast_dev_run: bool = option(
        False, "debugging", "one step, one batch of every evaluation, checkpoint and export, in a temporary folder"
    )
    overfit_batches: int | None = option(
        None, "debugging", "train on this many batches only; the loss should vanish", low=1
    )
    profile: bool = option(
        False, "debugging", "profile a few steps: profile/operations.txt and trace.json in the run", may_change=True
    )
    debug: bool = option(False, "debugging", "show tracebacks", may_change=True)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trackers or len(set(self.trackers)) < len(self.trackers):
            raise UserError(f"trackers: {self.trackers} is not allowed; name each tracker once, or none")
        if "none" in self.trackers and len(self.trackers) > 1:
            raise UserError(f"trackers: {','.join(self.trackers)} is not allowed; none cannot be combined with others")
        for name in ("mixup", "cutmix"):
            if 0 < (value := getattr(self, name)) < SMALLEST_ALPHA:
                raise UserError(f"{name}: {value:g} is not allowed; it must be 0 (off) or at least {SMALLEST_ALPHA:g}")
        side = DATASETS[self.dataset].image_size or self.image_size
        resolution_phases(self.resolution, side, total_steps=1)
        if self.padding_mode == "reflect" and self.crop_padding >= side:
            raise UserError(
                f"crop_padding: {self.crop_padding} is not allowed; with padding_mode reflect it must be less than "
                f"image_size ({side})"
            )
        for name in ("crop_padding", "cutout"):
            if (value := getattr(self, name)) > side:
                raise UserError(f"{name}: {value} is not allowed; it must be at most image_size ({side})")

    def identity(self) -> dict[str, Any]:
        """The options that decide which run it is: all but those that may change when it is resumed."""
        return {field.name: getattr(self, field.name) for field in fields(self) if not field.metadata["may_change"]}
