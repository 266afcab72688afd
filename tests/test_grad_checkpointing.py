"""Gradient checkpointing: the same training to the bit, with activations computed twice instead of stored."""

import pytest
import torch
from safetensors.torch import load_file

from models import create_model, model_arguments
from tests.processes import run, train_script
from tests.timm_folder import fine_tuning, timm_folder
from utils.config import TrainConfig
from utils.system.errors import UserError
from utils.training.network import prepare_network


@pytest.mark.slow
@pytest.mark.parametrize(("statistics", "world_size"), [("trained", 1), ("frozen", 2)])
def test_weights_and_norm_statistics_are_the_same_to_the_bit(tmp_path, statistics, world_size):
    weights, ends = timm_folder(tmp_path / "weights", "test_resnet"), []
    for switch in (False, True):
        config = fine_tuning(
            tmp_path / str(switch), weights, norm_statistics=statistics, drop_path=0.3, micro_batch_size=40,
            max_steps=3, grad_checkpointing=switch,
        )  # fmt: skip
        assert run(train_script, config, world_size=world_size) == [0] * world_size
        ends.append(load_file(tmp_path / str(switch) / "model" / "model.safetensors"))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_activations_are_computed_twice():
    config = TrainConfig(model="timm:test_efficientnet", grad_checkpointing=True)
    model = create_model(config.model, 10)
    prepare_network(model, config, (32, 32))
    calls: list[int] = []
    model.get_submodule("blocks.0.0").register_forward_pre_hook(lambda *_: calls.append(1))
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["resnet18", "speednet", "timm:vgg11"])
def test_a_model_without_it_is_refused_in_one_line(name):
    config = TrainConfig(model=name, grad_checkpointing=True, image_size=32)
    with torch.device("meta"):
        model = create_model(name, 10, **model_arguments(config, (32, 32)))
    with pytest.raises(
        UserError, match=f"grad_checkpointing: true is not allowed with {name}, which does not offer it"
    ):
        prepare_network(model, config, (32, 32))
