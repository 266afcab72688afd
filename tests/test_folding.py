"""Convolution and frozen batch norm in one pass are, to rounding, what they are one after the other."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import create_model
from models.folding import fold_frozen_norms
from models.frozen_norm import freeze_statistics
from tests.timm_folder import small_model

NAMES = ["test_resnet", "test_efficientnet", "test_byobnet", "tf_efficientnet_lite0", "mobilenetv3_small_050"]


def pair(model: nn.Module, size: int = 32) -> tuple[nn.Module, nn.Module, int]:
    """A model with frozen norms, a copy of it with folded ones, and how many those are."""
    freeze_statistics(model)
    folded = copy.deepcopy(model)
    count = fold_frozen_norms(folded, (size, size))
    return model, copy.deepcopy(folded), count  # as EMA copies it


def gradients(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    inputs = inputs.clone().requires_grad_()
    outputs = model(inputs)
    outputs.square().sum().backward()
    return [outputs.detach(), inputs.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_same(plain: nn.Module, folded: nn.Module, inputs: Tensor, tolerance: float) -> None:
    for mine, expected in zip(gradients(folded, inputs), gradients(plain, inputs), strict=True):
        assert (mine - expected).norm() <= tolerance * expected.norm()
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(folded.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert [name for name, _ in folded.named_modules()] == [name for name, _ in plain.named_modules()]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_same(name):
    plain, folded, count = pair(small_model(name).double())
    assert count == sum(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    assert_same(plain, folded, torch.randn(3, 3, 32, 32, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("model", ["resnet18", "speednet"])
def test_our_own_models_are_the_same(model):
    plain, folded, count = pair(create_model(model, 10, width=16).double())
    assert count == (20 if model == "resnet18" else 3)  # speednet pools between the others
    assert_same(plain, folded, torch.randn(3, 3, 32, 32, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias": True}, {"groups": 4}, {"groups": 8, "bias": True}, {"stride": 2}, {"dilation": 2},
        {"padding": "same"}, {"padding_mode": "reflect"},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_convolution_is_the_same(arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, **{"padding": 1, **arguments}), nn.BatchNorm2d(8))
    model[2].running_mean.normal_()
    model[2].running_var.uniform_(0.5, 2)
    plain, folded, count = pair(model.double(), 9)
    assert count == 1
    assert_same(plain, folded, torch.randn(2, 3, 9, 9, dtype=torch.float64), 1e-12)


class UsedTwice(nn.Module):
    """A norm layer that is not the only one to take what a convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + F.relu(self.norm(x))


def test_a_convolution_whose_output_is_used_elsewhere_is_left_alone():
    assert pair(UsedTwice())[2] == 0


def test_statistics_that_are_trained_are_left_alone():
    assert fold_frozen_norms(small_model("test_resnet"), (32, 32)) == 0


def test_training_follows_the_weights():
    """The fold is that of the weights as they are, not as they were."""
    models = pair(small_model("test_efficientnet").double())[:2]
    inputs = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(models[1](inputs), models[0](inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_gradients_in_bf16_are_at_least_as_near_as_without(stride, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, kernel, stride, kernel // 2, groups=16, bias=False)
    plain, folded, _ = pair(nn.Sequential(nn.Conv2d(3, 16, 1), conv, nn.BatchNorm2d(16)), 12)
    inputs = torch.randn(4, 3, 12, 12)
    exact = gradients(copy.deepcopy(plain).double(), inputs.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = {name: gradients(model, inputs) for name, model in (("plain", plain), ("folded", folded))}
    for place, expected in enumerate(exact):
        off = {name: (tensors[place].double() - expected).norm() / expected.norm() for name, tensors in found.items()}
        assert off["folded"] < max(1.5 * off["plain"], 0.02)
