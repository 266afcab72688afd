"""The start weights before the first step: they get the probe, which is the head that fits their features, or keep the
head that came with them, and are scored.

The features are computed once on all processes, in the precision of the launch, as evaluation and training compute
them; the main process fits the head. All of it is a function of weights, images, seed and options, the same to the bit
on any number of processes, and the features are cached.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from data.splits import Split
from models.head import Head
from models.saved import tensors_from_bytes, tensors_to_bytes
from utils.evaluation.features import neighbour_accuracy
from utils.evaluation.scores import Scores, score
from utils.system.errors import Interrupted, UserError, raise_on_all_ranks
from utils.system.exchange import broadcast_files
from utils.training import reporting
from utils.training.evaluation import evaluate
from utils.training.features import BATCH, RunFeatures
from utils.training.logistic import Fit, fit_head
from utils.training.preemption import StopRequest
from utils.training.run import Run

HEAD, REPORT = "head", "report"


def score_start(run: Run, stop: StopRequest) -> Scores | None:
    """Before the first step of a new run that starts from weights: gives it the probe as its head, unless it keeps that
    of the weights; scores the test split and the validation split, if there is one, and logs both as step 0.

    To be called on every rank. Returns the scores of the test split; None if there is nothing to do: in a resumed run,
    and with a random backbone or head.
    """
    if run.loaded is None or (run.loaded.new and run.head is None):
        return None
    started = time.perf_counter()

    def stop_if_asked() -> None:
        if signum := stop.agreed():
            resume = run.directory.how_to_resume()
            raise Interrupted(signum, f"stopped before training, in the first look at the weights; {resume}")

    with stop.answering("stopping; nothing has been trained yet"), run.meters.clock.running(not run.plan.total_steps):
        if run.head:
            scores, neighbours, note = _probe(run, run.head, stop_if_asked)
        else:
            splits = {"validation": run.data.validation, "test": run.data.test}
            scores = {name: evaluate(run, split, stop_if_asked) for name, split in splits.items() if split}
            neighbours, note = None, "the head of the weights, kept"
    seconds, test, validation = time.perf_counter() - started, scores["test"], scores.get("validation")
    for name, found in scores.items():
        reporting.log_scores(run, name, found, epoch=0)
    run.state.start = {
        "accuracy": test.accuracy,
        "loss": test.loss,
        "validation_accuracy": validation.accuracy if validation else None,
        "knn_accuracy": neighbours,
        "seconds": round(seconds, 3),
    }
    if validation:
        run.compete(validation.accuracy)
    name, shown = "probe" if run.head else "start", reporting.describe_scores(validation, test)
    run.accelerator.print(f"{name}    {shown}  {note}  {seconds:.1f} s")
    return test


def _probe(run: Run, head: Head, stop_if_asked: Callable[[], None]) -> tuple[dict[str, Scores], float, str]:
    """Gives all models of the run the head that fits the features of the training images.

    Returns the scores of each split that is held out, the accuracy of the nearest neighbours, and how the head was
    found.
    """
    accelerator, data = run.accelerator, run.data
    features = RunFeatures(run, head, stop_if_asked)
    train = features.of("train", data.train)[None]
    if run.config.probe_views:
        train = np.concatenate([train, features.of_views(run.config.probe_views)])
    splits = {name: split for name, split in (("validation", data.validation), ("test", data.test)) if split}
    held_out = {name: features.of(name, split) for name, split in splits.items()}
    files: dict[str, bytes] = {}
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            fit = _fit(run, head, train)
            neighbours = neighbour_accuracy(
                train[0], data.train.labels, held_out["test"], data.test.labels, accelerator.device
            )
            tensors = {"weight": torch.from_numpy(fit.weight), "bias": torch.from_numpy(fit.bias)}
            files[HEAD] = tensors_to_bytes(tensors)
            note = fit.describe(len(data.train)) + features.source
            _load(run, head, tensors)
            scores = {name: _score(run, head, held_out[name], split) for name, split in splits.items()}
            report = {
                "scores": {name: dataclasses.asdict(found) for name, found in scores.items()},
                "neighbours": neighbours,
                "note": note,
            }
            files[REPORT] = json.dumps(report).encode()
    files = broadcast_files(accelerator, files)
    if not accelerator.is_main_process:
        _load(run, head, tensors_from_bytes(files[HEAD], Path(HEAD)))
    report = json.loads(files[REPORT])
    return {name: Scores(**found) for name, found in report["scores"].items()}, report["neighbours"], report["note"]


def _fit(run: Run, head: Head, train: np.ndarray) -> Fit:
    """Raises UserError if the features are no numbers."""
    if not np.isfinite(train).all():
        raise UserError(
            f"init_from: {run.config.init_from}: the features of the training images are not finite in mixed precision "
            f"{run.accelerator.mixed_precision}; the weights are damaged, or need another precision"
        )
    # One thread however many processes there are: sums in another order are another head. Small products lose nothing.
    with threadpool_limits(1):
        return fit_head(train, run.data.train.labels, len(run.data.class_names), run.config.seed, head.has_bias)


def _load(run: Run, head: Head, tensors: dict[str, Tensor]) -> None:
    """Into the model and its averages."""
    for model in (run.model, *(average.model for average in (run.ema, run.lookahead) if average)):
        own, device = head.of(model), run.accelerator.device
        own.load(tensors["weight"].to(device), tensors["bias"].to(device))


@torch.no_grad()
def _score(run: Run, head: Head, features: np.ndarray, split: Split) -> Scores:
    """As evaluation scores the model, without its backbone."""
    with run.accelerator.autocast():
        parts = torch.from_numpy(features).split(BATCH)
        logits = torch.cat([head.logits(part.to(run.accelerator.device)).cpu() for part in parts])
    return score(logits, torch.from_numpy(split.labels))


def warn_if_below_start(run: Run, scores: Scores) -> None:
    """One line if training made the model worse: on the validation split if there is one, else on the test split, of
    which the scores of the last model are given."""
    start = run.state.start
    if not start or not run.state.step or not run.accelerator.is_main_process:
        return
    name = "probe" if run.config.head_init == "probe" else "start"
    remedy = "a smaller lr or fewer epochs change the weights less, and --freeze backbone not at all"
    if run.state.best_accuracy is not None and start["validation_accuracy"] is not None:
        if run.state.best_step == 0:
            print(
                f"warning: no epoch was better on the validation images than the {name} "
                f"({start['validation_accuracy']:.2%}), which is the reported model; {remedy}",
                file=sys.stderr,
            )
    elif scores.accuracy < (start["accuracy"] or 0.0):
        print(
            f"warning: training ended below its {name} (test accuracy {scores.accuracy:.2%} after "
            f"{start['accuracy']:.2%}); {remedy}",
            file=sys.stderr,
        )
