"""Start weights for tests: timm folders of small models, and the real one that may lie beside the project."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.conftest import ROOT
from tests.processes import tiny_config
from utils.config import TrainConfig

LITE0 = ROOT.parent / "shared" / "models" / "tf_efficientnet_lite0"  # ImageNet weights; tests without them are skipped


def small_model(name: str, classes: int = 10, **arguments: Any) -> nn.Module:
    """A model of timm with random weights, of which none is a new layer's 0 or 1, statistics of batch norm included."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for path, buffer in model.named_buffers():
            if path.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif path.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def timm_folder(
    place: Path, name: str, classes: int = 10, arguments: Mapping[str, Any] | None = None, **facts: Any
) -> Path:
    """The folder `place`, as timm writes it, with weights of small_model.

    Args:
        facts: what the weights say of themselves other than timm does.
    """
    model = small_model(name, classes, **(arguments or {}))
    place.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), place / "model.safetensors")
    described = {"architecture": name, "num_classes": classes, "pretrained_cfg": {**model.pretrained_cfg, **facts}}
    (place / "config.json").write_text(json.dumps(described))
    return place


def fine_tuning(output_dir: Path, weights: Path, **changes: Any) -> TrainConfig:
    """A run of the digits that starts from a timm folder: ten steps an epoch."""
    values = {
        "width": "auto", "image_size": 32, "batch_size": 144, "epochs": 1, "lr": 0.01, "full_lr_steps": 0,
        "head_init": "random",
    }  # fmt: skip
    return tiny_config(output_dir, init_from=str(weights), **{**values, **changes})
