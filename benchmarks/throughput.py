"""How fast the suite trains, beside the same work without it. Prints a table, and writes all numbers with --json.

    python benchmarks/throughput.py                                            # digits at 32 pixels, no download
    python benchmarks/throughput.py --dataset cifar10 --json throughput.json   # on a GPU: the digits are too few there
    python benchmarks/throughput.py --peer /tmp/pytorch-cifar                  # beside kuangliu/pytorch-cifar as well

What is compared takes turns, in short rounds whose order alternates, since a machine's speed drifts: a ratio is taken
within a round, and reported as the median over the rounds with the lowest and the highest. About ten minutes on two
CPU cores; every measurement starts a process of its own and is over in a bounded time.

- bare: ResNet-18, forward, loss, backward and optimizer step on one batch that lies in memory, in the precision, memory
  layout and machine settings of the suite, and nothing else.
- tensor_1, albumentations_2, ...: the suite's training loop through `accelerate launch`, by augmentation backend and
  number of processes (on a CPU they share the cores), read from its metrics.jsonl.
- matrix_product: FLOP/s of one large matrix product in the same precision: what the machine can do.
- peer: the training loop of pytorch-cifar's main.py as it is (batch 128, fp32); see peer_cifar.py.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from data.augment import BatchPipeline, ImagePipeline, create_augmentations
from data.loaders import DeviceLoader, EvaluationLoader, Steps, TrainLoader
from data.preprocessing import to_input
from data.sources import download, load_dataset
from data.splits import Dataset
from models import create_model
from utils.config import TrainConfig
from utils.evaluation.predict import predict
from utils.system.errors import SuiteError, UserError
from utils.system.runtime import create_accelerator, describe_environment, keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("tensor", "albumentations")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
PEER_BATCH, PEER_SIZE = 128, 32  # main.py's
SPREAD = ("median", "low", "high")
FEWEST = 2  # windows of a measurement, however long they take
LIMIT = 300.0  # seconds after which a process that has not given its numbers is given up
QUICK = {"image_size": 8, "width": 16, "batch_size": 64, "rounds": 1, "seconds": 0.5, "evaluation_images": 400}


def main() -> int:
    started = time.perf_counter()
    settings = parse_arguments()
    try:
        machine = fresh(describe_machine, settings)
        complete(settings, machine)
    except SuiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    flops = flops_per_image(settings)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounds = take_turns(contestants(settings, folder), settings.rounds, failures)
        measured = {
            "augmentation_alone": attempt("augmentation", lambda: fresh(augmentation_alone, settings), failures),
            "evaluation": attempt("evaluation", lambda: fresh(evaluation, settings), failures),
            "start_up": attempt("start-up", lambda: start_up(settings, folder), failures),
            "memory": attempt("memory", lambda: memory(settings, folder), failures),
        }
    results = {
        "machine": machine,
        "settings": vars(settings),
        "rates": {
            name: {**spread(list(itertools.chain(*turns))), "rounds": turns} for name, turns in by_name(rounds).items()
        },
        "flops_per_image": flops,
        "ratios": {name: {**spread(values), "rounds": values} for name, values in ratios(settings, rounds, flops)},
        **measured,
        "failures": failures,
        "seconds": time.perf_counter() - started,
    }
    print(table(results))
    if settings.json:
        Path(settings.json).write_text(json.dumps(results, indent=1) + "\n")
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="as for train_accelerate.py")
    parser.add_argument("--data_dir", default="datasets", help="its folder")
    parser.add_argument("--image_size", type=int, default=32, help="pixels; of imagefolder and digits")
    parser.add_argument("--width", type=int, default=64, help="of ResNet-18: channels of the first stage")
    parser.add_argument("--batch_size", type=int, default=512, help="images per step, over all processes")
    parser.add_argument("--precision", choices=DTYPES, default="bf16", help="no: fp32")
    parser.add_argument(
        "--processes", type=int, nargs="+", help="counts to train with; unset: 1, and 2 with two GPUs or CPU cores"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=10.0, help="least time of a turn, after its warm-up")
    parser.add_argument("--evaluation_images", type=int, default=10_000, help="images of the evaluation pass")
    parser.add_argument("--peer", help="folder of a checkout of kuangliu/pytorch-cifar, timed as well")
    parser.add_argument("--json", help="file for all numbers")
    parser.add_argument("--quick", action="store_true", help="a small model for a few seconds: shows that it works")
    quick, _ = parser.parse_known_args()
    if quick.quick:
        parser.set_defaults(**QUICK)
    settings = parser.parse_args()
    if settings.peer and settings.image_size != PEER_SIZE:
        parser.error(f"--peer works on images of {PEER_SIZE} pixels only")
    return settings


def complete(settings: argparse.Namespace, machine: dict[str, Any]) -> None:
    """Puts in what depends on the machine and the data: precision, processes, images of a window.

    Raises UserError where the data set has not even one whole batch.
    """
    settings.precision, settings.on_gpu = machine["mixed_precision"], machine["device"] != "cpu"
    settings.image_size, settings.train_images = machine.pop("image_size"), machine.pop("train_images")
    if settings.batch_size > settings.train_images:
        raise UserError(f"batch_size: {settings.batch_size} is more than the {settings.train_images} training images")
    if settings.processes is None:
        units = torch.accelerator.device_count() if settings.on_gpu else machine["cores"]
        settings.processes = [1, 2] if units >= 2 else [1]
    # A window ends with a look at the loss, for which a GPU must be waited for: rarely enough not to matter.
    settings.window_images = (20 if settings.on_gpu else 1) * settings.batch_size


def describe_machine(settings: argparse.Namespace) -> dict[str, Any]:
    """Hardware and versions, and the size and number of the training images, which are downloaded if need be."""
    environment = describe_environment(create_accelerator(default_precision=settings.precision))
    download(settings.dataset, settings.data_dir)
    data = load(settings)
    return {**environment, "image_size": data.geometry.size[0], "train_images": len(data.train)}


def load(settings: argparse.Namespace) -> Dataset:
    return load_dataset(settings.dataset, settings.data_dir, settings.image_size)


# -- rounds -----------------------------------------------------------------------------------------------------------


def contestants(settings: argparse.Namespace, folder: Path) -> dict[str, Callable[[], list[float]]]:
    """What takes turns; each returns its speed (images/s or FLOP/s) in several windows."""
    found: dict[str, Callable[[], list[float]]] = {
        "matrix_product": lambda: fresh(matrix_product, settings),
        "bare": lambda: fresh(bare_loop, settings),
    }
    for processes, backend in itertools.product(settings.processes, BACKENDS):
        found[f"{backend}_{processes}"] = partial(suite, settings, folder, backend, processes, settings.batch_size)
    if settings.peer:
        found["peer"] = lambda: peer(settings, folder)
        processes = settings.processes[0]
        found[f"tensor_{processes}_batch_{PEER_BATCH}"] = partial(
            suite, settings, folder, "tensor", processes, PEER_BATCH
        )
    return found


def take_turns(
    contestants: dict[str, Callable[[], list[float]]], rounds: int, failures: list[str]
) -> list[dict[str, list[float]]]:
    """The rates of each contestant in each round; every other round goes backwards."""
    found = []
    for number in range(rounds):
        names = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        turns: dict[str, list[float]] = {}
        for name in names:
            rates = attempt(f"round {number + 1}/{rounds}: {name}", contestants[name], failures)
            if rates:
                turns[name] = rates
        found.append(turns)
    return found


def attempt(name: str, measure: Callable[[], Any], failures: list[str]) -> Any:
    """What `measure` returns, or None and a line in `failures`: the other numbers are worth having without it."""
    started = time.perf_counter()
    try:
        return measure()
    except Exception as error:
        failures.append(f"{name}: {type(error).__name__}: {error}")
        print(failures[-1], file=sys.stderr)
        return None
    finally:
        print(f"{name} took {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)


def fresh(function: Callable[[argparse.Namespace], Any], settings: argparse.Namespace) -> Any:
    """`function(settings)` in a process of its own, so that memory, threads and GPU are free again afterwards."""
    with ProcessPoolExecutor(1, _context(settings)) as pool:
        return pool.submit(function, settings).result()


def _context(settings: argparse.Namespace) -> Any:
    """How processes are started; with --quick from a fork server, if the system has one."""
    if not settings.quick or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.throughput"])
    return context


def by_name(rounds: list[dict[str, list[float]]]) -> dict[str, list[list[float]]]:
    names = {name: None for turns in rounds for name in turns}
    return {name: [turns[name] for turns in rounds if name in turns] for name in names}


def ratios(
    settings: argparse.Namespace, rounds: list[dict[str, list[float]]], flops: float
) -> Iterator[tuple[str, list[float]]]:
    """Names and values, one for each round, of what is to be compared."""
    suite_name = f"tensor_{settings.processes[0]}"
    names = [f"{backend}_{processes}" for processes, backend in itertools.product(settings.processes, BACKENDS)]
    pairs = [(name, "bare", 1.0) for name in names]
    base, *more = settings.processes
    pairs += [(f"{backend}_{count}", f"{backend}_{base}", 1.0) for count, backend in itertools.product(more, BACKENDS)]
    pairs += [(name, "matrix_product", flops) for name in ("bare", suite_name)]
    pairs += [(name, "peer", 1.0) for name in (f"{suite_name}_batch_{PEER_BATCH}", suite_name)]
    for first, second, factor in pairs:
        values = [
            factor * statistics.median(turns[first]) / statistics.median(turns[second])
            for turns in rounds
            if first in turns and second in turns
        ]
        if values:
            yield f"{first}_over_{second}", values


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


# -- the same work without the suite ----------------------------------------------------------------------------------


def bare_loop(settings: argparse.Namespace) -> list[float]:
    """Images/s in each window of a loop that only computes."""
    accelerator = create_accelerator(default_precision=settings.precision)  # threads, allocator, cuDNN as in training
    device, dtype, size = accelerator.device, DTYPES[settings.precision], settings.image_size
    model = create_model("resnet18", 10, width=settings.width).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=device.type == "cuda"
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    inputs = torch.randn(settings.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (settings.batch_size,), device=device)

    def window(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        wait_for_device(device)

    steps = max(1, settings.window_images // settings.batch_size)
    return rates_of(partial(window, steps), steps * settings.batch_size, settings.seconds)


def matrix_product(settings: argparse.Namespace) -> list[float]:
    """FLOP/s of a large matrix product in the precision of the training: the best of five, a list of one."""
    device = create_accelerator(default_precision=settings.precision).device
    side, repeats = (512, 1) if settings.quick else (8192, 20) if settings.on_gpu else (4096, 1)
    left, right = torch.randn(2, side, side, device=device, dtype=DTYPES[settings.precision])

    def window() -> None:
        for _ in range(repeats):
            left @ right
        wait_for_device(device)

    return [max(rates_of(window, 2 * side**3 * repeats, 0.0, fewest=5))]


def rates_of(window: Callable[[], None], work: float, seconds: float, fewest: int = FEWEST) -> list[float]:
    """`work` per second in each of several calls of `window`, after one that does not count."""
    window()
    durations: list[float] = []
    while len(durations) < fewest or sum(durations) < seconds:
        started = time.perf_counter()
        window()
        durations.append(time.perf_counter() - started)
    return [work / duration for duration in durations]


def wait_for_device(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def flops_per_image(settings: argparse.Namespace) -> float:
    """Floating-point operations of a forward and backward pass, a multiplication and an addition counted as two."""
    model, count = create_model("resnet18", 10, width=settings.width), 2
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(count, 3, settings.image_size, settings.image_size)).sum().backward()
    return counter.get_total_flops() / count


# -- the suite --------------------------------------------------------------------------------------------------------


class Launch:
    """A training through `accelerate launch`, to be ended as soon as enough is known of it. A context manager."""

    def __init__(self, settings: argparse.Namespace, folder: Path, processes: int = 1, **options: Any):
        self.folder, self.log = folder / "run", folder / "run.log"
        self.pause = 0.2 if settings.quick else 1.0  # seconds between two looks
        shutil.rmtree(self.folder, ignore_errors=True)
        several = "multi_gpu" if settings.on_gpu else "multi_cpu"
        topology = "bf16" if processes == 1 else several
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", f"accelerate_configs/{topology}.yaml", "--mixed_precision", settings.precision]
        command += ["--num_processes", str(processes), "train_accelerate.py"]
        options = {**training_options(settings), "output_dir": self.folder, **options}
        self.started = time.perf_counter()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in options.items())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.end()

    def training_lines(self, enough: Callable[[list[dict]], bool], every: float | None = None) -> list[dict]:
        """The training lines of metrics.jsonl, as soon as they are enough; RuntimeError where they never are.

        Looks `every` so many seconds; unset: rarely, since each look takes time from the training.
        """
        while time.perf_counter() < self.started + LIMIT:
            lines = self._lines()
            if enough(lines):
                return lines
            if self.process.poll() is not None:
                raise RuntimeError(f"training ended early: {self.log.read_text()[-2000:]}")
            time.sleep(every or self.pause)
        raise RuntimeError(f"training gave too few lines within {LIMIT:.0f} s: {self.log.read_text()[-2000:]}")

    def _lines(self) -> list[dict]:
        try:
            text = (self.folder / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1].splitlines()  # the last one may be being written
        return [line for line in map(json.loads, whole) if line["split"] == "train"]

    def end(self) -> int:
        """Kills the training; returns the largest resident memory that one of its processes had, in bytes.

        The launcher lives until it has waited for them, and so its own resource usage includes theirs.
        """
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        last_resort = threading.Timer(30, self.process.kill)
        last_resort.start()
        _, status, usage = os.wait4(self.process.pid, 0)
        last_resort.cancel()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def training_options(settings: argparse.Namespace) -> dict[str, Any]:
    """The suite's defaults, but for the size of things and the optimizer, which is that of the bare loop."""
    return {
        "dataset": settings.dataset,
        "data_dir": Path(settings.data_dir).resolve(),
        "image_size": settings.image_size,
        "width": settings.width,
        "batch_size": settings.batch_size,
        "epochs": 10_000,
        "optimizer": "sgd",
        "trackers": "none",
    }


def suite(settings: argparse.Namespace, folder: Path, backend: str, processes: int, batch_size: int) -> list[float]:
    """Images/s in each window of the suite's training loop, without the first and those that an epoch's end cuts."""
    steps_per_epoch = settings.train_images // batch_size  # whole ones
    steps = max(1, min(settings.window_images // batch_size, steps_per_epoch))
    options = {"augment_backend": backend, "batch_size": batch_size, "log_every_steps": steps}

    def counted(lines: list[dict]) -> list[dict]:
        return [line for line in lines[1:] if line["images"] == steps * batch_size]

    def enough(lines: list[dict]) -> bool:
        spent = sum(line["images"] / line["images_per_second"] for line in counted(lines))
        return len(counted(lines)) >= FEWEST and spent >= settings.seconds

    with Launch(settings, folder, processes, **options) as launch:
        return [line["images_per_second"] for line in counted(launch.training_lines(enough))]


def start_up(settings: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds from `accelerate launch` to the begin and the end of the first step, the second time; and of --help."""
    for _ in range(1 if settings.quick else 2):  # the first may have the libraries and the data still to read from disk
        with Launch(settings, folder, batch_size=32, max_steps=1, log_every_steps=1) as launch:
            line = launch.training_lines(bool, every=0.02)[0]
            finished = time.perf_counter() - launch.started
    begun = finished - line["images"] / line["images_per_second"]
    command = partial(subprocess.run, [sys.executable, "train_accelerate.py", "--help"], cwd=ROOT, capture_output=True)
    help_rates = rates_of(partial(command, check=True), 1.0, 0.0, fewest=1 if settings.quick else 3)
    return {
        "first_step_begun_seconds": begun,
        "first_step_finished_seconds": finished,
        "help_seconds": 1 / statistics.median(help_rates),
    }


def memory(settings: argparse.Namespace, folder: Path) -> dict[str, int]:
    """The largest resident memory of a training process on a data set of CIFAR-10's size, bytes; and the GPU's."""
    train, test = (500, 100) if settings.quick else (50_000, 10_000)
    if settings.dataset == "digits":
        settings = argparse.Namespace(**vars(settings))
        settings.dataset, settings.data_dir, settings.train_images = "imagefolder", str(folder / "images"), train
        write_image_folder(folder / "images", {"train": train, "test": test}, settings.image_size)
    with Launch(settings, folder, log_every_steps=1) as launch:
        launch.training_lines(lambda lines: len(lines) >= 3)
        found = {"peak_resident_bytes": launch.end()}
    if torch.cuda.is_available():
        found["peak_device_bytes"] = fresh(device_memory, settings)
    return {**found, "train_images": settings.train_images, "batch_size": settings.batch_size}


def write_image_folder(folder: Path, counts: dict[str, int], size: int) -> None:
    """Noise in ten classes. The files of a class are links to one: only how many there are and how large matters."""
    generator = np.random.default_rng(0)
    for split, label in itertools.product(counts, range(10)):
        place = folder / split / str(label)
        place.mkdir(parents=True)
        Image.fromarray(generator.integers(256, size=(size, size, 3), dtype=np.uint8)).save(place / "0.png")
        for index in range(1, counts[split] // 10):
            os.link(place / "0.png", place / f"{index}.png")


def device_memory(settings: argparse.Namespace) -> int:
    """The most memory that tensors took on the GPU in three steps and an evaluation, bytes."""
    from train_accelerate import main as train

    os.environ["ACCELERATE_MIXED_PRECISION"] = settings.precision
    with tempfile.TemporaryDirectory() as folder:
        options = {**training_options(settings), "data_dir": settings.data_dir, "trackers": ["none"]}
        train(TrainConfig(**options, output_dir=folder, max_steps=3))
    return torch.cuda.max_memory_allocated()


def evaluation(settings: argparse.Namespace) -> dict[str, float]:
    """Seconds of one pass over `evaluation_images` test images, repeated where the test split has fewer."""
    accelerator, data = create_accelerator(default_precision=settings.precision), load(settings)
    model = create_model("resnet18", len(data.class_names), width=settings.width)
    model = accelerator.prepare(model.to(accelerator.device, memory_format=torch.channels_last))
    mean, std = torch.tensor([data.mean, data.std], device=accelerator.device)

    def evaluate(count: int) -> float:
        split = data.test.subset(np.resize(np.arange(len(data.test)), count))
        started = time.perf_counter()
        predict(accelerator, model, EvaluationLoader(split), lambda images: to_input(images, mean, std))
        return time.perf_counter() - started

    evaluate(min(500, settings.evaluation_images))
    seconds = evaluate(settings.evaluation_images)
    return {
        "images": settings.evaluation_images,
        "seconds": seconds,
        "images_per_second": settings.evaluation_images / seconds,
    }


# -- augmentation alone -----------------------------------------------------------------------------------------------


def augmentation_alone(settings: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Images/s on one CPU thread, from uint8 arrays to a normalised batch: pad and crop, flip, CutOut, normalise."""
    torch.set_num_threads(1)
    keep_freed_memory()
    data = load(settings)
    mean, std = torch.tensor([data.mean, data.std])
    size, steps = data.geometry.size[0], Steps(len(data.train), settings.batch_size, 0, 0, 1)
    config = TrainConfig(crop_padding=size // 8, horizontal_flip="random", cutout=size // 2)
    augmentations = create_augmentations(config, data.geometry, data.mean, data.std)
    loaders = {
        "tensor": DeviceLoader(data.train, BatchPipeline(augmentations), steps, torch.device("cpu")),
        "albumentations": TrainLoader(data.train, ImagePipeline(augmentations), steps),
    }
    batches = {name: inputs_of(loader, mean, std) for name, loader in loaders.items()}
    batches["torchvision_v2"] = torchvision_inputs(data, settings.batch_size)
    found: dict[str, list[float]] = {name: [] for name in batches}
    for _, name in itertools.product(range(settings.rounds), batches):
        found[name].append(drawing_rate(batches[name], settings.seconds / 5))
    return {name: spread(values) for name, values in found.items()}


def inputs_of(loader: DeviceLoader | TrainLoader, mean: Tensor, std: Tensor) -> Iterator[Tensor]:
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            yield to_input(batch.images, mean, std)


def torchvision_inputs(data: Dataset, batch_size: int) -> Iterator[Tensor]:
    """The same work by torchvision, image by image; RandomErasing keeps its square inside the image."""
    size = data.geometry.size[0]
    transform = v2.Compose(
        [
            v2.RandomCrop(size, padding=size // 8),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
            v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
        ]
    )
    positions = itertools.cycle(range(len(data.train)))
    while True:
        images = [data.train.images[position] for position in itertools.islice(positions, batch_size)]
        yield torch.stack([transform(Image.fromarray(image)) for image in images])


def drawing_rate(batches: Iterable[Tensor], seconds: float) -> float:
    """Images/s, after one batch that does not count."""
    batches = iter(batches)
    next(batches)
    images, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or not images:
        images += len(next(batches))
    return images / spent


# -- the peer ---------------------------------------------------------------------------------------------------------


def peer(settings: argparse.Namespace, folder: Path) -> list[float]:
    """Images/s in each step of pytorch-cifar's training loop, on one GPU where there are several."""
    result = folder / "peer.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "peer_cifar.py"), settings.peer, "--json", str(result)]
    command += ["--dataset", settings.dataset, "--data_dir", settings.data_dir, "--seconds", str(settings.seconds)]
    first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    done = subprocess.run(
        command,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": first_gpu},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
    )
    if done.returncode:
        raise RuntimeError(f"main.py ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(result.read_text())["images_per_second"]


# -- the table --------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """All results as text; what failed is missing."""
    machine, settings, rates = results["machine"], results["settings"], dict(results["rates"])
    product = rates.pop("matrix_product", None)
    lines = [
        f"ResNet-18 (width {settings['width']}) at {settings['image_size']} pixels, {settings['dataset']} "
        f"({settings['train_images']} images), batch {settings['batch_size']}, precision {settings['precision']}",
        f"{machine['device_name']}, {machine['cores']} cores, torch {machine['versions']['torch']}",
        *section("images/s", rates, "{:.1f}"),
        "",
        f"{'GFLOP per image':<40}{results['flops_per_image'] / 1e9:>14.2f}",
    ]
    if product:
        lines += section("GFLOP/s", {"matrix_product": {key: product[key] / 1e9 for key in SPREAD}}, "{:.0f}")
    lines += section("ratios, round by round", results["ratios"], "{:.3f}")
    if results["augmentation_alone"]:
        lines += section("augmentation, images/s on one CPU thread", results["augmentation_alone"], "{:.0f}")
    for name in ("evaluation", "start_up", "memory"):
        values = results[name] or {}
        form = {int: "{:,}".format, float: "{:.2f}".format}
        lines += ["", name, *(f"  {key:<38}{form[type(value)](value):>14}" for key, value in values.items())]
    if settings["on_gpu"] and settings["train_images"] < settings["window_images"]:
        lines += ["", "an epoch is over in less than a window: on a GPU take a larger --dataset"]
    lines += ["", *(f"FAILED {failure.splitlines()[0]}" for failure in results["failures"])]
    return "\n".join([*lines, f"{results['seconds']:.0f} s in all"])


def section(title: str, rows: dict[str, dict[str, Any]], form: str) -> list[str]:
    """A heading, and a line for each row with the median, the lowest and the highest of its values."""

    def line(name: str, cells: Iterable[str]) -> str:
        return f"{name:<40}" + "".join(f"{cell:>14}" for cell in cells)

    return [
        "",
        line(title, SPREAD),
        *(line(f"  {name}", (form.format(row[key]) for key in SPREAD)) for name, row in rows.items()),
    ]


if __name__ == "__main__":
    sys.exit(main())
