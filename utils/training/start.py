"""What a training begins with: a checkpoint, else weights of others, else random weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from data.preprocessing import Channels
from models import create_model, model_arguments
from models.saved import CONFIG, parse_model_config
from models.weights import Loaded, Origin, find_weights, load_start, read_tensors
from utils.config import TrainConfig
from utils.config.resolution import shown_size
from utils.runs.directory import RunDirectory
from utils.system.errors import UserError, raise_on_all_ranks
from utils.system.exchange import gather_texts
from utils.system.reading import some
from utils.training.distillation import read_teacher_once
from utils.training.groups import parts
from utils.training.loading import Backend, read_pipeline_once
from utils.training.network import prepare_network
from utils.training.snapshot import FILES, check_options, saved_options, saved_origin


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        config: the options, with nothing left to the weights.
        pipeline: the content of `augment_file`; empty if there is none.
        checkpoint, files: the checkpoint that it resumes from and its verified files, if it does.
        origin: the weights that a new run starts from; None if they are random, and in a resumed run, which needs none.
        described: what environment.json says of the weights that the run started from, in an earlier launch too.
        statistics: mean and std of the start weights, which a resumed run has in its checkpoint; None: the data set's.
        arguments: of the model that the start weights, or the checkpoint of a run with them, were trained in.
        augment_backend: of the checkpoint.
        teacher: the files of `teacher`; empty if there is none.
    """

    config: TrainConfig
    pipeline: bytes = b""
    checkpoint: Path | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    origin: Origin | None = None
    described: Mapping[str, str | None] | None = None
    statistics: tuple[Channels, Channels] | None = None
    arguments: Mapping[str, Any] | None = None
    augment_backend: Backend | None = None
    teacher: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def choose_start(config: TrainConfig, accelerator: Accelerator, directory: RunDirectory) -> Start:
    """The checkpoint that `resume` selects, else the weights of `init_from`, else random weights; to be called on every
    rank. Weights are found, and downloaded if they must be, by one process of each machine first.

    Raises UserError and EnvironmentFault on all ranks, before data is read or downloaded.
    """
    if not config.is_fine_tuned:
        _check_model(config, None, accelerator)
    pipeline, teacher = read_pipeline_once(config, accelerator), read_teacher_once(config, accelerator)
    source, files = directory.find_resume(FILES) or (None, {})
    if source is None:
        start = new_start(config, accelerator, pipeline)
    else:
        with raise_on_all_ranks(accelerator):
            start = _resumed(config, pipeline, source, files, teacher)
    if config.is_fine_tuned:
        model = _check_model(start.config, start.arguments, accelerator)
        with raise_on_all_ranks(accelerator):
            if start.origin and accelerator.is_local_main_process:
                load_start(model, read_tensors(start.origin), start.origin, ["any"])
    return dataclasses.replace(start, teacher=teacher)


def _check_model(config: TrainConfig, trained: Mapping[str, Any] | None, accelerator: Accelerator) -> nn.Module:
    """The model on the meta device, for a class: raises UserError for an option that it does not take.

    Args:
        trained: as Start.arguments.
    """
    with raise_on_all_ranks(accelerator), torch.device("meta"):
        arguments = model_arguments(config, config.size, trained)
        model = create_model(config.model, 1, **arguments)
        parts(config, model)
        prepare_network(model, config, arguments)
    return model


def _resumed(
    config: TrainConfig, pipeline: bytes, source: Path, files: Mapping[str, bytes], teacher: Mapping[str, bytes]
) -> Start:
    options = saved_options(files, source)
    config = config.with_weights(options)
    check_options(files, source, config, pipeline, teacher)
    backend = options.get("augment_backend", "albumentations")
    if not config.is_fine_tuned:
        return Start(config, pipeline, source, files, augment_backend=backend)
    saved = parse_model_config(files[CONFIG], source / CONFIG)
    return Start(
        config,
        pipeline,
        source,
        files,
        described=saved_origin(files, source),
        statistics=(saved.mean, saved.std),
        arguments=saved.arguments,
        augment_backend=backend,
    )


def new_start(config: TrainConfig, accelerator: Accelerator, pipeline: bytes = b"") -> Start:
    """The start of a new run; as choose_start."""
    if not config.is_fine_tuned:
        return Start(config, pipeline)
    origin = None
    for first in (True, False):
        with raise_on_all_ranks(accelerator):
            if accelerator.is_local_main_process == first:
                origin = find_weights(config.init_from, config.model)
    assert origin is not None
    if len(set(gather_texts(accelerator, origin.sha256))) > 1:
        silent = not accelerator.is_main_process
        raise UserError(f"init_from: {config.init_from} is not the same file on all machines", silent)
    return Start(
        config.with_weights(origin.facts()),
        pipeline,
        origin=origin,
        described=origin.describe(),
        statistics=(origin.mean, origin.std) if origin.mean and origin.std else None,
        arguments=origin.arguments,
    )


def with_weights(config: TrainConfig) -> TrainConfig:
    """The options as a new run of one process has them, for --print_config."""
    if config.is_complete:
        return config
    return config.with_weights(find_weights(config.init_from, config.model).facts())


def describe_start(config: TrainConfig, origin: Origin, loaded: Loaded, classes: int) -> list[str]:
    """Lines that say what became of every tensor of the start weights, and how their images were prepared."""
    place = f"{origin.repository}, revision {str(origin.revision)[:8]}," if origin.repository else str(origin.path)
    known = [origin.part and f"its {origin.part}", origin.license, f"SHA-256 {origin.sha256[:8]}..."]
    heads = sorted({name.rpartition(".")[0] for name in loaded.new})
    words = [f"{len(loaded.loaded)} tensors loaded"]
    if loaded.adapted:
        words.append(f"{len(loaded.adapted)} adapted")
    words += [*loaded.notes[:3], *([f"and {len(loaded.notes) - 3} more"] if len(loaded.notes) > 3 else [])]
    words.append(f"{some(heads, 3)} made anew for {classes} classes" if heads else "head kept")
    if unused := [name for name in loaded.unused if name not in loaded.new]:
        words.append(f"unused {some(unused, 3)}")
    first = f"start: {config.model} from {place} ({', '.join(filter(None, known))}): {', '.join(words)}"
    return [first, _describe_preprocessing(config, origin)]


def _describe_preprocessing(config: TrainConfig, origin: Origin) -> str:
    """What the weights say of their images, and which options differ from it."""
    used = {"image_size": shown_size(config.size), "fit": config.fit, "crop_pct": config.crop_pct}
    used["interpolation"] = config.interpolation
    said = {name: value for name in used if (value := getattr(origin, name)) is not None}
    words = [f"{name} {value}" for name, value in said.items()]
    if origin.mean and origin.std:
        words += [f"mean {_channels(origin.mean)}", f"std {_channels(origin.std)}"]
    if not words:
        return "the weights do not say how their images were prepared; mean and std are those of the training images"
    others = [f"{name} is {used[name]}" for name, value in said.items() if str(value) != str(used[name])]
    return f"preprocessing of the weights: {', '.join(words)}" + (f"; {', '.join(others)} instead" if others else "")


def _channels(values: Channels) -> str:
    return "/".join(f"{value:.3g}" for value in values)
