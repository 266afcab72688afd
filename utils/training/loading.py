"""The data set and the training loader: images augmented one by one on the CPU, or in batches on the device."""

import dataclasses
import sys
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator

from data.augment import BatchPipeline, ImagePipeline, create_augmentations
from data.augment.augmentation import Augmentation
from data.augment.pipeline_file import read_pipeline
from data.augment.saved_pipeline import parse_pipeline
from data.loaders import DeviceLoader, Steps, TrainLoader
from data.photo_cache import CachedPhotos
from data.preprocessing import Channels, Geometry
from data.sources import download, load_dataset
from data.splits import Dataset, Split
from utils.config import TrainConfig
from utils.system.errors import UserError, raise_on_all_ranks
from utils.system.exchange import broadcast_bytes
from utils.system.runtime import default_workers, use_cores

Backend = Literal["albumentations", "tensor"]
CHECKED = 32  # images of the first batch, or draws of a pipeline from a file, before the run begins
EVALUATED = 500  # images of a fast_dev_run's evaluations: one batch


def load_once_per_machine(
    config: TrainConfig, accelerator: Accelerator, statistics: tuple[Channels, Channels] | None = None
) -> Dataset:
    """The data set. One process of each machine downloads and decodes it, then the others map what it has cached.

    Args:
        statistics: mean and std to normalise with instead of those of the training images.
    """
    with raise_on_all_ranks(accelerator):
        if accelerator.is_local_main_process:
            download(config.dataset, config.data_dir)
    cuts_photos = config.crop == "resized" and config.augment_file is None
    for first in (True, False):
        with raise_on_all_ranks(accelerator):
            if accelerator.is_local_main_process == first:
                data = load_dataset(
                    config.dataset,
                    config.data_dir,
                    Geometry(config.size, config.fit, float(config.crop_pct), config.interpolation),
                    config.validation_fraction,
                    config.seed,
                    config.memory_fraction,
                    train_from_disk=config.crop == "resized" or config.augment_file is not None,
                    cache_side=config.cache_side if cuts_photos else None,
                    exact_decode=config.exact_decode,
                    statistics=statistics,
                )
    unused = cuts_photos and config.cache_side is not None and not isinstance(data.train.images, CachedPhotos)
    if unused and accelerator.is_main_process:
        print(f"note: no effect: cache_side with {config.dataset}, which has no photos on disk", file=sys.stderr)
    return data


def shortened(data: Dataset, config: TrainConfig) -> Dataset:
    """The data set with the images that `overfit_batches` or `fast_dev_run` asks for, evenly spaced."""
    train, validation, test = data.train, data.validation, data.test
    if config.overfit_batches:
        train = evenly_spaced(train, config.overfit_batches * config.batch_size)
    if config.fast_dev_run:
        train = evenly_spaced(train, config.batch_size)  # so that the one step ends an epoch
        validation, test = validation and evenly_spaced(validation, EVALUATED), evenly_spaced(test, EVALUATED)
    return dataclasses.replace(data, train=train, validation=validation, test=test)


def evenly_spaced(split: Split, most: int) -> Split:
    """The split, or `most` of its images."""
    return split.subset(np.linspace(0, len(split) - 1, min(most, len(split))).astype(int))


def sample_images(split: Split, most: int) -> torch.Tensor:
    """At most `most` images, evenly spaced in the split: uint8 (n, height, width, 3)."""
    return torch.from_numpy(evenly_spaced(split, most).images[:])


def read_pipeline_once(config: TrainConfig, accelerator: Accelerator) -> bytes:
    """The content of `augment_file` on every rank, checked; empty if there is none. The main process alone reads it."""
    content = b""
    with raise_on_all_ranks(accelerator):
        if config.augment_file is not None and accelerator.is_main_process:
            content = read_pipeline(config.augment_file)
            parse_pipeline(content, config.augment_file)
    return broadcast_bytes(accelerator, content) if config.augment_file is not None else content


def choose_backend(config: TrainConfig, saved: Backend | None, data: Dataset, accelerator: Accelerator) -> Backend:
    """Resolves `augment_backend: auto`: the backend of the checkpoint, else tensor if the images fit on every rank.

    The two draw differently, so a resumed run stays with the one that it began with. Raises UserError if that is tensor
    and the images are not in memory, or fitted although an augmentation needs the originals.

    Args:
        saved: the backend of the checkpoint that the run resumes from, if it does.
    """
    if config.augment_file is not None:
        return "albumentations"
    requested = config.augment_backend
    backend = saved if saved and requested == "auto" else requested
    images, in_memory = data.train.images, data.train.images.in_memory
    augmentations = create_augmentations(config, data.geometry, data.mean, data.std)
    fitted = images.fitted and any(augmentation.needs_original for augmentation in augmentations)
    if backend == "tensor" and fitted:
        raise UserError(
            "augment_backend: tensor augments images that were fitted to image_size, and one of the augmentations "
            "needs the original photos; use auto or albumentations"
        )
    if backend == "tensor" and in_memory is None:
        began_with, alternative = "", ", or use auto or albumentations"
        if requested == "auto":
            began_with, alternative = ", with which this run began,", ""
        raise UserError(
            f"augment_backend: tensor{began_with} needs the images in memory, and these take more than memory_fraction "
            f"({config.memory_fraction:g}) of it; set a larger --memory_fraction{alternative}"
        )
    if backend != "auto":
        return backend
    fits = in_memory is not None and _device_holds(in_memory[0].nbytes, accelerator.device, config.memory_fraction)
    everywhere = accelerator.gather(torch.tensor([fits and not fitted], device=accelerator.device)).all()
    return "tensor" if everywhere else "albumentations"


def _device_holds(size: int, device: torch.device, fraction: float) -> bool:
    if device.type == "cuda":
        return size <= fraction * torch.cuda.mem_get_info(device)[0]
    return device.type == "cpu"  # already holds them; on other devices the tensor operations are untested


def worker_count(config: TrainConfig, accelerator: Accelerator) -> int:
    """Loader processes of this training process, if images are decoded or augmented one by one."""
    return default_workers(accelerator) if config.num_workers is None else config.num_workers


def create_train_loader(
    config: TrainConfig, data: Dataset, accelerator: Accelerator, pipeline: bytes = b""
) -> TrainLoader | DeviceLoader:
    """This rank's loader: `augment_backend` tensor augments batches on the device, albumentations images on the CPU.

    Args:
        pipeline: the content of `augment_file`, if there is one. Raises UserError if images of the first batch are no
            input of the model after it.
    """
    augmentations = create_augmentations(config, data.geometry, data.mean, data.std, pipeline)
    rank, world_size, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    lead = config.mixup > 0 or config.cutmix > 0
    steps = Steps(len(data.train), config.batch_size, config.seed, rank, world_size, lead, config.repeated)
    if config.augment_backend == "tensor":
        return DeviceLoader(data.train, BatchPipeline(augmentations, config.seed), steps, device)
    if pipeline:
        _check_draws(augmentations[0], data.train, steps)
    workers = worker_count(config, accelerator)
    if device.type == "cpu":
        use_cores(workers)
    images = ImagePipeline(augmentations, config.seed)
    return TrainLoader(data.train, images, steps, workers, pin_memory=device.type == "cuda")


def _check_draws(augmentation: Augmentation, train: Split, steps: Steps) -> None:
    """Draws CHECKED images from those of the first batch, some of them in later epochs too if there are fewer."""
    positions = next(steps.positions(epoch=0, augmented=False))[:CHECKED]
    photos = train.images.photos(positions)
    for number in range(CHECKED):
        epoch, place = divmod(number, len(photos))
        augmentation.cut(photos[place], steps.seed, epoch, int(positions[place]))


def check_first_images(loader: TrainLoader | DeviceLoader, data: Dataset) -> None:
    """Loads and augments images of this rank's first batch, before anything is written or trained. Raises UserError if
    they cannot be read, or do not come out as the model takes them."""
    images = loader.augmented(0, next(loader.steps.positions(epoch=0, augmented=False))[:CHECKED])
    expected = (len(images), *data.geometry.size, 3)
    if images.dtype != torch.uint8 or images.shape != expected:
        found = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise UserError(f"the augmentations make {found} of the first images; the model takes uint8 {expected}")
