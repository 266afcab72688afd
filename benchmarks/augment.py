"""How fast batches are augmented on one CPU core, beside torchvision's v2 transforms. Prints a Markdown table.

    python benchmarks/augment.py            # about two minutes

From uint8 images of 256 x 256 pixels in memory to augmented uint8 images of the model's size, drawing included. The
suite's `tensor` backend augments a batch, torchvision image by image, each image as a tensor whose channels are stored
first or last, whichever is faster. torchvision erases with a constant, which costs it less than our noise.

All take turns in short rounds whose order alternates, since a machine's speed drifts: a ratio is taken within a round,
and reported as the median over the rounds with the lowest and the highest.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.augment import BatchPipeline, create_augmentations
from data.augment.augmentation import stream
from data.augment.resized_crop import ResizedCrop
from data.preprocessing import square
from utils.config import TrainConfig
from utils.system.runtime import keep_freed_memory, processor_name

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = [round(255 * value) for value in MEAN]
PLAIN = {"crop": "none", "horizontal_flip": "none", "cutout": 0}
CROP, FLIP = {"crop": "resized"}, {"horizontal_flip": "random"}
COLOUR, NO_HUE, ERASE = {"color_jitter": [0.4, 0.4, 0.4, 0.1]}, {"color_jitter": [0.4]}, {"erase": 0.25}


def recipes(size: int) -> dict[str, tuple[dict, list[v2.Transform]]]:
    """By name, the suite's options and torchvision's transforms."""
    crop, flip = v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()
    colour, no_hue = v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.ColorJitter(0.4, 0.4, 0.4)
    erase = v2.RandomErasing(0.25, scale=(0.02, 1 / 3), value=FILL)
    trivial = v2.TrivialAugmentWide()
    return {
        "resized crop, flip, colour, erase": ({**CROP, **FLIP, **COLOUR, **ERASE}, [crop, flip, colour, erase]),
        "the same without hue": ({**CROP, **FLIP, **NO_HUE, **ERASE}, [crop, flip, no_hue, erase]),
        "resized crop alone": (CROP, [crop]),
        "resized crop, flip": ({**CROP, **FLIP}, [crop, flip]),
        "resized crop, colour": ({**CROP, **COLOUR}, [crop, colour]),
        "resized crop, erase": ({**CROP, **ERASE}, [crop, erase]),
        "resized crop, flip, TrivialAugment": ({**CROP, **FLIP, "policy": "trivial"}, [crop, flip, trivial]),
        "resized crop, flip, RandAugment": ({**CROP, **FLIP, "policy": "rand"}, [crop, flip, v2.RandAugment()]),
        "resized crop, flip, AutoAugment": ({**CROP, **FLIP, "policy": "auto"}, [crop, flip, v2.AutoAugment()]),
    }


class FromLarger(ResizedCrop):
    """Draws its boxes in images of `side` pixels a side, not in those of the model's size."""

    def __init__(self, crop: ResizedCrop, side: int):
        super().__init__(crop.geometry, crop.scale)
        self.side = side

    def draw(self, seed: int, epoch: int, count: int) -> np.ndarray:
        return self.draw_boxes(stream(seed, epoch, *self.streams), self.side, self.side, count)


def main() -> None:
    settings = parse_arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as a training does
    images = smooth_images(settings.images, settings.side)
    print(
        f"{settings.images} images of {settings.side} pixels, {settings.rounds} rounds, one core of {processor_name()}"
    )
    print()
    print("| recipe | pixels | suite, images/s | torchvision v2, images/s | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for size in settings.sizes:
        for name, (options, transforms) in recipes(size).items():
            contestants = {"suite": suite(options, size, images), **torchvision(transforms, images)}
            rounds = take_turns(contestants, settings.rounds, settings.seconds, len(images))
            ours, theirs = [turn.pop("suite") for turn in rounds], [max(turn.values()) for turn in rounds]
            ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
            print(f"| {name} | {size} | {spread(ours)} | {spread(theirs)} | {spread(ratios, 2)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[160, 224], help="pixels of the results")
    parser.add_argument("--side", type=int, default=256, help="pixels of the images before that")
    parser.add_argument("--images", type=int, default=128, help="of a batch")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=0.5, help="least time of a turn")
    parser.add_argument("--quick", action="store_true", help="a few small images: shows that it works")
    quick, _ = parser.parse_known_args()
    if quick.quick:
        parser.set_defaults(sizes=[16, 24], side=32, images=8, rounds=2, seconds=0.0)
    return parser.parse_args()


def smooth_images(count: int, side: int) -> Tensor:
    """Random images with more than noise in them, uint8 (count, side, side, 3)."""
    coarse = 255 * torch.rand(count, 3, max(2, side // 4), max(2, side // 4))
    fine = F.interpolate(coarse, (side, side), mode="bicubic")
    return fine.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def suite(options: dict, size: int, images: Tensor) -> Callable[[], None]:
    """Augments all images once, by the draws of another epoch in every call."""
    config = TrainConfig(**{**PLAIN, **options})
    crop, *others = create_augmentations(config, square(size), MEAN, STD)
    assert isinstance(crop, ResizedCrop)
    pipeline, epoch = BatchPipeline([FromLarger(crop, images.shape[1]), *others]), 0

    def augment() -> None:
        nonlocal epoch
        pipeline(images, pipeline.draw(epoch, len(images)))
        epoch += 1

    return augment


def torchvision(transforms: list[v2.Transform], images: Tensor) -> dict[str, Callable[[], None]]:
    """As `suite`, for both layouts of an image in memory."""
    pipeline = v2.Compose(transforms)

    def augment(batch: Tensor) -> None:
        for image in batch:
            pipeline(image)

    channels_last = images.permute(0, 3, 1, 2)
    channels_first = channels_last.contiguous()
    return {"channels first": lambda: augment(channels_first), "channels last": lambda: augment(channels_last)}


def take_turns(
    contestants: dict[str, Callable[[], None]], rounds: int, seconds: float, images: int
) -> list[dict[str, float]]:
    """Images/s of each contestant in each round; every other round goes backwards."""
    for augment in contestants.values():
        augment()  # untimed
    found = []
    for number in range(rounds):
        names = list(contestants)[:: 1 if number % 2 else -1]
        found.append({name: rate(contestants[name], seconds, images) for name in names})
    return found


def rate(augment: Callable[[], None], seconds: float, images: int) -> float:
    calls, started = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() < started + seconds:
        augment()
        calls += 1
    return calls * images / (time.perf_counter() - started)


def spread(values: list[float], digits: int = 0) -> str:
    """Median, lowest and highest."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
