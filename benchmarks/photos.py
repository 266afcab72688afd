"""How fast photos become training images, beside what others do. Prints Markdown tables; --json writes all numbers.

    python benchmarks/photos.py --data_dir FLOWERS             # about four minutes
    python benchmarks/photos.py --data_dir FLOWERS --quick     # shows that it works

FLOWERS is an image folder with train/<class>/*.jpg. Some of its photos are taken as they are, and scaled up until their
shorter side has 500 and 2,000 pixels (JPEG quality 85).

- speed: decode, random resized crop to 160 or 224 pixels, horizontal flip, normalised float32 batch; images per second
  of CPU time on one thread, files in the page cache. All candidates take turns in short rounds, in one process.
- fidelity: what decoding at 1/2, 1/4 or 1/8 costs: mean absolute difference of the crops to those of exact_decode.
- training: EfficientNet-lite0 from disk by one loader process, beside the same from batches that lie in memory.
- memory: of a loader process that visits 200,000 files again and again.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.augment import ImagePipeline  # first: importing albumentations would ask the package index otherwise

# isort: split
import albumentations as A
import cv2
import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import io
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from data import jpeg
from data.augment.augmentation import image_stream
from data.augment.flip import HorizontalFlip
from data.augment.resized_crop import ResizedCrop
from data.files import ImageFiles
from data.images import Images
from data.jpeg import reduced
from data.loaders import Steps, TrainLoader
from data.photo import reduction_for
from data.photo_cache import cached_photos
from data.preprocessing import square, to_input
from data.splits import Split
from models import create_model
from utils.system.bf16 import emulates_bf16
from utils.system.runtime import keep_freed_memory
from utils.system.threads import available_cores

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32
SIDES = {224: None, 500: 500, 2000: 2000}  # of the photos, and what they are scaled up to
CACHE_SIDE = 448
LITE0 = "timm:tf_efficientnet_lite0"
PEERS = ("torchvision PIL + v2", "torchvision.io + v2", "timm", "albumentations + cv2")
QUICK = {"photos": 36, "sizes": [32], "rounds": 1, "seconds": 0.05, "training_size": 32, "paths": 300, "passes": 2}

Batches = Iterator[Tensor]


def main() -> int:
    settings = parse_arguments()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()  # as in training; it is faster for all candidates
    with tempfile.TemporaryDirectory(prefix="photos-") as name:
        folders = scaled_up(settings, Path(name))
        results: dict[str, Any] = {"machine": machine(), "settings": vars(settings)}
        results["speed"] = speed(settings, folders)
        print(speed_table(results["speed"]), flush=True)
        results["fidelity"] = fidelity(settings, folders)
        print(fidelity_table(results["fidelity"]), flush=True)
        results["training"] = training(settings, folders[500])
        print(training_line(results["training"]), flush=True)
        results["memory"] = memory(settings, folders[224], Path(name))
        print(memory_line(results["memory"]), flush=True)
    print(f"\n{results['machine']}")
    if settings.json:
        Path(settings.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="image folder with train/<class>/*.jpg")
    parser.add_argument("--photos", type=int, default=160, help="evenly spaced photos that are used")
    parser.add_argument("--sizes", type=int, nargs="+", default=[160, 224], help="sides of the result in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each candidate")
    parser.add_argument("--seconds", type=float, default=0.4, help="least CPU time of a turn")
    parser.add_argument("--training_size", type=int, default=160, help="image size of the training in pixels")
    parser.add_argument("--paths", type=int, default=200_000, help="files whose paths a loader process holds")
    parser.add_argument("--passes", type=int, default=3, help="visits of all these files")
    parser.add_argument("--json", help="file for all numbers")
    parser.add_argument("--quick", action="store_true", help="few photos, once: shows that it works")
    quick, _ = parser.parse_known_args()
    if quick.quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def machine() -> str:
    packages = ("torch", "torchvision", "pillow", "opencv-python-headless", "albumentations", "timm", "simplejpeg")
    versions = ", ".join(f"{name} {version(name)}" for name in packages if find_spec(MODULES.get(name, name)))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"{available_cores()} cores, {versions}; load average {load:.1f}"


MODULES = {"pillow": "PIL", "opencv-python-headless": "cv2"}


def scaled_up(settings: argparse.Namespace, folder: Path) -> dict[int, list[str]]:
    """Paths of the photos for each of SIDES, in class folders below `folder`."""
    source = Path(settings.data_dir) / "train"
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        sys.exit(f"data_dir: {source} holds no JPEG")
    chosen = [found[place] for place in np.linspace(0, len(found) - 1, settings.photos).astype(int)]
    paths = {}
    with ProcessPoolExecutor(available_cores()) as pool:
        for name, side in SIDES.items():
            targets = [folder / str(name) / path.parent.name / f"{place}.jpg" for place, path in enumerate(chosen)]
            for parent in {target.parent for target in targets}:
                parent.mkdir(parents=True)
            list(pool.map(scale_up, chosen, targets, itertools.repeat(side)))
            paths[name] = [str(target) for target in targets]
    return paths


def scale_up(source: Path, target: Path, side: int | None) -> None:
    if side is None:
        target.write_bytes(source.read_bytes())
        return
    with Image.open(source) as image:
        scale = side / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=85)


# -- speed ------------------------------------------------------------------------------------------------------------


def speed(settings: argparse.Namespace, folders: dict[int, list[str]]) -> dict[str, dict[str, list[float]]]:
    """Images per second of CPU time in each round, by "side size" and candidate."""
    results = {}
    for (side, paths), size in itertools.product(folders.items(), settings.sizes):
        candidates = all_candidates(paths, size)
        rates: dict[str, list[float]] = {name: [] for name in candidates}
        for batches in candidates.values():
            next(batches)  # warms up
        for number in range(settings.rounds):
            names = list(candidates) if number % 2 == 0 else list(candidates)[::-1]
            for name in names:
                rates[name].append(rate(candidates[name], settings.seconds))
        results[f"{side} {size}"] = rates
    return results


def rate(batches: Batches, seconds: float) -> float:
    images, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds or not images:
        images += len(next(batches))
    return images / spent


def all_candidates(paths: list[str], size: int) -> dict[str, Batches]:
    files = ImageFiles(paths, square(size))
    cached = cached_photos(files, Path(os.path.commonpath(paths)), CACHE_SIDE)
    candidates = {
        "suite": suite(files),
        "suite, without simplejpeg": without_simplejpeg(suite(files)),
        "suite, exact_decode": suite(files, exact=True),
        f"suite, cache_side {CACHE_SIDE}": suite(cached),
        PEERS[0]: peer(paths, partial(pil_v2, torchvision_transform(size, v2.ToImage()))),
        PEERS[1]: peer(paths, partial(io_v2, torchvision_transform(size))),
        PEERS[3]: peer(paths, partial(by_albumentations, albumentations_transform(size))),
    }
    if not jpeg._simplejpeg():
        del candidates["suite, without simplejpeg"]
    if find_spec("timm"):
        candidates[PEERS[2]] = timm_batches(paths, size)
    return candidates


def suite(images: Images, exact: bool = False) -> Batches:
    """Through the suite's own loader, in this process."""
    size = images[0].shape[0]
    pipeline = ImagePipeline([ResizedCrop(square(size), exact=exact), HorizontalFlip("alternating")])
    split = Split(images, np.zeros(len(images), np.int64))
    loader = TrainLoader(split, pipeline, Steps(len(images), BATCH, 0, 0, 1))
    mean, std = torch.tensor([MEAN, STD])
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            yield to_input(batch.images, mean, std)


def without_simplejpeg(batches: Batches) -> Batches:
    while True:
        with patch.object(jpeg, "_simplejpeg", lambda: None):
            batch = next(batches)
        yield batch


def peer(paths: list[str], load: Callable[[str], Tensor]) -> Batches:
    for places in batched_forever(len(paths)):
        yield torch.stack([load(paths[place]) for place in places])


def batched_forever(count: int) -> Iterator[np.ndarray]:
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(count)
        yield from (order[start : start + BATCH] for start in range(0, count, BATCH))


def torchvision_transform(size: int, *first: Any) -> Callable[[Any], Tensor]:
    """As in torchvision's references: tensors at once with decode_jpeg, at the end with PIL."""
    geometric = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    return v2.Compose([*geometric, *first, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def pil_v2(transform: Callable[[Any], Tensor], path: str) -> Tensor:
    return transform(default_loader(path))  # ImageFolder's


def io_v2(transform: Callable[[Any], Tensor], path: str) -> Tensor:
    return transform(io.decode_jpeg(io.read_file(path), io.ImageReadMode.RGB))


def albumentations_transform(size: int) -> Callable[..., dict[str, Any]]:
    return A.Compose([A.RandomResizedCrop((size, size)), A.HorizontalFlip(), A.Normalize(MEAN, STD), A.ToTensorV2()])


def by_albumentations(transform: Callable[..., dict[str, Any]], path: str) -> Tensor:
    return transform(image=cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))["image"]


def timm_batches(paths: list[str], size: int) -> Batches:
    """timm's transforms and fast collate; its prefetcher normalises the batch."""
    from timm.data import create_transform
    from timm.data.loader import fast_collate

    transform = create_transform(
        size, is_training=True, use_prefetcher=True, color_jitter=None, interpolation="bilinear"
    )
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    for places in batched_forever(len(paths)):
        images, _ = fast_collate([(transform(default_loader(paths[place])), 0) for place in places])
        yield images.float().sub_(mean).div_(std)


def speed_table(results: dict[str, dict[str, list[float]]]) -> str:
    """Medians with the lowest and the highest of the rounds, and the suite's ratio to the fastest of the others."""
    names = [*dict.fromkeys(itertools.chain(*results.values()))]
    rows = {name: [cell(rates[name]) for rates in results.values()] for name in names}
    rows["suite / fastest of the others"] = [f"{ratio(rates):.2f}" for rates in results.values()]
    cached = f"suite, cache_side {CACHE_SIDE}"
    rows[f"the same with cache_side {CACHE_SIDE}"] = [f"{ratio(rates, cached):.2f}" for rates in results.values()]
    titles = [f"{key.split()[0]} px to {key.split()[1]}" for key in results]
    return markdown(["images/s a core", *titles], [[name, *cells] for name, cells in rows.items()])


def cell(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def ratio(rates: dict[str, list[float]], name: str = "suite") -> float:
    best = max(statistics.median(rates[peer]) for peer in PEERS if peer in rates)
    return statistics.median(rates[name]) / best


def markdown(titles: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(["", *("| " + " | ".join(row) + " |" for row in [titles, ["---"] * len(titles), *rows])])


# -- fidelity ---------------------------------------------------------------------------------------------------------


def fidelity(settings: argparse.Namespace, folders: dict[int, list[str]]) -> dict[str, dict[str, float]]:
    """Of all crops of one epoch: the share that is decoded at a fraction of the size, the mean absolute difference to
    exact decoding in levels (of 255), and the same to the exact crop with equally rounded edges."""
    results = {}
    for (side, paths), size in itertools.product(folders.items(), settings.sizes):
        crop, files = ResizedCrop(square(size)), ImageFiles(paths, square(size))
        smaller, differences, differences_inside = 0, [], []
        for place, photo in enumerate(files.photos(range(len(paths)))):
            box = crop.draw_box(image_stream(0, 0, place, *crop.streams), photo.height, photo.width)
            step = reduction_for(box, (size, size))
            if step == 1:
                differences.append(0.0)
                differences_inside.append(0.0)
                continue
            smaller += 1
            rounded = [[step * edge for edge in reduced(box[axis], box[axis + 2], step)] for axis in (0, 1)]
            (top, bottom), (left, right) = rounded
            bottom, right = min(bottom, photo.height), min(right, photo.width)
            mine, exact, inside = (
                photo.cut(part, (size, size), Image.Resampling.BILINEAR, exact).astype(np.float32)
                for part, exact in ((box, False), (box, True), ((top, left, bottom - top, right - left), True))
            )
            differences.append(float(np.abs(mine - exact).mean()))
            differences_inside.append(float(np.abs(mine - inside).mean()))
        results[f"{side} {size}"] = {
            "share": smaller / len(paths),
            "difference": statistics.mean(differences),
            "difference_with_rounded_edges": statistics.mean(differences_inside),
        }
    return results


def fidelity_table(results: dict[str, dict[str, float]]) -> str:
    titles = ["photos", "crop", "decoded at a fraction", "difference in levels", "of which not by rounded edges"]
    return markdown(
        titles,
        (
            [
                f"{key.split()[0]} px",
                f"{key.split()[1]} px",
                f"{found['share']:.0%}",
                f"{found['difference']:.2f}",
                f"{found['difference_with_rounded_edges']:.2f}",
            ]
            for key, found in results.items()
        ),
    )


# -- training ---------------------------------------------------------------------------------------------------------


def training(settings: argparse.Namespace, paths: list[str]) -> dict[str, Any]:
    """Images/s of a training on all cores but one, which the loader process has or which is idle: in each round from
    memory and from disk. Empty if there is only one core, or no timm."""
    cores, size = available_cores(), settings.training_size
    if cores == 1 or not find_spec("timm"):
        return {}
    torch.set_num_threads(cores - 1)
    files = ImageFiles(paths, square(size))
    pipeline = ImagePipeline([ResizedCrop(square(size)), HorizontalFlip("alternating")])
    loader = TrainLoader(Split(files, np.zeros(len(files), np.int64)), pipeline, Steps(len(files), BATCH, 0, 0, 1), 1)
    from_disk = (batch.images for epoch in itertools.count() for batch in loader.epoch(epoch))
    from_memory = itertools.cycle([next(from_disk) for _ in range(3)])
    model = create_model(LITE0, 10).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = partial(train_step, model, optimizer, not emulates_bf16(torch.device("cpu")))
    rates: dict[str, list[float]] = {"memory": [], "disk": []}
    for number in range(settings.rounds + 1):
        for name, batches in (("memory", from_memory), ("disk", from_disk)):
            images, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < 10 * settings.seconds or not images:
                images += step(next(batches))
            if number:  # the first round warms up
                rates[name].append(images / spent)
    torch.set_num_threads(1)
    ratios = [disk / memory for disk, memory in zip(rates["disk"], rates["memory"], strict=True)]
    return {"threads": cores - 1, "size": size, **rates, "ratios": ratios}


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, bf16: bool, images: Tensor) -> int:
    mean, std = torch.tensor([MEAN, STD])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(to_input(images, mean, std))
    F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.int64)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return len(images)


def training_line(results: dict[str, Any]) -> str:
    if not results:
        return "\ntraining: needs two cores and timm"
    return (
        f"\ntraining lite0 at {results['size']} pixels on photos of 500, threads {results['threads']} and a loader "
        f"process: {cell(results['disk'])} images/s from disk, {cell(results['memory'])} from memory; ratio "
        f"{statistics.median(results['ratios']):.3f} ({min(results['ratios']):.3f} to {max(results['ratios']):.3f})"
    )


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(settings: argparse.Namespace, paths: list[str], folder: Path) -> dict[str, Any]:
    """MiB of the loader process after each pass over many small files: resident, and what it shares with no other."""
    names = small_files(folder, paths[0], settings.paths)
    files = ImageFiles(names, square(16))
    del names
    pipeline = ImagePipeline([ResizedCrop(square(16))])
    loader = TrainLoader(Split(files, np.zeros(len(files), np.int64)), pipeline, Steps(len(files), 256, 0, 0, 1), 1)
    known = {child.pid for child in psutil.Process().children()}
    resident, unshared = [], []
    for epoch in range(settings.passes):
        for _ in loader.epoch(epoch):
            pass
        (worker,) = (child for child in psutil.Process().children() if child.pid not in known)
        held = worker.memory_full_info()
        resident.append(held.rss / 2**20)
        unshared.append(held.uss / 2**20)
    return {"paths": settings.paths, "resident": resident, "unshared": unshared}


def small_files(folder: Path, photo: str, count: int) -> list[Path]:
    """Files that are the photo at 16 pixels, a thousand links to each: file systems limit their number."""
    names = [folder / f"{number // 1000:04}" / f"photo-{number:08}.jpg" for number in range(count)]
    with Image.open(photo) as image:
        small = image.resize((16, 16))
    for number, name in enumerate(names):
        if number % 1000 == 0:
            name.parent.mkdir()
            small.save(name)
        else:
            os.link(names[number - number % 1000], name)
    return names


def memory_line(results: dict[str, Any]) -> str:
    resident, unshared = (", ".join(f"{value:.0f}" for value in results[name]) for name in ("resident", "unshared"))
    return (
        f"\na loader process after each pass over {results['paths']:,} files: {resident} MiB resident, "
        f"{unshared} MiB of them not shared"
    )


if __name__ == "__main__":
    sys.exit(main())
