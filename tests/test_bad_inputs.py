"""What is wrong with an input ends in one line and exit code 2, or 1 where the environment is at fault, and leaves
every file as it was; what looks odd and is right works.

The one thing that a refused start may leave behind is the cache of decoded images, DATA_DIR/.decoded.
"""

import contextlib
import csv
import hashlib
import html
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as tree
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import analyze
import train_accelerate
from data.files import read_image
from data.preprocessing import square
from data.sources import load_dataset
from tests.conftest import ROOT
from tests.processes import run as run_processes
from tests.processes import train_script
from tests.test_checkpoint_files import Payload
from utils.config import AnalyzeConfig, TrainConfig, completion
from utils.config.consistency import without_effect
from utils.config.parser import parse_config, read_config
from utils.system.errors import run_script
from utils.training.micro_batch import smallest_piece

TINY = (
    "--dataset imagefolder --data_dir images --image_size 16 --width 16 --max_steps 1 --batch_size 4 --lr 0.1 "
    "--cutout 4 --trackers none --output_dir run"
)
TRAIN = TINY.split()
NOBODY = 65534
COUNTS = {"train": 4, "test": 2}  # images of each class


# -- the place where everything happens -------------------------------------------------------------------------------


def noise(seed: int, side: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8))


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), counts: dict[str, int] = COUNTS) -> Path:
    for split, count in counts.items():
        for place, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                noise(100 * place + index).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a finished run, the images that it was trained on and a recipe; nothing here ever changes."""
    root = tmp_path_factory.mktemp("place")
    image_folder(root / "images")
    (root / "recipe.yaml").write_text("epochs: 3\n")
    (root / "pipeline.yaml").write_text("transform: {__class_fullname__: Resize, height: 8, width: 8, p: 1.0}")
    (root / "large.yaml").write_text("transform: {__class_fullname__: RandomCrop, height: 64, width: 64, p: 1.0}")
    (root / "file").write_text("no folder")
    (root / "empty").mkdir()
    (root / "loop").symlink_to("loop")
    with changed_folder(root):
        train_accelerate.main(read_config(TrainConfig, TRAIN))
    (root / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(root / "run" / "model" / name, root / "model")
    shutil.copy(root / "run" / "model" / "model.safetensors", root / "plain.safetensors")
    torch.save({"model": Payload(root / "executed")}, root / "pickle.pth")
    return root


@contextlib.contextmanager
def changed_folder(path: Path):
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def inside(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("HF_TOKEN", raising=False)


DIGESTS: dict[tuple, str] = {}  # of files that have not changed since they were read


def digest(path: str) -> str:
    status = os.stat(path)
    state = (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if state not in DIGESTS:
        try:
            DIGESTS[state] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except PermissionError:
            return "unreadable"
    return DIGESTS[state]


def content(*roots: Path) -> dict[str, str]:
    """Everything below the folders: what files hold, where links lead."""
    found: dict[str, str] = {}
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name != ".decoded"]
            for name in folders + files:
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    found[path] = os.readlink(path)
                elif os.path.isfile(path):
                    found[path] = digest(path)
                else:
                    found[path] = "folder or pipe"
    return found


def refused(capsys, kind: type, argv: list[str], *words: str, code: int = 2, roots: tuple[Path, ...] = ()) -> str:
    """The line with which a start ends that must be refused; the folders are as they were before it."""
    roots = (Path.cwd(), *roots)
    before = content(*roots)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_script(main_of(kind), parse_config(kind, argv))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert end.value.code == code
    for word in words:
        assert word in lines[0]
    assert content(*roots) == before
    return lines[0]


def main_of(kind: type) -> Callable[[Any], Any]:
    return train_accelerate.main if kind is TrainConfig else analyze.main


def table(rows: list[tuple]) -> Any:
    """Rows (name, what is given, words of the line ...) as parameters named by their first entry."""
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize(("given", "words"), [(row[1], row[2:]) for row in rows], ids=names)


def words_of(given: str | list[str]) -> list[str]:
    return given.split() if isinstance(given, str) else given


# -- options ----------------------------------------------------------------------------------------------------------

WHOLE = "is not allowed; it must be a whole number at least 1"
OPTIONS = [
    # wrong types
    ("a word for a whole number", "--epochs x", f"epochs: 'x' {WHOLE}"),
    ("a fraction for a whole number", "--epochs 2.5", f"epochs: '2.5' {WHOLE}"),
    ("a whole number written as a fraction", "--epochs 3.0", f"epochs: '3.0' {WHOLE}"),
    ("a power of ten for a whole number", "--epochs 1e3", f"epochs: '1e3' {WHOLE}"),
    ("a hexadecimal number", "--epochs 0x10", f"epochs: '0x10' {WHOLE}"),
    ("a time, which YAML 1.1 takes for a number", "--epochs 1:30", f"epochs: '1:30' {WHOLE}"),
    ("a quoted number", "--epochs '3'", "epochs: ", "is not allowed"),
    ("a list for a number", "--epochs [3]", f"epochs: '[3]' {WHOLE}"),
    ("a mapping for a number", "--epochs {a:3}", f"epochs: '{{a:3}}' {WHOLE}"),
    ("true for a number", "--batch_size true", f"batch_size: 'true' {WHOLE}"),
    ("null for a number", "--batch_size null", f"batch_size: 'null' {WHOLE}"),
    ("a decimal comma", "--lr 0,1", "lr: '0,1' is not allowed; it must be a number greater than 0"),
    ("a percentage", "--validation_fraction 10%", "validation_fraction: '10%' is not allowed; it must be a number"),
    ("a word for a rate", "--lr fast", "lr: 'fast' is not allowed; it must be a number", "or auto"),
    ("auto in another case", "--lr Auto", "lr: 'Auto' is not allowed; did you mean auto?"),
    ("a word for a switch", "--compile maybe", "compile: 'maybe' is not allowed; it must be true or false"),
    ("a number for a switch", "--compile 1", "compile: '1' is not allowed; it must be true or false"),
    ("null for a switch", "--compile null", "compile: 'null' is not allowed; it must be true or false"),
    ("nothing for a switch", "--compile=", "compile: '' is not allowed; it must be true or false"),
    # no value, too many
    ("no value", "--epochs", "epochs: the value is missing; it must be a whole number"),
    ("an empty value", "--epochs=", f"epochs: '' {WHOLE}"),
    ("a value of spaces", ["--epochs", "  "], f"epochs: '  ' {WHOLE}"),
    ("two values", "--epochs 3 4", "4: unexpected argument"),
    ("a value with a line break", ["--epochs", "3\n4"], f"epochs: '3\\n4' {WHOLE}"),
    ("no file of options", "--config", "config: the value is missing"),
    # out of range
    ("zero", "--epochs 0", "epochs: 0 is not allowed; it must be at least 1"),
    ("negative zero", "--epochs -0", "epochs: 0 is not allowed; it must be at least 1"),
    ("a negative number", "--batch_size -3", "batch_size: -3 is not allowed; it must be at least 1"),
    ("a rate of zero", "--lr 0", "lr: 0.0 is not allowed; it must be greater than 0"),
    ("a rate of negative zero", "--lr -0.0", "lr: -0.0 is not allowed; it must be greater than 0"),
    ("a rate that underflows to zero", "--lr 1e-400", "lr: 0.0 is not allowed; it must be greater than 0"),
    ("a rate that overflows", "--lr 1e400", "lr: inf is not allowed; it must be a finite number"),
    ("a rate that torch could not multiply by", "--lr 1e300",
     "lr: 1e+300 is not allowed; it must be at most 1000000000"),
    ("not a number", "--lr nan", "lr: nan is not allowed; it must be a finite number"),
    ("infinity", "--weight_decay inf", "weight_decay: inf is not allowed; it must be a finite number"),
    ("minus infinity", "--weight_decay=-inf", "weight_decay: -inf is not allowed; it must be a finite number"),
    ("a thousand digits", f"--epochs 1{'0' * 1000}", "epochs: 1000", "...", "it must be at most 1000000000"),
    ("a thousand digits for a share", f"--momentum 1{'0' * 1000}", "momentum: inf is not allowed"),
    ("more digits than Python reads", f"--epochs {'9' * 5000}", "epochs: '999", "...", WHOLE),
    ("a negative weight decay", "--weight_decay -1", "weight_decay: -1.0 is not allowed; it must be at least 0"),
    ("a whole share", "--validation_fraction 1", "validation_fraction: 1.0 is not allowed", "at most 0.9"),
    ("a negative share", "--validation_fraction -0.1", "validation_fraction: -0.1 is not allowed", "at least 0"),
    ("momentum of 1", "--momentum 1", "momentum: 1.0 is not allowed", "at most 0.9999"),
    ("label smoothing of 1", "--label_smoothing 1", "label_smoothing: 1.0 is not allowed"),
    ("warm-up over more than the run", "--warmup_fraction 1.5", "warmup_fraction: 1.5 is not allowed"),
    ("an average that never moves", "--ema_decay 1", "ema_decay: 1.0 is not allowed"),
    ("no gradient left", "--grad_clip_norm 0", "grad_clip_norm: 0.0 is not allowed; it must be greater than 0"),
    ("more than all memory", "--memory_fraction 2", "memory_fraction: 2.0 is not allowed"),
    ("a mix without end", "--mixup 1e6", "mixup: 1000000.0 is not allowed", "at most 1000"),
    ("a mix that cannot be drawn", "--cutmix 0.001", "cutmix: 0.001 is not allowed", "0 (off) or at least 0.01"),
    ("a negative mix", "--cutmix -1", "cutmix: -1.0 is not allowed"),
    ("a bias that learns backwards", "--norm_bias_lr_factor -1", "norm_bias_lr_factor: -1.0 is not allowed"),
    ("a bias of which decay overflows", "--norm_bias_lr_factor 1e-300", "norm_bias_lr_factor: 1e-300 is not allowed"),
    ("images of four pixels", "--image_size 4", "image_size: 4 is not allowed; it must be at least 8"),
    ("images of a million pixels a side", "--image_size 1000000", "image_size: 1000000 is not allowed", "4096"),
    ("a network too narrow", "--width 8", "width: 8 is not allowed; it must be at least 16"),
    ("a network too wide", "--width 100000", "width: 100000 is not allowed", "at most 4096"),
    ("fewer than no workers", "--num_workers -1", "num_workers: -1 is not allowed"),
    ("workers that would choke the machine", "--num_workers 100000", "num_workers: 100000 is not allowed", "256"),
    ("a negative seed", "--seed -1", "seed: -1 is not allowed"),
    ("a seed of 33 bits", f"--seed {2**32}", f"seed: {2**32} is not allowed"),
    ("no steps", "--max_steps 0", "max_steps: 0 is not allowed"),
    ("empty parts of a batch", "--micro_batch_size 0", "micro_batch_size: 0 is not allowed"),
    ("no checkpoint kept", "--keep_checkpoints 0", "keep_checkpoints: 0 is not allowed"),
    ("a checkpoint every no steps", "--checkpoint_every_steps 0", "checkpoint_every_steps: 0 is not allowed"),
    ("no patience for a peer", "--peer_timeout 0", "peer_timeout: 0 is not allowed"),
    ("lookahead of no steps", "--lookahead_steps 0", "lookahead_steps: 0 is not allowed"),
    ("slow weights that grow", "--lookahead_decay 1.1", "lookahead_decay: 1.1 is not allowed"),
    # one of several names
    ("a mistyped optimizer", "--optimizer sdg", "optimizer: 'sdg' is not allowed; did you mean sgd?"),
    ("an optimizer in capitals", "--optimizer SGD", "optimizer: 'SGD' is not allowed; did you mean sgd?"),
    ("an unknown data set", "--dataset mnist", "dataset: 'mnist' is not allowed", "cifar10, cifar100, digits"),
    ("two data sets", "--dataset cifar10,digits", "dataset: 'cifar10,digits' is not allowed"),
    ("an unknown schedule", "--schedule polynomial", "schedule: 'polynomial' is not allowed"),
    ("an unknown norm layer", "--norm layer", "norm: 'layer' is not allowed"),
    ("null for a name", "--tta null", "tta: 'null' is not allowed"),
    ("an unknown tracker", "--trackers mlflow", "trackers: 'mlflow' is not allowed"),
    ("a mistyped tracker", "--trackers wandb,tensorbord", "'tensorbord' is not allowed; did you mean tensorboard?"),
    ("a tracker twice", "--trackers wandb,wandb", "trackers: ['wandb', 'wandb'] is not allowed"),
    ("a tracker and none", "--trackers none,wandb", "trackers: none,wandb is not allowed; none cannot be combined"),
    ("an empty list of trackers", "--trackers=", "trackers: [] is not allowed"),
    ("an unknown format", "--export tflite", "export: 'tflite' is not allowed", "one of onnx, torch"),
    ("an unknown model", "--model resnet19", "model: 'resnet19' is not allowed", "did you mean resnet18?"),
    ("a path for a model", "--model ../../etc/passwd", "model: '../../etc/passwd' is not allowed"),
    ("a model of timm without a name", "--model timm: --width 64", "model: 'timm:' is not allowed"),
    # text
    ("an empty folder name", "--output_dir=", "output_dir: '' is not allowed; it must not be empty"),
    ("a folder name of spaces", ["--output_dir", " \t"], "output_dir: ' \\t' is not allowed; it must not be empty"),
    ("an empty data folder", "--data_dir=", "data_dir: '' is not allowed; it must not be empty"),
    ("an empty run name", "--run_name=", "run_name: '' is not allowed; it must not be empty"),
    ("an empty model", "--model=", "model: '' is not allowed; it must not be empty"),
    ("a folder name with NUL", ["--output_dir", "a\0b"],
     "output_dir: 'a\\x00b' is not allowed; it must be text in UTF-8"),
    ("a folder name that is not UTF-8", ["--output_dir", "caf\udce9"], "output_dir: 'caf\\udce9' is not allowed"),
    ("a name of half a character", ["--run_name", "\ud83d"], "run_name: '\\ud83d' is not allowed"),
    ("a folder name like an option", "--output_dir --run", "output_dir: the value is missing"),
    ("a Hub name with a space", ["--push_to_hub", "user/my model"], "push_to_hub: 'user/my model' is not allowed"),
    # unknown options
    ("a mistyped option", "--epohcs 3", "epohcs: unknown option; did you mean epochs?"),
    ("an option in capitals", "--EPOCHS 3", "EPOCHS: unknown option; did you mean epochs?"),
    ("an option with dashes", "--batch-size 3", "batch-size: unknown option; did you mean batch_size?"),
    ("a shortened option", "--epoch 3", "epoch: unknown option; did you mean epochs?"),
    ("a negated switch", "--no-compile", "no-compile: unknown option; did you mean compile?"),
    ("an option of the launcher", "--mixed_precision bf16", "mixed_precision: unknown option"),
    ("an option of another program", "--zzz 3", "zzz: unknown option; --help lists them all"),
    ("a part of an option", "--epochs.x 3", "epochs.x: unknown option; did you mean epochs?"),
    ("an option with a line break", ["--epochs\n2", "3"], "epochs: unknown option"),
    ("an option that would colour the terminal", ["--\x1b[31mred", "3"], "\\x1b[31mred: unknown option"),
    ("one dash", "-epochs 3", "-epochs 3: unexpected argument; options are written --name value"),
    ("three dashes", "---epochs 3", "---epochs 3: unexpected argument"),
    ("no name", "--=3", "--=3: unexpected argument"),
    ("a bare word", "epochs=3", "epochs=3: unexpected argument"),
    ("an empty word", [""], "'': unexpected argument"),
    ("a value for --help", "--help=3", "--help", "3"),
    ("a value for --print_config", "--print_config=yes", "--print_config", "yes"),
    # options that contradict each other
    ("a plan that falls", "--resolution 24@0.5,16",
     "resolution: '24@0.5,16' is not allowed; it must be increasing sizes"),
    ("a plan without shares", "--resolution 8,16", "resolution: '8,16' is not allowed"),
    ("a plan beyond the end", "--resolution 8@2,16", "resolution: '8@2,16' is not allowed"),
    ("a plan that ends too early", "--resolution 8@0.5", "resolution: '8@0.5' is not allowed"),
    ("a plan from too few pixels on", "--resolution 4@0.5,16", "resolution: '4@0.5,16' is not allowed",
     "of at least 8 pixels"),
    ("a plan in words", "--resolution small@0.5,16", "resolution: 'small@0.5,16' is not allowed"),
    ("a plan with a hundred digits", f"--resolution {'9' * 100}", "resolution: '999", "is not allowed"),
    ("a plan for other images", "--resolution 8@0.5,12", "it must end at the image size, 16"),
    ("a plan of CIFAR's size for another", "--dataset cifar10 --resolution 8@0.5,16", "the image size, 32"),
    ("a policy without an operation", "--policy rand:0,9",
     "policy: 'rand:0,9' is not allowed; rand:N,M takes 1 to 10 operations"),
    ("a policy of another library", "--policy rand-m9-n2", "policy: 'rand-m9-n2' is not allowed; it must be none"),
    ("a table that nobody found", "--policy auto:cifar100", "'auto:cifar100' is not allowed; did you mean cifar10?"),
    ("a crop of nothing but padding", "--crop_padding 17", "crop_padding: 17 is not allowed; it must be at most",
     "(16)"),
    ("a mirror as large as the image", "--crop_padding 16 --padding_mode reflect", "it must be less than image_size"),
    ("a hole larger than the image", "--cutout 17", "cutout: 17 is not allowed; it must be at most image_size (16)"),
    ("a size of three numbers", "--image_size 16x16x16", "image_size: '16x16x16' is not allowed; it must be a whole",
     "or two of them as HEIGHTxWIDTH, such as 224x160"),
    ("a size of which one side is too small", "--image_size 16x4", "image_size: '16x4' is not allowed"),
    ("a size that CIFAR ignores", "--dataset cifar10 --image_size big", "image_size: 'big' is not allowed"),
    ("a fit of another name", "--fit letterbox", "fit: 'letterbox' is not allowed", "one of auto, crop, squash, pad"),
    ("a frozen backbone of random weights", "--freeze backbone", "freeze: backbone is not allowed without init_from"),
    ("a probe of random weights", "--head_init probe", "head_init: probe is not allowed without init_from"),
    ("nothing to train", "--init_from weights --freeze backbone --head_init random",
     "head_init: random is not allowed with freeze backbone, which would train nothing; use probe"),
    ("views without number", "--probe_views -1", "probe_views: -1 is not allowed; it must be at least 0"),
    ("a part of what pad keeps whole", "--fit pad --crop_pct 0.9", "crop_pct: 0.9 is not allowed with fit pad"),
    ("a part of nothing", "--crop_pct 0", "crop_pct: 0.0 is not allowed; it must be at least 0.1"),
    ("a crop without a pixel", "--crop resized --crop_scale 0", "crop_scale: 0.0 is not allowed; it must be at least"),
    ("a crop larger than the photo", "--crop resized --crop_scale 1.5", "crop_scale: 1.5 is not allowed", "at most 1"),
    ("a range from large to small", "--crop_scale 1,0.5", "crop_scale: [1.0, 0.5] is not allowed; it must be"),
    ("a range of three numbers", "--crop_scale 0.1,0.5,1", "crop_scale: [0.1, 0.5, 1.0] is not allowed"),
    ("a cache of photos that are too small", "--crop resized --cache_side 12", "cache_side: 12 is not allowed",
     "it must be at least 16"),
    ("a pipeline for whole batches", "--cutout 8 --augment_file pipeline.yaml --augment_backend tensor",
     "augment_backend: tensor is not allowed with augment_file"),
    ("a hole larger than CIFAR's images", "--dataset cifar10 --image_size 64 --cutout 40", "at most image_size (32)"),
]  # fmt: skip


@table(OPTIONS)
def test_a_wrong_option_is_refused(capsys, given, words):
    if "timm:" in given:
        pytest.importorskip("timm")
    refused(capsys, TrainConfig, [*TRAIN, *words_of(given)], *words)


# What is only found where the options meet the images, the run or the machine.
CONTRADICTIONS = [
    ("too few images for a validation split", "--validation_fraction 0.1 --output_dir new",
     "validation_fraction: 0.1 cannot be split"),
    ("images on the device that are not in memory", "--augment_backend tensor --memory_fraction 0 --output_dir new",
     "augment_backend: tensor needs the images in memory"),
    ("batch norm of one pixel of one image", "--image_size 8 --batch_size 1 --output_dir new",
     "batch_size: 1 leaves a step with a single image", "batch norm cannot learn at 8 pixels"),
    ("a last batch of one image", "--image_size 8 --batch_size 7 --output_dir new", "batch_size: 7 leaves a step"),
    ("parts of one image", "--image_size 8 --batch_size 8 --micro_batch_size 1 --output_dir new",
     "batch_size: 8 leaves"),
    ("a phase of one pixel", "--resolution 8@0.5,16 --batch_size 1 --output_dir new", "cannot learn at 8 pixels"),
    ("another rate than the run's", "--lr 0.2", "lr: 0.2 differs from 0.1 in", "choose another output_dir"),
    ("a pipeline of another size", "--cutout 8 --augment_file pipeline.yaml --output_dir new",
     "augment_file: an image of pipeline.yaml has 8x8 pixels, and image_size is 16x16; add a transform"),
    ("a crop larger than the photos", "--cutout 8 --augment_file large.yaml --output_dir new",
     "augment_file: large.yaml fails for an image of 20x20 pixels: "),
    ("a frozen epoch without weights", "--freeze_epochs 1 --output_dir new",
     "freeze_epochs: 1 is not allowed without init_from"),
    ("more frozen epochs than epochs", "--init_from model --epochs 2 --freeze_epochs 3 --output_dir new",
     "freeze_epochs: 3 is not allowed; it must be at most epochs (2)"),
    ("no groups to print", "--init_from model --freeze backbone --print_groups true --output_dir new",
     "print_groups: true is not allowed with freeze backbone"),
    ("layers that are not known",
     "--model timm:pit_ti_224 --width 64 --image_size 64 --layer_decay 0.5 --output_dir new",
     "layer_decay: 0.5 is not allowed with timm:pit_ti_224, whose layers are not known; use 1"),
    ("a layer decay of 0", "--layer_decay 0 --output_dir new", "layer_decay: 0", "is not allowed"),
    ("another model than the run's", "--model resnet34", "model: resnet34 differs from resnet18"),
    ("another fit than the run's", "--fit pad", "fit: pad differs from crop in", "choose another output_dir"),
    ("another shape than the run's", "--image_size 16x24", "image_size: 16x24 differs from 16 in"),
    ("another part than the run's", "--crop_pct 0.9", "crop_pct: 0.9 differs from 1.0 in"),
    ("another filter than the run's", "--interpolation lanczos", "interpolation: lanczos differs from bilinear in"),
    ("a padded size that a model does not take",
     "--model timm:vit_tiny_patch16_224 --width 64 --fit pad --image_size 37x64 --output_dir new",
     "image_size: 37x64 is not allowed with timm:vit_tiny_patch16_224"),
    ("other classes than the run's", "--dataset digits", "dataset: digits differs from imagefolder"),
    ("a folder that holds a run already", "--resume never", "resume: run already holds a run"),
    ("a checkpoint that is not there", "--resume run/checkpoints/step-9",
     "resume: run/checkpoints/step-9 is not allowed"),
    ("a file for a checkpoint", "--resume file", "resume: file is not allowed; it must be auto, never or a checkpoint"),
    ("a folder that is no checkpoint", "--resume empty --output_dir new", "resume: empty is not a valid checkpoint"),
    ("a checkpoint's name that is too long", f"--resume {'x' * 300}", "resume: xxx", "is not allowed"),
    ("timm's model with our width", "--model timm:resnet10t --width 32",
     "width: 32 is not allowed with timm:resnet10t"),
    ("an unknown model of timm", "--model timm:resnt18 --width 64",
     "timm has no resnt18; did you mean resnet18?"),
]  # fmt: skip


@table(CONTRADICTIONS)
def test_a_contradiction_is_refused(capsys, given, words):
    if "timm:" in given:
        pytest.importorskip("timm")
    refused(capsys, TrainConfig, [*TRAIN, *words_of(given)], *words)


# With the options of TRAIN, and another output_dir unless one is named.
START_WEIGHTS = [
    ("weights that are not there", "--init_from nowhere",
     "init_from: 'nowhere' is not allowed; there is no such file or folder; it must be pretrained, hf-hub:USER/NAME"),
    ("a mistyped word", "--init_from pretraind", "init_from: 'pretraind' is not allowed", "did you mean pretrained?"),
    ("a Hub name without its scheme", "--init_from timm/resnet18.a1_in1k",
     "did you mean hf-hub:timm/resnet18.a1_in1k?"),
    ("a Hub name of one part", "--init_from hf-hub:resnet18", "init_from: 'hf-hub:resnet18' is not allowed; it must"),
    ("timm's weights of no model", "--init_from pretrained", "init_from: pretrained needs --model timm:NAME"),
    ("torchvision's weights", "--init_from pretrained --model resnet18",
     "init_from: pretrained is not allowed with resnet18 (torchvision's weights do not fit its ResNets for small",
     "timm:resnet18"),
    ("weights that nobody has", "--init_from pretrained --model speednet", "it has no published weights"),
    ("timm's model without weights", "--init_from pretrained --model timm:resnet51q_x", "timm has no resnet51q_x"),
    ("a file that holds no weights", "--init_from recipe.yaml", "init_from: recipe.yaml is not allowed; a file of",
     ".safetensors, .pth"),
    ("a folder that holds no weights", "--init_from empty", "init_from: empty has no config.json"),
    ("a link to itself for weights", "--init_from loop", "init_from: 'loop' is not allowed; there is no such file"),
    ("too long a name of weights", f"--init_from {'x' * 300}", "init_from: 'xxx", "there is no such file"),
    ("weights that name no model", "--init_from plain.safetensors",
     "init_from: plain.safetensors does not say of which architecture it is; name it with --model"),
    ("weights of another model", "--init_from model --model resnet34",
     "init_from: model has weights of resnet18, not of resnet34; leave --model out"),
    ("weights under another model's name", "--init_from plain.safetensors --model resnet34",
     "init_from: plain.safetensors: the weights do not fit the model (", "is missing", "more)"),
    ("weights of another width", "--init_from model --width 32", "the weights of image_size 16 do not fit the model",
     "conv1.weight is 16x3x3x3, in the model 32x3x3x3"),
    ("a head of other classes", "--init_from model --keep_head true --dataset digits",
     "keep_head: the 10 classes of the data set are not the 2 of model", "leave keep_head out"),
    ("a pickle that would execute", "--init_from pickle.pth --model resnet18",
     "pickle.pth: not loaded, since", "could execute code"),
    ("weights for a run that has begun", "--init_from model --output_dir run",
     "init_from: model differs from random in", "start another run with --output_dir NEW"),
]  # fmt: skip


@table(START_WEIGHTS)
def test_wrong_start_weights_are_refused(capsys, place, given, words):
    if "timm:" in given:
        pytest.importorskip("timm")
    refused(capsys, TrainConfig, [*TRAIN, "--output_dir", "new", *words_of(given)], *words)
    assert not (place / "executed").exists()


WITHOUT_EFFECT = [
    ("a scale without its crop", "--crop_scale 0.5,1 --exact_decode true --cache_side 64",
     "crop_scale, exact_decode, cache_side without crop resized"),
    ("padding beside another crop", "--crop resized --crop_padding 8", "crop_padding without crop pad"),
    ("padding without a crop", "--crop none --crop_padding 8 --padding_mode reflect",
     "crop_padding without crop pad; padding_mode without crop pad and crop_padding"),
    ("a mode of no padding", "--crop_padding 0 --padding_mode reflect",
     "padding_mode without crop pad and crop_padding"),
    ("a mode of nothing erased", "--erase_mode constant", "erase_mode without erase"),
    ("sizes of a data set that has its own", "--dataset cifar10 --image_size 64 --fit squash --crop_pct 0.9",
     "image_size with cifar10, whose images have a size of their own; fit, crop_pct with cifar10, whose images have a "
     "size of their own, but for the photos of others"),
    ("distillation without a teacher", "--distill_alpha 0.7 --distill_temperature 4",
     "distill_alpha, distill_temperature without teacher"),
    ("a teacher without a share", "--teacher a --distill_alpha 0", "teacher with distill_alpha 0"),
    ("a teacher of a probe", "--init_from a --freeze backbone --teacher b",
     "teacher with freeze backbone, which trains no step"),
    ("steps beside a frozen backbone", "--init_from w --freeze backbone --lr 0.1 --warmup_fraction 0.2 --rotate 5",
     "lr, warmup_fraction with freeze backbone, which trains no step; rotate with freeze backbone and without "
     "probe_views"),
    ("views without a probe", "--init_from w --head_init random --probe_views 2",
     "probe_views without head_init probe"),
    ("an end without augmentation that rounds to none", "--epochs 4 --augment_until 0.9",
     "augment_until in so few epochs"),
]  # fmt: skip


@table(WITHOUT_EFFECT)
def test_options_without_effect_are_named_in_one_line(given, words):
    assert without_effect(read_config(TrainConfig, words_of(given))) == f"no effect: {words[0]}"


@pytest.mark.parametrize(
    "given",
    ["", "--crop resized --crop_scale 0.5,1 --crop_padding 0", "--dataset digits --image_size 64x32 --fit squash",
     "--erase 0.5 --erase_mode constant", "--augment_until 0.9", "--crop_padding 8 --padding_mode reflect",
     "--augment_file a.yaml --mixup 1 --augment_until 0.5", "--teacher a --distill_alpha 0.1 --distill_temperature 4"],
)  # fmt: skip
def test_options_that_have_an_effect_are_not_named(given):
    assert without_effect(read_config(TrainConfig, given.split())) == ""


def test_a_start_names_options_without_effect_once_and_trains(tmp_path):
    image_folder(tmp_path / "images")
    argv = [*TRAIN, "--data_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "run")]
    config = read_config(TrainConfig, [*argv, "--erase_mode", "constant", "--norm", "group"])
    assert run_processes(train_script, config, world_size=2, log=tmp_path / "log") == [0, 0]
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if "no effect" in line] == ["warning: no effect: erase_mode without erase"]


@pytest.mark.parametrize("more", [[], ["--crop", "resized"]], ids=["fitted", "photos"])
def test_a_photo_of_the_first_batch_that_cannot_be_read_is_told_before_anything_is_written(capsys, tmp_path, more):
    """In a folder that stays on disk; those beyond it are found when they are needed."""
    root = image_folder(tmp_path / "images", counts={"train": 2, "test": 2})
    argv = [*TRAIN, "--data_dir", str(root), "--output_dir", str(tmp_path / "new"), "--memory_fraction", "0", *more]
    data = load_dataset("imagefolder", root, 16, memory_fraction=0)  # their statistics are known already
    broken = Path(data.train.paths[1])
    status, content = broken.stat(), broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    line = refused(capsys, TrainConfig, argv, "is not a readable image", roots=(tmp_path,))
    assert broken.name in line


@pytest.mark.parametrize(
    ("package", "options", "line"),
    [
        ("onnx", "--export onnx", "export: onnx needs onnx"),
        ("trackio", "--trackers trackio", "trackers: trackio is not installed"),
        ("tensorboard", "--trackers tensorboard", "trackers: tensorboard is not installed"),
        ("timm", "--model timm:resnet18 --width 64", "model: timm:resnet18 needs timm"),
    ],
)
def test_a_package_that_is_missing_is_said_before_any_work(capsys, monkeypatch, package, options, line):
    monkeypatch.setitem(sys.modules, package, None)
    refused(capsys, TrainConfig, [*TRAIN, *options.split()], line)


# -- recipes ----------------------------------------------------------------------------------------------------------

DEEP = b"epochs: " + b"[" * 3000 + b"]" * 3000
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b",".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefghi"
)
RECIPES = [
    ("an empty recipe", b"", "contains no options"),
    ("nothing but a comment", b"# epochs: 3\n", "contains no options"),
    ("nothing but null", b"null\n", "contains no options"),
    ("a list", b"- epochs\n- 3\n", "contains no options"),
    ("a sentence", b"train for three epochs\n", "contains no options"),
    ("a number", b"3\n", "contains no options"),
    ("JSON that ends too early", b'{"epochs": 3', "is not a YAML file"),
    ("a tab for indentation", b"epochs:\n\t3\n", "is not a YAML file"),
    ("an option twice", b"epochs: 3\nlr: 0.1\nepochs: 4\n", "is not a YAML file (epochs is given more than once)"),
    ("two documents", b"epochs: 3\n---\nepochs: 4\n", "is not a YAML file"),
    ("Latin-1", "run_name: café\n".encode("latin-1"), "is not a YAML file"),
    ("UTF-16", "epochs: 3\n".encode("utf-16"), "is not a YAML file"),
    ("NUL", b"epochs: 3\0\n", "is not a YAML file"),
    ("a quote that does not end", b"run_name: 'x\n", "is not a YAML file"),
    ("an alias of nothing", b"epochs: *three\n", "is not a YAML file"),
    ("a tag that runs a program", b"epochs: !!python/object/apply:os.system [ls]\n", "is not a YAML file"),
    ("a tag that does not fit", b"compile: !!bool x\n", "is not a YAML file"),
    ("a time that is none", b"run_name: !!timestamp x\n", "is not a YAML file"),
    ("a date that is none", b"run_name: 2024-13-45\n", "is not a YAML file"),
    ("lists in lists without end", DEEP, "nested too deep"),
    ("aliases that would fill the memory", LAUGHS, "is a", "alias; write the value itself"),
    ("the safetensors of a model", bytes(range(256)) * 40, "is not a YAML file"),
    ("more than a recipe holds", b"# long\n" * 200_000, "has more than 100000 bytes"),
    ("null for a number", b"epochs: null\n", "epochs: null is not allowed; it must be a whole number"),
    ("an empty value", b"epochs:\n", "epochs: null is not allowed"),
    ("a list for a number", b"batch_size: [1, 2]\n", "batch_size: [1, 2] is not allowed; it must be a whole number"),
    ("a mapping for a number", b"batch_size: {a: 1}\n", "batch_size: {'a': 1} is not allowed"),
    ("true for a number", b"seed: true\n", "seed: true is not allowed; it must be a whole number"),
    ("yes for a number", b"seed: yes\n", "seed: true is not allowed"),
    ("a number for a switch", b"compile: 1\n", "compile: 1 is not allowed; it must be true or false"),
    ("a fraction for a whole number", b"epochs: 3.0\n", "epochs: 3.0 is not allowed; it must be a whole number"),
    ("a number for a name", b"run_name: 5\n", "run_name: 5 is not allowed; it must be text or null"),
    ("a date for a name", b"run_name: 2024-01-01\n", "run_name: datetime.date(2024, 1, 1) is not allowed"),
    ("a number among the tags", b"run_tags: [a, 5]\n", "run_tags: ['a', 5] is not allowed; it must be a list of texts"),
    ("a name out of range", b"optimizer: adam\n", "optimizer: 'adam' is not allowed; did you mean adamw?"),
    ("not a number", b"lr: .nan\n", "lr: nan is not allowed; it must be a finite number"),
    ("ten thousand hexadecimal digits", b"epochs: 0x" + b"f" * 10_000,
     "epochs: a number with thousands of digits"),
    ("an unknown option", b"batchsize: 3\n", "batchsize: unknown option; did you mean batch_size? (in"),
    ("a number for an option", b"5: 3\n", "5: unknown option"),
    ("options in a group", b"optimizer:\n  lr: 0.1\n", "optimizer: {'lr': 0.1} is not allowed"),
    ("another recipe", b"config: recipe.yaml\n", "config: unknown option"),
]  # fmt: skip


@table(RECIPES)
def test_a_wrong_recipe_is_refused(capsys, tmp_path, given, words):
    path = tmp_path / "bad recipe.yaml"
    path.write_bytes(given)
    refused(capsys, TrainConfig, ["--config", str(path)], *words, roots=(tmp_path,))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (b"\xef\xbb\xbfepochs: 7\n", "epochs", 7),
        (b"epochs: 7\r\nseed: 1\r\n", "epochs", 7),
        (b"lr: 1e-3\n", "lr", 0.001),
        (b"lr: 1\n", "lr", 1),
        ("run_name: 'chat noir é 犬 😀'\n".encode(), "run_name", "chat noir é 犬 😀"),
        (b"run_name: 'null'\n", "run_name", "null"),
        (b"run_name: null\n", "run_name", None),
        (b"trackers: wandb, tensorboard\n", "trackers", ["wandb", "tensorboard"]),
        (b'{"epochs": 7}', "epochs", 7),
    ],
    ids=["BOM", "CRLF", "power of ten", "whole rate", "unicode", "quoted null", "null", "list", "JSON"],
)
def test_a_recipe_that_looks_odd_is_read(tmp_path, text, name, value):
    (tmp_path / "odd.yaml").write_bytes(text)
    assert getattr(read_config(TrainConfig, ["--config", str(tmp_path / "odd.yaml")]), name) == value


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--epochs 3 --epochs 4", "epochs", 4),
        ("--run_name #1", "run_name", "#1"),
        ("--run_name null", "run_name", None),
        ("--output_dir=-", "output_dir", "-"),
        ("--output_dir=~/runs/x", "output_dir", os.path.expanduser("~/runs/x")),
        ("--run_name ~", "run_name", "~"),
        ("--compile True", "compile", True),
    ],
)
def test_an_option_that_looks_odd_is_taken_as_it_is(words, name, value):
    assert getattr(read_config(TrainConfig, words.split()), name) == value


# -- paths ------------------------------------------------------------------------------------------------------------

LONG = "x" * 300
PATHS = [
    ("a file for a run", "--output_dir file", "output_dir: file cannot be written to (Not a directory)"),
    ("a run below a file", "--output_dir file/run", "output_dir: file/run cannot be written to (Not a directory)"),
    ("a device for a run", "--output_dir /dev/full", "output_dir: /dev/full cannot be written to"),
    ("a run where nothing can be written", "--output_dir /proc/self/run",
     "output_dir: /proc/self/run cannot be written"),
    ("a run with too long a name", f"--output_dir {LONG}", "output_dir: xxx",
     "cannot be written to (File name too long)"),
    ("a link that leads nowhere for a run", "--output_dir nowhere", "output_dir: nowhere cannot be written to"),
    ("a link to itself for a run", "--output_dir loop", "output_dir: loop cannot be written to"),
    ("no data", "--data_dir missing", "data_dir: missing is not a folder"),
    ("a file for data", "--data_dir file", "data_dir: file is not a folder"),
    ("a device for data", "--data_dir /dev/null", "data_dir: /dev/null is not a folder"),
    ("data with too long a name", f"--data_dir {LONG}", "data_dir: xxx", "is not a folder"),
    ("a link to itself for data", "--data_dir loop", "data_dir: loop is not a folder"),
    ("an empty folder for data", "--data_dir empty", "data_dir: empty has no folder train/<class>/"),
    ("a class for data", "--data_dir images/train", "data_dir: images/train has no folder train/<class>/"),
    ("a file for CIFAR", "--dataset cifar10 --data_dir file --output_dir new", "data_dir: file is not a folder"),
    ("a line break in the name", ["--data_dir", "no\nwhere"], "data_dir: no where is not a folder"),
    ("a name that would colour the terminal", ["--data_dir", "\x1b[31m"], "data_dir: \\x1b[31m is not a folder"),
    ("no recipe", "--config missing.yaml", "config: missing.yaml is missing"),
    ("a mistyped recipe", "--config recip.yaml", "config: recip.yaml is missing; did you mean recipe.yaml?"),
    ("no name of a recipe", "--config=", "config: '' is missing"),
    ("a folder for a recipe", "--config images", "config: images is not a file"),
    ("a device for a recipe", "--config /dev/null", "config: /dev/null is not a file"),
    ("a recipe with too long a name", f"--config {LONG}", "config: xxx", "is missing"),
    ("a pipe for a recipe", "--config pipe", "config: pipe is not a file"),
    ("no pipeline", "--cutout 8 --augment_file missing.yaml",
     "augment_file: missing.yaml is missing; it must be a pipeline"),
    ("a folder for a pipeline", "--cutout 8 --augment_file images", "augment_file: images is not a file"),
    ("a device for a pipeline", "--cutout 8 --augment_file /dev/null", "augment_file: /dev/null is not a file"),
    ("a pipe for a pipeline", "--cutout 8 --augment_file pipe", "augment_file: pipe is not a file"),
    ("a link to itself for a pipeline", "--cutout 8 --augment_file loop", "augment_file: loop cannot be read"),
    ("a pipeline with too long a name", f"--cutout 8 --augment_file {LONG}", "augment_file: xxx", "cannot be read"),
    ("a recipe for a pipeline", "--cutout 8 --augment_file recipe.yaml",
     "augment_file: recipe.yaml: it has no entry `transform`"),
    ("no teacher", "--teacher missing", "teacher: missing is not a folder"),
    ("a teacher with a mistyped name", "--teacher modle", "teacher: modle is not a folder; did you mean model?"),
    ("an empty folder for a teacher", "--teacher empty", "teacher: empty is neither a run directory", "nor a model"),
    ("images for a teacher", "--teacher images", "teacher: images is neither a run directory", "nor a model"),
    ("a pipe for a teacher", "--teacher pipe", "teacher: pipe is not a folder"),
    ("a link to itself for a teacher", "--teacher loop", "teacher: loop is not a folder"),
    ("a teacher with too long a name", f"--teacher {LONG}", "teacher: xxx", "is not a folder"),
    ("ImageNet's weights for a teacher", "--teacher pretrained", "teacher: pretrained is not allowed; it does not"),
    ("a teacher in a run that began without", "--teacher run", "teacher: run (SHA-256 ", "(no teacher)"),
    ("a folder for a preview", "--preview_augment images", "preview_augment: images is not allowed; it must be a PNG"),
    ("no PNG file for a preview", "--preview_augment a.jpg", "preview_augment: a.jpg is not allowed; it must be a PNG"),
    ("a folder named as a PNG", "--preview_augment folder.png", "preview_augment: folder.png is not allowed"),
    ("a preview in no folder", "--preview_augment missing/a.png", "preview_augment: missing/a.png cannot be written"),
    ("a preview below a file", "--preview_augment file/a.png", "preview_augment: file/a.png cannot be written"),
    ("a preview with too long a name", f"--preview_augment {LONG}.png", "preview_augment: xxx", "cannot be written"),
]  # fmt: skip


@table(PATHS)
def test_a_wrong_path_is_refused(capsys, place, given, words):
    links = (place / "nowhere", lambda path: path.symlink_to("gone"))
    for path, make in (links, (place / "pipe", os.mkfifo), (place / "folder.png", Path.mkdir)):
        if not os.path.lexists(path):
            make(path)
    line = refused(capsys, TrainConfig, [*TRAIN, *words_of(given)], *words)
    assert len(line) < 1000


@contextlib.contextmanager
def without_rights():
    """As somebody who does not own the files: root may read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that everybody can reach, unlike pytest's own."""
    path = Path("/tmp") / f"bad-inputs-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    subprocess.run(["chmod", "-R", "u+rwx", str(path)], check=True)
    shutil.rmtree(path)


LOCKED = [
    ("a recipe that must not be read", "recipe.yaml", "config: ", "recipe.yaml cannot be read (Permission denied)"),
    ("a run in a folder that must not be written to", "out", "output_dir: ",
     "cannot be written to (Permission denied)"),
    ("images that must not be read", "images/test/cat/0.png", "is not a readable image ([Errno 13] Permission denied"),
    ("a class that must not be listed", "images/train/dog", "data_dir: ", "dog cannot be read (Permission denied)"),
]  # fmt: skip


@table(LOCKED)
def test_what_nobody_may_read_or_write_is_refused(capsys, open_folder, given, words):
    image_folder(open_folder / "images")
    (open_folder / "recipe.yaml").write_text("epochs: 1\n")
    (open_folder / "out").mkdir()
    (open_folder / "out").chmod(0o777)
    before = content(open_folder)
    (open_folder / given).chmod(0o555 if given == "out" else 0)
    argv = [*TRAIN, "--data_dir", str(open_folder / "images"), "--output_dir", str(open_folder / "out" / "run")]
    argv += ["--config", str(open_folder / "recipe.yaml")]
    os.chdir(open_folder)
    with without_rights():
        line = refused(capsys, TrainConfig, argv, *words)
    assert str(open_folder) in line
    (open_folder / given).chmod(0o755)
    assert content(open_folder) == before


def test_a_run_in_use_by_another_process_is_refused(capsys, place, tmp_path):
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    holder = (
        "import pathlib, sys; from utils.system.files import lock_folder; f = lock_folder(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", f"{holder}; print('held', flush=True); input()", str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        line = f"output_dir: {run} is in use by process {other.pid} on "
        refused(capsys, TrainConfig, [*TRAIN, "--output_dir", str(run)], line, roots=(tmp_path,))
        other.communicate(b"\n")


# -- folders of images ------------------------------------------------------------------------------------------------


def renamed(split: str, old: str, new: str | bytes) -> Callable[[Path], Any]:
    return lambda root: os.rename(root / split / old, os.path.join(os.fsencode(root / split), os.fsencode(new)))


def both_renamed(new: str | bytes) -> Callable[[Path], Any]:
    return lambda root: [renamed(split, "cat", new)(root) for split in COUNTS]


def emptied(folder: str) -> Callable[[Path], Any]:
    return lambda root: [path.unlink() for path in (root / folder).iterdir()]


def linked(folder: str, to: str) -> Callable[[Path], Any]:
    return lambda root: (shutil.rmtree(root / folder), (root / folder).symlink_to(to))


FOLDERS = [
    ("no training images", lambda root: shutil.rmtree(root / "train"), "has no folder train/<class>/"),
    ("no test images", lambda root: shutil.rmtree(root / "test"), "has neither a folder test/ nor val/"),
    ("a file for the training images", lambda root: (shutil.rmtree(root / "train"), (root / "train").touch()),
     "has no folder train/<class>/"),
    ("no classes", lambda root: [shutil.rmtree(path) for path in (root / "train").iterdir()],
     "train has no class folders"),
    ("no classes in the test images", lambda root: [shutil.rmtree(path) for path in (root / "test").iterdir()],
     "test has no class folders"),
    ("hidden classes alone", lambda root: [renamed("train", name, "." + name)(root) for name in ("cat", "dog")],
     "train has no class folders"),
    ("images without classes", lambda root: (shutil.rmtree(root / "train"), (root / "train").mkdir(),
     noise(0).save(root / "train" / "0.png")), "train has no class folders"),
    ("a class without images", emptied("train/dog"), "dog holds no image (looking for .jpeg, .jpg, .png, .webp)"),
    ("a class without test images", emptied("test/dog"), "test/dog holds no image"),
    ("a class of hidden images", lambda root: [path.rename(path.with_name("." + path.name))
     for path in list((root / "train" / "dog").iterdir())], "train/dog holds no image"),
    ("a class of other files", lambda root: [path.rename(path.with_suffix(".txt"))
     for path in list((root / "train" / "dog").iterdir())], "train/dog holds no image"),
    ("a class of folders", lambda root: shutil.move(root / "train/cat", root / "train/dog/cat")
     and emptied_files(root / "train/dog"), "holds no image"),
    ("a class that is not in the test images", lambda root: shutil.rmtree(root / "test" / "dog"),
     "class 'dog' has no folder in", "test"),
    ("a class that is only in the test images", lambda root: shutil.copytree(root / "test/dog", root / "test/fox"),
     "class 'fox' has no folder in", "train"),
    ("a class in another case", renamed("test", "cat", "Cat"), "class 'Cat' has no folder in"),
    ("a class in another Unicode form", lambda root: (renamed("train", "cat", "caf\u00e9")(root),
     renamed("test", "cat", "cafe\u0301")(root)), "class 'caf", "in another Unicode normal form (NFC, NFD)"),
    ("a class with a line break", both_renamed("two\nlines"),
     "has a class 'two\\nlines'; the name of a class may not contain control characters"),
    ("a class that would colour the terminal", both_renamed("\x1b[31mred"), "has a class '\\x1b[31mred'"),
    ("a class that is not UTF-8", both_renamed(b"caf\xe9"), "has a class 'caf\\udce9'"),
    ("a class that is a link to itself", linked("train/dog", "dog"), "class 'dog' has no folder in"),
    ("a class that is a link to nothing", linked("train/dog", "gone"), "class 'dog' has no folder in"),
    ("a class that is a link to all classes", linked("train/dog", "."), "train/dog holds no image"),
]  # fmt: skip


def emptied_files(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


@table(FOLDERS)
def test_a_wrong_image_folder_is_refused(capsys, tmp_path, given, words):
    root = image_folder(tmp_path / "images")
    given(root)
    argv = [*TRAIN, "--data_dir", str(root), "--output_dir", str(tmp_path / "new")]
    refused(capsys, TrainConfig, argv, f"data_dir: {root}" if words[0][:5] != "class" else "data_dir: ", *words,
            roots=(tmp_path,))  # fmt: skip


def test_a_split_that_leaves_no_training_image_of_a_class_is_refused(capsys, tmp_path):
    root = image_folder(tmp_path / "images", counts={"train": 2, "test": 1})
    for index in range(30):
        noise(index).save(root / "train" / "cat" / f"more{index}.png")
    line = "validation_fraction: 0.9 leaves no training image of class 'dog'"
    argv = [*TRAIN, "--data_dir", str(root), "--output_dir", "new", "--validation_fraction", "0.9"]
    refused(capsys, TrainConfig, argv, line, roots=(tmp_path,))


# -- files that are no images -----------------------------------------------------------------------------------------


def png_with(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it has so many pixels, grey, 8 bits each."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(kind: str, **options: Any) -> Callable[[Path], Any]:
    return lambda path: noise(3).save(path, kind, **options)


def cut(kind: str, share: float = 0.5) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        noise(3).save(path, kind)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def bytes_of(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def jpeg_bomb(path: Path) -> None:
    """A JPEG that says it has 65500 x 65500 pixels."""
    noise(3).save(path, "JPEG")
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    path.write_bytes(data)


def text_bomb(path: Path) -> None:
    """A PNG whose comment unpacks to 100 MB."""
    comment = PngImagePlugin.PngInfo()
    comment.add_text("comment", "x" * 100_000_000, zip=True)
    noise(3).save(path, "PNG", pnginfo=comment)


GIF_BOMB = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02"
NO_IMAGES = [
    ("no bytes", bytes_of(b""), ".png"),
    ("text", bytes_of(b"no image"), ".jpg"),
    ("a page", bytes_of(b"<!DOCTYPE html><h1>404 Not Found</h1>"), ".jpg"),
    ("a drawing", bytes_of(b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'), ".png"),
    ("a PNG of which half is missing", cut("PNG"), ".png"),
    ("a PNG of which little is missing", cut("PNG", 0.9), ".png"),
    ("a JPEG of which half is missing", cut("JPEG"), ".jpg"),
    ("a WebP of which half is missing", cut("WEBP"), ".webp"),
    ("a GIF of which half is missing", cut("GIF"), ".png"),
    ("a PNG's signature alone", bytes_of(b"\x89PNG\r\n\x1a\n"), ".png"),
    ("a PNG without pixels", bytes_of(png_with(0, 0)), ".png"),
    ("a PNG without content", bytes_of(png_with(8, 8)), ".png"),
    ("a PNG of 1.6 billion pixels", bytes_of(png_with(40_000, 40_000)), ".png"),
    ("a PNG of 1.6 billion pixels, packed", bytes_of(png_with(40_000, 40_000, zlib.compress(bytes(10**7)))), ".png"),
    ("a JPEG of 4.3 billion pixels", jpeg_bomb, ".jpg"),
    ("a GIF of 4.3 billion pixels", bytes_of(GIF_BOMB), ".png"),
    ("a comment of 100 million letters", text_bomb, ".png"),
    ("PostScript, which would start an interpreter", saved("EPS"), ".png"),
    ("an icon", saved("ICO"), ".png"),
    ("floating-point pixels", lambda path: Image.new("F", (8, 8), 0.5).save(path, "TIFF"), ".png"),
    ("an archive", bytes_of(b"PK\x03\x04" + bytes(100)), ".png"),
    ("a film", bytes_of(b"\0\0\0\x18ftypmp42" + bytes(100)), ".jpg"),
    ("a pipe", os.mkfifo, ".png"),
    ("a folder", Path.mkdir, ".png"),
    ("a link to nothing", lambda path: path.symlink_to("gone"), ".png"),
    ("a link to itself", lambda path: path.symlink_to(path.name), ".png"),
    ("a link to a device", lambda path: path.symlink_to("/dev/zero"), ".png"),
]


@table(NO_IMAGES)
def test_what_is_no_image_is_refused_in_little_memory(capsys, tmp_path, given, words):
    root = image_folder(tmp_path / "images")
    path = root / "train" / "cat" / f"odd{words[0]}"
    given(path)
    argv = [*TRAIN, "--data_dir", str(root), "--output_dir", str(tmp_path / "new")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(capsys, TrainConfig, argv, f"data_dir: {path} is not a readable image (", roots=(tmp_path,))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# -- images that look odd and are right -------------------------------------------------------------------------------

RED, BLUE = (255, 0, 0), (0, 0, 255)
RAMP = np.tile(np.linspace(0, 65535, 8).astype(np.uint16), (8, 1))
EIGHTHS = (RAMP // 257).astype(int)


def half(mode: str, **options: Any) -> Callable[[Path], Any]:
    """The upper half is transparent, and green where that is not looked at; the lower is red."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4], pixels[4:] = (0, 255, 0, 0), (*RED, 255)
    return lambda path: Image.fromarray(pixels).convert(mode).save(path, **options)


def frames(path: Path, **options: Any) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    first.save(path, save_all=True, append_images=[second], **options)


def sideways(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (8, 8), RED)
    picture.paste(BLUE, (0, 4, 8, 8))
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def deep(red: np.ndarray, green: np.ndarray, blue: np.ndarray, opacity: bool = False) -> Callable[[Path], Any]:
    """16 bits a channel, which Pillow does not write."""
    import cv2

    channels = [blue, green, red] + [np.full_like(red, 65535)] * opacity
    return lambda path: cv2.imwrite(str(path), np.stack(channels, -1))


def near(colour: Any, tolerance: int = 2) -> Callable[[np.ndarray], Any]:
    return lambda image: np.abs(image.astype(int) - np.asarray(colour)).max() <= tolerance


def on_white(image: np.ndarray) -> bool:
    return bool((image[:4] > 250).all() and near(RED)(image[4:]))


ODD_IMAGES = [
    ("one pixel", lambda path: Image.new("RGB", (1, 1), RED).save(path), "a.png", near(RED)),
    ("a line of 100,000 pixels", lambda path: Image.new("RGB", (100_000, 1), RED).save(path), "a.png", near(RED)),
    ("a column of 100,000 pixels", lambda path: Image.new("RGB", (1, 100_000), RED).save(path), "a.png", near(RED)),
    ("one bit", lambda path: Image.new("1", (8, 8), 1).save(path), "a.png", near(255)),
    ("grey", lambda path: Image.new("L", (8, 8), 77).save(path), "a.png", near(77)),
    ("a palette", lambda path: Image.new("RGB", (8, 8), RED).convert("P").save(path), "a.png", near(RED)),
    ("16-bit grey", lambda path: Image.fromarray(RAMP).save(path), "a.png", near(EIGHTHS[..., None], 1)),
    ("16-bit colour", deep(RAMP, RAMP * 0, RAMP), "a.png", near(np.stack([EIGHTHS, EIGHTHS * 0, EIGHTHS], -1), 1)),
    ("16 bits with opacity", deep(RAMP, RAMP * 0, RAMP, opacity=True), "a.png",
     near(np.stack([EIGHTHS, EIGHTHS * 0, EIGHTHS], -1), 1)),
    ("32-bit grey", lambda path: Image.fromarray(RAMP.astype(np.int32)).save(path, "TIFF"), "a.png",
     near(EIGHTHS[..., None], 1)),
    ("CMYK", lambda path: Image.new("RGB", (8, 8), RED).convert("CMYK").save(path, quality=95), "a.jpg", near(RED, 4)),
    ("YCbCr", lambda path: Image.new("YCbCr", (8, 8), (120, 128, 128)).save(path), "a.jpg", near(120)),
    ("transparent colour", half("RGBA"), "a.png", on_white),
    ("transparent grey", half("LA"), "a.png", lambda image: (image[:4] == 255).all() and near(76)(image[4:])),
    ("transparent WebP", half("RGBA", lossless=True), "a.webp", on_white),
    ("a transparent palette", half("RGBA", format="GIF"), "a.png", on_white),
    ("a colour that is transparent", lambda path: Image.new("RGB", (8, 8), BLUE).save(path, transparency=BLUE), "a.png",
     near(255)),
    ("an animated GIF", lambda path: frames(path, format="GIF"), "a.png", near(RED)),
    ("an animated PNG", frames, "a.png", near(RED)),
    ("an animated WebP", frames, "a.webp", near(RED)),
    ("a TIFF of two pages", lambda path: frames(path, format="TIFF"), "a.png", near(RED)),
    ("a photo of two lenses", lambda path: frames(path, format="MPO"), "a.jpg", near(RED)),
    ("a photo taken sideways", sideways, "a.png", lambda image: near(RED)(image[:4]) and near(BLUE)(image[4:])),
    ("a PNG called JPEG", lambda path: Image.new("RGB", (8, 8), RED).save(path, "PNG"), "a.jpg", near(RED)),
    ("a JPEG called PNG", lambda path: Image.new("RGB", (8, 8), RED).save(path, "JPEG"), "a.png", near(RED, 4)),
    ("a BMP called JPEG", lambda path: Image.new("RGB", (8, 8), RED).save(path, "BMP"), "a.jpg", near(RED)),
    ("capitals", lambda path: Image.new("RGB", (8, 8), RED).save(path), "A.PNG", near(RED)),
    ("a name with all kinds of signs", lambda path: Image.new("RGB", (8, 8), RED).save(path, "PNG"),
     "-a 'b' \"c\" <d> $e$ é 犬 😀\n.png", near(RED)),
    ("a name that is not UTF-8", lambda path: Image.new("RGB", (8, 8), RED).save(path, "PNG"), "caf\udce9.png",
     near(RED)),
    ("a link", lambda path: (Image.new("RGB", (8, 8), RED).save(path.with_name("other.gif"), "GIF"),
     path.symlink_to("other.gif")), "a.png", near(RED)),
    ("100 million pixels of one colour", lambda path: Image.new("1", (10_000, 10_000), 1).save(path), "a.png",
     near(255)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("write", "name", "holds"), [row[1:] for row in ODD_IMAGES], ids=[row[0] for row in ODD_IMAGES]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as data.images does, outside of pytest
def test_an_image_that_looks_odd_is_read_right(tmp_path, write, name, holds):
    write(tmp_path / name)
    image = read_image(tmp_path / name, square(8))
    assert image.shape == (8, 8, 3)
    assert holds(image)


# -- what looks odd and trains ----------------------------------------------------------------------------------------


def train(root: Path, *more: str) -> dict[str, Any]:
    argv = [*TRAIN, "--data_dir", str(root / "images"), "--output_dir", str(root / "run"), *more]
    return train_accelerate.main(read_config(TrainConfig, argv))


@pytest.mark.parametrize(
    "more",
    [
        ["--batch_size", "1000"],
        ["--batch_size", "1", "--micro_batch_size", "9"],
        ["--image_size", "8", "--batch_size", "1", "--norm", "group", "--crop_padding", "8", "--cutout", "8"],
        ["--augment_backend", "albumentations", "--num_workers", "3"],
        ["--validation_fraction", "0.5", "--memory_fraction", "0"],
    ],
    ids=[
        "batch larger than the data",
        "batch of one",
        "as small as can be",
        "workers",
        "validation of one each, on disk",
    ],
)
def test_a_training_at_the_limit_works(tmp_path, more):
    image_folder(tmp_path / "images")
    assert train(tmp_path, *more)["test_count"] == 4


def test_one_class_with_one_image_works(tmp_path):
    image_folder(tmp_path / "images", classes=("only",), counts={"train": 1, "val": 1})
    summary = train(tmp_path, "--mixup", "1")
    assert summary["per_class_accuracy"] == {"only": 1.0}
    assert analyze.main(AnalyzeConfig(run=str(tmp_path / "run")))["accuracy"] == 1


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size", "micro_batch_size", "smallest"),
    [(8, 4, 1, None, 4), (9, 4, 1, None, 1), (8, 4, 2, None, 2), (8, 2, 4, None, 1), (8, 100, 1, None, 8),
     (8, 8, 1, 3, 2), (10, 4, 1, None, 2), (8, 8, 3, None, 2), (1, 8, 1, None, 1)],
)  # fmt: skip
def test_the_smallest_forward_pass_is_known_before(count, batch_size, world_size, micro_batch_size, smallest):
    assert smallest_piece(count, batch_size, world_size, micro_batch_size) == smallest


# -- analysis ---------------------------------------------------------------------------------------------------------

ANALYSES = [
    ("no run", "--images 20", "run: the value is missing"),
    ("two runs", "run run", "run: unexpected argument"),
    ("a run by its name", "run --run run", "run: it is positional"),
    ("a run that is not there", "rn", "run: rn is not a folder; did you mean run?"),
    ("a file", "file", "run: file is not a folder"),
    ("an empty folder", "empty", "run: empty is neither a run directory", "nor a model"),
    ("the images", "images", "run: images is neither a run directory"),
    ("too long a name", LONG, "run: xxx", "is not a folder"),
    ("a link to itself", "loop", "run: loop is not a folder"),
    ("too few images", "run --images 9", "images: 9 is not allowed; it must be at least 10"),
    ("too many images", "run --images 501", "images: 501 is not allowed"),
    ("a mistyped section", "run --only curve", "only: 'curve' is not allowed; did you mean curves?"),
    ("a method that is not there", "run --cam_method GradCAMM", "cam_method: ", "did you mean GradCAM?"),
    ("a layer that is not there", "run --cam_layer layer9", "cam_layer: ", "layer9"),
    ("no method", "run --cam_method=", "cam_method: '' is not allowed; it must not be empty"),
    ("a file for the results", "run --output_dir file", "output_dir: file cannot be written to"),
    ("results where nothing can be written", "run --output_dir /proc/self/x",
     "output_dir: /proc/self/x cannot be written"),
    ("no images", "run --data_dir missing", "data_dir: missing is not a folder; name the folder"),
    ("other images", "run --data_dir empty", "data_dir: empty has no folder train/<class>/"),
    ("another data set", "run --dataset digits", "are not those of the model (cat, dog)"),
    ("a model that does not say its images", "model", "dataset: model does not say which images it is for"),
    ("no other run", "run --compare missing", "compare: missing is not a folder"),
    ("an empty name for the other run", "run --compare=", "compare: '' is not allowed; it must not be empty"),
    ("a file for the other run", "run --compare file", "compare: file is not a folder"),
    ("a comparison of pictures", "run --compare run --predict images", "compare: it is not allowed with predict"),
    ("sections of pictures", "run --only curves --predict images", "only: it is not allowed with predict"),
    ("no pictures", "run --predict", "predict: the value is missing"),
    ("an empty name of a picture", ["run", "--predict", ""], "predict: '' is not allowed; it must not be empty"),
    ("a picture that is not there", "run --predict missing.png", "predict: missing.png does not exist"),
    ("a folder without pictures", "run --predict empty", "predict: empty holds no photo"),
    ("a file that is no picture", "run --predict file", "predict: file is not a readable image"),
    ("pictures among the results", "run --predict images/test/cat --output_dir images/test/cat",
     "it holds the photos"),
]  # fmt: skip


@table(ANALYSES)
def test_a_wrong_analysis_is_refused(capsys, given, words):
    refused(capsys, AnalyzeConfig, words_of(given), *words)


@pytest.mark.parametrize("words", [[], ["fish"], ["bash", "zsh"], ["--shell", "bash"]])
def test_a_wrong_call_of_completion_is_refused(capsys, monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["completion", *words])
    with pytest.raises(SystemExit) as end:
        completion.main()
    line = capsys.readouterr().err
    assert end.value.code == 2
    assert line.startswith("error: ")
    assert line.count("\n") == 1


def test_more_than_the_memory_is_one_line(capsys):
    def fail(config: TrainConfig) -> None:
        np.empty((2**40, 2**10))

    with pytest.raises(SystemExit) as end:
        run_script(fail, TrainConfig())
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: out of memory (Unable to allocate 8.00 PiB")


def test_the_digits_larger_than_the_memory_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("utils.system.memory.free_memory", lambda device=None: 2**30)
    argv = [*TRAIN, "--dataset", "digits", "--image_size", "4096", "--output_dir", "new"]
    refused(capsys, TrainConfig, argv, "image_size: 4096 needs 67.4 GiB of memory")


# -- names that would be something else elsewhere ---------------------------------------------------------------------

NAMES = (
    "\"quotes\" 'and' &amp;", "$x^2_$ \\frac{1}{2}", "-- --> <!--", "<img src=x onerror=alert(1)>", "=1+1", "@SUM(A1)",
    "Chat", "_hidden", "a, b; c|d", "chat", "e\u0301te\u0301", "{{ 7 * 7 }} ${x} %s", "y" * 200, "\u00e9t\u00e9",
    "\u72ac \U0001f600 \U0001f469\u200d\U0001f680",
)  # fmt: skip

RUN_NAME = "<script>alert('run')</script> --- $\n# title"


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """A run of such names, with its analysis and that of a copy with another such name, in two folders."""
    pytest.importorskip("tensorboard")
    root = tmp_path_factory.mktemp("it's <b>here $1 é")
    image_folder(root / "images", classes=NAMES, counts={"train": 2, "test": 1})
    for path in list((root / "images").rglob("0.png")):
        path.rename(path.with_name("=<i>caf\udce9 $\n.png"))
    train(root, "--trackers", "tensorboard", "--run_name", RUN_NAME)
    shutil.copytree(root / "run", root / "<u>other $")
    other = str(root / "<u>other $")
    analyze.main(AnalyzeConfig(run=str(root / "run"), compare=other, only=["classes", "gallery", "label_issues"]))
    analyze.main(
        AnalyzeConfig(run=str(root / "run"), predict=[str(root / "images" / "test" / name) for name in NAMES[1:4]])
    )
    return root


def test_such_names_are_read_back_from_every_table(named):
    for path in sorted((named / "run" / "analysis").rglob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert rows, path
        assert all(len(row) == len(header) for row in rows)
        for column in {"class", "true", "predicted", "given", "suggested"} & set(header):
            assert {row[header.index(column)] for row in rows} <= set(NAMES)
        if "path" in header:
            assert all(row[header.index("path")].endswith(".png") for row in rows)
    with open(named / "run" / "analysis" / "per_class.csv", newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == sorted(NAMES)


def test_such_names_are_words_in_every_page(named):
    class Page(HTMLParser):
        def __init__(self, text: str):
            super().__init__()
            self.tags: set[str] = set()
            self.attributes: set[str] = set()
            self.words: list[str] = []
            self.feed(text)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            self.attributes |= {name for name, _ in attrs}

        def handle_data(self, data: str) -> None:
            self.words.append(data)

    for name in ("report.html", "predict/predict.html"):
        page = Page((named / "run" / "analysis" / name).read_text(encoding="utf-8"))
        assert not page.tags & {"i", "u"}
        assert not page.attributes & {"onerror", "srcdoc"}
        words = "\n".join(page.words)
        assert RUN_NAME.partition("\n")[0] in words
        assert sum(name in words for name in NAMES) >= 5
    for path in (named / "run" / "analysis").glob("*.svg"):
        assert {element.tag.rpartition("}")[2] for element in tree.parse(path).iter()}.isdisjoint(
            {"img", "script", "i"}
        )


def test_such_names_change_nothing_in_the_model_card_and_in_tensorboard(named):
    from huggingface_hub import ModelCard
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    card = ModelCard.load(named / "run" / "model" / "README.md")
    table_rows = [line for line in card.text.splitlines() if line.startswith("| ") and "% |" in line]
    assert len(table_rows) == len(NAMES)
    shown = {html.unescape(row.split(" | ")[0].removeprefix("| ")) for row in table_rows}
    assert shown == {" ".join(name.split()) for name in NAMES}
    assert card.data.model_name == RUN_NAME.rpartition("/")[2]
    assert not any(line.startswith("# title") for line in card.text.splitlines())

    board = EventAccumulator(str(named / "run" / "tensorboard"), size_guidance={"tensors": 0})
    board.Reload()
    texts = [
        event.tensor_proto.string_val[0].decode()
        for tag in board.Tags()["tensors"] if "table" in tag or "confusion" in tag or "captions" in tag
        for event in board.Tensors(tag)
    ]  # fmt: skip
    assert texts
    assert not any(sign in text for text in texts for sign in ("<img", "<u>", "](", "$x^2_$"))


def test_such_names_are_kept_as_they_are_in_the_model(named):
    assert json.loads((named / "run" / "model" / "config.json").read_text())["class_names"] == sorted(NAMES)
