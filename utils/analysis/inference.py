"""Predictions of a split, on all processes; those of the test set are kept in predictions.npz for the next call."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.datasets import ImageFiles, Split
from data.loaders import EvaluationLoader
from utils.analysis.predictions import Predictions
from utils.analysis.setup import Analysis
from utils.evaluation import predict
from utils.files import replace_file, to_json

FORMAT = 1  # of predictions.npz; another one is predicted anew


class LogitsAndFeatures(nn.Module):
    """A classifier that gives (N, classes + F): its logits, and beside them what its last linear layer was given."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handles = [
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
            for module in self.model.modules()
            if isinstance(module, nn.Linear)
        ]
        try:
            logits = self.model(inputs)
        finally:
            for handle in handles:
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
        *analysis.statistics,
        channels_last,
        config.resolution,
        config.tta,
        label,
    ).numpy()
    classes = len(config.class_names)
    return Predictions(outputs[:, :classes], outputs[:, classes:].astype(np.float16), split.labels)


def predict_test(analysis: Analysis) -> Predictions:
    """The test split's predictions; those of the last call where model, images and precision are the same."""
    fingerprint = _fingerprint(analysis)
    if (kept := _read(analysis.folder, fingerprint)) is not None:
        return kept
    predictions = predict_split(analysis, analysis.test, "predicting")
    if analysis.accelerator.is_main_process:
        analysis.folder.mkdir(parents=True, exist_ok=True)
        (analysis.folder / "predictions.json").unlink(missing_ok=True)
        np.savez_compressed(
            analysis.folder / "predictions.npz",
            logits=predictions.logits,
            labels=predictions.labels,
            indices=np.arange(len(predictions.labels)),
            features=predictions.features,
        )
        replace_file(analysis.folder / "predictions.json", to_json(fingerprint))
    return predictions


def _read(folder: Path, fingerprint: dict[str, Any]) -> Predictions | None:
    """The predictions of predictions.npz if predictions.json has the same fingerprint."""
    try:
        if json.loads((folder / "predictions.json").read_bytes()) != fingerprint:
            return None
        with np.load(folder / "predictions.npz", allow_pickle=False) as kept:
            return Predictions(kept["logits"], kept["features"], kept["labels"])
    except (OSError, ValueError, KeyError):
        return None


def _fingerprint(analysis: Analysis) -> dict[str, Any]:
    """What predictions are a function of."""
    folder = analysis.run.model_folder
    return {
        "format": FORMAT,
        "model_sha256": _digest((folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()),
        "images_sha256": images_digest(analysis.test),
        "mixed_precision": analysis.accelerator.mixed_precision,
        "device": analysis.accelerator.device.type,
        "channels_last": analysis.run.config.channels_last,
    }


def images_digest(split: Split) -> str:
    """SHA-256 over images and labels; of images that stay on disk, over paths, sizes and times of change."""
    if isinstance(split.images, ImageFiles):
        files = [(str(path), Path(path).stat()) for path in split.images.paths]
        described = [(path, status.st_size, status.st_mtime_ns) for path, status in files]
        return _digest(json.dumps(described).encode(), split.labels.tobytes())
    return _digest(np.ascontiguousarray(split.images[:]), split.labels.tobytes())


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
