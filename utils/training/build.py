"""Makes a run: data, then model, then optimizer."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from data.preprocessing import to_input
from data.splits import Dataset
from models import create_model, describe_model, model_arguments
from models.drop_path import Draws
from models.folding import fold_frozen_norms
from models.head import find_head
from models.norm import with_synchronised_batch_norm
from models.weights import Loaded, load_start, read_tensors
from utils.config import TrainConfig
from utils.config.consistency import without_effect
from utils.runs.directory import RunDirectory
from utils.system.bf16 import check_bf16
from utils.system.errors import one_line, raise_on_all_ranks
from utils.system.files import digest
from utils.system.launch import accumulation_steps
from utils.tracking.tracker import Text, Tracker
from utils.training.averaging import Ema, Lookahead
from utils.training.distillation import create_teacher
from utils.training.freezing import Freezing
from utils.training.loading import (
    check_first_images,
    choose_backend,
    create_train_loader,
    load_once_per_machine,
    sample_images,
    shortened,
)
from utils.training.meters import Meters
from utils.training.micro_batch import accumulated, check_single_images, fit_micro_batch_size
from utils.training.mixing import Mixing
from utils.training.muon import muon_arithmetic
from utils.training.network import prepare_network, unused_statistics
from utils.training.optimizers import create_optimizer
from utils.training.plan import Plan
from utils.training.preview import show_augmentations
from utils.training.print_groups import describe_groups
from utils.training.profiling import StepProfiler
from utils.training.progress import TrainState, difference, launch_of, with_launch
from utils.training.run import Run
from utils.training.snapshot import ORIGIN, PIPELINE, TEACHER, restore
from utils.training.start import Start, describe_start

INITIAL_IMAGES = 5000  # that a model may derive initial weights from


def build(start: Start, accelerator: Accelerator, directory: RunDirectory) -> Run:
    """A run ready to train, new or restored from its checkpoint; writes its options to the directory and opens the
    trackers. To be called on every rank.

    Nothing in the directory is written before all that can be wrong with options, data and checkpoint was checked.
    Raises UserError and EnvironmentFault on all ranks.
    """
    config, pipeline, source = start.config, start.pipeline, start.checkpoint
    data = shortened(load_once_per_machine(config, accelerator, start.statistics), config)
    with raise_on_all_ranks(accelerator):
        config = accumulated(config, accumulation_steps(os.environ), len(data.train), accelerator)
        arguments = model_arguments(config, data.geometry.size, start.arguments)
        check_single_images(config, data, arguments, accelerator.num_processes)
        backend = choose_backend(config, start.augment_backend, data, accelerator)
        config = dataclasses.replace(config, augment_backend=backend)
        plan = Plan(config, len(data.train), data.geometry.size)
        loader = create_train_loader(config, data, accelerator, pipeline)
        check_first_images(loader, data)
        teacher = create_teacher(config, start.teacher, data, accelerator)
        model, loaded = _initial_model(start, config, data, arguments, accelerator)
        has_probe = loaded is not None and loaded.new and config.head_init == "probe"
        head = find_head(model, plan.phase(0).size) if has_probe else None
        optimizer = create_optimizer(config, model)
        ema = Ema(model, config.ema_decay) if config.ema_decay is not None else None
        lookahead = Lookahead(model, config.lookahead_steps, config.lookahead_decay) if config.lookahead_steps else None

    device = accelerator.device
    micro_batch_size = config.micro_batch_size
    if micro_batch_size is None and device.type != "cpu":  # a CPU's memory runs out without an error to act on
        part = -(-min(config.batch_size, plan.images) // accelerator.num_processes)
        micro_batch_size = fit_micro_batch_size(accelerator, model, part, data.geometry.size, teacher)
    if device.type == "cuda" and accelerator.num_processes > 1 and config.norm_statistics != "frozen":
        model = with_synchronised_batch_norm(model)  # with the same parameters
    ddp_model, optimizer = accelerator.prepare(model, optimizer)
    if ema:
        accelerator.prepare_model(ema.model, evaluation_mode=True)
    run = Run(
        config=config,
        accelerator=accelerator,
        directory=directory,
        data=data,
        loader=loader,
        mean=torch.tensor(data.mean, device=device),
        std=torch.tensor(data.std, device=device),
        plan=plan,
        arguments=arguments,
        model=model,
        ddp_model=ddp_model,
        optimizer=optimizer,
        micro_batch_size=micro_batch_size,
        mixing=Mixing(config.mixup, config.cutmix, len(data.class_names)) if config.mixup or config.cutmix else None,
        teacher=teacher,
        freezing=Freezing(model, optimizer) if config.freeze_epochs else None,
        draws=Draws(model, config.seed),
        ema=ema,
        lookahead=lookahead,
        meters=Meters(device),
        profiler=StepProfiler(directory.path if config.profile and accelerator.is_main_process else None),
        state=TrainState(learning_rate=0.0 if config.lr == "auto" else config.lr),
        loaded=loaded,
        head=head,
    )
    if source:
        with raise_on_all_ranks(accelerator):
            restore(run, start.files, source)
            run.meters.clock.restore(run.state.train_seconds)
        accelerator.print(f"resumed from {source} (step {run.state.step})")
    if accelerator.is_main_process and (line := without_effect(config)):
        print(f"warning: {line}", file=sys.stderr)
    if accelerator.is_main_process and (line := unused_statistics(model, config)):
        print(f"warning: {line}", file=sys.stderr)
    if pipeline:
        accelerator.print(f"augmentation: {config.augment_file} replaces all options but mixup and cutmix")
    if plan.peak_factor < 1 and plan.total_steps and not source:
        accelerator.print(
            f"lr: {plan.total_steps} steps are fewer than full_lr_steps {config.full_lr_steps}; lr is "
            f"{plan.peak_factor:.0%} of {config.lr if config.lr == 'auto' else format(config.lr, 'g')}"
        )
    more: dict[str, Any] = {"bf16_slowdown": check_bf16(accelerator), "lr_groups": describe_groups(optimizer)}
    if config.optimizer == "muon":
        more["muon_arithmetic"] = muon_arithmetic(device)
    if start.described:
        more[ORIGIN] = start.described
    if pipeline:
        more[PIPELINE] = digest([pipeline])
    if start.teacher:
        more[TEACHER] = digest(start.teacher.values())
    directory.start(config, run.state.metrics_size, source, data, more)
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            show_augmentations(run)
    if accelerator.is_main_process:
        _note_launch(run)
        directory.track(lambda tracker: _show_model(tracker, run))
    return run


def _initial_model(
    start: Start, config: TrainConfig, data: Dataset, arguments: Mapping[str, Any], accelerator: Accelerator
) -> tuple[nn.Module, Loaded | None]:
    """The model on its device, and what became of the start weights if a new run has them; otherwise a model may derive
    its own from training images (`initialise_from`)."""
    torch.manual_seed(config.seed)
    model = create_model(config.model, len(data.class_names), **arguments)
    loaded, initialise_from = None, getattr(model, "initialise_from", None)
    if start.origin:
        loaded = load_start(model, read_tensors(start.origin), start.origin, data.class_names, config.keep_head)
        accelerator.print("\n".join(describe_start(config, start.origin, loaded, len(data.class_names))))
    elif initialise_from and start.checkpoint is None:
        mean, std = torch.tensor(data.mean), torch.tensor(data.std)
        initialise_from(to_input(sample_images(data.train, INITIAL_IMAGES), mean, std))
    prepare_network(model, config, arguments)
    if accelerator.device.type == "cpu":
        fold_frozen_norms(model, data.geometry.size)  # elsewhere nobody measured it
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(accelerator.device, memory_format=layout), loaded  # type: ignore[call-overload]


def _note_launch(run: Run) -> None:
    """Adds this launch to the run's history, if there are steps left to train; warns of what differs from the launch
    that the run began with."""
    state, launch = run.state, launch_of(run.directory.environment)
    if run.is_finished:
        return
    if state.step and (line := difference(state.launches, launch)):
        print(f"warning: {one_line(line)}", file=sys.stderr)
    state.launches = with_launch(state.launches, state.step, launch)


def _show_model(tracker: Tracker, run: Run) -> None:
    """The model layer by layer, once in a tracker. It is made anew: Accelerate has changed the forward of the other."""
    if tracker.fresh:
        model = create_model(run.config.model, len(run.data.class_names), **run.arguments)
        tracker.show({"model_summary": Text(describe_model(model, run.data.geometry.size))}, step=0)
