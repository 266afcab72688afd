"""What a run says of itself: lines of metrics.jsonl, summary.json, the terminal and the trackers."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.evaluation.scores import Scores
from utils.training.run import Run


def log_training(run: Run, lr: float) -> str:
    """Writes the training line of the steps since the line before, and returns it as text; to be called on every rank.

    Args:
        lr: of the last step.
    """
    meters, state = run.meters, run.state
    speed = meters.clock.lap()
    loss, accuracy, count = meters.window.mean(run.accelerator)
    if count:  # else no loss was finite
        details = {"lr": lr, "images_per_second": round(speed, 1), "images": count}
        gradient_norm = float(meters.gradient_norm)
        if math.isfinite(gradient_norm):  # in fp16 some steps overflow, and are skipped
            details["gradient_norm"] = gradient_norm
        details |= meters.machine.read()
        run.directory.log("train", state.step, state.epoch + 1, loss, accuracy, **details, **_resolution(run))
    meters.end_window()
    return f"loss {loss:.3f}, accuracy {accuracy:.2%}, lr {lr:.3g}, {speed:.0f} images/s"


def log_scores(run: Run, split: str, scores: Scores, epoch: int) -> None:
    """Writes the line of an evaluation; `epoch`: from 1, or 0 before the first step."""
    run.directory.log(split, run.state.step, epoch, scores.loss, scores.accuracy, **_resolution(run))


def print_epoch(run: Run, validation: Scores | None, test: Scores, seconds: float) -> None:
    """Prints the line of an epoch; to be called on every rank."""
    train_loss, train_accuracy, _ = run.meters.epoch.mean(run.accelerator)
    run.accelerator.print(
        f"epoch {run.state.epoch + 1}/{run.config.epochs}  train loss {train_loss:.4f} accuracy {train_accuracy:.2%}"
        f"{describe_scores(validation, test)}  {seconds:.1f} s"
    )


def describe_scores(validation: Scores | None, test: Scores) -> str:
    """The scores of an evaluation, as a part of its line."""
    held_out = f"  validation loss {validation.loss:.4f} accuracy {validation.accuracy:.2%}" if validation else ""
    return f"{held_out}  test loss {test.loss:.4f} accuracy {test.correct}/{test.count} ({test.accuracy:.2%})"


def _resolution(run: Run) -> dict[str, int]:
    """The height of the images of a line, if it changes over the run."""
    return {"resolution": run.resolution[0]} if len(run.plan.phases) > 1 else {}


def summarise(run: Run, scores: Scores, plain: Scores) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        scores: of the exported model on the test split.
        plain: the same without test-time augmentation.
    """
    state, seconds, start = run.state, run.meters.clock.seconds, run.state.start
    images = run.plan.images_until(state.step, state.epoch)
    if not run.plan.total_steps:  # the features were computed once, the head fitted to them
        images = run.plan.images * (1 + run.config.probe_views)
    return {
        "test_accuracy": scores.accuracy,
        "test_loss": scores.loss,
        "test_count": scores.count,
        "test_accuracy_without_tta": plain.accuracy,
        "per_class_accuracy": dict(zip(run.data.class_names, scores.per_class_accuracy, strict=True)),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "steps": state.step,
        "epochs": state.epoch,
        "train_seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1) if seconds else None,
        "world_size": run.accelerator.num_processes,
        "mixed_precision": run.accelerator.mixed_precision,
        "seed": run.config.seed,
        "learning_rate": state.learning_rate,
        "best_validation_accuracy": run.best_accuracy,
        "probe_accuracy": start.get("accuracy"),
        "probe_loss": start.get("loss"),
        "probe_validation_accuracy": start.get("validation_accuracy"),
        "probe_seconds": start.get("seconds"),
        "start_knn_accuracy": start.get("knn_accuracy"),
        "skipped_steps": sum(after - before for before, after in state.skipped),
        "launches": state.launches,
    }


def print_finished(run: Run) -> None:
    """One line instead of epochs, for a run that has no step left to train."""
    if not run.accelerator.is_main_process:
        return
    folder, steps = shlex.quote(run.config.output_dir), f"{run.state.step} steps"
    if run.state.step < run.plan.total_steps:
        steps += f" of {run.plan.total_steps}: max_steps"
    accuracy = run.directory.finished_accuracy(run.state.step)
    if accuracy is None:
        print(f"{folder}: training is complete ({steps}); evaluating and exporting the model")
    else:
        print(f"{folder} is finished ({steps}, test accuracy {accuracy:.2%}); nothing to train")


def track_best(run: Run) -> None:
    """Reports a new best epoch to the trackers, which show it of an unfinished run too."""
    best = {"best_validation_accuracy": run.state.best_accuracy, "best_step": run.state.best_step}
    run.directory.track(lambda tracker: tracker.summarise(best, run.state.step))


def track_checkpoint(run: Run) -> None:
    """Uploads the checkpoint of this step to the trackers with `track_model: all`."""
    folder, state = run.directory.path / "checkpoints" / f"step-{run.state.step:06d}", run.state
    if run.config.track_model == "all" and folder.is_dir():
        _track_files(run, "checkpoint", folder, best=state.best_step == state.step)


def track_model(run: Run, summary: Mapping[str, Any]) -> None:
    """Uploads model/ to the trackers unless `track_model: none`."""
    if run.config.track_model != "none":
        _track_files(run, "model", run.directory.path / "model", best=True, **summary)


def _track_files(run: Run, name: str, folder: Path, best: bool, **metadata: Any) -> None:
    state = run.state
    aliases = ["latest", f"step-{state.step:06d}", *(["best"] if best else [])]
    details = {"step": state.step, "epoch": state.epoch, "best_validation_accuracy": state.best_accuracy}
    details |= {"git_commit": run.directory.environment.get("git_commit"), **metadata}
    run.directory.track(lambda tracker: tracker.keep_files(name, folder, aliases, details))
