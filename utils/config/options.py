"""The options of both scripts: one flat dataclass each, read from defaults, a YAML file and the command line.

Precedence: command line > `--config` YAML > dataclass default. An unknown key, a wrong type or a value out of range
stops with one line that names the option, the value and what is allowed. Nothing heavy is imported here, so that
`--help` answers at once.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import re
import reprlib
import sys
import types
import typing
from argparse import Action, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_loader
from jsonargparse.typing import register_type

from utils.config.resolution import resolution_phases
from utils.config.train import DATASETS, OPTIMIZERS, OptimizerDefaults
from utils.system.errors import UserError, did_you_mean, first_rank_first, nearest, one_line
from utils.system.files import replace_file
from utils.system.launch import goes_before_the_script, read_launch
from utils.system.ranks import adopt_ranks
from utils.system.secrets import named_secret, without_secrets

DatasetName = Literal["cifar10", "cifar100", "digits", "imagefolder"]
OptimizerName = Literal["sgd", "adamw", "muon"]
Tracker = Literal["wandb", "tensorboard", "trackio", "none"]
FOLDERS = {"run", "compare", "data_dir", "output_dir", "resume"}  # options that name one
LARGEST_IMAGE = 4096  # pixels of a side
SMALLEST_ALPHA = 0.01  # of a Beta distribution: below it, torch's sampler underflows and draws one half instead
LARGEST = 10**9  # of a number without a limit of its own: what is larger is a mistake, and overflows somewhere
LARGEST_FILE = 100_000  # bytes of a file of options
ACTIVATE_COMPLETION = 'eval "$(python -m utils.config.completion bash)" (or zsh)'


def option(
    default: Any,
    group: str,
    help: str,
    low: float | None = None,
    high: float | None = None,
    open: bool = False,
    words: bool = False,
):
    """A field of a config: its default, its group and line in `--help`, and the range it must lie in.

    With `open` the lower bound itself is not allowed. With `words` each entry of a list is a word of its own on the
    command line and may hold commas.
    """
    metadata = {"group": group, "help": help, "low": low, "high": high, "open": open, "words": words}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _unset(name: str) -> str:
    """What an option without a value is for each optimizer, for its line in `--help`."""
    return "; unset: " + ", ".join(f"{getattr(values, name):g} for {kind}" for kind, values in OPTIMIZERS.items())


@dataclass
class Config:
    """Checks every field's type and range; raises UserError naming the option, the value and what is allowed.

    A config built in a notebook is held to the same as one from the command line.
    """

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value, low, high = getattr(self, spec.name), spec.metadata["low"], spec.metadata["high"]
            if not _fits(value, spec.type):
                raise UserError(_not_allowed(spec, value))
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{spec.name}: {value} is not allowed; it must be a finite number")
            if isinstance(value, (str, list)):
                setattr(self, spec.name, _checked_text(spec, value))
            if isinstance(value, (str, list)) and (secret := named_secret(str(value))):
                raise UserError(f"{spec.name}: holds the value of {secret}; options are written to files and trackers")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            below = low is not None and (value <= low if spec.metadata["open"] else value < low)
            above = high is not None and value > high
            if below or above:
                raise UserError(f"{spec.name}: {_shown(value)} is not allowed; it must be {_range_text(spec)}")
            if high is None and value > LARGEST:
                raise UserError(f"{spec.name}: {_shown(value)} is not allowed; it must be at most {LARGEST}")


@dataclass
class TrainConfig(Config):
    """Options of train_accelerate.py. Precision, process count and device come from Accelerate alone."""

    dataset: DatasetName = option(
        "cifar10", "data", "data set; digits needs no download, imagefolder reads data_dir/train and data_dir/test"
    )
    data_dir: str = option("datasets", "data", "folder of the data set (downloads go here)")
    image_size: int = option(
        32, "data", "side in pixels to which imagefolder and digits are resized", low=8, high=LARGEST_IMAGE
    )
    validation_fraction: float = option(
        0.0, "data", "share of the training set kept for validation, stratified and seeded", low=0.0, high=0.9
    )
    memory_fraction: float = option(
        0.25,
        "data",
        "an image folder is read from disk where it needs more than this share of the free memory, over all processes",
        low=0.0,
        high=1.0,
    )
    num_workers: int | None = option(
        None,
        "data",
        "loader processes per training process, for albumentations; unset: 0 on a CPU, else up to 8",
        low=0,
        high=256,
    )

    crop_padding: int = option(4, "augmentation", "pixels of padding before the random crop; 0: no crop", low=0)
    padding_mode: Literal["zeros", "reflect"] = option(
        "zeros", "augmentation", "what crop_padding adds: black, or the image mirrored at its border"
    )
    horizontal_flip: Literal["none", "random", "alternating"] = option(
        "alternating", "augmentation", "mirror images: none, half of them at random, or each in every other epoch"
    )
    cutout: int = option(8, "augmentation", "side in pixels of the CutOut square, filled with the mean; 0: off", low=0)
    mixup: float = option(
        0.0, "augmentation", "alpha of MixUp's Beta distribution, at least 0.01; 0: off", low=0.0, high=1000.0
    )
    cutmix: float = option(
        0.0,
        "augmentation",
        "alpha of CutMix's Beta distribution, at least 0.01; 0: off; with mixup, each batch draws one",
        low=0.0,
        high=1000.0,
    )
    augment_backend: Literal["auto", "albumentations", "tensor"] = option(
        "auto",
        "augmentation",
        "albumentations: one by one on the CPU; tensor: whole batches on the device; auto: tensor where the images fit",
    )
    tta: Literal["none", "flip", "flip_translate"] = option(
        "none",
        "augmentation",
        "test-time augmentation of the final evaluation: mirrored images, or shifted by a pixel too",
    )

    model: str = option("resnet18", "model", "architecture; timm:NAME is one of timm's")
    norm: Literal["batch", "group"] = option("batch", "model", "normalisation layers; group keeps no batch statistics")
    width: int = option(
        64, "model", "channels of the first stage; later ones have a multiple", low=16, high=4096
    )  # at 8, oneDNN 3 corrupts memory (NHWC)

    epochs: int = option(20, "length and batch", "passes over the training set", low=1)
    batch_size: int = option(
        512, "length and batch", "images per optimizer step, over all processes and accumulation", low=1
    )
    micro_batch_size: int | None = option(
        None,
        "length and batch",
        "images per process and forward pass; unset: on a GPU as large as fits, on a CPU all at once",
        low=1,
    )
    max_steps: int | None = option(
        None, "length and batch", "stop after this many optimizer steps; the schedule still spans all epochs", low=1
    )
    optimizer: OptimizerName = option(
        "muon",
        "optimizer",
        "optimizer; muon: for filters and inner matrices, scaled by 0.2 sqrt(max(out, in)) to the RMS of adamw's "
        "updates (Liu et al. 2025, not as in Jordan's code), adamw at the same lr for all other weights",
    )
    lr: float | Literal["auto"] = option(
        None, "optimizer", "peak learning rate, or auto: from a range test" + _unset("lr"), low=0.0, open=True
    )
    momentum: float = option(
        None, "optimizer", "momentum of sgd and muon, beta1 of adamw" + _unset("momentum"), low=0.0, high=0.9999
    )
    nesterov: bool = option(True, "optimizer", "Nesterov momentum of sgd; muon always has it")
    weight_decay: float = option(
        None,
        "optimizer",
        "an L2 penalty in sgd, decoupled from the gradient in adamw and muon" + _unset("weight_decay"),
        low=0.0,
    )
    decay_norm_and_bias: bool = option(False, "optimizer", "apply weight decay to norm layers and biases too")
    norm_bias_lr_factor: float = option(
        1.0, "optimizer", "the rate of the norm layers' biases, relative to lr", low=0.001
    )
    label_smoothing: float = option(0.1, "optimizer", "share of the target that all classes get", low=0.0, high=0.99)
    grad_clip_norm: float | None = option(
        None, "optimizer", "largest L2 norm of the gradient; unset: no clipping", low=0.0, open=True
    )
    schedule: Literal["onecycle", "cosine", "linear", "step", "constant"] = option(
        "linear", "schedule", "learning rate over the run, as a function of the optimizer step"
    )
    warmup_fraction: float = option(0.05, "schedule", "share of all steps in which the rate rises", low=0.0, high=0.99)
    resolution: str | None = option(
        None,
        "length and batch",
        "smaller images first: 16@0.3,24@0.6,32 takes 16 pixels until 0.3 of the steps, then 24, 32; scaled by torch's "
        "adaptive average pooling",
    )
    ema_decay: float | None = option(
        None,
        "averages of the weights",
        "evaluate an average of the weights that keeps this share of itself per step; unset: none",
        low=0.0,
        high=0.99999,
    )
    lookahead_steps: int | None = option(
        None, "averages of the weights", "Lookahead: steps between two pulls to the slow weights; unset: none", low=1
    )
    lookahead_decay: float = option(
        0.95,
        "averages of the weights",
        "share of themselves that Lookahead's slow weights keep per step",
        low=0.0,
        high=1.0,
    )
    find_lr: bool = option(False, "schedule", "run a learning-rate range test first and plot it")

    channels_last: bool = option(True, "hardware", "NHWC memory layout")
    compile: bool = option(False, "hardware", "torch.compile the model")
    peer_timeout: int = option(
        600, "hardware", "seconds to wait for another process before giving it up as lost", low=1
    )

    seed: int = option(0, "run", "seed of the weights, the data order and the augmentation", low=0, high=2**32 - 1)
    output_dir: str = option("runs/resnet18", "run", "folder of the run")
    resume: str = option(
        "auto", "run", "auto: from the newest whole checkpoint of output_dir; never; or a checkpoint folder"
    )
    checkpoint_every_steps: int | None = option(
        None, "run", "also checkpoint every so many steps; unset: every epoch only", low=1
    )
    keep_checkpoints: int = option(2, "run", "newest checkpoints that are kept", low=1)
    on_nan: Literal["stop", "rollback"] = option(
        "stop",
        "run",
        "where loss or weights are not finite: stop, or go back to the last checkpoint and skip the steps since it",
    )
    nan_patience: int = option(
        20,
        "run",
        "steps in a row of infinite loss or gradient before on_nan acts (fp16 has some); no weights: at once",
        low=1,
    )
    export: list[Literal["onnx", "torch"]] = option(
        [], "run", "also write model/model.onnx (onnx) and model/model.pt2 (torch), checked against the checkpoint"
    )
    push_to_hub: str | None = option(
        None, "run", "upload model/ at the end to this repository of the Hugging Face Hub, such as user/name"
    )
    log_every_steps: int = option(50, "tracking", "steps per training line in metrics.jsonl and the trackers", low=1)
    trackers: list[Tracker] = option(
        ["wandb"], "tracking", "wandb, tensorboard, trackio (several: wandb,tensorboard) or none"
    )
    project_name: str | None = option(
        None, "tracking", "project in the trackers; unset: WANDB_PROJECT, else image-classification"
    )
    run_name: str | None = option(
        None, "tracking", "name in the trackers; unset: WANDB_NAME, else the name of output_dir"
    )
    run_group: str | None = option(
        None, "tracking", "group of runs in the trackers, such as the seeds of one recipe; unset: WANDB_RUN_GROUP"
    )
    run_tags: list[str] = option([], "tracking", "tags in W&B, such as baseline,cifar10; unset: WANDB_TAGS")
    track_model: Literal["none", "end", "all"] = option(
        "end", "tracking", "W&B artifacts: the exported model at the end; all: also the checkpoint of every epoch"
    )

    fast_dev_run: bool = option(
        False, "debugging", "one step, one batch of every evaluation, checkpoint and export, in a temporary folder"
    )
    overfit_batches: int | None = option(
        None, "debugging", "train on the images of so many batches alone, to see the loss vanish", low=1
    )
    profile: bool = option(False, "debugging", "record a few steps: profile/operations.txt and trace.json in the run")
    debug: bool = option(False, "debugging", "show tracebacks")

    def __post_init__(self) -> None:
        for name in OptimizerDefaults._fields if str(self.optimizer) in OPTIMIZERS else ():
            if getattr(self, name) is None:
                setattr(self, name, getattr(OPTIMIZERS[self.optimizer], name))
        super().__post_init__()
        if not self.trackers or len(set(self.trackers)) < len(self.trackers):
            raise UserError(f"trackers: {self.trackers} is not allowed; name each tracker once, or none")
        if "none" in self.trackers and len(self.trackers) > 1:
            raise UserError(f"trackers: {','.join(self.trackers)} is not allowed; none stands alone")
        for name in ("mixup", "cutmix"):
            if 0 < (value := getattr(self, name)) < SMALLEST_ALPHA:
                raise UserError(f"{name}: {value:g} is not allowed; it must be 0 (off) or at least {SMALLEST_ALPHA:g}")
        side = DATASETS[self.dataset].image_size or self.image_size
        resolution_phases(self.resolution, side, total_steps=1)
        if self.padding_mode == "reflect" and self.crop_padding >= side:
            raise UserError(
                f"crop_padding: {self.crop_padding} is not allowed; with padding_mode reflect it must be less than "
                f"image_size ({side})"
            )
        for name in ("crop_padding", "cutout"):
            if (value := getattr(self, name)) > side:
                raise UserError(f"{name}: {value} is not allowed; it must be at most image_size ({side})")


@dataclass
class AnalyzeConfig(Config):
    """Options of analyze.py."""

    run: str = option("", "input", "run directory, checkpoint, or folder with config.json and model.safetensors")
    dataset: DatasetName | None = option(None, "input", "data set to analyse with; unset: the one of the run")
    data_dir: str | None = option(None, "input", "its folder; unset: where it was in training")
    compare: str | None = option(None, "input", "another run, whose mistakes are set against those of this one")
    predict: list[str] = option(
        [], "input", "pictures, or folders of them: write their class probabilities and CAMs, and no report", words=True
    )
    output_dir: str | None = option(None, "output", "folder of the results; unset: RUN/analysis")
    images: int = option(20, "output", "misclassified images with CAM and in misclassified.png", low=10, high=500)
    full: bool = option(False, "output", "also the sections that take minutes: neighbours, embedding, robustness")
    only: list[
        Literal[
            "curves",
            "classes",
            "gallery",
            "gradcam",
            "calibration",
            "label_issues",
            "neighbours",
            "embedding",
            "robustness",
            "model",
        ]
    ] = option([], "output", "these sections alone, such as curves,gallery")
    cam_method: str = option(
        "GradCAM", "GradCAM", "CAM classes of the grad-cam library, such as GradCAM or GradCAM,EigenCAM"
    )
    cam_layer: str | None = option(
        None, "GradCAM", "module names; unset: the deepest layer whose feature map is at least 5x5"
    )
    aug_smooth: bool = option(False, "GradCAM", "means over mirrored, brighter and darker images; 6 times slower")
    eigen_smooth: bool = option(False, "GradCAM", "the first principal component instead of the sum over channels")
    num_workers: int = option(0, "hardware", "loader processes", low=0, high=256)
    track: bool = option(True, "output", "show the results in the run's trackers too, where it has some")
    debug: bool = option(False, "output", "show tracebacks")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("compare", "only", "full"):
            if self.predict and getattr(self, name):
                raise UserError(f"{name}: it is not allowed with predict, which writes no report")


AnyConfig = TypeVar("AnyConfig", bound=Config)


def parse_config(kind: type[AnyConfig], argv: Sequence[str] | None = None, description: str = "") -> AnyConfig:
    """Builds the config from the command line, and checks the launch.

    On a mistake in either it prints one line and exits with code 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    adopt_ranks(os.environ)
    try:
        config = read_config(kind, argv, description)
        read_launch(os.environ)
        return config
    except UserError as error:
        first_rank_first()
        print(f"error: {without_secrets(one_line(error))}", file=sys.stderr)
        sys.exit(2)


def read_config(kind: type[AnyConfig], argv: Sequence[str], description: str = "") -> AnyConfig:
    """As parse_config, but raises UserError."""
    files, words = _split(argv)
    texts = {path: _read(path) for path in files}
    headers = [f"\n\n{path}:\n{header}" for path, text in texts.items() if (header := _header(text))]
    parser = build_parser(kind, description + "".join(headers))
    values: dict[str, Any] = {}
    for path in files:
        values |= _options(texts[path], path, parser)
    for word in itertools.takewhile(lambda word: word != "--", words):
        if match := re.match(r"--([^=]*[.+][^=]*)", word):  # jsonargparse: a part of an option, an entry for a list
            raise UserError(_unknown(match[1], parser.specs))
    try:
        given = parser.parse_args(words, defaults=False).as_dict()
    except UserError as error:
        raise UserError(_explain(str(error), parser, words)) from error
    print_config = given.pop("print_config", False)
    config = kind(**(values | given))
    if print_config:
        print(to_yaml(dataclasses.asdict(config)), end="")
        sys.exit(0)
    return config


class Whole(int):
    """Of a whole number: it is read as Python writes it, since YAML takes 1:30 for 90."""


class Real(float):
    """Of a number: as Whole; a whole number is one too."""


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no word")
    return value


register_type(Whole, deserializer=lambda word: int(_word(word)), type_check=lambda value, _: type(value) is int)
register_type(
    Real, deserializer=lambda word: float(_word(word)), type_check=lambda value, _: type(value) in (int, float)
)
set_loader("word", lambda word: word)  # a word is what its option's type makes of it; as YAML, #1 would be null


class Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Shows the description and the options' lines as they are written."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""


class Parser(ArgumentParser):
    """Raises UserError instead of printing its usage."""

    def __init__(self, specs: dict[str, dataclasses.Field], **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=Help, parser_mode="word", print_config=None, **settings)
        self.specs = specs

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(one_line(message)) from ex

    def typed(self, name: str, value: Any) -> Any:
        """A value out of a file as one of its option's type; the value itself where it is none, or text already."""
        if isinstance(value, str) and (str in _members(self.specs[name].type) or self.specs[name].metadata["words"]):
            return value
        words = Namespace(run="") if "run" in self.specs else None  # required, and never missing on the command line
        with contextlib.suppress(UserError):
            return self.parse_object({name: value}, words, defaults=False)[name]
        return value


def build_parser(kind: type[Config], description: str = "") -> Parser:
    """The command line of a script; without its defaults, the namespace has the options that are given alone."""
    parser = Parser(
        {spec.name: spec for spec in dataclasses.fields(kind)},
        usage=f"%(prog)s {'RUN ' if kind is AnalyzeConfig else ''}[--config FILE.yaml] [--OPTION VALUE ...]",
        description=description.replace("%", "%%"),
        epilog="TAB completes options and their values after: " + ACTIVATE_COMPLETION,
    )
    groups: dict[str, Any] = {}
    for spec in parser.specs.values():
        default = spec.default if spec.default_factory is MISSING else spec.default_factory()
        help_line = _help_line(spec, default).replace("%", "%%")
        if kind is AnalyzeConfig and spec.name == "run":
            parser.add_argument("run", type=str, help=help_line)
            continue
        name = spec.metadata["group"]
        group = groups.get(name) or groups.setdefault(name, parser.add_argument_group(name))
        extra: dict[str, Any] = {"type": _type_of_word(spec.type)}
        if spec.type is bool:
            extra |= {"nargs": "?", "const": True}
        if spec.metadata["words"]:
            extra = {"type": str, "nargs": "+"}
        group.add_argument(f"--{spec.name}", help=help_line, metavar=_metavar(spec), **extra)
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="recipe or other YAML file with options; the command line wins over it; with --help its header is shown",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print all options as YAML, as --config reads them, and end"
    )
    return parser


def to_yaml(options: dict[str, Any]) -> str:
    """Options as a recipe that `--config` reads back as they are."""
    return yaml.safe_dump(options, sort_keys=False)


def write_config(config: Config, path: Path) -> None:
    """Writes the resolved options; `--config <path>` repeats the run."""
    replace_file(path, to_yaml(dataclasses.asdict(config)).encode())


def load_config(kind: type[AnyConfig], path: Path) -> AnyConfig:
    """Reads what write_config wrote."""
    return read_config(kind, ["--config", str(path)])


# -- files of options -------------------------------------------------------------------------------------------------


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that `--config` names, wherever it stands, and all other words."""
    files: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        elif word == "--config" and (value := next(words, None)) is not None:
            files.append(value)
        else:
            rest.append(word)
    return files, rest


def _read(path: str) -> str:
    """The text of a YAML file. Raises UserError naming it."""
    if not os.path.isfile(path):  # a pipe would be waited on
        what = "not a file" if os.path.exists(path) else "missing"
        raise UserError(f"config: {path or repr(path)} is {what}; {_near_file(path)}it must be a YAML file")
    try:
        if os.path.getsize(path) > LARGEST_FILE:
            raise UserError(f"config: {path} has more than {LARGEST_FILE} bytes; it must be a YAML file of options")
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"config: {path} cannot be read ({error.strerror}); it must be a YAML file") from error
    except ValueError as error:
        raise UserError(f"config: {path} is not a YAML file ({one_line(error)})") from error


class _Loader(yaml.SafeLoader):
    """Refuses an option that comes twice, since the second would win without a word, and aliases, of which a few lines
    can stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"*{self.peek_event().anchor} is an alias; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in counts.items():
            if count > 1:
                raise yaml.YAMLError(f"{name} comes more than once")
        return super().construct_mapping(node, deep)


def _options(text: str, path: str, parser: Parser) -> dict[str, Any]:
    """The values in a YAML file's text, each of its option's type. Raises UserError naming the file."""
    try:
        content = yaml.load(text, _Loader)
    except RecursionError as error:
        raise UserError(f"config: {path} is not a YAML file of options (it is nested too deep)") from error
    # PyYAML's own errors, and those of Python that it lets through for tagged values such as `!!bool x`.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"config: {path} is not a YAML file ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"config: {path} holds no options; it must be a YAML file of lines `option: value`")
    values = {}
    for name, value in content.items():
        if name not in parser.specs:
            raise UserError(f"{_unknown(str(name), parser.specs, str(value))} (in {path})")
        values[name] = parser.typed(name, value)
        if not _fits(values[name], parser.specs[name].type):
            raise UserError(f"{_not_allowed(parser.specs[name], values[name])} (in {path})")
    return values


def _near_file(path: str) -> str:
    """A question with the recipe or the YAML file of the same folder that was likely meant; nothing if none is near."""
    files: dict[str, str] = {}
    for folder in (Path("recipes"), Path(path).parent):
        with contextlib.suppress(OSError, ValueError):
            files |= {file.stem: str(file) for file in sorted(folder.glob("*.yaml"))}
    near = nearest(Path(path).stem, list(files))
    return f"did you mean {files[near]}? " if near else ""


def _header(text: str) -> str:
    """The comment at the top of a recipe, for --help."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line.lstrip("#") for line in lines)


# -- values -----------------------------------------------------------------------------------------------------------


def _type_of_word(kind: Any) -> Any:
    """What reads a word of the command line for a field of this type."""
    if typing.get_origin(kind) is list:
        return _names
    return reduce(or_, ({int: Whole, float: Real}.get(member, member) for member in _members(kind)))


def _names(value: Any) -> Any:
    """`a`, `a,b` or `[a, b]` as a list of names; what is no word as it is."""
    if not isinstance(value, str):
        return value
    names = (name.strip("'\" ") for name in re.split(r"[,\s]+", value.strip("[] ")))
    return [name for name in names if name]


def _checked_text(spec: dataclasses.Field, value: str | list[str]) -> str | list[str]:
    """A text, or a list of them, with `~` for the home in paths. Raises UserError for what no file can hold."""
    for text in [value] if isinstance(value, str) else value:
        if not text.strip() and text != spec.default:
            raise UserError(f"{spec.name}: {text!r} is not allowed; it must not be empty")
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{spec.name}: {_shown(text)} is not allowed; it must be text in UTF-8 without NUL")
    if isinstance(value, str):
        return os.path.expanduser(value) if spec.name in FOLDERS else value
    return [os.path.expanduser(name) for name in value] if spec.name == "predict" else value


def _members(kind: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )


def allowed_names(kind: Any) -> list[str]:
    """The names that a value, or each entry of a list, can be one of."""
    found: list[str] = []
    for member in _members(kind):
        if typing.get_origin(member) is list:
            found += allowed_names(typing.get_args(member)[0])
        elif typing.get_origin(member) is Literal:
            found += [str(value) for value in typing.get_args(member)]
    return found


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a number, true and false are none."""
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(entry, typing.get_args(kind)[0]) for entry in value)
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if len(_members(kind)) > 1:
        return any(_fits(value, member) for member in _members(kind))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _accepts_numbers(kind: Any) -> bool:
    return any(member in (int, float) for member in _members(kind))


def _range_text(spec: dataclasses.Field) -> str:
    low, high = spec.metadata["low"], spec.metadata["high"]
    lower = "" if low is None else (f"greater than {low:g}" if spec.metadata["open"] else f"at least {low:g}")
    upper = "" if high is None else f"at most {high:.10g}"
    return " and ".join(part for part in (lower, upper) if part)


def _allowed_text(spec: dataclasses.Field) -> str:
    """What the option accepts, in words."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    names |= {list[str]: "a list of texts"}
    parts = [names[member] for member in _members(spec.type) if member in names]
    if parts and (bounds := _range_text(spec)):
        parts[0] += " " + bounds
    choices = allowed_names(spec.type)
    if len(choices) > 1:
        parts.append(f"one of {', '.join(choices)}")
    return " or ".join(parts + choices[: len(choices) == 1])


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong = 60


def _shown(value: Any) -> str:
    """A value as YAML has it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def _not_allowed(spec: dataclasses.Field, value: Any) -> str:
    """The line for a value of the wrong type."""
    names = allowed_names(spec.type)
    if isinstance(value, list) and names:  # name the entry that is wrong
        value = next((entry for entry in value if entry not in names), value)
    hint = did_you_mean(value, names) if isinstance(value, str) else ""
    return f"{spec.name}: {_shown(value)} is not allowed; {hint}it must be {_allowed_text(spec)}"


def _unknown(name: str, specs: dict[str, dataclasses.Field], value: str = "") -> str:
    """The line for an option that there is not; with its value, where the option is a launcher's."""
    if name == "run" and name in specs:
        return "run: it is given without its name, as the first word"
    script = "analyze.py" if "run" in specs else "train_accelerate.py"
    if belongs := goes_before_the_script(name.replace("-", "_"), "" if value.startswith("-") else value, script):
        return f"{name}: unknown option; {belongs}"
    hint = did_you_mean(name, list(specs)).strip() or "--help lists them all"
    return f"{name}: unknown option; {hint}"


def _metavar(spec: dataclasses.Field) -> str:
    choices = allowed_names(spec.type)
    if choices:
        return "{" + ",".join((["X"] if _accepts_numbers(spec.type) else []) + choices) + "}"
    return {int: "N", float: "X", bool: "true|false"}.get(_members(spec.type)[0], "TEXT")


def _help_line(spec: dataclasses.Field, default: Any) -> str:
    """What an option does, its range and its default, which is not shown where nothing is set."""
    if isinstance(default, list):
        default = ",".join(default)
    default = str(default).lower() if isinstance(default, bool) else default
    parts = [_range_text(spec), "" if default in (None, "") else f"default: {default}"]
    text = "; ".join(filter(None, parts))
    return spec.metadata["help"] + (f" ({text})" if text else "")


def _explain(message: str, parser: Parser, words: Sequence[str]) -> str:
    """The parser's message as a line that names the option, its word and what is allowed."""
    specs = parser.specs
    if match := re.search(r'^Parser key "(\w+)":', message):
        spec = specs[match[1]]
        wrong = (word for word in _given(spec.name, words) if not _fits(parser.typed(spec.name, word), spec.type))
        return _not_allowed(spec, next(wrong))
    if match := re.search(r"argument --(\w+): expected |arguments are required: (\w+)", message):
        name = match[1] or match[2]
        return f"{name}: the value is missing" + (f"; it must be {_allowed_text(specs[name])}" if name in specs else "")
    if match := re.search(r"unrecognized arguments: --([^-\s=][^\s=]*)", message):
        return _unknown(match[1], specs, next(_given(match[1], words), ""))
    if match := re.search(r"unrecognized arguments:(.*)", message):
        return f"{match[1].strip() or repr('')}: unexpected argument; options are written --name value"
    return message


def _given(name: str, words: Sequence[str]) -> Iterator[str]:
    """The words that are given to an option."""
    for word, after in itertools.pairwise([*words, ""]):
        if word == f"--{name}":
            yield after
        elif word.startswith(f"--{name}="):
            yield word.removeprefix(f"--{name}=")
