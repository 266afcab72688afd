"""Defaults that change if a run starts from weights of others, and those that the weights decide."""

from typing import Any

from utils.config.options import Default, in_words

RANDOM, PRETRAINED, HUB = "random", "pretrained", "hf-hub:"  # the last before a repository
# What `auto` becomes if no weights say otherwise.
UNTRAINED: dict[str, Any] = {
    "model": "resnet18",
    "norm": "batch",
    "width": 64,
    "image_size": 32,
    "fit": "crop",
    "crop_pct": 1.0,
    "interpolation": "bilinear",
}


def tuned(random: Any, fine_tuned: Any) -> Default:
    """A default that is another one if the run starts from weights of others."""
    words = f"{in_words(random)}; with init_from {in_words(fine_tuned)}"
    return Default(lambda config: fine_tuned if config.is_fine_tuned else random, words)


def of_weights(name: str) -> Default:
    """The default of an option that the weights of `init_from` decide, if there are any."""
    words = f"{UNTRAINED[name]}; with init_from auto: that of the weights"
    return Default(lambda config: "auto" if config.is_fine_tuned else UNTRAINED[name], words)
