"""Shortcuts for development: does everything run, and can the model learn at all?"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator

from data.splits import Dataset
from utils.config import TrainConfig
from utils.training.loading import evenly_spaced

EVALUATED = 500  # images of a fast_dev_run's evaluations: one batch


@contextlib.contextmanager
def dev_run(config: TrainConfig) -> Iterator[TrainConfig]:
    """With `fast_dev_run`, the config of one step in a temporary folder, without trackers or upload."""
    if not config.fast_dev_run:
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="fast_dev_run-") as folder:
        yield dataclasses.replace(
            config, max_steps=1, trackers=["none"], push_to_hub=None, output_dir=folder, resume="never"
        )


def shortened(data: Dataset, config: TrainConfig) -> Dataset:
    """The data set with the images that `overfit_batches` or `fast_dev_run` asks for, evenly spaced."""
    train, validation, test = data.train, data.validation, data.test
    if config.overfit_batches:
        train = evenly_spaced(train, config.overfit_batches * config.batch_size)
    if config.fast_dev_run:
        train = evenly_spaced(train, config.batch_size)  # so that the one step ends an epoch
        validation, test = validation and evenly_spaced(validation, EVALUATED), evenly_spaced(test, EVALUATED)
    return dataclasses.replace(data, train=train, validation=validation, test=test)
