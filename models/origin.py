"""Where start weights come from, and what they say of themselves.

A config.json may come from a stranger: every value is checked.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.preprocessing import INTERPOLATIONS, Channels
from models.saved import ModelConfig
from models.timm_models import PREFIX, pools_as, timm_name
from utils.config.resolution import LARGEST, shown_size
from utils.system.errors import UserError
from utils.system.reading import MOST_SHOWN, is_number, is_text, shown

CROP_MODES = {"center": "crop", "squash": "squash", "border": "pad"}  # timm's names of `fit`
TIMM_ARGUMENTS = {"img_size", "patch_size", "output_stride", "in_chans", "num_classes"}  # that weights may ask for


@dataclass(frozen=True)
class Origin:
    """Where weights come from, and what they say of themselves; None where they say nothing.

    Attributes:
        source: as `init_from` names it.
        path: the file with the tensors, on this machine.
        sha256: of the file.
        part: of a pickle, the key of the state dict in it.
        model: the name for create_model.
        arguments: those of create_model, of this suite's own models.
        norm, width: options of the same names, among the arguments.
        class_names: of the head, in the order of its outputs.
        image_size, fit, crop_pct, interpolation: options of the same names, as the weights were trained.
        mean, std: per channel, on a scale of 0 to 1.
        repository, revision: on the Hub: USER/NAME and the commit.
        license: as the Hub or timm names it.
    """

    source: str
    path: Path
    sha256: str
    part: str | None = None
    model: str | None = None
    arguments: Mapping[str, Any] | None = None
    norm: str | None = None
    width: int | None = None
    class_names: tuple[str, ...] | None = None
    image_size: int | str | None = None
    fit: str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: Channels | None = None
    std: Channels | None = None
    repository: str | None = None
    revision: str | None = None
    license: str | None = None

    def facts(self) -> dict[str, Any]:
        """What it says of the options that are left to the weights, for TrainConfig.with_weights."""
        return dataclasses.asdict(self)

    def describe(self) -> dict[str, str | None]:
        """For environment.json: source, file, repository and revision on the Hub, licence and SHA-256."""
        return {
            "source": self.source,
            "file": self.path.name,
            "repository": self.repository,
            "revision": self.revision,
            "license": self.license,
            "sha256": self.sha256,
        }


def own_facts(config: ModelConfig) -> dict[str, Any]:
    """What a model/config.json of this suite says, as attributes of Origin."""
    return {
        "model": config.architecture,
        "arguments": config.arguments,
        "norm": config.arguments.get("norm"),
        "width": config.arguments.get("width"),
        "class_names": config.class_names,
        "image_size": shown_size(config.geometry.size),
        "fit": config.fit,
        "crop_pct": config.crop_pct,
        "interpolation": config.interpolation,
        "mean": config.mean,
        "std": config.std,
    }


def timm_facts(values: Mapping[str, Any], source: object) -> dict[str, Any]:
    """What a config.json of timm says, as attributes of Origin.

    Raises UserError naming `source` and the value that is invalid, or that no model of this suite can have.
    """
    if "architecture" not in values and ("architectures" in values or "model_type" in values):
        raise UserError(f"{source}: a model of transformers; start weights are timm's or this suite's own")
    _check(source, "architecture", values.get("architecture"), _is_name, "the name of a model of timm")
    cfg = values.get("pretrained_cfg", values)
    _check(source, "pretrained_cfg", cfg, lambda value: isinstance(value, Mapping), "a mapping")
    name = PREFIX + values["architecture"]
    try:
        timm_name(name)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    _check_arguments(source, name, values.get("model_args"))
    known = {key: value for key, value in cfg.items() if value is not None}
    facts: dict[str, Any] = {"model": name, "class_names": _label_names(values, cfg)}
    if "input_size" in known:
        size = known["input_size"]
        _check(source, "input_size", size, _is_input_size, f"channels, height and width, up to {LARGEST} pixels")
        _check_channels(source, size[0])
        facts["image_size"] = shown_size((size[1], size[2]))
    if "mean" in known and "std" in known:
        for key, low in (("mean", 0.0), ("std", 1e-6)):
            _check(source, key, known[key], lambda value, low=low: _is_channels(value, low), "3 numbers from 0 to 1")
            facts[key] = tuple(map(float, known[key]))
    if "interpolation" in known:
        _check(
            source, "interpolation", known["interpolation"], tuple(INTERPOLATIONS).__contains__, _listed(INTERPOLATIONS)
        )
        facts["interpolation"] = known["interpolation"]
    if "crop_mode" in known:
        _check(source, "crop_mode", known["crop_mode"], tuple(CROP_MODES).__contains__, _listed(CROP_MODES))
        facts["fit"] = CROP_MODES[known["crop_mode"]]
    if "crop_pct" in known:
        _check(source, "crop_pct", known["crop_pct"], lambda value: is_number(value, 0.1, 2), "a number from 0.1 on")
        # Above 1 timm adds a border, and pad of this suite cuts nothing off.
        facts["crop_pct"] = 1.0 if facts.get("fit") == "pad" else min(1.0, float(known["crop_pct"]))
    if is_license(known.get("license")):
        facts["license"] = known["license"]
    return facts


def is_license(value: Any) -> bool:
    """Whether a value of a file is the short name of a licence."""
    return is_text(value) and 0 < len(value) <= MOST_SHOWN and value.isprintable()


def _check(source: object, name: str, value: Any, fits: Any, allowed: str) -> None:
    if not fits(value):
        raise UserError(f"{source}: {name} is {shown(value)}; it must be {allowed}")


def _check_arguments(source: object, model: str, arguments: Any) -> None:
    if arguments is None:
        return
    _check(source, "model_args", arguments, lambda value: isinstance(value, Mapping), "a mapping")
    allowed = TIMM_ARGUMENTS | ({"global_pool"} if pools_as(model, arguments.get("global_pool")) else set())
    if other := [name for name in arguments if name not in allowed]:
        raise UserError(f"{source}: model_args has {shown(', '.join(other))}, which this suite does not build")
    _check_channels(source, arguments.get("in_chans", 3))


def _check_channels(source: object, channels: Any) -> None:
    if channels != 3:
        raise UserError(f"{source}: the weights take images of {shown(channels)} channels; those of this suite have 3")


def _label_names(values: Mapping[str, Any], cfg: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes of the head, if they are all named."""
    names = values.get("label_names", cfg.get("label_names"))
    count = values.get("num_classes", cfg.get("num_classes"))
    if not isinstance(names, (list, tuple)) or not all(map(is_text, names)) or len(names) != count:
        return None
    return tuple(names)


def _is_name(value: Any) -> bool:
    return is_text(value) and 0 < len(value) <= MOST_SHOWN


def _is_input_size(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return False
    return all(type(number) is int and 1 <= number <= LARGEST for number in value)


def _is_channels(value: Any, low: float) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(is_number(number, low, 1) for number in value)


def _listed(names: Mapping[str, Any]) -> str:
    return f"one of {', '.join(names)}"
