"""Automatic augmentation: TrivialAugmentWide (Müller and Hutter 2021, arXiv:2103.10158), RandAugment (Cubuk et al.
2020, arXiv:1909.13719) and AutoAugment (Cubuk et al. 2019, arXiv:1805.09501).

Distributions and operations are those of torchvision.transforms.v2 with its defaults: 31 magnitudes (AutoAugment: 10),
the nearest pixel for what moves, and black, not the mean, where nothing moves in, as in the published results.
"""

from functools import lru_cache

import numpy as np
from torch import Tensor

from data.augment.augmentation import Augmentation, Channels
from data.augment.batch_of_one import BatchOfOne
from data.augment.operations import MOST_PARAMETERS, OPERATIONS, apply_, to_device
from data.augment.policy_tables import AUTO, CHOSEN_AT_RANDOM, NAMES, RAND, TABLES, WIDE, Space
from data.preprocessing import Geometry
from utils.config import TrainConfig
from utils.config.policy import Policy, parse_policy

KERNELS = tuple(dict.fromkeys(operation.kernel for operation in OPERATIONS.values()))
KERNEL_OF = np.array([KERNELS.index(operation.kernel) for operation in OPERATIONS.values()])


class AutomaticAugmentation(BatchOfOne):
    """Gives each image operations of its own, one after the other, each with a magnitude and a sign.

    A choice is a number: ((place in NAMES) * bins + bin of the magnitude) * 2 + (1 if the magnitude is negative).

    Args:
        policy: which operations an image gets.
    """

    streams = (8,)

    def __init__(self, policy: Policy):
        self.policy = policy
        self.space = {"trivial": WIDE, "rand": RAND, "auto": AUTO}[policy.kind]

    @classmethod
    def from_config(cls, config: TrainConfig, geometry: Geometry, mean: Channels, std: Channels) -> Augmentation | None:
        policy = parse_policy(config.policy)
        return cls(policy) if policy else None

    def choose(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """The choice of each operation in turn."""
        choose = {"trivial": _trivial, "rand": _rand, "auto": _auto}[self.policy.kind]
        operation, magnitude, negative = choose(self.policy, generator, count)
        return (operation * self.space.bins + magnitude) * 2 + negative

    def alter(self, images: Tensor, *choices: Tensor) -> Tensor:
        parameters = _parameters(self.space, *images.shape[1:3])
        for choice in choices:
            drawn = choice.numpy()
            kernels = KERNEL_OF[drawn // (2 * self.space.bins)]
            order = np.argsort(kernels, kind="stable")
            ends = np.cumsum(np.bincount(kernels, minlength=len(KERNELS))).tolist()
            there, back = to_device(np.stack([order, np.argsort(order)]), images)
            images = images.index_select(0, there)  # by kernel
            values = to_device(parameters[drawn[order]], images)
            for kernel, start, end in zip(KERNELS, [0, *ends[:-1]], ends, strict=True):
                if kernel and start < end:
                    apply_(kernel, images[start:end], values[start:end])
            images = images.index_select(0, back)
        return images


@lru_cache(maxsize=8)
def _parameters(space: Space, height: int, width: int) -> np.ndarray:
    """The kernel's parameters for every choice, float32 (choices, MOST_PARAMETERS)."""
    rows = []
    for name, operation in OPERATIONS.items():
        for magnitude in space.magnitudes(name, height, width):
            for sign in (1, -1 if operation.signed else 1):
                found = operation.parameters(sign * magnitude, height, width)
                rows.append([*found, *[0.0] * (MOST_PARAMETERS - len(found))])
    return np.array(rows, np.float32)


Choice = tuple[np.ndarray, np.ndarray, np.ndarray]  # operation, bin, 1 if negative: int64 (operations, count) each


def _trivial(policy: Policy, generator: np.random.Generator, count: int) -> Choice:
    """One operation, any magnitude."""
    operation, magnitude, sign = generator.random((count, 1, 3)).T
    return _floor(operation * CHOSEN_AT_RANDOM), _floor(magnitude * WIDE.bins), _floor(sign * 2)


def _rand(policy: Policy, generator: np.random.Generator, count: int) -> Choice:
    """Several operations, the same ones perhaps, of one magnitude."""
    operation, sign = generator.random((count, policy.operations, 2)).T
    operation = _floor(operation * CHOSEN_AT_RANDOM)
    return operation, np.full_like(operation, policy.magnitude), _floor(sign * 2)


def _auto(policy: Policy, generator: np.random.Generator, count: int) -> Choice:
    """The two operations of a line of the table, each with its probability."""
    table, uniform = TABLES[policy.table], generator.random((count, 5)).T
    line = _floor(uniform[0] * len(table.operation))
    is_applied = uniform[1:3] < table.probability[line].T
    operation = np.where(is_applied, table.operation[line].T, NAMES.index("Identity"))
    return operation, table.bin[line].T, _floor(uniform[3:] * 2)


def _floor(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64)
