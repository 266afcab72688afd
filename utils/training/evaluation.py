"""Scores of a split during and after training."""

from collections.abc import Callable

import torch
from torch import Tensor

from data.loaders import EVALUATION_BATCH, EvaluationLoader
from data.preprocessing import to_input
from data.splits import Split
from utils.evaluation.predict import predict
from utils.evaluation.scores import Scores, score
from utils.training.loading import worker_count
from utils.training.run import Run


def evaluate(run: Run, split: Split, between_batches: Callable[[], None], tta: str = "none") -> Scores:
    """Scores of the eval_model over exactly the images of a split, at the resolution it was last trained on.

    Args:
        between_batches: called on every rank before every round of batches; may raise to stop.
        tta: test-time augmentation (utils.evaluation.tta).
    """
    accelerator, resolution = run.accelerator, run.resolution
    loader = evaluation_loader(run, split)

    def prepare(images: Tensor) -> Tensor:
        return to_input(images, run.mean, run.std, run.config.channels_last, resolution)

    logits = predict(accelerator, run.eval_model, loader, prepare, tta, "evaluating", between_batches)
    return score(logits, torch.from_numpy(split.labels))


def evaluation_loader(run: Run, split: Split, batch_size: int = EVALUATION_BATCH) -> EvaluationLoader:
    """This rank's batches of a split."""
    accelerator, decodes = run.accelerator, split.images.in_memory is None
    return EvaluationLoader(
        split,
        accelerator.process_index,
        accelerator.num_processes,
        batch_size,
        num_workers=worker_count(run.config, accelerator) if decodes else 0,
        pin_memory=decodes and accelerator.device.type == "cuda",
    )
