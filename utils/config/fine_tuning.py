"""The options of a training that starts from weights of others."""

from dataclasses import dataclass
from typing import Literal

from utils.config.defaults import RANDOM, UNTRAINED, tuned
from utils.config.images import ImageConfig
from utils.config.options import in_group


@dataclass
class FineTuningConfig(ImageConfig):
    """The options of fine-tuning."""

    # fmt: off
    option = in_group("fine-tuning")
    init_from: str = option(
        RANDOM, "what a new run starts from: random, pretrained (timm's own weights of a timm: model), "
        "hf-hub:USER/NAME[@REVISION], or the path of a run, a checkpoint, a model folder, a timm folder, or a "
        ".safetensors, .pth or .bin file", path="file",
    )
    keep_head: bool = option(False, "keep the head of the weights, if they have exactly the classes of the data set")
    head_init: Literal["auto", "probe", "random"] = option(
        tuned("random", "probe"),
        "how a new head starts; probe: as the logistic regression that fits the features of the weights",
    )
    probe_views: int = option(
        0, "augmented views of each training image that the probe is fitted to as well", low=0, high=100
    )
    freeze: Literal["none", "backbone"] = option(
        "none", "what is not trained; backbone: everything but the head, which is the probe"
    )
    freeze_epochs: int = option(0, "epochs in which only the head is trained, before all of the model is", low=0)
    layer_decay: float = option(
        1.0, "lr of each layer relative to the one after it; the head has the full lr; 1: the same for all",
        low=0.01, high=1.0,
    )
    head_lr_factor: float = option(1.0, "lr of the head, relative to lr", low=0.0, high=1000.0, open=True)
    norm_statistics: Literal["auto", "frozen", "trained"] = option(
        tuned("trained", "frozen"),
        "running statistics of batch norm; frozen: those of the weights, which also normalise in training; trained: "
        "each batch's own",
    )
    drop_path: float | None = option(
        None, "rate of stochastic depth in the last block, rising from 0 in the first (timm: models); unset: the "
        "model's own, which is 0 for most",
        low=0.0, high=0.95,
    )
    grad_checkpointing: bool = option(
        False, "compute activations again in the backward pass instead of storing them: less memory, more time (timm: "
        "models)", may_change=True,
    )
    teacher: str | None = option(
        None, "distil from this trained model: a run, checkpoint or model folder, or hf-hub:USER/NAME; a resume needs "
        "the same weights; unset: off",
        path="folder", may_change=True,
    )
    distill_alpha: float = option(0.5, "share of the teacher's targets in the loss", low=0.0, high=1.0)
    distill_temperature: float = option(
        2.0, "temperature of both sides in the loss of distillation", low=0.1, high=100.0
    )
    del option
    # fmt: on

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the run starts from weights of others."""
        return self.init_from != RANDOM

    @property
    def is_distilled(self) -> bool:
        """Whether a teacher has a part in the loss."""
        return self.teacher is not None and self.distill_alpha > 0 and self.freeze != "backbone"

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left for the weights to decide."""
        return not any(getattr(self, name) == "auto" for name in UNTRAINED)
