"""Trains an image classifier on whatever hardware is there, and gets the same training everywhere.

    accelerate launch train_accelerate.py                                      # ResNet-18 on CIFAR-10, 20 epochs
    accelerate launch train_accelerate.py --config recipes/digits.yaml         # minutes on a laptop, no download
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml train_accelerate.py --output_dir runs/eight_gpus

The same command goes on after a stop. `python analyze.py RUN` looks at the result.
"""

from utils.config import TrainConfig, parse_config

if __name__ == "__main__":  # --help and mistaken options are answered before the libraries are loaded
    CONFIG = parse_config(TrainConfig, description=__doc__)

import contextlib
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data.augmentation import Augmentation
from data.datasets import Dataset, Split, download, load_dataset
from data.loaders import IGNORED, Batch, EvaluationLoader, TrainLoader, to_input
from models import create_model
from utils.checkpoint import ModelConfig, export_model
from utils.errors import Interrupted, SuiteError, run_script, together
from utils.evaluation import predict
from utils.metrics import RunningMean, Scores, score
from utils.rundir import RunDirectory
from utils.runtime import create_accelerator, default_workers
from utils.tracking import configured_trackers
from utils.training.lr_finder import RangeTest, range_test, write_range_test
from utils.training.optimizers import create_optimizer, set_learning_rate
from utils.training.preemption import StopRequest
from utils.training.schedules import learning_rate_factor
from utils.training.state import FILES, TrainState, pack, unpack


@dataclass
class Run:
    """Everything that one training works with.

    `model` is the bare model, which is evaluated and saved; `trained` is the same model as gradients see it, compiled
    and in DDP. Both compute in the precision of the launch. `best` holds the weights of the best validation epoch.
    """

    config: TrainConfig
    accelerator: Accelerator
    directory: RunDirectory
    data: Dataset
    loader: TrainLoader
    model: nn.Module
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    mean: Tensor
    std: Tensor
    window: RunningMean
    epoch_sums: RunningMean
    state: TrainState = field(default_factory=TrainState)
    best: dict[str, Tensor] | None = None


def main(config: TrainConfig) -> dict:
    """Trains from `config`, or goes on with what is in its output_dir; returns the content of summary.json."""
    accelerator = create_accelerator(configured_trackers(config.trackers), config.output_dir)
    with StopRequest(accelerator) as stop:
        run = set_up(config, accelerator)
        try:
            if run.state.step == 0 and (config.find_lr or config.lr == "auto"):
                find_learning_rate(run)
            test_scores = None
            while run.state.epoch < config.epochs and run.state.step < last_step(run):
                started = time.perf_counter()
                train_epoch(run, stop)
                test_scores = evaluate_epoch(run, stop, started)
                save(run)
            summary = finish(run, test_scores)
        finally:
            run.directory.close()
    accelerator.end_training()
    return summary


def set_up(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Data, model and optimizer, fresh or from the checkpoint to go on from."""
    with together(accelerator):
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
    device = accelerator.device
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    if device.type == "cuda" and accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = create_optimizer(
        config.optimizer, model, config.momentum, config.nesterov, config.weight_decay, config.decay_norm_and_bias
    )

    directory = RunDirectory(config, accelerator)
    state, best, resumed_from = TrainState(learning_rate=0.0 if config.lr == "auto" else config.lr), None, None
    if found := directory.find_resume(FILES):
        resumed_from, files = found
        with together(accelerator):
            state, scaler_state, best = unpack(
                files, resumed_from, config, model_config(config, data), model, optimizer, len(data.train)
            )
        if accelerator.scaler is not None and scaler_state:
            accelerator.scaler.load_state_dict(scaler_state)
        accelerator.print(f"resumed from {resumed_from} (step {state.step})")
    directory.start(state.metrics_size, resumed_from)

    trained, optimizer = accelerator.prepare(torch.compile(model) if config.compile else model, optimizer)
    run = Run(
        config,
        accelerator,
        directory,
        data,
        TrainLoader(
            data.train,
            Augmentation(
                data.image_size, config.crop_padding, config.horizontal_flip, config.cutout, data.mean, config.seed
            ),
            config.batch_size,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
            workers(config, accelerator),
            pin_memory=device.type == "cuda",
        ),
        model,
        trained,
        optimizer,
        torch.tensor(data.mean, device=device),
        torch.tensor(data.std, device=device),
        RunningMean(device),
        RunningMean(device),
        state,
        best,
    )
    for sums, rows in ((run.window, state.window), (run.epoch_sums, state.epoch_sums)):
        if rows:
            sums.restore(rows, accelerator.process_index, accelerator.num_processes)
    return run


def train_epoch(run: Run, stop: StopRequest) -> None:
    """Trains from where the run is to the end of the epoch, or to max_steps."""
    config, state = run.config, run.state
    first_step = state.step - state.epoch * run.loader.steps_per_epoch
    final = min((state.epoch + 1) * run.loader.steps_per_epoch, last_step(run))
    if state.step >= final:  # stopped while this epoch was being evaluated
        return
    bar = tqdm(
        desc=f"epoch {state.epoch + 1}/{config.epochs}",
        total=run.loader.steps_per_epoch,
        initial=first_step,
        unit="step",
        leave=False,
        disable=None if run.accelerator.is_main_process else True,
    )
    window_started = started = time.perf_counter()
    images_before = 0
    for batch in run.loader.epoch(state.epoch, first_step):
        rate = learning_rate(run)
        run.window.add(*train_step(run, batch, rate), batch.count)
        state.step += 1
        images_before += batch.global_count
        bar.update()
        if state.step % config.log_every_steps == 0 or state.step == final:
            loss, accuracy, _ = run.window.mean(run.accelerator)
            now = time.perf_counter()
            speed = images_before / (now - window_started)
            check_finite(run, loss, rate)
            run.directory.log(
                "train", state.step, state.epoch + 1, loss, accuracy, lr=rate, images_per_second=round(speed, 1)
            )
            bar.set_postfix(
                loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}", lr=f"{rate:.2g}", images_per_second=f"{speed:.0f}"
            )
            run.epoch_sums.merge(run.window)
            run.window.reset()
            window_started, images_before = now, 0
        signum = stop.agreed()
        if signum or (
            config.checkpoint_every_steps and state.step % config.checkpoint_every_steps == 0 and state.step < final
        ):
            paused = time.perf_counter()
            state.train_seconds += paused - started
            save(run)
            if signum:
                bar.close()
                raise Interrupted(signum, f"stopped at step {state.step}, saved in {config.output_dir}")
            started = time.perf_counter()
            window_started += started - paused
        if state.step == final:
            break
    state.train_seconds += time.perf_counter() - started
    bar.close()


def train_step(run: Run, batch: Batch, rate: float) -> tuple[Tensor, Tensor]:
    """One optimizer step over the global batch; returns this rank's loss sum and number of correct predictions.

    The gradient is the mean over the global batch, whatever its parts: each loss is a sum divided by the global count,
    and DDP's mean over ranks is undone by the factor world_size.
    """
    accelerator, config = run.accelerator, run.config
    torch.manual_seed(
        int(np.random.SeedSequence([config.seed, run.state.step, accelerator.process_index]).generate_state(1)[0])
    )
    set_learning_rate(run.optimizer, rate)
    inputs = to_input(batch.images, run.mean, run.std, config.channels_last)
    labels = batch.labels.to(accelerator.device, non_blocking=True)
    parts = micro_batches(inputs, labels, batch.global_count, config.micro_batch_size, accelerator.num_processes)
    loss_sum = torch.zeros((), device=accelerator.device)
    correct = torch.zeros((), device=accelerator.device)
    for position, (part, part_labels) in enumerate(parts):
        last = position == len(parts) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.trained):
            logits = run.trained(part)
            objective = F.cross_entropy(logits, part_labels, reduction="sum", label_smoothing=config.label_smoothing)
            accelerator.backward(objective * (accelerator.num_processes / batch.global_count))
        with torch.no_grad():  # reported without label smoothing, so that train and test can be compared
            loss_sum += F.cross_entropy(logits, part_labels, reduction="sum")
            correct += (logits.argmax(1) == part_labels).sum()
    if config.grad_clip_norm is not None:
        accelerator.clip_grad_norm_(run.trained.parameters(), config.grad_clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss_sum, correct


def micro_batches(
    inputs: Tensor, labels: Tensor, global_count: int, micro_batch_size: int | None, world_size: int
) -> list[tuple[Tensor, Tensor]]:
    """Splits a rank's part into equally many pieces on every rank; a piece without images is a filler without weight."""
    largest_part = -(-global_count // world_size)
    count = -(-largest_part // micro_batch_size) if micro_batch_size else 1
    pieces = zip(inputs.tensor_split(count), labels.tensor_split(count), strict=True)
    filler = inputs[:1], torch.full_like(labels[:1], IGNORED)
    return [piece if len(piece[1]) else filler for piece in pieces]


def evaluate_epoch(run: Run, stop: StopRequest, started: float) -> Scores:
    """Scores the test split, and the validation split where there is one, and prints the epoch's line."""
    config, state, accelerator = run.config, run.state, run.accelerator
    epoch = state.epoch + 1

    def stop_if_asked() -> None:
        if signum := stop.agreed():
            save(run)
            raise Interrupted(signum, f"stopped while evaluating after step {state.step}, saved in {config.output_dir}")

    validation = evaluate(run, run.data.validation, stop_if_asked) if run.data.validation else None
    test = evaluate(run, run.data.test, stop_if_asked)
    if validation:
        run.directory.log("validation", state.step, epoch, validation.loss, validation.accuracy)
        if state.best_accuracy is None or validation.accuracy > state.best_accuracy:
            state.best_accuracy = validation.accuracy
            run.best = {name: tensor.detach().cpu().clone() for name, tensor in run.model.state_dict().items()}
    run.directory.log("test", state.step, epoch, test.loss, test.accuracy)
    train_loss, train_accuracy, _ = run.epoch_sums.mean(accelerator)
    held_out = f"  validation loss {validation.loss:.4f} accuracy {validation.accuracy:.2%}" if validation else ""
    accelerator.print(
        f"epoch {epoch}/{config.epochs}  train loss {train_loss:.4f} accuracy {train_accuracy:.2%}{held_out}  "
        f"test loss {test.loss:.4f} accuracy {test.correct}/{test.count} ({test.accuracy:.2%})  {time.perf_counter() - started:.1f} s"
    )
    if state.step == epoch * run.loader.steps_per_epoch:
        state.epoch = epoch
        run.epoch_sums.reset()
    return test


def evaluate(run: Run, split: Split, between_batches=lambda: None) -> Scores:
    """Scores of the model as it is on a split."""
    accelerator = run.accelerator
    loader = EvaluationLoader(
        split, accelerator.process_index, accelerator.num_processes, num_workers=workers(run.config, accelerator)
    )
    logits = predict(
        accelerator, run.model, loader, run.mean, run.std, run.config.channels_last, "evaluating", between_batches
    )
    return score(logits, torch.from_numpy(split.labels))


def find_learning_rate(run: Run) -> None:
    """Runs the range test on training batches, restores model and optimizer, and takes its rate if `lr` is auto."""
    config, accelerator = run.config, run.accelerator
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    scaler_state = accelerator.scaler.state_dict() if accelerator.scaler else None
    batches = (batch for epoch in range(config.epochs, 2**31) for batch in run.loader.epoch(epoch))

    def step(rate: float) -> float:
        batch = next(batches)
        loss = RunningMean(accelerator.device)
        loss.add(*train_step(run, batch, rate), batch.count)
        return loss.mean(accelerator)[0]

    test: RangeTest = range_test(step)
    run.model.load_state_dict(weights)
    run.optimizer.state.clear()
    if scaler_state:
        accelerator.scaler.load_state_dict(scaler_state)
    if config.lr == "auto":
        run.state.learning_rate = test.suggestion
    accelerator.print(
        f"learning-rate range test: {test.suggestion:.3g} suggested, training with {run.state.learning_rate:.3g}"
    )
    if accelerator.is_main_process:
        write_range_test(test, run.directory.path)


def finish(run: Run, test_scores: Scores | None) -> dict:
    """Exports the model that is reported, the best on validation where there is such a split, and writes the summary."""
    config, state, accelerator = run.config, run.state, run.accelerator
    if run.best is not None:
        run.model.load_state_dict(run.best)
    if run.best is not None or test_scores is None:
        test_scores = evaluate(run, run.data.test)
    with together(accelerator):
        if accelerator.is_main_process:
            export_model(run.directory.path / "model", model_config(config, run.data), run.model.state_dict())
    trained_images = (
        state.epoch * len(run.data.train) + (state.step - state.epoch * run.loader.steps_per_epoch) * config.batch_size
    )
    summary = {
        "test_accuracy": test_scores.accuracy,
        "test_loss": test_scores.loss,
        "test_count": test_scores.count,
        "per_class_accuracy": dict(zip(run.data.class_names, test_scores.per_class_accuracy, strict=True)),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "steps": state.step,
        "epochs": state.epoch,
        "train_seconds": round(state.train_seconds, 3),
        "images_per_second": round(trained_images / state.train_seconds, 1) if state.train_seconds else 0.0,
        "world_size": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "seed": config.seed,
        "learning_rate": state.learning_rate,
        "best_validation_accuracy": state.best_accuracy,
    }
    run.directory.finish(summary)
    accelerator.print(
        f"test accuracy {test_scores.correct}/{test_scores.count} ({test_scores.accuracy:.2%}) after {state.step} steps and "
        f"{state.train_seconds:.1f} s of training; next: python analyze.py {config.output_dir}"
    )
    return summary


def save(run: Run) -> None:
    """Writes a checkpoint of the run as it stands, on every rank at the same step."""
    state, accelerator = run.state, run.accelerator
    state.window, state.epoch_sums = run.window.state(accelerator), run.epoch_sums.state(accelerator)
    check_finite(run, sum(row[0] for row in state.window), learning_rate(run))
    if accelerator.is_main_process:
        state.metrics_size = run.directory.metrics.size()
        scaler_state = accelerator.scaler.state_dict() if accelerator.scaler else None
        files = pack(
            state,
            run.config,
            model_config(run.config, run.data),
            run.model,
            run.optimizer,
            scaler_state,
            run.best,
            len(run.data.train),
        )
        run.directory.save_checkpoint(state.step, files)


def check_finite(run: Run, loss: float, rate: float) -> None:
    """Raises where the loss or the weights are no numbers any more; the last checkpoint is from before."""
    if np.isfinite(loss) and all(bool(torch.isfinite(parameter).all()) for parameter in run.model.parameters()):
        return
    raise SuiteError(
        f"the loss is not finite any more at step {run.state.step} (learning rate {rate:.3g}); last good checkpoint: "
        f"{run.directory.last_checkpoint_name()}; try a lower --lr or --grad_clip_norm 1",
        silent=not run.accelerator.is_main_process,
    )


def learning_rate(run: Run) -> float:
    """The rate of the next step."""
    config, total = run.config, run.config.epochs * run.loader.steps_per_epoch
    return run.state.learning_rate * learning_rate_factor(
        config.schedule, min(run.state.step, total - 1), total, config.warmup_fraction
    )


def last_step(run: Run) -> int:
    return min(run.config.epochs * run.loader.steps_per_epoch, run.config.max_steps or 2**62)


def workers(config: TrainConfig, accelerator: Accelerator) -> int:
    return default_workers(accelerator) if config.num_workers is None else config.num_workers


def model_config(config: TrainConfig, data: Dataset) -> ModelConfig:
    arguments = {"norm": config.norm, "width": config.width}
    return ModelConfig(config.model, arguments, data.class_names, data.image_size, data.mean, data.std)


if __name__ == "__main__":
    run_script(main, CONFIG)
