"""The fast network is that of cifar10-airbench94, and it learns from its training images before the first step."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.sources import load_split
from models import create_model
from models.saved import ModelConfig, export_model, load_model
from models.speednet import WHITENING_EPS, whitening_filters
from tests.conftest import ROOT
from utils.analysis.cam.maps import choose_cams, class_maps


def smooth_images(count: int, side: int = 32) -> Tensor:
    """Coloured images whose neighbouring pixels and channels are correlated, as those of photographs are."""
    generator = torch.Generator().manual_seed(0)
    noise = F.avg_pool2d(torch.randn(count, 3, side + 1, side + 1, generator=generator), 2, stride=1)
    mixed = torch.einsum("dc,nchw->ndhw", torch.tensor([[4.0, 0, 0], [3, 2, 0], [3, 1, 1]]), noise)
    return mixed / mixed.std()


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """512 normalised grey images at 16 pixels, and their labels."""
    split, _ = load_split("digits", "", "train", 16)
    images = torch.from_numpy(split.images[:512]).permute(0, 3, 1, 2) / 255
    return (images - images.mean()) / images.std(), torch.from_numpy(split.labels[:512])


# -- the layers -------------------------------------------------------------------------------------------------------


class Reference(nn.Sequential):
    """The network as the paper lists it, for 32x32 images, from torch's own layers."""

    def __init__(self):
        layers, channels = [nn.Conv2d(3, 24, 2), nn.GELU()], 24
        for width in (64, 256, 256):
            layers += [nn.Conv2d(channels, width, 3, padding="same", bias=False), nn.MaxPool2d(2)]
            layers += [nn.BatchNorm2d(width, momentum=0.4), nn.GELU()]
            layers += [nn.Conv2d(width, width, 3, padding="same", bias=False), nn.BatchNorm2d(width, momentum=0.4)]
            layers += [nn.GELU()]
            channels = width
        super().__init__(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, 10, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 9


def test_it_computes_what_the_paper_lists():
    """With equal weights: equal logits, and after a batch in training mode equal statistics."""
    model, reference = create_model("speednet", 10), Reference()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    reference.load_state_dict(dict(zip(reference.state_dict(), model.state_dict().values(), strict=True)))
    images = smooth_images(4)
    with torch.no_grad():
        torch.testing.assert_close(model.train()(images), reference.train()(images))
        torch.testing.assert_close(model.eval()(images), reference.eval()(images))


def test_whitening_filters_and_norm_weights_are_not_trained():
    for norm in ("batch", "group"):
        model = create_model("speednet", 10, norm=norm)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        norms = {f"group{group}.norm{layer}.weight" for group in (1, 2, 3) for layer in (1, 2)}
        assert frozen == {"whiten.weight"} | norms
        assert all((model.get_parameter(name) == 1).all() for name in norms)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_971_352


def test_width_is_that_of_the_first_group():
    model = create_model("speednet", 7, width=16)
    assert [model.get_submodule(f"group{group}").conv2.out_channels for group in (1, 2, 3)] == [16, 64, 64]
    assert model.whiten.out_channels == 24
    assert model.fc.weight.shape == (7, 64)


@pytest.mark.parametrize(("in_channels", "channels"), [(24, 64), (64, 256), (24, 16)])
def test_convolutions_start_as_the_identity_on_their_first_channels(in_channels, channels):
    model = create_model("speednet", 10, width=channels if in_channels == 24 else in_channels)
    conv = (model.group1 if in_channels == 24 else model.group2).conv1
    assert conv.bias is None
    x = torch.randn(2, in_channels, 9, 9, generator=torch.Generator().manual_seed(0))
    out, shared = conv(x).detach(), min(in_channels, channels)
    torch.testing.assert_close(out[:, :shared], x[:, :shared])
    rest = conv.weight.detach()[shared:]
    assert rest.numel() == 0 or rest.abs().max() == pytest.approx(1 / math.sqrt(9 * in_channels), rel=0.01)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("side", [8, 9, 16, 17, 24, 32, 64])
def test_images_of_every_size_from_8_pixels_on_give_logits(side, norm):
    model = create_model("speednet", 7, norm=norm, width=16)
    images = smooth_images(3, side)
    assert model.train()(images).shape == (3, 7)
    assert model.eval()(images[:1]).shape == (1, 7)
    assert model.forward_features(images).shape == (3, 64)


def test_logits_are_a_ninth_of_what_the_linear_layer_gives():
    model = create_model("speednet", 5, width=16).eval()
    images = smooth_images(2)
    with torch.no_grad():
        torch.testing.assert_close(model.fc(model.forward_features(images)) / 9, model(images))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_fresh_network_is_undecided(norm):
    torch.manual_seed(0)
    model, images = create_model("speednet", 10, norm=norm), smooth_images(64)
    model.initialise_from(images)
    for mode in (True, False):
        logits = model.train(mode)(images)
        assert F.cross_entropy(logits, torch.arange(64) % 10).item() == pytest.approx(math.log(10), abs=0.1)


# -- whitening --------------------------------------------------------------------------------------------------------


def responses(images: Tensor, weight: Tensor) -> Tensor:
    """What each filter says of each patch: (filters, patches), float64."""
    return F.conv2d(images.double(), weight.double()).transpose(0, 1).flatten(1)


def test_whitened_patches_are_uncorrelated_with_unit_variance():
    model, images = create_model("speednet", 10, width=16), smooth_images(300)
    model.initialise_from(images)
    covariance = responses(images, model.whiten.weight[:12]).cov()
    torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64), atol=0.05, rtol=0)


def test_epsilon_holds_back_directions_without_variance():
    """The mean square of a response is v / (v + epsilon), from the variance v of its direction: largest first."""
    images = smooth_images(100) * 0.05
    filters = whitening_filters(images)
    variance = responses(images, filters / filters.flatten(1).norm(dim=1).view(12, 1, 1, 1)).square().mean(1)
    assert variance.min() < WHITENING_EPS < variance.max()
    assert (variance.diff() <= 0).all()
    expected = variance / (variance + WHITENING_EPS)
    torch.testing.assert_close(responses(images, filters).square().mean(1), expected, rtol=0.01, atol=0)


def test_the_second_half_of_the_filters_are_the_negatives():
    model = create_model("speednet", 10, width=16)
    model.initialise_from(smooth_images(20))
    assert torch.equal(model.whiten.weight[12:], -model.whiten.weight[:12])
    assert not model.whiten.weight.requires_grad


def test_initialisation_is_a_function_of_the_images_alone():
    """Not of earlier weights, nor of the memory layout."""
    images, weights = smooth_images(20), []
    for seed, layout in ((1, torch.contiguous_format), (2, torch.channels_last)):
        torch.manual_seed(seed)
        model = create_model("speednet", 10, width=16).to(memory_format=layout)
        model.initialise_from(images.to(memory_format=layout))
        assert model.whiten.weight.is_contiguous(memory_format=layout)
        weights.append(model.whiten.weight)
    assert torch.equal(*weights)


def test_filters_do_not_hang_on_the_last_digits_of_the_covariance(digits):
    """Another linear algebra library rounds in another way; so does another order of summation. Grey images, whose
    covariance has 8 eigenvalues of 0, leave the choice of the vectors open without a rule."""
    for images in (smooth_images(300), digits[0]):
        torch.testing.assert_close(whitening_filters(images), whitening_filters(images.flip(0)), atol=1e-5, rtol=0)


def test_filters_do_not_hang_on_the_signs_of_the_eigenvectors(monkeypatch):
    images, eigh = smooth_images(20), torch.linalg.eigh
    expected = whitening_filters(images)
    signs = torch.tensor([1.0, -1.0, -1.0] * 4, dtype=torch.float64)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], eigh(matrix)[1] * signs))
    torch.testing.assert_close(whitening_filters(images), expected)


@pytest.mark.parametrize("value", [0.0, 1.7, -300.0])
def test_images_of_one_colour_give_finite_filters(value):
    model = create_model("speednet", 10, width=16)
    model.initialise_from(torch.full((2, 3, 8, 8), value))
    assert model.whiten.weight.isfinite().all()
    assert model(torch.full((2, 3, 8, 8), value)).isfinite().all()


# -- in the suite -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_exported_network_predicts_the_same(tmp_path, norm):
    torch.manual_seed(0)
    arguments, images = {"norm": norm, "width": 16}, smooth_images(8, 24)
    model = create_model("speednet", 3, **arguments)
    model.initialise_from(images)
    model(images)  # so that batch statistics are not those of a fresh network
    config = ModelConfig("speednet", arguments, ("a", "b", "c"), 24, (0.5,) * 3, (0.25,) * 3)
    export_model(tmp_path, config, model.state_dict())
    loaded, read = load_model(tmp_path)
    assert read == config
    assert torch.equal(loaded.whiten.weight, model.whiten.weight)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))


@pytest.mark.parametrize(
    ("side", "layer", "size"),
    [
        (64, "group3", 7),
        (32, "group2", 7),
        (24, "group2", 5),
        (16, "group2", 6),
        (8, "group2", 5),
    ],  # the last two enlarged
)
def test_gradcam_finds_a_layer_and_shows_where_it_looks(side, layer, size):
    torch.manual_seed(0)
    model, images = create_model("speednet", 4, width=16).eval(), smooth_images(4, side)
    (cam,) = choose_cams(model, (side, side), "GradCAM", None).chosen
    assert (cam.layer.name, cam.layer.size) == (layer, (size, size))
    maps = class_maps(model, cam, images, [0, 1, 2, 3])
    assert maps.shape == (4, side, side)
    assert np.isfinite(maps).all()
    assert maps.max() > 0.9


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_some_steps_on_the_digits_reduce_the_loss(digits, norm):
    torch.manual_seed(0)
    images, labels = digits
    model = create_model("speednet", 10, norm=norm, width=16)
    model.initialise_from(images)
    kept = model.whiten.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(4):
        for part, truth in zip(images.split(64), labels.split(64), strict=True):
            loss = F.cross_entropy(model(part), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    assert torch.equal(model.whiten.weight, kept)


STEPS = """
import torch
from torch.nn import functional as F
from models import create_model

torch.manual_seed(0)
for width in (16, 64):
    model = create_model("speednet", 10, width=width).to(memory_format=torch.channels_last)
    model.initialise_from(torch.randn(64, 3, 18, 18))
    for bfloat16 in (False, True):
        for count in (1, 2, 3, 7, 29, 64, 127):
            images = torch.randn(count, 3, 18, 18).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = F.cross_entropy(model(images), torch.arange(count) % 10)
            loss.backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad), (width, count)
print("done")
"""


def test_channels_last_steps_of_any_batch_size_corrupt_no_memory():
    """In a process of its own with glibc's checks on: oneDNN 3 ends one with 8 channels by "double free"."""
    environment = os.environ | {"MALLOC_CHECK_": "3", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
