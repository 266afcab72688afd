"""The options of train_accelerate.py. A data set, an optimizer or a tracker is added by one line here."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

from utils.config.consistency import check_consistency
from utils.config.options import Config, Default, in_group
from utils.config.resolution import LARGEST, Size, parse_size, shown_size


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
SMALLEST_CROP = 0.01  # of a photo's area


def by_optimizer(name: str) -> Default:
    """The default of an option whose value depends on the optimizer."""
    words = ", ".join(f"{getattr(defaults, name):g} for {optimizer}" for optimizer, defaults in OPTIMIZERS.items())
    return Default(lambda config: getattr(OPTIMIZERS[config.optimizer], name), words)


@dataclass
class TrainConfig(Config):
    """Options of train_accelerate.py. Precision, process count and device come from Accelerate alone."""

    script: ClassVar[str] = "train_accelerate.py"

    # fmt: off
    option = in_group("data")
    dataset: str = option(
        "cifar10", "data set; digits needs no download, imagefolder reads data_dir/train and data_dir/test",
        choices=DATASETS,
    )
    data_dir: str = option("datasets", "folder of the data set; downloads go here", path="folder", may_change=True)
    image_size: int | str = option(
        32, "side in pixels, or HEIGHTxWIDTH such as 224x160; digits and image folders are fitted to it",
        low=8, high=LARGEST,
    )
    fit: Literal["crop", "squash", "pad"] = option(
        "crop",
        "how an image becomes image_size; crop: scaled until it covers it, the middle cut out; squash: both sides "
        "scaled; pad: scaled until it fits in, the rest filled with the mean colour",
    )
    crop_pct: float = option(1.0, "fraction of the sides that fit crop or squash leaves", low=0.1, high=1.0)
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = option(
        "bilinear", "how images are scaled, always with antialiasing"
    )
    validation_fraction: float = option(
        0.0, "fraction of the training set held out for validation, stratified and seeded", low=0.0, high=0.9
    )
    memory_fraction: float = option(
        0.25,
        "fraction of the free memory that an image folder may take, over all processes; a larger one is read from disk",
        low=0.0, high=1.0, may_change=True,
    )
    cache_side: int | None = option(
        None, "cache training photos, scaled until the shorter side has at most so many pixels, in data_dir/.decoded; "
        "for crop resized; unset: off", low=8, high=LARGEST,
    )
    exact_decode: bool = option(
        False, "crop resized decodes JPEGs at their full size; otherwise at 1/2, 1/4 or 1/8 if the crop allows"
    )
    num_workers: int | None = option(
        None, "loader processes per training process, for albumentations; unset: 0 on a CPU, else up to 8",
        low=0, high=256, may_change=True,
    )

    option = in_group("augmentation")
    crop: Literal["pad", "resized", "none"] = option(
        "pad", "random crop; pad: of the image padded by crop_padding; resized: a random part of the photo, scaled to "
        "image_size",
    )
    crop_padding: int = option(4, "pixels of padding before the random crop; 0: no crop", low=0)
    padding_mode: Literal["zeros", "reflect"] = option(
        "zeros", "what crop_padding adds; zeros: black; reflect: the image mirrored at its border"
    )
    crop_scale: list[float] = option(
        [0.08, 1.0], "range of the part that crop resized cuts out, in shares of the area; one number: the smallest",
        low=SMALLEST_CROP, high=1.0,
    )
    horizontal_flip: Literal["none", "random", "alternating"] = option(
        "alternating", "none; random: half of the images; alternating: each image in every other epoch"
    )
    vertical_flip: bool = option(False, "turn half of the images upside down")
    rotate: float = option(0.0, "largest angle of a random rotation, in degrees; 0: off", low=0.0, high=180.0)
    policy: str = option(
        "none", "automatic augmentation: none, trivial (TrivialAugmentWide), rand:N,M (RandAugment; rand is rand:2,9), "
        "or auto:imagenet, auto:cifar10, auto:svhn (AutoAugment; auto is auto:imagenet)",
    )
    color_jitter: list[float] = option(
        [], "strength of random brightness, contrast, saturation (0 to 1) and hue (0 to 0.5), such as 0.4,0.4,0.4,0.1; "
        "one number: of the first three; empty: off", low=0.0, high=1.0,
    )
    grayscale: float = option(0.0, "fraction of the images that turn grey", low=0.0, high=1.0)
    blur: float = option(0.0, "fraction of the images that are blurred", low=0.0, high=1.0)
    cutout: int = option(8, "side in pixels of the CutOut square, filled with the mean; 0: off", low=0)
    erase: float = option(0.0, "fraction of the images of which a random rectangle is erased", low=0.0, high=1.0)
    erase_mode: Literal["pixel", "constant"] = option(
        "pixel", "what erase leaves; pixel: noise; constant: the mean colour"
    )
    mixup: float = option(0.0, "alpha of MixUp's Beta distribution, at least 0.01; 0: off", low=0.0, high=1000.0)
    cutmix: float = option(
        0.0, "alpha of CutMix's Beta distribution, at least 0.01; 0: off; with mixup too, each batch draws one of them",
        low=0.0, high=1000.0,
    )
    repeated: int = option(
        1, "copies of an image in a batch, each augmented on its own; an epoch then has a part of the images", low=1,
        high=64,
    )
    augment_file: str | None = option(
        None, "YAML file of an albumentations pipeline that replaces all other augmentations but mixup and cutmix; a "
        "resume needs the same content",
        path="file", may_change=True,
    )
    augment_until: float = option(
        1.0, "fraction of the epochs after which images are trained without augmentation, as evaluation sees them",
        low=0.0, high=1.0,
    )
    augment_backend: Literal["auto", "albumentations", "tensor"] = option(
        "auto",
        "albumentations: image by image on the CPU; tensor: whole batches on the device; auto: tensor if they fit",
    )
    tta: Literal["none", "flip", "flip_translate"] = option(
        "none",
        "test-time augmentation of the final evaluation; flip: mirrored too; flip_translate: also shifted by a pixel",
    )

    option = in_group("model")
    model: str = option("resnet18", "architecture: resnet18, resnet34, speednet, or timm:NAME")
    norm: Literal["batch", "group"] = option("batch", "normalisation layers; group has no batch statistics")
    # Channels from 16 on: at 8, oneDNN 3 corrupts memory (NHWC).
    width: int = option(64, "channels of the first stage; later stages have a multiple", low=16, high=4096)

    option = in_group("length and batch")
    epochs: int = option(20, "passes over the training set", low=1)
    batch_size: int = option(512, "images per optimizer step, over all processes and accumulation", low=1)
    micro_batch_size: int | None = option(
        None, "images per process and forward pass; unset: on a GPU as large as fits, on a CPU all at once",
        low=1, may_change=True,
    )
    max_steps: int | None = option(
        None, "stop after this many optimizer steps; the schedule still spans all epochs", low=1, may_change=True
    )
    resolution: str | None = option(
        None, "smaller images first: 16@0.3,24@0.6,32 takes 16 pixels until 0.3 of the steps, then 24, 32; scaled by "
        "adaptive average pooling",
    )

    option = in_group("optimizer")
    optimizer: str = option(
        "muon",
        "muon: for convolution filters and inner matrices, scaled by 0.2 sqrt(max(out, in)) to the RMS of adamw's "
        "updates (Liu et al. 2025, not as in Jordan's code), adamw at the same lr for all other weights",
        choices=OPTIMIZERS,
    )
    lr: float | Literal["auto"] = option(
        by_optimizer("lr"), "peak learning rate, or auto: from a range test", low=0.0, open=True
    )
    momentum: float = option(by_optimizer("momentum"), "momentum of sgd and muon, beta1 of adamw", low=0.0, high=0.9999)
    nesterov: bool = option(True, "Nesterov momentum of sgd; muon always has it")
    weight_decay: float = option(
        by_optimizer("weight_decay"), "an L2 penalty in sgd, decoupled from the gradient in adamw and muon", low=0.0
    )
    decay_norm_and_bias: bool = option(False, "apply weight decay to norm layers and biases too")
    norm_bias_lr_factor: float = option(1.0, "lr of the norm layers' biases, relative to lr", low=0.001)
    label_smoothing: float = option(0.1, "fraction of the target spread over all classes", low=0.0, high=0.99)
    grad_clip_norm: float | None = option(
        None, "largest L2 norm of the gradient; unset: no clipping", low=0.0, open=True
    )

    option = in_group("schedule")
    schedule: Literal["onecycle", "cosine", "linear", "step", "constant"] = option(
        "linear", "learning rate over the run, as a function of the optimizer step"
    )
    warmup_fraction: float = option(0.05, "fraction of the steps in which lr warms up", low=0.0, high=0.99)
    find_lr: bool = option(False, "run a learning-rate range test first and plot it", may_change=True)

    option = in_group("averages of the weights")
    ema_decay: float | None = option(
        None, "evaluate an exponential moving average of the weights with this decay per step; unset: off",
        low=0.0, high=0.99999,
    )
    lookahead_steps: int | None = option(
        None, "Lookahead: steps between updates of the slow weights; unset: off", low=1
    )
    lookahead_decay: float = option(0.95, "decay of Lookahead's slow weights per step", low=0.0, high=1.0)

    option = in_group("hardware", may_change=True)
    channels_last: bool = option(True, "NHWC memory layout")
    compile: bool = option(False, "torch.compile the model")
    peer_timeout: int = option(600, "seconds without an answer after which another process counts as lost", low=1)

    option = in_group("run", may_change=True)
    seed: int = option(
        0, "seed of the weights, the data order and the augmentation", low=0, high=2**32 - 1, may_change=False
    )
    output_dir: str = option("runs/resnet18", "folder of the run", path="folder")
    resume: str = option(
        "auto", "auto: from the newest intact checkpoint of output_dir, if any; never; or a checkpoint folder",
        path="folder",
    )
    checkpoint_every_steps: int | None = option(
        None, "also save a checkpoint every so many steps; unset: only every epoch", low=1
    )
    keep_checkpoints: int = option(2, "how many of the newest checkpoints to keep", low=1)
    on_nan: Literal["stop", "rollback"] = option(
        "stop", "if loss or weights are not finite: stop, or roll back to the last checkpoint and skip the steps since"
    )
    nan_patience: int = option(
        20, "steps in a row of infinite loss or gradient before on_nan acts (fp16 has some); infinite weights: at once",
        low=1,
    )
    export: list[Literal["onnx", "torch"]] = option(
        [], "also write model/model.onnx (onnx) and model/model.pt2 (torch), checked against the checkpoint"
    )
    push_to_hub: str | None = option(
        None, "upload model/ at the end to this repository of the Hugging Face Hub, such as user/name"
    )

    option = in_group("tracking", may_change=True)
    log_every_steps: int = option(50, "steps per training line in metrics.jsonl and the trackers", low=1)
    trackers: list[str] = option(
        ["wandb"], f"{', '.join(TRACKERS)} (several: wandb,tensorboard) or none", choices=(*TRACKERS, "none")
    )
    project_name: str | None = option(None, "project in the trackers; unset: WANDB_PROJECT, else image-classification")
    run_name: str | None = option(None, "name in the trackers; unset: WANDB_NAME, else the name of output_dir")
    run_group: str | None = option(
        None, "group of runs in the trackers, such as the seeds of one recipe; unset: WANDB_RUN_GROUP"
    )
    run_tags: list[str] = option([], "tags in W&B, such as baseline,cifar10; unset: WANDB_TAGS")
    track_model: Literal["none", "end", "all"] = option(
        "end", "W&B artifacts: the exported model at the end; all: also the checkpoint of every epoch"
    )

    option = in_group("debugging")
    preview_augment: str | None = option(
        None, "draw what the model gets, 8 draws of 6 training images, into this PNG file, and exit", path="file",
        may_change=True,
    )
    fast_dev_run: bool = option(
        False, "one step, one batch of every evaluation, checkpoint and export, in a temporary folder"
    )
    overfit_batches: int | None = option(None, "train on this many batches only; the loss should vanish", low=1)
    profile: bool = option(
        False, "profile a few steps: profile/operations.txt and trace.json in the run", may_change=True
    )
    debug: bool = option(False, "show tracebacks", may_change=True)
    del option
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = parse_size(self.image_size)
        self.image_size = height if height == width else shown_size((height, width))  # 224x224 is 224
        check_consistency(self)

    @property
    def size(self) -> Size:
        """Height and width in pixels of the images: those of the data set, if it has a fixed size, else image_size."""
        return parse_size(DATASETS[self.dataset].image_size or self.image_size)

    @property
    def is_fitted(self) -> bool:
        """Whether the images of the data set are fitted to image_size; otherwise they have a size of their own."""
        return DATASETS[self.dataset].image_size is None

    def identity(self) -> dict[str, Any]:
        """The options that decide which run it is: all but those that may change when it is resumed."""
        return {field.name: getattr(self, field.name) for field in fields(self) if not field.metadata["may_change"]}
