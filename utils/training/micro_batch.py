"""Splits a rank's part of the global batch into pieces that fit into memory; the global batch never changes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn import functional as F

from data.splits import Dataset
from models import create_model
from utils.config import TrainConfig
from utils.config.resolution import Size, resolution_phases, shown_size
from utils.system.errors import EnvironmentFault, UserError
from utils.system.launch import ACCUMULATION
from utils.training.network import prepare_network


class Piece(NamedTuple):
    """Images (n, 3, H, W), their labels (n,) or class shares (n, classes), their weight (0 for a filler, else 1), and
    the position of the first in the rank's part."""

    inputs: Tensor
    targets: Tensor
    weight: float
    first: int = 0


def micro_batches(
    inputs: Tensor, targets: Tensor, count: int, global_count: int, micro_batch_size: int | None, world_size: int
) -> list[Piece]:
    """Splits a rank's part of a step, of which `count` images have weight, into equally many pieces on every rank.

    A piece for which a rank has no image left is a filler without weight.
    """
    largest_part = -(-global_count // world_size)
    parts = -(-largest_part // micro_batch_size) if micro_batch_size else 1
    filler = Piece(inputs[:1], targets[:1], 0.0)
    if count == 0:
        return [filler] * parts
    splits, firsts = inputs.tensor_split(parts), torch.arange(len(inputs)).tensor_split(parts)
    pieces = zip(splits, targets.tensor_split(parts), firsts, strict=True)
    return [Piece(images, aims, 1.0, int(places[0])) if len(aims) else filler for images, aims, places in pieces]


def accumulated(config: TrainConfig, steps: int, images: int, accelerator: Accelerator) -> TrainConfig:
    """The config with the micro_batch_size that amounts to gradient accumulation over `steps`, which is printed.

    Each process computes its part of an optimizer step in `steps` pieces: less memory, the same training. Raises
    UserError if the part has fewer images than that, or if the config sets another micro_batch_size.

    Args:
        images: in the training split.
    """
    if steps == 1:
        return config
    part = -(-min(config.batch_size, images) // accelerator.num_processes)
    size = -(-part // steps)
    asked = f"{ACCUMULATION}={steps}"
    if steps > part:
        raise UserError(f"{asked} is not allowed: a process has {part} images per step; it must be at most {part}")
    if config.micro_batch_size not in (None, size):
        raise UserError(
            f"micro_batch_size: {config.micro_batch_size} contradicts {asked}, which makes it {size} (of {part} images "
            "per process and step); give one of them"
        )
    accelerator.print(f"gradient accumulation {steps}: micro_batch_size is {size}")
    return dataclasses.replace(config, micro_batch_size=size)


def smallest_piece(count: int, batch_size: int, world_size: int, micro_batch_size: int | None) -> int:
    """The fewest images in a forward pass of an epoch over `count` images; a filler counts as one."""
    smallest = batch_size
    for global_count in {min(batch_size, count), count % batch_size or min(batch_size, count)}:
        largest_part = -(-global_count // world_size)
        parts = -(-largest_part // micro_batch_size) if micro_batch_size else 1
        smallest = min(smallest, max(1, global_count // world_size // parts))
    return smallest


def check_single_images(config: TrainConfig, data: Dataset, arguments: Mapping[str, Any], world_size: int) -> None:
    """Raises UserError if a forward pass may have one image only, of which batch norm sees a single pixel.

    Args:
        arguments: of the model.
    """
    if smallest_piece(len(data.train), config.batch_size, world_size, config.micro_batch_size) > 1:
        return
    with torch.device("meta"):
        model = create_model(config.model, len(data.class_names), **arguments)
        prepare_network(model, config, arguments)
        for phase in resolution_phases(config.resolution, data.geometry.size, 1):
            try:
                model(torch.zeros(1, 3, *phase.size))
            except ValueError as error:
                raise UserError(
                    f"batch_size: {config.batch_size} leaves a step with a single image for a process, of which batch "
                    f"norm cannot learn at {shown_size(phase.size)} pixels; choose another batch_size, more pixels or "
                    "--norm group"
                ) from error
            except RuntimeError:  # not computable on the meta device
                return


def fit_micro_batch_size(
    accelerator: Accelerator,
    model: nn.Module,
    part: int,
    image_size: Size,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> int:
    """The largest of part, part / 2, part / 4, ... images that fit into memory in a training step of `model`, and of
    the `teacher` that answers them beside it.

    All ranks agree on the smallest. To be called before the model is prepared or has synchronised batch norm: the ranks
    would wait for each other in a pass that one of them cannot finish. Raises EnvironmentFault if no image fits.
    """

    def attempt(size: int) -> None:
        # What training will hold beside the activations: gradients in DDP's buckets and two optimizer moments.
        reserve = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(3)]
        images = torch.zeros(size, 3, *image_size, device=accelerator.device)
        labels = torch.zeros(size, dtype=torch.long, device=accelerator.device)
        with accelerator.autocast():
            loss = F.cross_entropy(model(images), labels)
            if teacher:
                teacher(images)
        loss.backward()
        del reserve

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        size = largest_that_fits(attempt, part)
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        clear_device_cache(garbage_collection=True)
    return int(accelerator.gather(torch.tensor([size], device=accelerator.device)).min())


def largest_that_fits(attempt: Callable[[int], None], size: int) -> int:
    """Halves `size` until `attempt(size)` raises no out-of-memory error; other errors pass through."""
    while size >= 1:
        try:
            attempt(size)
            return size
        except RuntimeError as error:
            if not should_reduce_batch_size(error) and "out of memory" not in str(error):  # an Apple GPU's own words
                raise
            clear_device_cache(garbage_collection=True)
            size = size // 2
    raise EnvironmentFault("not even one image at a time fits into the memory of the device; choose a smaller model")
