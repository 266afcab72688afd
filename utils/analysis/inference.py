"""Predictions of a split on all processes, cached for the next call; those of the test set go into predictions.npz."""

import contextlib
import copy
import io
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
from utils.analysis.cache import Arrays, Form, cache_file, cached
from utils.analysis.predictions import Predictions
from utils.analysis.section import Analysis
from utils.evaluation.predict import predict
from utils.system.errors import UserError, raise_on_all_ranks
from utils.system.files import digest, replace_file
from utils.system.reading import read_file

FORMAT = 3  # of what is cached; another one is computed again


class LogitsAndFeatures(nn.Module):
    """A model whose output, (N, classes + F), is its logits and the input of its classifier, the features."""

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
    """Predicts on all processes, as evaluation does in training; every rank gets all predictions.

    Raises UserError if they are not finite.
    """
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
    model = accelerator.prepare_model(model, evaluation_mode=True)

    def preprocess(images: Tensor) -> Tensor:
        return to_input(images, *analysis.statistics, channels_last, config.input_size)

    outputs = predict(accelerator, model, loader, preprocess, config.tta, label).numpy()
    if not np.isfinite(outputs).all():
        raise UserError(f"{analysis.run.model_folder}: the model's predictions are not finite")
    classes, largest = len(config.class_names), np.finfo(np.float16).max
    return Predictions(
        outputs[:, :classes], outputs[:, classes:].clip(-largest, largest).astype(np.float16), split.labels
    )


def predict_test(analysis: Analysis, *elsewhere: Path) -> Predictions:
    """The cached predictions of the test split, written as predictions.npz too unless they are from `elsewhere`."""
    predictions = predict_cached(analysis, analysis.test, "predictions", "predicting", *elsewhere)
    with raise_on_all_ranks(analysis.accelerator):
        if analysis.accelerator.is_main_process and cache_file(analysis.folder, "predictions").exists():
            write_predictions(analysis.folder / "predictions.npz", predictions)
    return predictions


def predict_cached(analysis: Analysis, split: Split, name: str, label: str, *elsewhere: Path) -> Predictions:
    """As predict_split, or what an earlier call cached as `name` with the same model, images and precision.

    Args:
        elsewhere: folders of results whose caches are searched too.
    """

    def compute() -> Arrays:
        found = predict_split(analysis, split, label)
        return {"logits": found.logits, "features": found.features}

    forms = {
        "logits": Form("f", (len(split), len(analysis.model_config.class_names))),
        "features": Form("f", (len(split), _count_features(analysis))),
    }
    folders = (analysis.folder, *elsewhere)
    found = cached(analysis.accelerator, folders, name, fingerprint(analysis, split), forms, compute)
    return Predictions(found["logits"], found["features"], split.labels)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes predictions.npz, for other programs: nothing here reads it back. A file with this content stays."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        logits=predictions.logits,
        labels=predictions.labels,
        indices=np.arange(len(predictions.labels)),
        features=predictions.features,
    )
    content = buffer.getvalue()
    with contextlib.suppress(UserError):
        if read_file(path, len(content)) == content:
            return
    replace_file(path, content)


@torch.no_grad()
def _count_features(analysis: Analysis) -> int:
    config = analysis.model_config
    image = torch.zeros(1, 3, *config.input_size, device=analysis.accelerator.device)
    return LogitsAndFeatures(analysis.model)(image).shape[1] - len(config.class_names)


def fingerprint(analysis: Analysis, *splits: Split) -> dict[str, Any]:
    """What the predictions for these splits are a function of."""
    return {
        "format": FORMAT,
        "model_sha256": digest([analysis.model_config.to_bytes(), tensors_to_bytes(analysis.model.state_dict())]),
        "images_sha256": [split.digest() for split in splits],
        "mixed_precision": analysis.accelerator.mixed_precision,
        "device": analysis.accelerator.device.type,
        "channels_last": analysis.run.config.channels_last,
    }
