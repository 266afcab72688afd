"""Predictions of a split, on all processes; those of the test set are kept in predictions.npz for the next call."""

import copy
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from data.datasets import Split
from data.loaders import EvaluationLoader
from utils.analysis.fingerprint import images_digest, model_digest
from utils.analysis.predictions import Predictions
from utils.analysis.setup import Analysis
from utils.errors import together
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


def predict_test(analysis: Analysis, *elsewhere: Path) -> Predictions:
    """The test split's predictions; those of an earlier call where model, images and precision are the same.

    They are looked for in the folder of the results and `elsewhere`, and kept in the former.
    """
    fingerprint = _fingerprint(analysis)
    found = (_read(folder, fingerprint) for folder in (analysis.folder, *elsewhere))
    kept = next((predictions for predictions in found if predictions is not None), None)
    if all(gather_object([kept is not None])):  # or the ranks without them would predict alone
        return kept
    predictions = predict_split(analysis, analysis.test, "predicting")
    with together(analysis.accelerator):
        if analysis.accelerator.is_main_process:
            _keep(predictions, analysis.folder, fingerprint)
    return predictions


def _keep(predictions: Predictions, folder: Path, fingerprint: dict[str, Any]) -> None:
    """Writes predictions.npz, and last the fingerprint by which it is known to be whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.json").unlink(missing_ok=True)
    np.savez(
        folder / "predictions.npz",
        logits=predictions.logits,
        labels=predictions.labels,
        indices=np.arange(len(predictions.labels)),
        features=predictions.features,
    )
    replace_file(folder / "predictions.json", to_json(fingerprint))


def _read(folder: Path, fingerprint: dict[str, Any]) -> Predictions | None:
    """The predictions of predictions.npz if predictions.json has the same fingerprint."""
    try:
        if json.loads((folder / "predictions.json").read_bytes()) != fingerprint:
            return None
        with np.load(folder / "predictions.npz", allow_pickle=False) as kept:
            return Predictions(kept["logits"], kept["features"], kept["labels"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _fingerprint(analysis: Analysis) -> dict[str, Any]:
    """What predictions are a function of."""
    return {
        "format": FORMAT,
        "model_sha256": model_digest(analysis.run.model_folder),
        "images_sha256": images_digest(analysis.test),
        "mixed_precision": analysis.accelerator.mixed_precision,
        "device": analysis.accelerator.device.type,
        "channels_last": analysis.run.config.channels_last,
    }
