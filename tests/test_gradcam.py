"""What the class activation maps promise: the right place, the right class, the right sign, and an honest score."""

import csv
import inspect
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import pytorch_grad_cam
import torch
from PIL import Image
from pytorch_grad_cam import EigenCAM, EigenGradCAM, GradCAM, LayerCAM, ablation_cam
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch import nn

import analyze
from data.sources import load_split
from models import create_model
from models.saved import load_model
from tests.saved_runs import refusal
from utils.analysis.cam import maps
from utils.analysis.cam.compare import PERCENTILES, road_scores
from utils.analysis.cam.layers import choose_layer, feature_maps, refused_layers
from utils.analysis.cam.maps import TIMED_BATCH, Cam, Enlargement, choose_cams, class_maps, overlay, try_enlarged
from utils.analysis.cam.methods import (
    AUG_SMOOTH_COST,
    CLASSLESS,
    REFUSED,
    cam_methods,
    choose_method,
    opened,
    takes_aug_smooth,
)
from utils.analysis.predictions import Mistake
from utils.analysis.sections.gradcam import Example, gradcam_figure
from utils.config import AnalyzeConfig
from utils.system.errors import UserError

METHODS = list(cam_methods())


@pytest.fixture(scope="module")
def model(digits_run) -> nn.Module:
    return load_model(digits_run / "model")[0]


@pytest.fixture(scope="module")
def inputs(digits_run) -> torch.Tensor:
    """The first test images as the model wants them: (8, 3, 16, 16)."""
    config = load_model(digits_run / "model")[1]
    images = torch.from_numpy(load_split("digits", "", "test", 16)[0].images[:8]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (images - mean) / std


def cam_of(
    model: nn.Module, name: str = "GradCAM", layer: str | None = None, image_size: int = 16, enlarge=False, **smooth
) -> Cam:
    return choose_cams(model, (image_size, image_size), name, layer, **smooth, enlarge=enlarge).chosen[0]


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image_size", "layer", "side"), [(32, "layer3", 8), (24, "layer3", 6), (16, "layer2", 8)])
def test_the_deepest_layer_of_at_least_5_pixels_is_looked_at(model, image_size, layer, side):
    chosen = choose_layer(model, (image_size, image_size))
    assert (chosen.name, chosen.size) == (layer, (side, side))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("image_size", "view", "layer", "side"),
    [
        (32, None, "layer3", 8),  # layer4 alone follows
        (24, None, "layer3", 6),
        (16, (20, 20), "layer3", 5),  # layer3 and layer4 would follow layer2
        (8, (17, 17), "layer3", 5),
    ],
)
def test_images_are_enlarged_if_more_than_one_stage_would_follow(model, image_size, view, layer, side):
    cam = cam_of(model, image_size=image_size, enlarge=True)
    assert (cam.view, cam.layer.name, cam.layer.size) == (view, layer, (side, side))


def test_a_named_layer_is_looked_at_in_the_size_of_the_model_if_it_can_be(model):
    assert cam_of(model, layer="layer2", enlarge=True).view is None
    cam = cam_of(model, layer="layer3", enlarge=True)
    assert (cam.view, cam.layer.size) == ((20, 20), (5, 5))
    with pytest.raises(UserError, match="layer4 is not allowed; its feature map is 2x2 pixels"):
        cam_of(model, layer="layer4", enlarge=True)


class TakesOneSize(nn.Module):
    """Four stages of 8, 4, 2 and 2 pixels for the one size that it takes, 16."""

    def __init__(self) -> None:
        super().__init__()
        strides = (2, 2, 2, 1)
        self.stages = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=stride, padding=1) for stride in strides))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] == 16, "another size"
        return self.stages(x).mean(dim=(2, 3))


def test_a_model_of_one_size_keeps_the_deepest_layer_that_it_has():
    cam = cam_of(TakesOneSize().eval(), enlarge=True)
    assert (cam.view, cam.layer.name, cam.layer.size) == (None, "stages.0", (8, 8))


def test_a_map_of_an_enlarged_image_lies_where_the_image_shows_it():
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    nn.init.ones_(model[0].weight)
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, 2:6, 9:13] = images[1, :, 8:12, 0:4] = 1
    cam = cam_of(model, "LayerCAM", "0")
    plain, larger = (class_maps(model, replace(cam, view=view), images, [0, 1]) for view in (None, (40, 40)))
    assert larger.shape == plain.shape == (2, 16, 16)
    assert larger.dtype == np.float32
    assert (larger.min(), larger.max()) == (0, 1)
    assert ((larger > 0.5) == (plain > 0.5)).mean() > 0.98


def test_answers_that_change_with_the_size_are_counted(model, inputs):
    with torch.no_grad():
        larger = nn.functional.interpolate(inputs, (20, 20), mode="bilinear", antialias=True)
        changed = int((model(inputs).argmax(1) != model(larger).argmax(1)).sum())
    assert try_enlarged(model, (20, 20), inputs) == Enlargement((20, 20), changed, 8)
    assert Enlargement((20, 20), 2, 8).is_used
    assert not Enlargement((20, 20), 3, 8).is_used


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_the_report_says_that_images_were_enlarged_or_why_not(run, monkeypatch, share):
    monkeypatch.setattr(maps, "MOST_CHANGED", share)
    summary = analyze.main(AnalyzeConfig(run=str(run), only=["gradcam"], track=False))
    page = " ".join(re.sub("<[^>]+>", "", (run / "analysis/report.html").read_text()).split())
    (changed,) = re.findall(r"at that size the model gives another class to (\d+) of 64 test images", page, re.I)
    if share:
        assert (summary["cam_view"], summary["cam_layer"], summary["cam_layer_size"]) == ([20, 20], "layer3", [5, 5])
        assert "For the maps images are enlarged from 16×16 to 20×20 pixels, so that this late layer has 5×5." in page
    else:
        assert int(changed) > 0
        assert (summary["cam_view"], summary["cam_layer"], summary["cam_layer_size"]) == ([16, 16], "layer2", [8, 8])
        assert "A later layer would have 5×5 pixels in images enlarged from 16×16 to 20×20, but" in page


def test_the_size_is_read_off_the_activation_and_not_off_a_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1))
    shapes = {name: (layer.channels, layer.size) for name, layer in feature_maps(model, (32, 32)).items()}
    assert shapes == {"0": (4, (8, 8)), "1": (6, (4, 4))}
    assert choose_layer(model, (32, 32)).name == "0"
    assert choose_layer(model, (64, 64)).name == "1"
    assert refused_layers(model, (32, 32)) == {"1": (4, 4)}
    assert refused_layers(model, (64, 64)) == {}


def test_a_layer_under_5_pixels_is_refused_with_the_reason(run, capsys):
    line = refusal(capsys, run=str(run), cam_layer="layer2,layer4")
    assert "layer4 is not allowed" in line
    assert "2x2 pixels" in line
    assert "choose from conv1" in line


# -- methods ----------------------------------------------------------------------------------------------------------


def test_every_method_of_the_library_is_offered_or_refused_with_a_reason():
    classes = inspect.getmembers(pytorch_grad_cam, inspect.isclass)
    found = {name for name, kind in classes if "target_layers" in inspect.signature(kind).parameters}
    assert len(METHODS) >= 18
    assert found - {"ActivationsAndGradients"} == {*METHODS, *REFUSED}  # the hooks that all methods share
    assert not set(METHODS) & set(REFUSED)


def test_an_unknown_or_unusable_method_is_refused_in_one_line(run, capsys):
    assert "did you mean GradCAM?" in refusal(capsys, run=str(run), cam_method="gradcam")
    assert "several layers" in refusal(capsys, run=str(run), cam_method="GradCAM,RefineCAM")
    assert "choose from conv1" in refusal(capsys, run=str(run), cam_layer="block7")
    assert "FinerCAM has no such smoothing" in refusal(capsys, run=str(run), cam_method="FinerCAM", aug_smooth=True)
    assert "FullGrad would shrink" in refusal(capsys, run=str(run), cam_method="FullGrad", eigen_smooth=True)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_works(model, inputs, name):
    cam = cam_of(model, name, "layer2.1" if name == "SESS" else None)
    maps = class_maps(model, cam, inputs[:2], [1, 2])
    other = class_maps(model, cam, inputs[:2], [7, 8])
    assert maps.shape == (2, 16, 16)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert 0.5 < maps.max() <= 1
    np.testing.assert_array_equal(maps, class_maps(model, cam, inputs[:2], [1, 2]))
    assert (maps == other).all() == (name in CLASSLESS | {"RandomCAM"})
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_image_has_its_own_target_in_batches_of_any_size(model):
    cam, inputs = cam_of(model), torch.randn(230, 3, 16, 16)
    classes = [index % 10 for index in range(len(inputs))]
    maps = class_maps(model, cam, inputs, classes)
    alone = [class_maps(model, cam, inputs[[index]], [classes[index]])[0] for index in (0, 55, 229)]
    np.testing.assert_allclose(maps[[0, 55, 229]], alone, atol=1e-4)


def test_a_fault_inside_the_library_is_not_swallowed(model, inputs):
    with pytest.raises(IndexError):
        class_maps(model, cam_of(model), inputs, [10] * len(inputs))
    assert not any(module._forward_hooks for module in model.modules())


def test_no_gradients_around_and_a_frozen_layer_do_not_matter(inputs):
    speednet = create_model("speednet", 10, width=16).eval()  # its filters and the weights of its norms are frozen
    assert not speednet.whiten.weight.requires_grad
    cam = cam_of(speednet, layer="whiten")
    with torch.no_grad():
        assert class_maps(speednet, cam, inputs, [0] * len(inputs)).any()


@pytest.mark.parametrize("layer", ["layer2", "layer2.0.conv1"])
def test_ablation_is_the_drop_of_the_logit_without_a_channel(model, inputs, layer):
    """Also for a negative logit, and where activations are negative: the library's own numbers are wrong for both."""
    image, module = inputs[:1], model.get_submodule(layer)
    kept = []
    handle = module.register_forward_hook(lambda *seen: kept.append(seen[2]))
    with torch.no_grad():
        logits = model(image)[0]
        handle.remove()
        activation, drops = kept[0], []
        for channel in range(activation.shape[1]):
            without = activation.clone()
            without[:, channel] = 0
            handle = module.register_forward_hook(lambda *seen, without=without: without)
            drops.append(logits - model(image)[0])
            handle.remove()
    expected = torch.einsum("kc,khw->chw", torch.stack(drops), activation[0]).clamp(min=0)
    index = next(index for index in range(10) if logits[index] < 0 and expected[index].any())
    coarse = expected[index] - expected[index].min()
    expected = cv2.resize((coarse / coarse.max()).numpy(), (16, 16))
    found = class_maps(model, cam_of(model, "AblationCAM", layer), image, [index])[0]
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-3)


@pytest.mark.parametrize("method", [GradCAM, EigenCAM, EigenGradCAM, LayerCAM])
def test_a_principal_component_is_not_turned_around(model, method):
    """Its sign is arbitrary; by the library alone half of the maps would show what does not matter."""
    generator = np.random.default_rng(0)
    activations, grads = (generator.normal(size=(40, 16, 8, 8)).astype(np.float32) for _ in range(2))
    weights = {
        GradCAM: grads.mean(axis=(2, 3), keepdims=True), EigenCAM: 1, EigenGradCAM: grads,
        LayerCAM: np.maximum(grads, 0),
    }  # fmt: skip
    weighted = weights[method] * activations
    sums = weighted.sum(axis=1)
    sums -= sums.mean(axis=(1, 2), keepdims=True)
    with opened(method, model, choose_layer(model, (16, 16))) as cam:
        upright = cam.get_cam_image(None, None, None, activations, grads, True)
    turned = get_2d_projection(weighted)
    agreement, without = ((maps * sums).sum(axis=(1, 2)) for maps in (upright, turned))
    assert agreement.min() > 0
    assert without.min() < 0
    np.testing.assert_array_equal(np.abs(upright), np.abs(turned))


@pytest.mark.parametrize("name", ["FinerCAM", "ShapleyCAM"])
def test_what_a_method_asks_for_is_asked(model, inputs, name):
    """Given the logit alone, both would be GradCAM."""
    classes = [1] * len(inputs)
    maps, plain = (class_maps(model, cam_of(model, method), inputs, classes) for method in (name, "GradCAM"))
    assert np.abs(maps - plain).max() > 0.01


@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
def test_a_slow_method_says_what_it_costs_and_draws_one_bar(model, inputs, capsys, name):
    bar = ablation_cam.tqdm
    class_maps(model, cam_of(model, name), inputs[:2], [1, 2])
    said = capsys.readouterr()
    assert re.fullmatch(rf"{name} at layer2: 32 forward passes per map, about \d+\.\d s for 2 maps\n", said.out)
    assert said.err == ""  # this is no terminal; the library's own bars would be drawn all the same
    assert ablation_cam.tqdm is bar
    class_maps(model, cam_of(model), inputs[:2], [1, 2])
    assert capsys.readouterr().out == ""


def test_the_passes_that_are_announced_are_made(model, inputs, capsys):
    cam, seen = cam_of(model, "ScoreCAM", aug_smooth=True), []
    handle = model.register_forward_hook(lambda _, given, output: seen.append(len(given[0])))
    class_maps(model, cam, inputs[:1], [1])
    handle.remove()
    announced = int(re.search(r"(\d+) forward passes", capsys.readouterr().out).group(1))
    timed, maps = 2 * TIMED_BATCH, AUG_SMOOTH_COST
    assert sum(seen) == announced + timed + maps


@pytest.mark.parametrize("name", [name for name in METHODS if takes_aug_smooth(choose_method(name))])
def test_smoothing_changes_the_map(model, inputs, name):
    part, classes = inputs[:1], [1]
    plain, aug = (class_maps(model, cam_of(model, name, aug_smooth=smooth), part, classes) for smooth in (False, True))
    assert np.isfinite(aug).all()
    assert (aug != plain).any()
    if name != "FullGrad":
        assert np.isfinite(class_maps(model, cam_of(model, name, eigen_smooth=True), part, classes)).all()


def test_every_method_stands_at_every_layer_and_fullgrad_once(model):
    cams = choose_cams(model, (16, 16), "GradCAM, FullGrad,EigenCAM", "layer2,layer1")
    assert [str(cam) for cam in cams.chosen] == [
        *("GradCAM at layer2", "GradCAM at layer1"),
        "FullGrad at all layers",
        *("EigenCAM at layer2", "EigenCAM at layer1"),
    ]
    assert cams.chosen[2].layer.size == (16, 16)
    assert cams.refused["layer4"] == (2, 2)


# -- evidence ---------------------------------------------------------------------------------------------------------


def test_a_class_without_positive_evidence_is_said_and_not_drawn(digits_run):
    model, _ = load_model(digits_run / "model")
    with torch.no_grad():
        model.fc.weight[3] = -1.0  # features are positive: nothing can speak for this class
    cam = cam_of(model)
    cam = replace(cam, layer=replace(cam.layer, name="layer4", module=model.layer4))
    maps = class_maps(model, cam, torch.randn(4, 3, 16, 16), [3, 3, 5, 5])
    assert not maps[:2].any()
    assert maps[2:].any(axis=(1, 2)).all()
    image = np.full((16, 16, 3), 128, np.uint8)
    assert overlay(image, maps[0]) is None
    example = Example(Mistake(0, 3, 5, 0.1, 0.9), image, overlay(image, maps[2]), overlay(image, maps[0]))
    figure = gradcam_figure([example], [str(digit) for digit in range(10)], cam)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["no positive\nevidence"]


# -- faithfulness -----------------------------------------------------------------------------------------------------


class LooksAtACorner(nn.Module):
    """Two classes; the brighter the upper left quarter of a 16x16 image, the more probable is class 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corner = 4 * x[:, :, :8, :8].mean(dim=(1, 2, 3))
        return torch.stack([-corner, corner], dim=1)


@pytest.fixture
def corner() -> tuple[torch.Tensor, np.ndarray]:
    """Images (6, 3, 16, 16) that are bright in the corner alone, and maps that say so."""
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    images[:, :, :8, :8] += 1
    maps = np.zeros((6, 16, 16), np.float32)
    maps[:, :8, :8] = 1
    return images, maps


def test_a_faithful_map_scores_above_chance_and_its_opposite_below(corner):
    images, maps = corner
    model, classes = LooksAtACorner(), [1] * 6
    right, wrong, nothing = (road_scores(model, images, found, classes) for found in (maps, 1 - maps, 0 * maps))
    assert right.min() > 0.1
    assert wrong.max() < -0.1
    assert not nothing.any()
    noise = np.random.default_rng(0).random(maps.shape, np.float32)
    assert abs(road_scores(model, images, noise, classes).mean()) < 0.05


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the library calls NumPy with tensors
def test_road_is_that_of_the_library_where_no_two_pixels_are_equal(corner):
    images, maps = corner
    maps = maps + np.random.default_rng(0).random(maps.shape, np.float32)
    maps /= maps.max()
    goals = [ClassifierOutputSoftmaxTarget(1)] * 6
    expected = ROADCombined(PERCENTILES)(images, maps, goals, LooksAtACorner())
    np.testing.assert_allclose(road_scores(LooksAtACorner(), images, maps, [1] * 6), expected, atol=0.01)


# -- in the analysis --------------------------------------------------------------------------------------------------


def test_one_cam_is_scored_and_refused_layers_are_listed(analysed):
    summary = json.loads((analysed / "analysis/summary.json").read_text())
    (row,) = summary["cam_road"]
    assert (row["method"], row["layer"], row["images"]) == ("GradCAM", "layer2", 20)
    assert -0.5 < row["road"] < 0.5
    assert summary["cam_refused_layers"]["layer4"] == [2, 2]
    page = (analysed / "analysis/report.html").read_text()
    assert "layer3 (4×4)" in page
    assert f"<strong>{row['road']:.3f} ± {row['standard_error']:.3f}</strong>" in page


def test_methods_and_layers_are_compared_in_a_grid(run):
    methods, layers = ["EigenCAM", "GradCAM"], ["layer2", "layer1"]
    summary = analyze.main(
        AnalyzeConfig(
            run=str(run), cam_method=",".join(methods), cam_layer=",".join(layers), only=["gradcam"], eigen_smooth=True
        )
    )
    assert (summary["cam_method"], summary["cam_layer"], summary["cam_layer_size"]) == ("EigenCAM", "layer2", [8, 8])
    with open(run / "analysis/cam_grid.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["layer"]) for row in rows] == [(name, layer) for name in methods for layer in layers]
    assert [float(row["road"]) for row in rows] == [row["road"] for row in summary["cam_road"]]
    width, height = Image.open(run / "analysis/cam_grid.png").size
    assert width > 1000
    assert height > 1000
    assert (run / "analysis/cam_grid.svg").exists()
    page = (run / "analysis/report.html").read_text()
    assert all(f"{row['road']:.3f} ± {row['standard_error']:.3f}</td>" in page for row in summary["cam_road"])
    assert "EigenCAM does not depend on a class, so both maps are the same" in page
