"""Trains an image classifier on whatever hardware is there, and gets the same training everywhere.

    accelerate launch train_accelerate.py                                      # ResNet-18 on CIFAR-10, 20 epochs
    accelerate launch train_accelerate.py --config recipes/digits.yaml         # minutes on a laptop, no download
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml train_accelerate.py --output_dir runs/gpus

The same command goes on after a stop. `python analyze.py RUN` looks at the result.
"""

from utils.config import TrainConfig, parse_config
from utils.launcher import stop_with_launcher

if __name__ == "__main__":  # --help and mistaken options are answered before the libraries are loaded
    stop_with_launcher()
    parse_config(TrainConfig, description=__doc__)

import contextlib
import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data.augmentation import Augmentation
from data.datasets import download, load_dataset
from data.loaders import Batch, TrainLoader, to_input
from models import create_model
from utils.checkpoint import export_model
from utils.errors import Interrupted, run_script, together
from utils.metrics import RunningMean, Scores
from utils.rundir import RunDirectory
from utils.runtime import create_accelerator, default_workers
from utils.tracking import configured_trackers
from utils.training.lr_finder import range_test, write_range_test
from utils.training.micro_batch import fit_micro_batch_size, micro_batches
from utils.training.optimizers import create_optimizer, set_learning_rate
from utils.training.preemption import StopRequest
from utils.training.run import Run, describe_model
from utils.training.state import FILES, TrainState, unpack


def main(config: TrainConfig) -> dict[str, Any]:
    """Trains from `config`, or goes on with what its output_dir holds; returns the content of summary.json."""
    trackers = configured_trackers(config.trackers)
    accelerator = create_accelerator(trackers, config.output_dir, peer_timeout=config.peer_timeout)
    with StopRequest(accelerator, config.peer_timeout) as stop:
        run = set_up(config, accelerator)
        try:
            if run.state.step == 0 and (config.find_lr or config.lr == "auto"):
                find_learning_rate(run, stop)
            scores = None
            while run.state.evaluated_step < run.last_step:
                started = time.perf_counter()
                train_epoch(run, stop)
                scores = evaluate_epoch(run, stop, started)
                run.save()
            summary = finish(run, scores)
        finally:
            run.directory.close()
    accelerator.end_training()
    return summary


def set_up(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Data, model and optimizer, fresh or as in the checkpoint to go on from."""
    device, rank, world_size = accelerator.device, accelerator.process_index, accelerator.num_processes
    with together(accelerator):
        with torch.device("meta"):  # a mistaken model is not worth a download
            create_model(config.model, 1, norm=config.norm, width=config.width)
        if accelerator.is_local_main_process:
            download(config.dataset, config.data_dir)
    with together(accelerator):
        data = load_dataset(
            config.dataset,
            config.data_dir,
            config.image_size,
            config.validation_fraction,
            config.seed,
            config.memory_fraction,
        )
        torch.manual_seed(config.seed)
        model = create_model(config.model, len(data.class_names), norm=config.norm, width=config.width)
    augmentation = Augmentation(
        data.image_size, config.crop_padding, config.horizontal_flip, config.cutout, data.mean, config.seed
    )
    workers = default_workers(accelerator) if config.num_workers is None else config.num_workers
    pinned = device.type == "cuda"
    loader = TrainLoader(data.train, augmentation, config.batch_size, config.seed, rank, world_size, workers, pinned)

    model = model.to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    if device.type == "cuda" and world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = create_optimizer(
        config.optimizer, model, config.momentum, config.nesterov, config.weight_decay, config.decay_norm_and_bias
    )

    directory = RunDirectory(config, accelerator)
    state, best, source = TrainState(learning_rate=0.0 if config.lr == "auto" else config.lr), None, None
    if found := directory.find_resume(FILES):
        source, files = found
        with together(accelerator):
            description = describe_model(config, data)
            state, scaler, best = unpack(files, source, config, description, model, optimizer, len(data.train))
        if accelerator.scaler is not None and scaler:
            accelerator.scaler.load_state_dict(scaler)
        accelerator.print(f"resumed from {source} (step {state.step})")

    micro_batch_size = config.micro_batch_size
    if micro_batch_size is None and device.type != "cpu":  # on a CPU, memory that runs out raises nothing to act on
        part = -(-min(config.batch_size, loader.count) // world_size)
        micro_batch_size = fit_micro_batch_size(accelerator, model, part, data.image_size)
    directory.start(state.metrics_size, source)
    trained, optimizer = accelerator.prepare(model, optimizer)
    if config.compile:
        trained = torch.compile(trained)
    window, epoch_sums = RunningMean(device), RunningMean(device)
    window.restore(state.window, rank, world_size)
    epoch_sums.restore(state.epoch_sums, rank, world_size)
    mean, std = torch.tensor(data.mean, device=device), torch.tensor(data.std, device=device)
    return Run(
        config, accelerator, directory, data, loader, model, trained, optimizer,
        micro_batch_size, mean, std, window, epoch_sums, state, best,
    )  # fmt: skip


def train_epoch(run: Run, stop: StopRequest) -> None:
    """Trains from where the run is to the end of the epoch, or to max_steps."""
    config, state = run.config, run.state
    final = min(run.epoch_end, run.last_step)
    first_step = state.step - state.epoch * run.loader.steps_per_epoch
    bar = tqdm(
        desc=f"epoch {state.epoch + 1}/{config.epochs}",
        total=run.loader.steps_per_epoch,
        initial=first_step,
        unit="step",
        leave=False,
        disable=None if run.accelerator.is_main_process else True,  # None: quiet where there is no terminal
    )
    batches = run.loader.epoch(state.epoch, first_step)
    started = window_started = time.perf_counter()
    images = 0
    while state.step < final:
        batch, rate = next(batches), run.learning_rate()
        run.window.add(*train_step(run, batch, rate), batch.count)
        state.step += 1
        images += batch.global_count
        bar.update()
        if state.step % config.log_every_steps == 0 or state.step == final:
            loss, accuracy, count = run.window.mean(run.accelerator)
            run.check_finite(loss)
            now = time.perf_counter()
            speed = round(images / (now - window_started), 1)
            window_started, images = now, 0
            values = {"lr": rate, "images_per_second": speed, "images": count}
            run.directory.log("train", state.step, state.epoch + 1, loss, accuracy, **values)
            bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.2%}, lr {rate:.3g}, {speed:.0f} images/s")
            run.epoch_sums.merge(run.window)
            run.window.reset()
        signum = stop.agreed()
        due = config.checkpoint_every_steps and state.step % config.checkpoint_every_steps == 0 and state.step < final
        if signum or due:
            paused = time.perf_counter()
            state.train_seconds += paused - started
            run.save()
            if signum:
                bar.close()
                raise Interrupted(signum, f"stopped at step {state.step}; the same command goes on")
            started = time.perf_counter()
            window_started += started - paused
    state.train_seconds += time.perf_counter() - started
    bar.close()


def train_step(run: Run, batch: Batch, rate: float) -> tuple[Tensor, Tensor]:
    """One optimizer step over the global batch; returns this rank's sum of losses and number of hits.

    The gradient is the mean over the global batch however it is divided: each loss is a sum divided by the global
    count, and the factor world_size undoes DDP's mean over the ranks.
    """
    accelerator, config = run.accelerator, run.config
    torch.manual_seed(_derived_seed(config.seed, run.state.step, accelerator.process_index))
    set_learning_rate(run.optimizer, rate)
    inputs = to_input(batch.images, run.mean, run.std, config.channels_last)
    labels = batch.labels.to(accelerator.device, non_blocking=True)
    pieces = micro_batches(inputs, labels, batch.global_count, run.micro_batch_size, accelerator.num_processes)
    scale = accelerator.num_processes / batch.global_count
    loss_sum, hits = torch.zeros(2, device=accelerator.device)
    for position, (images, targets) in enumerate(pieces):
        last = position == len(pieces) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.trained):
            logits = run.trained(images)
            loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=config.label_smoothing)
            accelerator.backward(loss * scale)
        with torch.no_grad():  # reported without label smoothing, so that train and test can be compared
            loss_sum += F.cross_entropy(logits, targets, reduction="sum")
            hits += (logits.argmax(1) == targets).sum()
    if config.grad_clip_norm is not None:
        accelerator.clip_grad_norm_(run.trained.parameters(), config.grad_clip_norm)
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
            raise Interrupted(
                signum, f"stopped after step {state.step}, before its evaluation; the same command goes on"
            )

    validation = run.evaluate(run.data.validation, stop_if_asked) if run.data.validation else None
    test = run.evaluate(run.data.test, stop_if_asked)
    held_out = ""
    if validation:
        held_out = f"  validation loss {validation.loss:.4f} accuracy {validation.accuracy:.2%}"
        run.directory.log("validation", state.step, epoch, validation.loss, validation.accuracy)
        if state.best_accuracy is None or validation.accuracy > state.best_accuracy:
            state.best_accuracy = validation.accuracy
            run.best = {name: tensor.detach().cpu().clone() for name, tensor in run.model.state_dict().items()}
    run.directory.log("test", state.step, epoch, test.loss, test.accuracy)
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


def find_learning_rate(run: Run, stop: StopRequest) -> None:
    """Runs the range test on training batches, restores model and optimizer, and takes its rate if `lr` is auto."""
    accelerator = run.accelerator
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    unused_epochs = range(run.config.epochs, 2**31)
    batches = (batch for epoch in unused_epochs for batch in run.loader.epoch(epoch))

    def step(rate: float) -> float:
        if signum := stop.agreed():
            raise Interrupted(signum, "stopped in the range test, before training")
        batch, mean = next(batches), RunningMean(accelerator.device)
        mean.add(*train_step(run, batch, rate), batch.count)
        return mean.mean(accelerator)[0]

    test = range_test(step)
    run.model.load_state_dict(weights)
    run.optimizer.state.clear()
    if scaler:
        accelerator.scaler.load_state_dict(scaler)
    if run.config.lr == "auto":
        run.state.learning_rate = test.suggestion
    accelerator.print(f"range test suggests {test.suggestion:.3g}; training with {run.state.learning_rate:.3g}")
    if accelerator.is_main_process:
        write_range_test(test, run.directory.path)


def finish(run: Run, scores: Scores | None) -> dict[str, Any]:
    """Exports the reported model, the last or the best on the validation split, and writes the summary."""
    config, state, accelerator = run.config, run.state, run.accelerator
    if run.best is not None:
        run.model.load_state_dict(run.best)
    if run.best is not None or scores is None:
        scores = run.evaluate(run.data.test)
    with together(accelerator):
        if accelerator.is_main_process:
            export_model(run.directory.path / "model", run.model_config, run.model.state_dict())
    summary = run.summary(scores)
    run.directory.finish(summary)
    accelerator.print(
        f"test accuracy {scores.correct}/{scores.count} ({scores.accuracy:.2%}), {state.step} steps in "
        f"{state.train_seconds:.1f} s of training; next: python analyze.py {config.output_dir}"
    )
    return summary


def command_line() -> None:
    """The whole script; also what Accelerate's TPU launcher calls in each of its processes."""
    run_script(main, parse_config(TrainConfig, description=__doc__))


if __name__ == "__main__":
    command_line()
