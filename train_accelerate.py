"""Trains an image classifier on whatever hardware is there, and gets the same training everywhere.

    accelerate launch train_accelerate.py                                      # ResNet-18 on CIFAR-10, 20 epochs
    accelerate launch train_accelerate.py --config recipes/digits.yaml         # minutes on a laptop, no download
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml train_accelerate.py --output_dir runs/gpus

The same command goes on after a stop. `python analyze.py RUN` looks at the result.
"""

from utils.config import TrainConfig
from utils.config.parser import parse_config
from utils.system.home import provide_home
from utils.system.launcher import stop_with_launcher
from utils.system.streams import keep_streams

if __name__ == "__main__":  # --help and mistaken options are answered before the libraries are loaded
    keep_streams()
    provide_home()
    stop_with_launcher()
    CONFIG = parse_config(TrainConfig, description=__doc__)

import contextlib
import dataclasses
import math
import os
import shlex
import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data.loaders import Batch
from data.preprocessing import to_input
from data.sources import download
from models import create_model, model_arguments
from models.norm import with_synchronised_batch_norm
from utils.evaluation.scores import Scores
from utils.release.finish import check_release, push, write_exports, write_model_folder
from utils.runs.directory import RunDirectory
from utils.system.bf16 import check_bf16
from utils.system.compilation import compilation, use_compilation
from utils.system.duration import duration
from utils.system.errors import Interrupted, raise_on_all_ranks, run_script
from utils.system.launch import accumulation_steps
from utils.system.runtime import create_accelerator
from utils.tracking.trackers import check_installed, check_trackers
from utils.training.debugging import dev_run, shortened
from utils.training.loading import choose_backend, create_train_loader, load_once_per_machine, sample_images
from utils.training.lr_finder import find_learning_rate
from utils.training.micro_batch import accumulated, check_single_images, fit_micro_batch_size, micro_batches
from utils.training.nonfinite import is_ruined, recover
from utils.training.norm_statistics import fresh_statistics, settle_statistics
from utils.training.optimizers import create_optimizer, optimizer_arithmetic, set_learning_rate
from utils.training.preemption import StopRequest
from utils.training.run import Run
from utils.training.snapshot import FILES, check_options, saved_option


def main(config: TrainConfig) -> dict[str, Any]:
    """Trains from `config`, or goes on with what its output_dir holds; returns the content of summary.json."""
    with dev_run(config) as config:
        return train(config)


def train(config: TrainConfig) -> dict[str, Any]:
    """The training from its start, or from where it was stopped, to its end."""
    check_installed(config.trackers)
    plugin = compilation(config.compile, os.environ)
    accelerator = create_accelerator(peer_timeout=config.peer_timeout)
    use_compilation(plugin, accelerator)
    with (
        StopRequest(accelerator, config.peer_timeout) as stop,
        RunDirectory(config, accelerator) as directory,
        contextlib.closing(set_up(config, accelerator, directory)) as run,
    ):
        stop.answer = "saving, then stopping"
        if run.state.step == 0 and (config.find_lr or config.lr == "auto"):
            find_learning_rate(run, stop, train_step)
        if config.on_nan == "rollback" and run.state.step == 0:
            run.save()  # something to go back to
        if run.state.evaluated_step >= run.last_step:
            run.say_finished()
        scores = None
        while run.state.evaluated_step < run.last_step:
            started = time.perf_counter()
            train_epoch(run, stop)
            settle_statistics(run)
            run.save()  # before the evaluation, which may be killed: a resume from here begins with it
            scores = evaluate_epoch(run, stop, started)
            run.track_checkpoint()
        if scores:
            run.save()  # with the last evaluation
        with stop.answering("stopping; training is finished"):
            summary = finish(run, stop, scores)
    accelerator.end_training()
    if accelerator.is_main_process:
        push(config)
    return summary


def set_up(config: TrainConfig, accelerator: Accelerator, directory: RunDirectory) -> Run:
    """Data, model and optimizer, fresh or as in the checkpoint to go on from."""
    device = accelerator.device
    with raise_on_all_ranks(accelerator):
        check_release(config, accelerator.is_main_process)
        if accelerator.is_main_process:
            check_trackers(config, os.environ)
        directory.check()
        with torch.device("meta"):  # a mistaken model is not worth a download
            create_model(config.model, 1, **model_arguments(config, config.image_size))
    source, files = directory.find_resume(FILES) or (None, None)
    with raise_on_all_ranks(accelerator):
        if source and files:
            check_options(files, source, config)
        if accelerator.is_local_main_process:
            download(config.dataset, config.data_dir)
    data = shortened(load_once_per_machine(config, accelerator), config)
    with raise_on_all_ranks(accelerator):
        config = accumulated(config, accumulation_steps(os.environ), len(data.train), accelerator)
        check_single_images(config, data, accelerator.num_processes)
        saved = saved_option(files, "augment_backend", "albumentations") if files else None
        backend = choose_backend(config, saved, data.train, accelerator)
        directory.config = config = dataclasses.replace(config, augment_backend=backend)
        loader = create_train_loader(config, backend, data, accelerator)

        torch.manual_seed(config.seed)
        model = create_model(config.model, len(data.class_names), **model_arguments(config, data.image_size))
        initialise_from = getattr(model, "initialise_from", None)
        if initialise_from and not files:
            mean, std = torch.tensor(data.mean), torch.tensor(data.std)
            initialise_from(to_input(sample_images(data.train, 5000), mean, std))
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
        optimizer = create_optimizer(
            config.optimizer,
            model,
            config.momentum,
            config.nesterov,
            config.weight_decay,
            config.decay_norm_and_bias,
            config.norm_bias_lr_factor,
        )
        run = Run(config, accelerator, directory, data, loader, model, optimizer, config.micro_batch_size)
        if source and files:
            run.restore(files, source)
            accelerator.print(f"resumed from {source} (step {run.state.step})")
    if config.micro_batch_size is None and device.type != "cpu":  # a CPU's memory runs out without an error to act on
        part = -(-min(config.batch_size, len(data.train)) // accelerator.num_processes)
        run.micro_batch_size = fit_micro_batch_size(accelerator, model, part, data.image_size)
    if device.type == "cuda" and accelerator.num_processes > 1:
        run.model = with_synchronised_batch_norm(model)  # with the same parameters
    arithmetic = {"bf16_slowdown": check_bf16(accelerator), **optimizer_arithmetic(config.optimizer, device)}
    directory.start(run.state.metrics_size, source, data, arithmetic)
    run.note_launch()
    run.prepare()
    return run


def train_epoch(run: Run, stop: StopRequest) -> None:
    """Trains from where the run is to the end of the epoch, or to max_steps."""
    config, state = run.config, run.state
    final = run.pause
    first_step = state.step - state.epoch * run.steps_per_epoch
    bar = tqdm(
        desc=f"epoch {state.epoch + 1}/{config.epochs}",
        total=run.steps_per_epoch,
        initial=first_step,
        unit="step",
        leave=False,
        disable=None if run.accelerator.is_main_process else True,  # None: quiet where there is no terminal
    )
    batches = run.loader.epoch(state.epoch, first_step)
    started = window_started = time.perf_counter()
    images = 0
    while state.step < final:
        batch, rate = next(batches), run.learning_rate(state.step + 1)
        with fresh_statistics(run.model, begin=run.begins_phase):
            run.note_step(*train_step(run, batch, rate), batch.count)
        state.step += 1
        run.update_averages()
        if run.profiler:
            run.profiler.step()
        images += batch.global_count
        bar.update()
        signum = stop.agreed()
        due = config.checkpoint_every_steps and state.step % config.checkpoint_every_steps == 0 and state.step < final
        if (signum or due or run.is_checked(state.step)) and is_ruined(run):
            if signum:
                bar.close()
                raise Interrupted(signum, f"stopped at step {state.step}, not saved: its numbers are not finite")
            paused = time.perf_counter()
            state = recover(run)
            window_started, images = time.perf_counter(), 0
            started += window_started - paused
            continue
        if run.is_logged(state.step):
            now = time.perf_counter()  # the device is not behind: is_ruined has waited for it
            bar.set_postfix_str(run.log_window(rate, images / (now - window_started)))
            window_started, images = now, 0
        if signum or due:
            paused = time.perf_counter()
            state.train_seconds += paused - started
            run.save()
            if signum:
                bar.close()
                raise Interrupted(signum, f"stopped at step {state.step}; {run.directory.how_to_resume()}")
            started = time.perf_counter()
            window_started += started - paused
    state.train_seconds += time.perf_counter() - started
    bar.close()


def train_step(run: Run, batch: Batch, rate: float, step: int | None = None) -> tuple[Tensor, Tensor]:
    """One optimizer step over the global batch; returns this rank's sum of losses and number of hits.

    Mixing and dropout are drawn for `step`; unset: the run's.

    The gradient is the mean over the global batch however it is divided: each loss is a sum divided by the global
    count, and the factor world_size undoes DDP's mean over the ranks.
    """
    accelerator, config = run.accelerator, run.config
    step = run.state.step if step is None else step
    set_learning_rate(run.optimizer, rate)
    inputs = to_input(batch.images, run.mean, run.std, config.channels_last, run.next_phase.size)
    targets = batch.labels.to(accelerator.device, non_blocking=True)
    if run.mixing:
        inputs, targets = run.mixing(inputs, targets, _derived_seed(config.seed, step, 0, 1))
    torch.manual_seed(_derived_seed(config.seed, step, accelerator.process_index))
    world_size = accelerator.num_processes
    pieces = micro_batches(inputs, targets, batch.count, batch.global_count, run.micro_batch_size, world_size)
    scale = world_size / batch.global_count
    loss_sum, hits = torch.zeros_like(run.window.sums[:2])
    for position, piece in enumerate(pieces):
        last = position == len(pieces) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.ddp_model):
            logits = run.ddp_model(piece.inputs)
            loss = F.cross_entropy(logits, piece.targets, reduction="sum", label_smoothing=config.label_smoothing)
            accelerator.backward(loss * scale * piece.weight)
        with torch.no_grad():  # reported without label smoothing, so that train and test can be compared
            loss_sum += piece.weight * F.cross_entropy(logits, piece.targets, reduction="sum")
            labels = piece.targets if piece.targets.ndim == 1 else piece.targets.argmax(1)
            hits += piece.weight * (logits.argmax(1) == labels).sum()
    run.gradient_norm = accelerator.clip_grad_norm_(run.ddp_model.parameters(), config.grad_clip_norm or math.inf)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss_sum, hits


def _derived_seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def evaluate_epoch(run: Run, stop: StopRequest, started: float) -> Scores:
    """Scores the test split, and the validation split where there is one, and prints the epoch's line."""
    state, epoch = run.state, run.state.epoch + 1

    def stop_if_asked() -> None:
        if signum := stop.agreed():
            run.save()
            going_on = run.directory.how_to_resume()
            raise Interrupted(signum, f"stopped after step {state.step}, before its evaluation; {going_on}")

    validation = run.evaluate(run.data.validation, stop_if_asked) if run.data.validation else None
    test = run.evaluate(run.data.test, stop_if_asked)
    held_out = ""
    if validation:
        held_out = f"  validation loss {validation.loss:.4f} accuracy {validation.accuracy:.2%}"
        run.directory.log(
            "validation", state.step, epoch, validation.loss, validation.accuracy, **run.logged_resolution()
        )
        best = run.accuracy_to_beat
        # Ends of epochs alone compete: a stop by max_steps must not change what the resumed run reports.
        if state.step == run.epoch_end and (best is None or validation.accuracy > best):
            state.best_accuracy, state.best_step = validation.accuracy, state.step
            run.best = {name: tensor.detach().cpu().clone() for name, tensor in run.eval_model.state_dict().items()}
            run.track_best()
    run.directory.log("test", state.step, epoch, test.loss, test.accuracy, **run.logged_resolution())
    train_loss, train_accuracy, _ = run.epoch_sums.mean(run.accelerator)
    run.accelerator.print(
        f"epoch {epoch}/{run.config.epochs}  train loss {train_loss:.4f} accuracy {train_accuracy:.2%}{held_out}"
        f"  test loss {test.loss:.4f} accuracy {test.correct}/{test.count} ({test.accuracy:.2%})"
        f"  {time.perf_counter() - started:.1f} s"
    )
    state.evaluated_step = state.step
    if state.step == run.epoch_end:
        state.epoch = epoch
        run.epoch_sums.reset()
    return test


def finish(run: Run, stop: StopRequest, scores: Scores | None) -> dict[str, Any]:
    """Exports the reported model, of the best epoch on the validation split or the last, and writes the summary.

    A signal is answered between batches and before the export: there is no training left to save.
    """
    config, state, accelerator = run.config, run.state, run.accelerator

    def stop_if_asked(where: str = "in the final evaluation") -> None:
        if signum := stop.agreed():
            raise Interrupted(signum, f"stopped {where}, after all training; {run.directory.how_to_resume()}")

    best = run.best if run.accuracy_to_beat is not None else None
    if best is not None:
        run.eval_model.load_state_dict(best)
    if best is not None or scores is None:
        scores = run.evaluate(run.data.test, stop_if_asked)
    plain = scores
    if config.tta != "none":
        scores = run.evaluate(run.data.test, stop_if_asked, config.tta)
    summary = run.summary(scores, plain)
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            write_model_folder(run, summary)
        run.directory.finish(summary)
    if config.export:
        stop_if_asked("before the export")
    write_exports(run, summary)
    run.track_model(summary)
    folder = shlex.quote(config.output_dir)
    accelerator.print(
        f"test accuracy {scores.correct}/{scores.count} ({scores.accuracy:.2%}) after {state.step} steps in "
        f"{duration(state.train_seconds)} of training\n"
        + ("everything runs" if config.fast_dev_run else f"run: {folder}  next: python analyze.py {folder}")
    )
    return summary


def command_line() -> None:
    """The whole script for Accelerate's TPU launcher, which imports it and calls this in each of its processes."""
    run_script(main, parse_config(TrainConfig, description=__doc__))


if __name__ == "__main__":
    run_script(main, CONFIG)
