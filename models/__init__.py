"""Models by name. To add one: a file with its class, and a line in MODELS.

A model maps images to logits in `forward` and to the features that its linear layer `fc` sees in `forward_features`.

A model may define `initialise_from(inputs: Tensor) -> None`. A new run then calls it once, before training, with a few
thousand normalised training images, float32 (N, 3, H, W), without augmentation; a resumed or loaded model has in its
weights what it learned from them. It must be deterministic, so that every process makes the same of the same images.
"""

from typing import Any

from torch import nn

from models.resnet import resnet18, resnet34
from models.speednet import speednet
from utils.errors import UserError, suggestion

MODELS = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "speednet": speednet,
}


def list_models() -> list[str]:
    """The names that create_model knows."""
    return sorted(MODELS)


def create_model(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """Builds a freshly initialised model that maps images (N, 3, H, W), float32, to logits (N, num_classes).

    Raises UserError for an unknown name and for arguments that the model does not accept.
    """
    if name not in MODELS:
        raise UserError(f"model: {name!r} is not allowed; {suggestion(name, list_models())}")
    try:
        return MODELS[name](num_classes=num_classes, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {name} does not accept {arguments} ({error})") from error
