"""Batch norm's statistics after short epochs: those of the weights that are scored, on any number of processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from data.augment import BatchPipeline, create_augmentations
from data.loaders import DeviceLoader, Steps
from data.preprocessing import to_input
from data.sources import load_dataset
from models.saved import load_model
from tests.processes import run, tiny_config, train_script
from utils.config import TrainConfig
from utils.training.loading import shortened
from utils.training.norm_statistics import IMAGES, SHORT_EPOCH


def statistics(model: nn.Module) -> list[np.ndarray]:
    return [tensor.clone().numpy() for name, tensor in model.state_dict().items() if "running" in name]


def taken_anew(
    model: nn.Module, config: TrainConfig, rank: int = 0, world_size: int = 1, augmented: bool = True
) -> list[np.ndarray]:
    """torch's update_bn over this rank's part of the first images of the epoch after the last."""
    data = shortened(load_dataset(config.dataset, config.data_dir, config.image_size, 0.0, config.seed, 0.25), config)
    pipeline = BatchPipeline(create_augmentations(config, data.geometry, data.mean, data.std), config.seed)
    steps = Steps(len(data.train), config.batch_size, config.seed, rank, world_size)
    loader = DeviceLoader(data.train, pipeline, steps, torch.device("cpu"))
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    batches = zip(range(IMAGES // config.batch_size), loader.epoch(config.epochs, augmented=augmented), strict=False)
    update_bn([to_input(batch.images, mean, std) for _, batch in batches], model)
    return statistics(model)


@pytest.mark.parametrize("world_size", [1, 2])
def test_after_a_short_epoch_the_statistics_are_those_of_the_final_weights(tmp_path, world_size):
    config = tiny_config(tmp_path / "run", epochs=1)
    assert run(train_script, config, world_size=world_size) == [0] * world_size
    found = statistics(load_model(tmp_path / "run" / "model")[0])
    by_rank = [
        taken_anew(load_model(tmp_path / "run" / "model")[0], config, rank, world_size) for rank in range(world_size)
    ]
    for mine, *expected in zip(found, *by_rank, strict=True):
        np.testing.assert_allclose(mine, np.mean(expected, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("until", [0.5, 1.0])
def test_the_statistics_are_those_of_images_as_the_epoch_saw_them(tmp_path, until):
    config = tiny_config(tmp_path / "run", epochs=2, augment_until=until, cutout=8, overfit_batches=8)
    assert run(train_script, config) == [0]
    model = load_model(tmp_path / "run" / "model")[0]
    found = statistics(model)
    expected = {seen: taken_anew(model, config, augmented=seen) for seen in (True, False)}
    fits = {
        seen: all(np.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(found, arrays, strict=True))
        for seen, arrays in expected.items()
    }
    assert fits == {True: until == 1.0, False: until == 0.5}


def test_first_epoch_of_few_steps_scores_about_as_it_trained(tmp_path):
    """With running means it had a loss of several times that, and about the accuracy of a guess."""
    config = tiny_config(tmp_path / "run", epochs=2)
    assert run(train_script, config) == [0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["split"] == "test")
    trained = [line for line in lines if line["split"] == "train" and line["epoch"] == 1][-5:]
    assert first["loss"] < 1.5 * np.mean([line["loss"] for line in trained])


@pytest.mark.parametrize("changes", [{"batch_size": 1437 // SHORT_EPOCH}, {"max_steps": 5}], ids=["long", "unfinished"])
def test_running_means_stay_after_a_long_epoch_and_inside_one(tmp_path, changes):
    config = tiny_config(tmp_path / "run", **{"epochs": 1, **changes})
    assert run(train_script, config) == [0]
    model = load_model(Path(tmp_path / "run" / "model"))[0]
    assert not np.allclose(statistics(model)[0], taken_anew(model, config)[0], rtol=1e-3)
