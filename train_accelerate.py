"""Trains an image classifier on whatever hardware is there, and gets the same training everywhere.

    accelerate launch train_accelerate.py                                      # ResNet-18 on CIFAR-10, 20 epochs
    accelerate launch train_accelerate.py --config recipes/digits.yaml         # minutes on a laptop, no download
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml train_accelerate.py --output_dir runs/gpus

The same command resumes after a stop. `python analyze.py RUN` looks at the result.
"""

from importlib import import_module

from utils.config import TrainConfig
from utils.config.parser import parse_config
from utils.system.home import provide_home
from utils.system.launch import stop_with_launcher
from utils.system.streams import keep_streams

if __name__ == "__main__":  # --help and mistaken options are answered before the libraries are loaded
    keep_streams()
    provide_home()
    stop_with_launcher()
    CONFIG = parse_config(
        TrainConfig,
        description=__doc__,
        completed=lambda config: import_module("utils.training.start").with_weights(config),
    )

import contextlib
import dataclasses
import math
import os
import shlex
import tempfile
import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from data.loaders import Batch
from data.preprocessing import to_input
from utils.evaluation.scores import Scores
from utils.release.finish import check_release, push, write_exports, write_model_folder
from utils.runs.directory import RunDirectory
from utils.system.compilation import compilation, use_compilation
from utils.system.duration import duration
from utils.system.errors import Interrupted, raise_on_all_ranks, run_script
from utils.system.runtime import create_accelerator
from utils.tracking.trackers import check_installed, check_trackers
from utils.training import reporting
from utils.training.build import build
from utils.training.evaluation import evaluate
from utils.training.loss import measure, training_loss
from utils.training.lr_finder import find_learning_rate
from utils.training.micro_batch import micro_batches
from utils.training.nonfinite import is_ruined, roll_back
from utils.training.norm_statistics import counted_once, fresh_statistics, reestimate_statistics
from utils.training.optimizers import set_learning_rate
from utils.training.preemption import StopRequest
from utils.training.preview import write_preview
from utils.training.print_groups import print_groups
from utils.training.probe import score_start, warn_if_below_start
from utils.training.run import Run
from utils.training.snapshot import save
from utils.training.start import choose_start


def main(config: TrainConfig) -> dict[str, Any]:
    """Trains from `config`, or resumes the run in its output_dir; returns the content of summary.json.

    With `preview_augment` or `print_groups`, only shows what the model would get, or its parts; returns nothing.
    """
    if config.preview_augment is not None:
        write_preview(config)
        return {}
    if config.print_groups:
        print_groups(config)
        return {}
    if not config.fast_dev_run:
        return train(config)
    with tempfile.TemporaryDirectory(prefix="fast_dev_run-") as folder:
        config = dataclasses.replace(config, max_steps=1, trackers=["none"], push_to_hub=None)
        return train(dataclasses.replace(config, output_dir=folder, resume="never"))


def train(config: TrainConfig) -> dict[str, Any]:
    """The training from its start, or from its newest checkpoint, to its end."""
    check_installed(config.trackers)
    plugin = compilation(config.compile, os.environ)
    accelerator = create_accelerator(peer_timeout=config.peer_timeout)
    use_compilation(plugin, accelerator)
    with StopRequest(accelerator, config.peer_timeout) as stop, RunDirectory(config, accelerator) as directory:
        check(config, accelerator, directory)
        start = choose_start(config, accelerator, directory)
        run = build(start, accelerator, directory)
        with contextlib.closing(run.profiler):
            stop.answer = "saving, then stopping"
            if run.is_finished:
                reporting.print_finished(run)
            scores = score_start(run, stop)
            if run.state.step == 0 and run.plan.total_steps and (config.find_lr or config.lr == "auto"):
                find_learning_rate(run, stop, train_step)
            if run.state.step == 0 and config.on_nan == "rollback":
                save(run)  # for a rollback before the first checkpoint
            while run.state.evaluated_step < run.plan.last_step:
                started = time.perf_counter()
                train_epoch(run, stop)
                reestimate_statistics(run)
                save(run)  # before the evaluation, which may be killed: a resume from here begins with it
                scores = evaluate_epoch(run, stop, started)
                reporting.track_checkpoint(run)
            if scores:
                save(run)  # with the last evaluation
        with stop.answering("stopping; training is finished"):
            summary = finish(run, stop, scores)
    accelerator.end_training()
    if accelerator.is_main_process:
        push(config)
    return summary


def check(config: TrainConfig, accelerator: Accelerator, directory: RunDirectory) -> None:
    """Answers mistakes before any download or work."""
    with raise_on_all_ranks(accelerator):
        check_release(config, accelerator.is_main_process)
        if accelerator.is_main_process:
            check_trackers(config, os.environ)
        directory.check()


def train_epoch(run: Run, stop: StopRequest) -> None:
    """Trains to the end of the epoch, or to max_steps."""
    config, plan, meters, state = run.config, run.plan, run.meters, run.state
    first_step, last_step = state.step - state.epoch * plan.steps_per_epoch, plan.pause(state.epoch)
    batches = run.loader.epoch(state.epoch, first_step, plan.augments(state.step + 1))
    bar = tqdm(
        desc=f"epoch {state.epoch + 1}/{config.epochs}",
        total=plan.steps_per_epoch,
        initial=first_step,
        unit="step",
        leave=False,
        disable=None if run.accelerator.is_main_process else True,  # None: no bar without a terminal
    )
    if run.freezing:
        run.freezing.set(not plan.trains_all(state.step + 1))
    with bar, meters.clock.running():
        while state.step < last_step:
            batch, step = next(batches), state.step + 1
            lr = state.learning_rate * plan.lr_factor(step)
            with fresh_statistics(run.model, plan.begins_phase(step, state.weights_step) and plan.trains_all(step)):
                meters.add(batch, *train_step(run, batch, lr))
            state.step = step
            if run.lookahead:
                run.lookahead.update(run.model, step, plan.total_steps)
            if run.ema:  # begins anew with every phase, which has other norm statistics
                run.ema.update(run.model, step - 1 - plan.phase(step).first_step)
            run.profiler.step()
            bar.update()
            signum = stop.agreed()
            if (signum or plan.is_checked(step) or plan.is_saved(step)) and is_ruined(run):
                if signum:
                    raise Interrupted(signum, f"stopped at step {step}, not saved: its numbers are not finite")
                with meters.clock.paused():
                    roll_back(run)
                state = run.state
                continue
            if plan.is_logged(step):
                bar.set_postfix_str(reporting.log_training(run, lr))
            if signum or plan.is_saved(step):
                with meters.clock.paused():
                    save(run)
            if signum:
                raise Interrupted(signum, f"stopped at step {step}; {run.directory.how_to_resume()}")


def train_step(run: Run, batch: Batch, lr: float, step: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """One optimizer step over the global batch.

    The gradient is the mean over the global batch however it is divided: each loss is a sum divided by the global
    count, and the factor world_size undoes DDP's mean over the ranks.

    Args:
        batch: this rank's part.
        step: that mixing and dropout are drawn for; default: the number of finished steps.

    Returns (loss_sum, correct, gradient_norm), each (), on the device: sums over this rank's part, and the norm over
    the global batch before clipping.
    """
    accelerator, config, world_size = run.accelerator, run.config, run.accelerator.num_processes
    step = run.state.step if step is None else step
    set_learning_rate(run.optimizer, lr)
    size = run.plan.phase(run.state.step + 1).size
    inputs = to_input(batch.images, run.mean, run.std, config.channels_last, size)
    targets = batch.labels.to(accelerator.device, non_blocking=True)
    if run.mixing and run.plan.augments(run.state.step + 1):
        inputs, targets = run.mixing(inputs, targets, _derived_seed(config.seed, step, 0, 1))
    elif run.mixing:
        inputs, targets = inputs[1:], targets[1:]
    torch.manual_seed(_derived_seed(config.seed, step, accelerator.process_index))
    pieces = micro_batches(inputs, targets, batch.count, batch.global_count, run.micro_batch_size, world_size)
    run.draws.begin_step(step, batch.first, len(inputs), accelerator.device)
    scale = world_size / batch.global_count
    sums = torch.zeros_like(run.meters.window.sums[:2])
    for position, piece in enumerate(pieces):
        synced = position == len(pieces) - 1 and not (run.freezing and run.freezing.is_on)
        run.draws.apply(piece.first, len(piece.inputs))
        with contextlib.nullcontext() if synced else accelerator.no_sync(run.ddp_model):
            logits = run.ddp_model(piece.inputs)
            loss = training_loss(run, logits, piece)
            with counted_once(run.model, recomputes=config.grad_checkpointing):
                accelerator.backward(loss * scale * piece.weight)
        sums += piece.weight * measure(logits, piece.targets)
    if run.freezing:
        run.freezing.average_gradients(accelerator)
    gradient_norm = accelerator.clip_grad_norm_(run.ddp_model.parameters(), config.grad_clip_norm or math.inf)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return sums[0], sums[1], gradient_norm


def _derived_seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def evaluate_epoch(run: Run, stop: StopRequest, started: float) -> Scores:
    """Scores the test split, and the validation split if there is one, and prints the epoch's line."""
    state, epoch = run.state, run.state.epoch + 1
    at_epoch_end = state.step == run.plan.epoch_end(state.epoch)

    def stop_if_asked() -> None:
        if signum := stop.agreed():
            save(run)
            resume = run.directory.how_to_resume()
            raise Interrupted(signum, f"stopped after step {state.step}, before its evaluation; {resume}")

    validation = evaluate(run, run.data.validation, stop_if_asked) if run.data.validation else None
    test = evaluate(run, run.data.test, stop_if_asked)
    if validation:
        reporting.log_scores(run, "validation", validation, epoch)
        # Only ends of epochs compete: a stop by max_steps must not change what the resumed run reports.
        if at_epoch_end and run.compete(validation.accuracy):
            reporting.track_best(run)
    reporting.log_scores(run, "test", test, epoch)
    reporting.print_epoch(run, validation, test, time.perf_counter() - started)
    state.evaluated_step = state.step
    if at_epoch_end:
        state.epoch = epoch
        run.meters.epoch.reset()
    return test


def finish(run: Run, stop: StopRequest, scores: Scores | None) -> dict[str, Any]:
    """Exports the model of the best epoch on the validation split, or the last one, and writes the summary.

    A signal is answered between batches and before the export: there is no training left to save.

    Args:
        scores: of the last model on the test split, if they are known.
    """
    config, state, accelerator = run.config, run.state, run.accelerator

    def stop_if_asked(where: str = "in the final evaluation") -> None:
        if signum := stop.agreed():
            raise Interrupted(signum, f"stopped {where}, after all training; {run.directory.how_to_resume()}")

    if run.best and run.best_accuracy is not None:
        run.eval_model.load_state_dict(run.best)
        scores = scores if state.best_step == state.step else None
    plain = scores or evaluate(run, run.data.test, stop_if_asked)
    scores = plain if config.tta == "none" else evaluate(run, run.data.test, stop_if_asked, config.tta)
    summary = reporting.summarise(run, scores, plain)
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            write_model_folder(run, summary)
        run.directory.finish(summary)
    if config.export:
        stop_if_asked("before the export")
    write_exports(run, summary)
    reporting.track_model(run, summary)
    warn_if_below_start(run, plain)
    folder = shlex.quote(config.output_dir)
    accelerator.print(
        f"test accuracy {scores.correct}/{scores.count} ({scores.accuracy:.2%}) after {state.step} steps in "
        f"{duration(run.meters.clock.seconds)} of training\n"
        + ("everything runs" if config.fast_dev_run else f"run: {folder}  next: python analyze.py {folder}")
    )
    return summary


def command_line() -> None:
    """The whole script for Accelerate's TPU launcher, which imports it and calls this in each of its processes."""
    run_script(main, parse_config(TrainConfig, description=__doc__))


if __name__ == "__main__":
    run_script(main, CONFIG)
