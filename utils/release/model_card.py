"""README.md of model/: a model card for the Hugging Face Hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.preprocessing import Geometry
from models.saved import ModelConfig
from utils.config.defaults import HUB, PRETRAINED, RANDOM
from utils.config.files import to_yaml
from utils.evaluation.scores import accuracy_interval
from utils.release.export import Exported
from utils.system.markdown import as_text

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# Of each data set: its name on the Hub, if it is there, and a description.
DATASETS = {
    "cifar10": ("uoft-cs/cifar10", "CIFAR-10"),
    "cifar100": ("uoft-cs/cifar100", "CIFAR-100"),
    "digits": (None, "The handwritten digits of scikit-learn, 8×8 grey pixels, enlarged"),
}


@dataclass(frozen=True)
class CardData:
    """The data set of a model card: its name as in `dataset`, its folder, and the images of each split.

    Attributes:
        test_counts: test images of each class.
    """

    name: str
    folder: Path
    train: int
    validation: int
    test_counts: Sequence[int]

    @property
    def hub_name(self) -> str | None:
        return DATASETS.get(self.name, (None, ""))[0]

    @property
    def description(self) -> str:
        """For an image folder only the folder's own name, since the card may become public."""
        if self.name == "imagefolder":
            return f"Images of the folder {self.folder.name}"
        return DATASETS.get(self.name, (None, self.name))[1]


def model_card(
    name: str,
    location: str,
    config: ModelConfig,
    data: CardData,
    summary: Mapping[str, Any],
    recipe: Mapping[str, Any],
    environment: Mapping[str, Any],
    exported: Sequence[Exported] = (),
    picture: str | None = None,
) -> str:
    """The text of the card, without any path of this machine.

    Args:
        name: of the model.
        location: of the model in the code examples.
        summary, environment: as in summary.json and environment.json.
        recipe: the options that define the run.
        exported: the programs beside the weights.
        picture: file name of the learning curves beside the card.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    result: dict[str, Any] = {
        "task_type": "image-classification",
        "dataset_type": data.hub_name or data.name,
        "dataset_name": data.description,
        "dataset_split": "test",
    }
    correct = round(summary["test_accuracy"] * summary["test_count"])
    origin = environment.get("start_weights") or {}
    card_data = ModelCardData(
        model_name=name,
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=["image-classification", "model_hub_mixin", *("onnx" for program in exported if program.kind == "onnx")],
        base_model=origin.get("repository"),
        datasets=[data.hub_name] if data.hub_name else None,
        metrics=["accuracy"],
        eval_results=[
            EvalResult(**result, metric_type="accuracy", metric_value=summary["test_accuracy"]),
            EvalResult(**result, metric_type="loss", metric_value=summary["test_loss"], metric_name="cross-entropy"),
        ],
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        name=name,
        location=location,
        config=config,
        classes=list(zip(config.class_names, data.test_counts, summary["per_class_accuracy"].values(), strict=True)),
        data=data,
        summary=summary,
        correct=correct,
        interval=accuracy_interval(correct, summary["test_count"]),
        recipe=to_yaml(dict(recipe)),
        environment=environment,
        origin=origin,
        origin_name=origin.get("repository") or public_source(origin.get("source", "")),
        exported=exported,
        picture=picture,
        text=as_text,
        pixels="{0[0]}×{0[1]}".format,
        fitted=fitted,
        percent="{:.2%}".format,
    )
    return f"{card}\n"


def public_source(source: str) -> str:
    """A value of `init_from` without a path of this machine: of a folder or file, only its own name."""
    return source if source in (RANDOM, PRETRAINED) or source.startswith(HUB) else Path(source).name


def fitted(geometry: Geometry) -> str:
    """How images become the model's, as the end of a sentence about them."""
    part = "" if geometry.crop_pct == 1 else f"cut to the middle {geometry.crop_pct:g} of both sides, "
    size = f"{geometry.size[0]}×{geometry.size[1]} pixels (height × width)"
    how = f"{geometry.interpolation}, antialiased"
    if geometry.fit == "pad":
        return f"scaled to fit into {size}, in the middle of the colour {geometry.fill} ({how})"
    if geometry.fit == "squash":
        return f"{part}scaled to {size}, whatever the shape ({how})"
    return f"{part}scaled to cover {size}, of which the middle is cut out ({how})"
