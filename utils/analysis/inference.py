"""Predictions of a split, on all processes; those of the test set are kept in predictions.npz for the next call."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.loaders import EvaluationLoader
from data.preprocessing import to_input
from data.splits import Split
from models import classifier
from models.saved import tensors_to_bytes
from utils.analysis.kept import Arrays, Form, find_or_compute
from utils.analysis.predictions import Predictions
from utils.analysis.setup import Analysis
from utils.evaluation.predict import predict
from utils.system.errors import UserError
from utils.system.files import digest

FORMAT = 2  # of what is kept; what has another one is computed anew


class LogitsAndFeatures(nn.Module):
    """A classifier that gives (N, classes + F): its logits, and beside them what its classifier was given."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = classifier(self.model).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            logits = self.model(inputs)
        finally:
            handle.remove()
        return torch.cat([logits.float(), seen[-1].flatten(1).float()], dim=1)


def predict_split(analysis: Analysis, split: Split, label: str) -> Predictions:
    """Predicts on all processes, as training's evaluation does; every rank gets the same."""
    accelerator, config = analysis.accelerator, analysis.model_config
    channels_last = analysis.run.config.channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = LogitsAndFeatures(copy.deepcopy(analysis.model).to(memory_format=layout))
    loader = EvaluationLoader(
        split,
        accelerator.process_index,
        accelerator.num_processes,
        num_workers=analysis.config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    outputs = predict(
        accelerator,
        accelerator.prepare_model(model, evaluation_mode=True),
        loader,
        lambda images: to_input(images, *analysis.statistics, channels_last, config.resolution),
        config.tta,
        label,
    ).numpy()
    if not np.isfinite(outputs).all():
        raise UserError(f"{analysis.run.model_folder}: what the model says of the images is not finite")
    classes, largest = len(config.class_names), np.finfo(np.float16).max
    return Predictions(
        outputs[:, :classes], outputs[:, classes:].clip(-largest, largest).astype(np.float16), split.labels
    )


def predict_test(analysis: Analysis, *elsewhere: Path) -> Predictions:
    """The test split's predictions, kept in predictions.npz.

    Those of an earlier call are looked for in the folder of the results and `elsewhere`.
    """
    return predict_kept(analysis, analysis.test, "predictions", "predicting", *elsewhere)


def predict_kept(analysis: Analysis, split: Split, name: str, label: str, *elsewhere: Path) -> Predictions:
    """As predict_split, or what an earlier call kept as `name` with the same model, images and precision."""

    def compute() -> Arrays:
        found = predict_split(analysis, split, label)
        indices = np.arange(len(split))
        return {"logits": found.logits, "labels": found.labels, "indices": indices, "features": found.features}

    count, classes = len(split), len(analysis.model_config.class_names)
    forms = {
        "logits": Form("f", (count, classes)),
        "labels": Form("i", (count,), below=classes),
        "indices": Form("i", (count,), below=count),
        "features": Form("f", (count, _count_features(analysis))),
    }
    folders = (analysis.folder, *elsewhere)
    kept = find_or_compute(analysis.accelerator, folders, name, fingerprint(analysis, split), forms, compute)
    return Predictions(kept["logits"], kept["features"], split.labels)


@torch.no_grad()
def _count_features(analysis: Analysis) -> int:
    config = analysis.model_config
    image = torch.zeros(1, 3, config.input_size, config.input_size, device=analysis.accelerator.device)
    return LogitsAndFeatures(analysis.model)(image).shape[1] - len(config.class_names)


def fingerprint(analysis: Analysis, *splits: Split) -> dict[str, Any]:
    """What predictions of these splits are a function of."""
    return {
        "format": FORMAT,
        "model_sha256": digest([analysis.model_config.to_bytes(), tensors_to_bytes(analysis.model.state_dict())]),
        "images_sha256": [split.digest() for split in splits],
        "mixed_precision": analysis.accelerator.mixed_precision,
        "device": analysis.accelerator.device.type,
        "channels_last": analysis.run.config.channels_last,
    }
