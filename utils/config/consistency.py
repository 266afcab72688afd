"""What the options of train_accelerate.py must be to each other, beyond the range of each.

`config` is a TrainConfig, whose file imports this one.
"""

from dataclasses import fields
from typing import Any

from utils.config.options import default_of
from utils.config.policy import parse_policy
from utils.config.resolution import resolution_phases, shown_size
from utils.system.errors import UserError

SMALLEST_ALPHA = 0.01  # of a Beta distribution: below it, torch's sampler underflows and draws one half instead
STRONGEST_HUE = 0.5  # half a turn of the colour circle
# Options that say how steps are taken, and how training images are augmented.
TRAINING = (
    "epochs", "max_steps", "resolution", "optimizer", "lr", "momentum", "nesterov", "weight_decay",
    "decay_norm_and_bias", "norm_bias_lr_factor", "label_smoothing", "grad_clip_norm", "schedule", "warmup_fraction",
    "full_lr_steps", "find_lr", "ema_decay", "lookahead_steps", "lookahead_decay", "mixup", "cutmix", "repeated",
    "augment_until", "freeze_epochs", "layer_decay", "head_lr_factor", "norm_statistics", "drop_path",
    "grad_checkpointing", "teacher", "distill_alpha", "distill_temperature", "compile", "profile",
)  # fmt: skip
AUGMENTATION = (
    "crop", "crop_scale", "crop_padding", "padding_mode", "horizontal_flip", "vertical_flip", "rotate", "policy",
    "color_jitter", "grayscale", "blur", "cutout", "erase", "erase_mode", "exact_decode", "cache_side", "augment_file",
)  # fmt: skip


def check_consistency(config: Any) -> None:
    """Raises UserError naming an option, its value and what is allowed beside the others."""
    _check_trackers(config)
    _check_fine_tuning(config)
    if config.image_size != "auto":  # else it is checked once the weights have told it
        _check_geometry(config)
    _check_augmentation(config)


def _check_trackers(config: Any) -> None:
    if not config.trackers or len(set(config.trackers)) < len(config.trackers):
        raise UserError(f"trackers: {config.trackers} is not allowed; name each tracker once, or none")
    if "none" in config.trackers and len(config.trackers) > 1:
        raise UserError(f"trackers: {','.join(config.trackers)} is not allowed; none cannot be combined with others")


def _check_fine_tuning(config: Any) -> None:
    starts = config.is_fine_tuned
    needs = {
        "keep_head": not config.keep_head,
        "head_init": config.head_init != "probe",
        "freeze": config.freeze == "none",
        "freeze_epochs": config.freeze_epochs == 0,
        "norm_statistics": config.norm_statistics != "frozen",
    }
    for name, allowed in needs.items():
        if not (starts or allowed):
            value = str(getattr(config, name)).lower()
            raise UserError(f"{name}: {value} is not allowed without init_from: there are no weights that it could use")
    if config.freeze == "backbone" and config.head_init == "random" and not config.keep_head:
        raise UserError("head_init: random is not allowed with freeze backbone, which would train nothing; use probe")
    if config.freeze == "backbone" and config.print_groups:
        raise UserError("print_groups: true is not allowed with freeze backbone, which trains no parameter groups")
    if config.freeze_epochs > config.epochs:
        raise UserError(
            f"freeze_epochs: {config.freeze_epochs} is not allowed; it must be at most epochs ({config.epochs})"
        )


def _check_geometry(config: Any) -> None:
    size = config.size
    resolution_phases(config.resolution, size, total_steps=1)
    if config.fit == "pad" and config.crop_pct != 1:
        raise UserError(f"crop_pct: {config.crop_pct} is not allowed with fit pad, which cuts nothing off")
    if config.cache_side is not None and config.cache_side < min(size):
        raise UserError(
            f"cache_side: {config.cache_side} is not allowed; photos of fewer pixels than image_size "
            f"({shown_size(size)}) would be cached; it must be at least {min(size)}"
        )
    if config.crop == "pad" and config.padding_mode == "reflect" and config.crop_padding >= min(size):
        raise UserError(
            f"crop_padding: {config.crop_padding} is not allowed; with padding_mode reflect it must be less than "
            f"image_size ({shown_size(size)})"
        )
    for name in ("crop_padding", "cutout") if config.crop == "pad" else ("cutout",):
        if (value := getattr(config, name)) > min(size):
            raise UserError(f"{name}: {value} is not allowed; it must be at most image_size ({shown_size(size)})")


def _check_augmentation(config: Any) -> None:
    for name in ("mixup", "cutmix"):
        if 0 < (value := getattr(config, name)) < SMALLEST_ALPHA:
            raise UserError(f"{name}: {value:g} is not allowed; it must be 0 (off) or at least {SMALLEST_ALPHA:g}")
    if config.repeated > config.batch_size:
        raise UserError(
            f"repeated: {config.repeated} is not allowed; it must be at most batch_size ({config.batch_size})"
        )
    scale, jitter = config.crop_scale, config.color_jitter
    if len(scale) not in (1, 2) or scale[0] > scale[-1]:
        raise UserError(
            f"crop_scale: {scale} is not allowed; it must be the smallest and the largest share of the area, such as "
            "0.08,1"
        )
    if len(jitter) not in (0, 1, 3, 4) or max(jitter[3:], default=0) > STRONGEST_HUE:
        raise UserError(
            f"color_jitter: {jitter} is not allowed; it must be the strengths of brightness, contrast and saturation "
            f"(0 to 1) and of hue (0 to {STRONGEST_HUE}), such as 0.4,0.4,0.4,0.1, or one number for the first three"
        )
    parse_policy(config.policy)
    if config.augment_file is not None and config.augment_backend == "tensor":
        raise UserError(
            "augment_backend: tensor is not allowed with augment_file, whose pipeline takes images one by one; use "
            "auto or albumentations"
        )


def without_effect(config: Any) -> str:
    """What options were set that do nothing beside the others, in one line; empty if there are none.

    Only values are known, so an option counts as set if it has another than its default. What an augment_file replaces
    is said by a line of its own.
    """
    resized, padded = config.crop == "resized", config.crop == "pad" and config.crop_padding > 0
    trains, probes = config.freeze != "backbone", config.head_init == "probe"
    own_size = f"with {config.dataset}, whose images have a size of their own"
    rules = [
        (TRAINING, trains, "with freeze backbone, which trains no step"),
        (AUGMENTATION, trains or config.probe_views > 0, "with freeze backbone and without probe_views"),
        (("probe_views",), probes, "without head_init probe"),
        (("crop_scale", "exact_decode", "cache_side"), resized, "without crop resized"),
        (("crop_padding",), padded or config.crop_padding == 0, "without crop pad"),
        (("padding_mode",), padded, "without crop pad and crop_padding"),
        (("erase_mode",), config.erase > 0, "without erase"),
        (("augment_until",), round(config.augment_until * config.epochs) < config.epochs, "in so few epochs"),
        (("image_size",), config.is_fitted, own_size),
        (("distill_alpha", "distill_temperature"), config.teacher is not None, "without teacher"),
        (("teacher", "distill_temperature"), config.distill_alpha > 0, "with distill_alpha 0"),
        (("fit", "crop_pct", "interpolation"), config.is_fitted, f"{own_size}, but for the photos of others"),
    ]
    others = {option.name for option in fields(config) if getattr(config, option.name) != default_of(option, config)}
    parts = []
    for names, have_effect, why in rules:
        found = [name for name in names if name in others and not have_effect]
        others.difference_update(found)  # each is named once
        if found:
            parts.append(f"{', '.join(found)} {why}")
    return f"no effect: {'; '.join(parts)}" if parts else ""
