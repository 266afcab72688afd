"""Which CAM methods at which layers `cam_method` and `cam_layer` ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from utils.analysis.cam.layers import Size, choose_layer, refused_layers
from utils.analysis.cam.maps import Cam
from utils.analysis.cam.methods import choose_method, layers_of


@dataclass(frozen=True)
class Cams:
    """The methods at the layers that are asked for: the first explains the mistakes, all are compared.

    `refused` are the layers whose feature maps are too coarse, with their height and width in pixels.
    """

    chosen: Sequence[Cam] = ()
    refused: Mapping[str, Size] = field(default_factory=dict)


def choose_cams(
    model: nn.Module,
    image_size: int,
    methods: str,
    layers: str | None,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
) -> Cams:
    """All combinations of methods and layers, given as comma-separated names. Raises UserError."""
    kinds = {name: choose_method(name, aug_smooth, eigen_smooth) for name in _names(methods)}
    places = [choose_layer(model, image_size, name) for name in (_names(layers) if layers else [None])]
    chosen = [
        Cam(name, kind, layer, aug_smooth, eigen_smooth)
        for name, kind in kinds.items()
        for layer in layers_of(kind, places, image_size)
    ]
    return Cams(chosen, refused_layers(model, image_size))


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))
