"""The options of both scripts: one flat dataclass each, read from defaults, a YAML file and the command line.

Precedence: command line > `--config` YAML > dataclass default. An unknown key, a wrong type or a value out of range
stops with one line that names the option, the value and what is allowed. Nothing heavy is imported here, so that
`--help` answers at once.
"""

import dataclasses
import itertools
import math
import re
import sys
import types
import typing
from argparse import Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from utils.errors import UserError, did_you_mean, nearest
from utils.files import replace_file
from utils.resolution import parse_resolution

DatasetName = Literal["cifar10", "cifar100", "digits", "imagefolder"]
OptimizerName = Literal["sgd", "adamw", "muon"]
Tracker = Literal["wandb", "tensorboard", "trackio", "none"]
QuickSection = Literal["curves", "classes", "gallery", "gradcam", "calibration", "label_issues", "model"]
SlowSection = Literal["neighbours", "embedding", "robustness"]
ACTIVATE_COMPLETION = 'eval "$(python -m utils.completion bash)" (or zsh)'


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


class Config:
    """Checks every field's type and range; raises UserError naming the option, the value and what is allowed.

    A config built in a notebook is held to the same as one from the command line.
    """

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value, low, high = getattr(self, spec.name), spec.metadata["low"], spec.metadata["high"]
            if not _fits(value, spec.type):
                raise UserError(_not_allowed(spec, value))
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{spec.name}: {value} is not allowed; it must be a finite number")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            below = low is not None and (value <= low if spec.metadata["open"] else value < low)
            above = high is not None and value > high
            if below or above:
                raise UserError(f"{spec.name}: {value} is not allowed; it must be {_range_text(spec)}")


@dataclass
class TrainConfig(Config):
    """Options of train_accelerate.py. Precision, process count and device come from Accelerate alone."""

    dataset: DatasetName = option(
        "cifar10", "data", "data set; digits needs no download, imagefolder reads data_dir/train and data_dir/test"
    )
    data_dir: str = option("datasets", "data", "folder of the data set (downloads go here)")
    image_size: int = option(32, "data", "side in pixels to which imagefolder and digits are resized", low=8)
    validation_fraction: float = option(
        0.0, "data", "share of the training set kept for validation, stratified and seeded", low=0.0, high=0.9
    )
    memory_fraction: float = option(
        0.25,
        "data",
        "an image folder that needs more than this share of the free memory is read from disk",
        low=0.0,
        high=1.0,
    )
    num_workers: int | None = option(
        None,
        "data",
        "loader processes per training process, for albumentations; unset: 0 on a CPU, else up to 8",
        low=0,
    )

    crop_padding: int = option(4, "augmentation", "pixels of padding before the random crop; 0: no crop", low=0)
    padding_mode: Literal["zeros", "reflect"] = option(
        "zeros", "augmentation", "what crop_padding adds: black, or the image mirrored at its border"
    )
    horizontal_flip: Literal["none", "random", "alternating"] = option(
        "random", "augmentation", "mirror images: none, half of them at random, or each in every other epoch"
    )
    cutout: int = option(8, "augmentation", "side in pixels of the CutOut square, filled with the mean; 0: off", low=0)
    mixup: float = option(0.0, "augmentation", "alpha of MixUp's Beta distribution; 0: off", low=0.0)
    cutmix: float = option(
        0.0, "augmentation", "alpha of CutMix's Beta distribution; 0: off; with mixup, each batch draws one", low=0.0
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
        64, "model", "channels of the first stage; later ones have a multiple", low=16
    )  # at 8, oneDNN 3 corrupts memory (NHWC)

    epochs: int = option(20, "length and batch", "passes over the training set", low=1)
    batch_size: int = option(
        512, "length and batch", "images per optimizer step, over all processes and accumulation", low=1
    )
    micro_batch_size: int | None = option(
        None, "length and batch", "images per process and forward pass; unset: as large as fits", low=1
    )
    max_steps: int | None = option(
        None, "length and batch", "stop after this many optimizer steps; the schedule still spans all epochs", low=1
    )
    optimizer: OptimizerName = option(
        "sgd", "optimizer", "optimizer; muon (for inner weights) and adamw (for the rest) share a rate of about 0.002"
    )
    lr: float | Literal["auto"] = option(
        0.4, "optimizer", "peak learning rate, or auto: from a range test", low=0.0, open=True
    )
    momentum: float = option(0.9, "optimizer", "momentum of sgd and muon, beta1 of adamw", low=0.0, high=0.9999)
    nesterov: bool = option(True, "optimizer", "Nesterov momentum (sgd)")
    weight_decay: float = option(
        5e-4, "optimizer", "an L2 penalty in sgd, decoupled from the gradient in adamw and muon", low=0.0
    )
    decay_norm_and_bias: bool = option(True, "optimizer", "apply weight decay to norm layers and biases too")
    norm_bias_lr_factor: float = option(
        1.0, "optimizer", "the rate of the norm layers' biases, relative to lr", low=0.0, open=True
    )
    label_smoothing: float = option(0.1, "optimizer", "share of the target that all classes get", low=0.0, high=0.99)
    grad_clip_norm: float | None = option(
        None, "optimizer", "largest L2 norm of the gradient; unset: no clipping", low=0.0, open=True
    )
    schedule: Literal["onecycle", "cosine", "linear", "step", "constant"] = option(
        "onecycle", "schedule", "learning rate over the run, as a function of the optimizer step"
    )
    warmup_fraction: float = option(0.25, "schedule", "share of all steps in which the rate rises", low=0.0, high=0.99)
    resolution: str | None = option(
        None,
        "length and batch",
        "smaller images first: 16@0.3,24@0.6,32 takes 16 pixels until 30 % of the steps, then 24, 32",
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
        super().__post_init__()
        if not self.trackers or len(set(self.trackers)) < len(self.trackers):
            raise UserError(f"trackers: {self.trackers} is not allowed; name each tracker once, or none")
        if "none" in self.trackers and len(self.trackers) > 1:
            raise UserError(f"trackers: {','.join(self.trackers)} is not allowed; none stands alone")
        if self.resolution is not None:
            parse_resolution(self.resolution)
        if self.padding_mode == "reflect" and self.crop_padding >= self.image_size:
            raise UserError(
                f"crop_padding: {self.crop_padding} is not allowed; with padding_mode reflect it must be less than "
                f"image_size ({self.image_size})"
            )
        if self.cutout > self.image_size:
            raise UserError(f"cutout: {self.cutout} is not allowed; it must be at most image_size ({self.image_size})")


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
    only: list[QuickSection | SlowSection] = option([], "output", "these sections alone, such as curves,gallery")
    cam_method: str = option(
        "GradCAM", "GradCAM", "CAM classes of the grad-cam library, such as GradCAM or GradCAM,EigenCAM"
    )
    cam_layer: str | None = option(
        None, "GradCAM", "module names; unset: the deepest layer whose feature map is at least 5x5"
    )
    aug_smooth: bool = option(False, "GradCAM", "means over mirrored, brighter and darker images; 6 times slower")
    eigen_smooth: bool = option(False, "GradCAM", "the first principal component instead of the sum over channels")
    num_workers: int = option(0, "hardware", "loader processes", low=0)
    track: bool = option(True, "output", "show the results in the run's trackers too, where it has some")
    debug: bool = option(False, "output", "show tracebacks")


AnyConfig = TypeVar("AnyConfig", bound=Config)


def parse_config(kind: type[AnyConfig], argv: Sequence[str] | None = None, description: str = "") -> AnyConfig:
    """Builds the config from the command line; on a mistake prints one line and exits with code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return read_config(kind, argv, description)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def read_config(kind: type[AnyConfig], argv: Sequence[str], description: str = "") -> AnyConfig:
    """As parse_config, but raises UserError."""
    specs = {spec.name: spec for spec in dataclasses.fields(kind)}  # type: ignore[arg-type]
    argv = _config_first(argv)
    for path in _config_files(argv):
        _check_file(path, specs)
        description += f"\n\n{path}:\n{header}" if (header := _header(path)) else ""
    try:
        values = build_parser(kind, description).parse_args(argv).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_explain(str(error), specs)) from error
    values.pop("config", None)
    print_config = values.pop("print_config")
    config = kind(**values)
    if print_config:
        print(to_yaml(dataclasses.asdict(config)), end="")
        sys.exit(0)
    return config


def build_parser(kind: type[Config], description: str = "") -> Any:
    """The command line of a script, as a parser of jsonargparse."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Shows the lines of the options and the description as they are written."""

        def _get_help_string(self, action: Action) -> str:
            return action.help or ""

    usage = f"%(prog)s {'RUN ' if kind is AnalyzeConfig else ''}[--config FILE.yaml] [--OPTION VALUE ...]"
    parser = ArgumentParser(
        usage=usage,
        description=description,
        epilog="TAB completes options and their values after: " + ACTIVATE_COMPLETION,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=Help,
        print_config=None,
    )
    groups: dict[str, Any] = {}
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]
        default = spec.default if spec.default is not MISSING else spec.default_factory()
        help_line = _help_line(spec, default)
        if kind is AnalyzeConfig and spec.name == "run":
            parser.add_argument("run", type=str, help=help_line)
            continue
        name = spec.metadata["group"]
        group = groups.get(name) or groups.setdefault(name, parser.add_argument_group(name))
        extra: dict[str, Any] = {"nargs": "?", "const": True} if spec.type is bool else {}
        value_type = _name_list if typing.get_origin(spec.type) is list else spec.type
        if spec.metadata["words"]:
            value_type, extra = str, {"nargs": "+"}
        group.add_argument(
            f"--{spec.name}", type=value_type, default=default, help=help_line, metavar=_metavar(spec), **extra
        )
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE.yaml",
        help="recipe or other YAML file with options; the command line wins over it; with --help its header is shown",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print all options as YAML, as --config reads them, and end"
    )
    return parser


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read back as a number, which PyYAML alone does not for 1e3."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def to_yaml(options: dict[str, Any]) -> str:
    """Options as a recipe that `--config` reads back as they are."""
    return yaml.dump(options, Dumper=_Dumper, sort_keys=False)


def write_config(config: Config, path: Path) -> None:
    """Writes the resolved options; `--config <path>` repeats the run."""
    replace_file(path, to_yaml(dataclasses.asdict(config)).encode())


def load_config(kind: type[AnyConfig], path: Path) -> AnyConfig:
    """Reads what write_config wrote."""
    return read_config(kind, ["--config", str(path)])


def _config_first(argv: Sequence[str]) -> list[str]:
    """Moves `--config FILE` to the front: what stands on the command line wins wherever it stands."""
    files: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            files += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith("--config="):
            files.append(word)
        else:
            rest.append(word)
    return files + rest


def _config_files(argv: Sequence[str]) -> list[str]:
    """The files that `--config` names."""
    followers = [after for word, after in itertools.pairwise(argv) if word == "--config"]
    return followers + [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]


def _check_file(path: str, specs: dict[str, dataclasses.Field]) -> None:
    """Raises UserError naming the file unless it is a YAML mapping of options to plain values."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config: {path} is missing; {_near_file(path)}it must be a YAML file") from error
    except OSError as error:
        raise UserError(f"config: {path} cannot be read ({error.strerror}); it must be a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"config: {path} is not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"config: {path} holds no options; it must be a YAML file of lines `option: value`")
    for name, value in content.items():
        if name not in specs:
            raise UserError(f"{_unknown(str(name), specs)} (in {path})")
        if value is None and not _fits(None, specs[name].type):
            raise UserError(_not_allowed(specs[name], "null"))
        if specs[name].metadata["words"] and not _fits(value, specs[name].type):
            raise UserError(_not_allowed(specs[name], value))


def _near_file(path: str) -> str:
    """A question with the recipe or the YAML file of the same folder that was likely meant; nothing if none is near."""
    folders = (Path("recipes"), Path(path).parent)
    files = {file.stem: str(file) for folder in folders for file in sorted(folder.glob("*.yaml"))}
    near = nearest(Path(path).stem, list(files))
    return f"did you mean {files[near]}? " if near else ""


def _header(path: str) -> str:
    """The comment at the top of a recipe, for --help."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.lstrip("#") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def _name_list(value: str | list[str]) -> list[str]:
    """`a`, `a,b`, `[a, b]` or a YAML list, as a list of names."""
    names = value if isinstance(value, list) else re.split(r"[,\s]+", str(value).strip("[] "))
    return [str(name).strip("'\" ") for name in names if str(name).strip()]


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


def _not_allowed(spec: dataclasses.Field, value: Any) -> str:
    """The line for a value of the wrong type."""
    if isinstance(value, list) and allowed_names(spec.type):  # name the entry that is wrong
        value = next((entry for entry in value if entry not in allowed_names(spec.type)), value)
    hint = did_you_mean(str(value), allowed_names(spec.type))
    return f"{spec.name}: {value!r} is not allowed; {hint}it must be {_allowed_text(spec)}"


def _unknown(name: str, specs: dict[str, dataclasses.Field]) -> str:
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


def _explain(message: str, specs: dict[str, dataclasses.Field]) -> str:
    """jsonargparse's message as one line that names the option, the value and what is allowed."""
    if match := re.search(r'key "(\w+)":', message):
        name = match.group(1)
        if name in specs:
            shown = "is not allowed; "
            if value := re.search(r"(?:Got value|Given value): (.*)", message):
                hint = did_you_mean(value.group(1), allowed_names(specs[name].type))
                shown = f"{value.group(1)!r} is not allowed; {hint}"
            return f"{name}: {shown}it must be {_allowed_text(specs[name])}"
    if match := re.search(r"argument --(\w+): expected (?:one|at least one) argument", message):
        return f"{match.group(1)}: the value is missing" + (
            f"; it must be {_allowed_text(specs[match.group(1)])}" if match.group(1) in specs else ""
        )
    if match := re.search(r"unrecognized arguments: --(\w+)|Option '(\w+)' is not accepted|Key '(\w+)'", message):
        return _unknown(next(group for group in match.groups() if group), specs)
    if match := re.search(r"unrecognized arguments: (.*)", message):
        return f"{match.group(1)}: unexpected argument; options are written --name value"
    return " ".join(message.split())
