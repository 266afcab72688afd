"""A table of a model's layers."""

import copy

from torch import nn


def describe_model(model: nn.Module, image_size: int) -> str:
    """A table of sizes in and out, parameters and multiplications per layer, for one image."""
    import torchinfo

    columns = ("input_size", "output_size", "num_params", "mult_adds")
    size = (1, 3, image_size, image_size)
    return str(torchinfo.summary(copy.deepcopy(model), size, col_names=columns, depth=4, verbose=0))
