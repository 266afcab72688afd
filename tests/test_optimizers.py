"""Optimizers: what is decayed, and a state by name that continues training bit for bit."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import create_model
from utils.checkpoint import tensors_from_bytes, tensors_to_bytes
from utils.errors import UserError
from utils.training.optimizers import (
    create_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


def small_model(channels_last: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, bias=False),
            norm1=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
            conv2=nn.Conv2d(16, 8, 3, bias=False),
            flatten=nn.Flatten(),
            fc=nn.Linear(8 * 4 * 4, 10),
        )
    )
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 8, 8, generator=generator)
        labels = torch.randint(10, (4,), generator=generator)
        set_learning_rate(optimizer, 0.01 * (step + 1))
        F.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def decays(model: nn.Module, **options) -> dict[str, float]:
    optimizer = create_optimizer("sgd", model, weight_decay=0.1, **options)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: decay[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_weight_decay_spares_norm_and_bias_if_asked(norm):
    model = create_model("resnet18", 10, width=16, norm=norm)
    spared = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) or name == "bias"
    }
    found = decays(model, decay_norm_and_bias=False)
    assert len(spared) == 41
    assert {name for name, decay in found.items() if decay == 0} == spared
    assert {decay for name, decay in found.items() if name not in spared} == {0.1}


def test_weight_decay_is_for_all_parameters_if_not_asked():
    assert set(decays(small_model()).values()) == {0.1}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_shrinks_what_it_should_and_nothing_else(name):
    """One step with a gradient of zero: only decay moves a weight."""
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    optimizer = create_optimizer(name, model, momentum=0.0, weight_decay=0.1, decay_norm_and_bias=False)
    set_learning_rate(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.conv1.weight, before["conv1.weight"] * 0.95)
    assert torch.equal(model.norm1.weight, before["norm1.weight"])
    assert torch.equal(model.fc.bias, before["fc.bias"])


def test_options_reach_the_optimizer():
    sgd = create_optimizer("sgd", small_model(), momentum=0.8, nesterov=True)
    assert (type(sgd), sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (torch.optim.SGD, 0.8, True)
    assert create_optimizer("sgd", small_model(), momentum=0.8, nesterov=False).defaults["nesterov"] is False
    adamw = create_optimizer("adamw", small_model(), momentum=0.8)
    assert (type(adamw), adamw.defaults["betas"]) == (torch.optim.AdamW, (0.8, 0.999))


def test_sgd_without_momentum_is_possible():
    model = small_model()
    optimizer = create_optimizer("sgd", model, momentum=0.0, nesterov=True)
    train(model, optimizer, range(1))
    assert optimizer_tensors(optimizer, model) == {}


def test_learning_rate_reaches_every_group():
    optimizer = create_optimizer("sgd", small_model(), decay_norm_and_bias=False)
    set_learning_rate(optimizer, 0.123)
    assert [group["lr"] for group in optimizer.param_groups] == [0.123, 0.123]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_restored_state_continues_bit_for_bit(tmp_path, name, decay_norm_and_bias, channels_last):
    def fresh():
        model = small_model(channels_last)
        return model, create_optimizer(
            name, model, nesterov=True, weight_decay=0.01, decay_norm_and_bias=decay_norm_and_bias
        )

    straight, straight_optimizer = fresh()
    train(straight, straight_optimizer, range(4))

    first, first_optimizer = fresh()
    train(first, first_optimizer, range(2))
    weights = tensors_to_bytes(first.state_dict())
    state = tensors_to_bytes(optimizer_tensors(first_optimizer, first))
    second, second_optimizer = fresh()
    second.load_state_dict(tensors_from_bytes(weights, tmp_path))
    load_optimizer_tensors(second_optimizer, second, tensors_from_bytes(state, tmp_path))
    train(second, second_optimizer, range(2, 4))

    for key, tensor in straight.state_dict().items():
        assert torch.equal(second.state_dict()[key], tensor), key
    ours, theirs = optimizer_tensors(second_optimizer, second), optimizer_tensors(straight_optimizer, straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_without_the_state_training_would_go_another_way(tmp_path):
    """The promise above is worth something: momentum matters after two steps."""
    model = small_model()
    optimizer = create_optimizer("sgd", model)
    train(model, optimizer, range(2))
    other = copy.deepcopy(model)
    train(model, optimizer, range(2, 3))
    train(other, create_optimizer("sgd", other), range(2, 3))
    assert not torch.equal(model.conv1.weight, other.conv1.weight)


def test_state_is_named_by_parameter():
    model = small_model()
    optimizer = create_optimizer("adamw", model)
    train(model, optimizer, range(1))
    names = {name for name, _ in model.named_parameters()}
    assert optimizer_tensors(optimizer, model).keys() == {
        f"{name}/{key}" for name in names for key in ("exp_avg", "exp_avg_sq", "step")
    }


def test_loading_forgets_what_was_there():
    model = small_model()
    optimizer = create_optimizer("sgd", model)
    train(model, optimizer, range(1))
    load_optimizer_tensors(optimizer, model, {})
    assert optimizer_tensors(optimizer, model) == {}


@pytest.mark.parametrize(
    "tensors",
    [
        {"conv1.weight/momentum_buffer": torch.zeros(3)},
        {"conv1.weight/momentum_buffer": torch.zeros(16, 3, 3, 4)},
        {"nowhere.weight/momentum_buffer": torch.zeros(16, 3, 3, 3)},
        {"momentum_buffer": torch.zeros(16, 3, 3, 3)},
    ],
)
def test_state_of_another_model_is_refused(tensors):
    model = small_model()
    with pytest.raises(UserError, match=f"resume: the optimizer state {next(iter(tensors))} does not fit the model"):
        load_optimizer_tensors(create_optimizer("sgd", model), model, tensors)


def test_unknown_optimizer_names_what_there_is():
    with pytest.raises(UserError, match=r"optimizer: 'lion' is not allowed; choose from sgd, adamw"):
        create_optimizer("lion", small_model())
