"""The models are those of the paper for small images, layer for layer."""

from pathlib import Path

import pytest
import torch
from torch import nn

from models import create_model, list_models
from models.resnet import BasicBlock
from utils.system.errors import UserError

ROOT = Path(__file__).parents[1]
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
COUNTS = [("resnet18", 11_173_962), ("resnet34", 21_282_122), ("speednet", 1_972_792)]


def activations(model: nn.Module, side: int) -> dict[str, tuple[int, ...]]:
    """Output shape of every module, without the batch dimension."""
    shapes = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    for handle in handles:
        handle.remove()
    return shapes


def test_models_are_listed_by_name():
    assert list_models() == ["resnet18", "resnet34", "speednet"]


@pytest.mark.parametrize(("name", "count"), COUNTS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_parameter_counts_at_ten_classes(name, count, norm):
    assert sum(parameter.numel() for parameter in create_model(name, 10, norm=norm).parameters()) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_stages_are_32_16_8_and_4_pixels_wide(name):
    shapes = activations(create_model(name, 10), 32)
    assert shapes["conv1"] == (64, 32, 32)
    assert [shapes[f"layer{stage}"] for stage in (1, 2, 3, 4)] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]
    assert shapes["fc"] == (10,)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_weights_are_layer_for_layer_those_of_the_table(name):
    """Every 3x3 convolution, projection and the linear layer, in order, written out from the paper's table."""
    expected, channels = {"conv1": (64, 3, 3, 3)}, 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), BLOCKS[name], strict=True), 1):
        for block in range(count):
            expected[f"layer{stage}.{block}.conv1"] = (width, channels, 3, 3)
            expected[f"layer{stage}.{block}.conv2"] = (width, width, 3, 3)
            if width != channels:
                expected[f"layer{stage}.{block}.shortcut.0"] = (width, channels, 1, 1)
            channels = width
    expected["fc"] = (10, 512)
    model = create_model(name, 10)
    found = {
        path: tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    assert found == expected
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            halves = path.endswith((".0.conv1", ".0.shortcut.0")) and not path.startswith("layer1")
            assert module.stride == ((2, 2) if halves else (1, 1)), path
            assert module.bias is None
    assert sum(isinstance(module, BasicBlock) for module in model.modules()) == sum(BLOCKS[name])


def test_resnet_18_computes_what_torchvisions_computes():
    """With torchvision's stem replaced by the one for small images, equal weights give equal logits."""
    from torchvision.models import resnet18

    ours, theirs = create_model("resnet18", 10), resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    names = {"norm": "bn", "shortcut": "downsample"}
    weights = {}
    for name, tensor in ours.state_dict().items():
        for mine, other in names.items():
            name = name.replace(mine, other)
        weights[name] = tensor
    theirs.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_there_is_no_bottleneck():
    assert "bottleneck" not in (ROOT / "models" / "resnet.py").read_text().lower()


@pytest.mark.parametrize("name", list_models())
def test_group_norm_leaves_no_batch_statistics(name):
    model = create_model(name, 10, norm="group", width=16)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert not list(model.buffers())
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.train()(images)[:1], model.train()(images[:1]))


def test_batch_norm_is_the_default():
    counts = [
        sum(isinstance(module, nn.BatchNorm2d) for module in create_model(n, 10).modules()) for n in list_models()
    ]
    assert counts == [20, 36, 6]


@pytest.mark.parametrize("side", [24, 32, 64, 65])
def test_images_of_other_sizes_give_logits_too(side):
    shapes = activations(create_model("resnet18", 7, width=16), side)
    assert shapes["layer1"] == (16, side, side)
    assert shapes[""] == (7,)


def test_features_are_what_the_linear_layer_sees():
    model = create_model("resnet18", 5, width=16).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.forward_features(images)
        assert features.shape == (2, 128)
        torch.testing.assert_close(model.fc(features), model(images))


def test_same_seed_gives_the_same_weights():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(create_model("resnet18", 10, width=16).parameters()).detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_unknown_model_names_what_there_is():
    with pytest.raises(
        UserError, match=r"model: 'vgg16' is not allowed; choose from resnet18, resnet34, speednet, timm:NAME$"
    ):
        create_model("vgg16", 10)


@pytest.mark.parametrize("arguments", [{"depth": 3}, {"norm": "layer"}, {"width": "64"}, {"blocks": (1, 1, 1, 1)}])
def test_wrong_argument_is_the_users_error(arguments):
    with pytest.raises(UserError, match=r"model|norm") as refused:
        create_model("resnet18", 10, **arguments)
    assert str(next(iter(arguments))) in str(refused.value)
