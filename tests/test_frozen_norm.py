"""Batch norm with frozen statistics: they stay those of the weights whatever a training does, and runs agree."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data.preprocessing import to_input
from models import create_model
from models.drop_path import DropPath
from models.frozen_norm import freeze_statistics, statistics_layers
from models.saved import load_model
from tests.processes import run, train_script
from tests.test_same_run import WHOLE_RUN, rows, train_in_float64
from tests.timm_folder import fine_tuning, small_model, timm_folder
from utils.training.norm_statistics import fresh_statistics

RESNET, EFFICIENTNET, VIT = "test_resnet", "test_efficientnet", "test_vit"  # norms: plain, with activation, no batch
HEADS = ("fc.", "classifier.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    return {name: timm_folder(root / name, name) for name in (RESNET, EFFICIENTNET, VIT)}


def statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "running" in name or "tracked" in name}


@pytest.mark.parametrize("name", [RESNET, EFFICIENTNET])
def test_a_training_pass_is_that_of_eval_mode_and_scale_and_shift_are_trained(name):
    model = small_model(name).double()
    before = copy.deepcopy(model.state_dict())
    assert freeze_statistics(model) == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) > 0
    inputs = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = small_model(name).double().eval()(inputs)
    for twin in (model, copy.deepcopy(model)):  # as EMA copies it
        twin.eval().train()
        found = twin(inputs)
        assert torch.equal(found, expected)
        found.logsumexp(1).sum().backward()
        layers = [layer for layer in twin.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert all(parameter.grad.abs().sum() > 0 for layer in layers for parameter in layer.parameters())
        after = twin.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[key], before[key]) for key in before)


def test_an_activation_inside_a_frozen_layer_follows_the_mode_of_the_model():
    model = small_model(EFFICIENTNET)
    layer = next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    layer.drop = nn.Dropout(0.5)
    freeze_statistics(model)
    assert (layer.training, layer.drop.training) == (False, True)
    model.eval()
    assert (layer.training, layer.drop.training) == (False, False)


def test_statistics_are_neither_reset_nor_learned_where_they_are_frozen():
    model = small_model(RESNET)
    assert len(statistics_layers(model)) == 15
    freeze_statistics(model)
    before = copy.deepcopy(model.state_dict())
    with fresh_statistics(model.train(), begin=True):
        model(torch.randn(2, 3, 32, 32))
    assert statistics_layers(model) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_batch_norm_is_left_alone():
    assert freeze_statistics(create_model("resnet18", 10, norm="group", width=16)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [RESNET, EFFICIENTNET])
def test_a_run_exports_the_statistics_of_its_weights_in_a_model_of_plain_timm(folders, tmp_path, name):
    """With everything that touches norm statistics: short epochs, another image size, averages, a resume."""
    config = fine_tuning(
        tmp_path / "run", folders[name], epochs=2, resolution="24@0.5,32", ema_decay=0.9, lookahead_steps=3,
        checkpoint_every_steps=4, max_steps=8,
    )  # fmt: skip
    assert run(train_script, config) == [0]
    config.max_steps = None
    assert run(train_script, config) == [0]
    weights, exported = load_file(folders[name] / "model.safetensors"), tmp_path / "run" / "model"
    tensors = load_file(exported / "model.safetensors")
    assert all(torch.equal(tensors[key], tensor) for key, tensor in statistics(weights).items())
    ours, saved = load_model(exported)
    theirs = timm.create_model(name, num_classes=10, **saved.arguments).eval()
    theirs.load_state_dict(tensors)
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    inputs = to_input(images, torch.tensor(saved.mean), torch.tensor(saved.std))
    assert torch.equal(ours(inputs), theirs(inputs))
    assert not any(isinstance(layer, DropPath) for layer in ours.modules())
    trained = [name for name in tensors if name not in statistics(tensors)]
    assert not any(torch.equal(tensors[key], weights[key]) for key in trained if not key.startswith(HEADS))


@pytest.mark.slow
@pytest.mark.parametrize("name", [RESNET, EFFICIENTNET])
def test_loss_at_every_step_is_the_same_on_any_number_of_processes(folders, tmp_path, name):
    losses = {}
    for world_size, changes in ((1, {}), (2, {"micro_batch_size": 25}), (3, {"num_workers": 1})):
        config = fine_tuning(
            tmp_path / f"{world_size}", folders[name], batch_size=65, lr=0.002, drop_path=0.2, **changes
        )
        assert run(train_in_float64, config, world_size=world_size) == [0] * world_size
        losses[world_size] = [row["loss"] for row in rows(tmp_path / f"{world_size}")]
    assert len(losses[1]) == 24
    for world_size in (2, 3):
        np.testing.assert_allclose(losses[world_size], losses[1], rtol=WHOLE_RUN)


@pytest.mark.slow
def test_statistics_that_are_trained_change(folders, tmp_path):
    config = fine_tuning(tmp_path / "run", folders[RESNET], norm_statistics="trained", max_steps=2)
    assert run(train_script, config) == [0]
    weights = statistics(load_file(folders[RESNET] / "model.safetensors"))
    tensors = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not any(torch.equal(tensors[key], tensor) for key, tensor in weights.items() if "running" in key)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["auto", "trained"])
def test_setting_it_without_batch_norm_is_said(folders, tmp_path, value):
    config = fine_tuning(tmp_path / "run", folders[VIT], norm_statistics=value, fast_dev_run=True, batch_size=16)
    assert run(train_script, config, log=tmp_path / "log") == [0]
    line = "warning: no effect: norm_statistics with timm:test_vit, which has no batch norm"
    assert (line in (tmp_path / "log").read_text()) == (value == "trained")


@pytest.mark.slow
def test_a_single_image_in_a_forward_pass_is_enough(folders, tmp_path):
    config = fine_tuning(tmp_path / "run", folders[RESNET], batch_size=1, image_size=16, max_steps=1)
    assert run(train_script, config) == [0]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 1
