"""The options of train_accelerate.py. An optimizer or a tracker is added by one line here."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

from utils.config.consistency import check_consistency
from utils.config.defaults import UNTRAINED, of_weights, tuned
from utils.config.fine_tuning import FineTuningConfig
from utils.config.options import Default, default_of, in_group, options_of
from utils.config.resolution import parse_size, shown_size


class OptimizerDefaults(NamedTuple):
    """Defaults of the options of the same names."""

    lr: float
    momentum: float
    weight_decay: float


OPTIMIZERS = {
    "sgd": OptimizerDefaults(lr=0.4, momentum=0.9, weight_decay=5e-4),
    "adamw": OptimizerDefaults(lr=0.001, momentum=0.9, weight_decay=0.05),
    "muon": OptimizerDefaults(lr=0.02, momentum=0.8, weight_decay=0.5),
}
TUNED_LR = {"sgd": 0.01, "adamw": 2e-4, "muon": 2e-4}  # default of lr with init_from; of others, a tenth of their own
# Module and class, imported if a run uses the tracker; each is named after the package that it needs.
TRACKERS = {
    "wandb": ("utils.tracking.wandb_tracker", "WandbTracker"),
    "tensorboard": ("utils.tracking.tensorboard_tracker", "TensorBoardTracker"),
    "trackio": ("utils.tracking.trackio_tracker", "TrackioTracker"),
}


def by_optimizer(name: str) -> Default:
    """The default of an option whose value depends on the optimizer."""
    words = ", ".join(f"{getattr(defaults, name):g} for {optimizer}" for optimizer, defaults in OPTIMIZERS.items())
    return Default(lambda config: getattr(OPTIMIZERS[config.optimizer], name), words)


def _lr() -> Default:
    random = by_optimizer("lr")

    def of(config: Any) -> float:
        lr = random.of(config)
        return TUNED_LR.get(config.optimizer, lr / 10) if config.is_fine_tuned else lr

    words = ", ".join(f"{lr:g} for {optimizer}" for optimizer, lr in TUNED_LR.items())
    return Default(of, f"{random}; with init_from {words}")


@dataclass
class TrainConfig(FineTuningConfig):
    """Options of train_accelerate.py. Precision, process count and device come from Accelerate alone."""

    script: ClassVar[str] = "train_accelerate.py"

    # fmt: off
    option = in_group("model")
    model: str = option(of_weights("model"), "architecture: resnet18, resnet34, speednet, or timm:NAME")
    norm: Literal["auto", "batch", "group"] = option(
        of_weights("norm"), "normalisation layers; group has no batch statistics"
    )
    # Channels from 16 on: at 8, oneDNN 3 corrupts memory (NHWC).
    width: int | Literal["auto"] = option(
        of_weights("width"), "channels of the first stage; later stages have a multiple", low=16, high=4096
    )

    option = in_group("length and batch")
    epochs: int = option(tuned(20, 3), "passes over the training set", low=1)
    batch_size: int = option(tuned(512, 32), "images per optimizer step, over all processes and accumulation", low=1)
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
        tuned("muon", "adamw"),
        "muon: for convolution filters and inner matrices, scaled by 0.2 sqrt(max(out, in)) to the RMS of adamw's "
        "updates (Liu et al. 2025, not as in Jordan's code), adamw at the same lr for all other weights",
        choices=OPTIMIZERS,
    )
    lr: float | Literal["auto"] = option(
        _lr(), "peak learning rate, or auto: from a range test", low=0.0, open=True
    )
    momentum: float = option(by_optimizer("momentum"), "momentum of sgd and muon, beta1 of adamw", low=0.0, high=0.9999)
    nesterov: bool = option(True, "Nesterov momentum of sgd; muon always has it")
    weight_decay: float = option(
        by_optimizer("weight_decay"), "an L2 penalty in sgd, decoupled from the gradient in adamw and muon", low=0.0
    )
    decay_norm_and_bias: bool = option(False, "apply weight decay to norm layers and biases too")
    norm_bias_lr_factor: float = option(1.0, "lr of the norm layers' biases, relative to lr", low=0.001)
    label_smoothing: float = option(
        tuned(0.1, 0.0), "fraction of the target spread over all classes", low=0.0, high=0.99
    )
    grad_clip_norm: float | None = option(
        None, "largest L2 norm of the gradient; unset: no clipping", low=0.0, open=True
    )

    option = in_group("schedule")
    schedule: Literal["onecycle", "cosine", "linear", "step", "constant"] = option(
        tuned("linear", "cosine"), "learning rate over the run, as a function of the optimizer step"
    )
    warmup_fraction: float = option(tuned(0.05, 0.1), "fraction of the steps in which lr warms up", low=0.0, high=0.99)
    full_lr_steps: int = option(
        tuned(0, 200), "a run of fewer steps takes lr in proportion, 12 % of it in 24 of 200 steps, and stays near its "
        "start; 0: all of lr in every run",
        low=0,
    )
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
    print_groups: bool = option(
        False, "print the parts of the model with the lr, weight decay and size of each, and exit", may_change=True
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
        if not self.is_fine_tuned:
            for name, value in UNTRAINED.items():
                setattr(self, name, value if getattr(self, name) == "auto" else getattr(self, name))
        options = options_of(type(self))
        for name in ("head_init", "norm_statistics"):
            if getattr(self, name) == "auto":
                setattr(self, name, default_of(options[name], self))
        if self.image_size != "auto":
            height, width = parse_size(self.image_size)
            self.image_size = height if height == width else shown_size((height, width))  # 224x224 is 224
        check_consistency(self)

    def with_weights(self, facts: Mapping[str, Any]) -> "TrainConfig":
        """With what was left to the weights.

        Args:
            facts: what they say of the options in UNTRAINED, as far as it is known.
        """
        known = {name: value for name, value in facts.items() if value is not None}
        if not self.is_fitted:
            known.pop("image_size", None)
        values = UNTRAINED | {name: known[name] for name in UNTRAINED if name in known}
        return dataclasses.replace(
            self, **{name: value for name, value in values.items() if getattr(self, name) == "auto"}
        )

    def identity(self) -> dict[str, Any]:
        """The options that decide which run it is: all but those that may change when it is resumed."""
        return {field.name: getattr(self, field.name) for field in fields(self) if not field.metadata["may_change"]}
