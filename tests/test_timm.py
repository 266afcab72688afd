"""Models of timm are trained, stopped and resumed, exported, explained and reported as this suite's own."""

import functools
import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from torch import nn

import analyze
import train_accelerate
from data.sources import load_split
from models import classifier, create_model, model_arguments
from models.norm import with_synchronised_batch_norm
from models.saved import load_model, tensors_from_bytes
from models.timm_models import timm_arguments
from tests.optimizers import create_optimizer
from tests.processes import run as run_processes
from tests.processes import train_script
from tests.saved_runs import change, refusal
from utils.analysis.cam.layers import SMALLEST_MAP, choose_layer, choose_view, feature_maps
from utils.analysis.cam.maps import choose_cams, class_maps
from utils.analysis.cam.methods import cam_methods
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.resolution import Size
from utils.release.classifier import ImageClassifier
from utils.release.export import export_programs
from utils.system.errors import UserError

pytestmark = pytest.mark.slow

timm = pytest.importorskip("timm")
VisionTransformer = timm.models.VisionTransformer

VIT = "timm:vit_tiny_patch16_224"
SMALL_VIT = "timm:test_vit"  # for tests, of timm itself
# What timm is given for images of a size, and the deepest layer with 5 pixels that the answer depends on.
MODELS = [
    ("timm:resnet18", 32, {"output_stride": 8}, "layer4", [5, 5]),  # of images enlarged to 40 pixels
    ("timm:resnet18", 64, {"output_stride": 16}, "layer4", [5, 5]),  # to 80
    ("timm:convnext_atto", 32, {"patch_size": 1}, "stages.2", [8, 8]),
    ("timm:convnext_atto", 64, {"patch_size": 1}, "stages.3", [8, 8]),
    (VIT, 32, {"img_size": 32, "patch_size": 4}, "blocks.10", [8, 8]),
    (VIT, 64, {"img_size": 64, "patch_size": 8}, "blocks.10", [8, 8]),
]
TRAIN_IMAGES, TEST_IMAGES = 32, 16


def build(name: str, size: Size = (32, 32), classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, classes, **timm_arguments(name, (size,))).eval()


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """One of timm's, with a class token and 8x8 patches of 32 pixels, that is quick."""
    torch.manual_seed(0)
    return VisionTransformer(32, 4, num_classes=10, embed_dim=24, depth=3, num_heads=2).eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A few of the digits as an image folder."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        found = load_split("digits", "", split, 64)[0]
        for index in range(count):
            path = folder / split / str(found.labels[index]) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found.images[index]).save(path)
    return folder


def options(pictures: Path, output_dir: Path, name: str, size: int | str, **changes) -> TrainConfig:
    values = {
        "dataset": "imagefolder", "data_dir": str(pictures), "image_size": size, "model": name, "epochs": 1,
        "batch_size": 16, "optimizer": "adamw", "lr": 1e-3, "log_every_steps": 1, "trackers": ["none"],
    }  # fmt: skip
    return TrainConfig(**{**values, "output_dir": str(output_dir), **changes})


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Callable[[str, int | str], Path]:
    """A finished run of a model on images of a size; each is trained once."""

    @functools.cache
    def trained(name: str, size: int | str) -> Path:
        run = tmp_path_factory.mktemp("runs") / "run"
        train_accelerate.main(options(pictures, run, name, size))
        return run

    return trained


def inputs(run: Path, size: int) -> torch.Tensor:
    """Test images of a run as its model wants them."""
    config = load_model(run / "model")[1]
    images = torch.from_numpy(load_split("digits", "", "test", size)[0].images[:4]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (images - mean) / std


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "arguments", "layer", "layer_size"), MODELS)
def test_a_model_is_trained_exported_explained_and_reported(
    trained, monkeypatch, name, size, arguments, layer, layer_size
):
    monkeypatch.setattr("utils.analysis.cam.maps.MOST_CHANGED", 1.0)  # a model of two steps answers anything
    run = trained(name, size)
    saved = json.loads((run / "model/config.json").read_text())
    assert (saved["architecture"], saved["arguments"], saved["resolution"]) == (name, arguments, size)

    ours, config = load_model(run / "model")
    theirs = timm.create_model(name.removeprefix("timm:"), num_classes=len(config.class_names), **arguments).eval()
    theirs.load_state_dict(tensors_from_bytes((run / "model/model.safetensors").read_bytes(), run))
    with torch.no_grad():
        assert torch.equal(ours(inputs(run, size)), theirs(inputs(run, size)))

    sections = [] if (name, size) == (VIT, 32) else ["gradcam", "model"]  # all, or those that a model can upset
    summary = analyze.main(AnalyzeConfig(run=str(run), images=10, only=sections))
    assert summary["count"] == TEST_IMAGES
    assert (summary["cam_layer"], summary["cam_layer_size"]) == (layer, layer_size)
    assert min(layer_size) >= SMALLEST_MAP
    assert all(math.isfinite(row["road"]) for row in summary["cam_road"])
    assert layer in (run / "analysis/report.html").read_text()
    assert "Linear" in (run / "analysis/model_summary.txt").read_text()
    kept = np.load(run / "analysis/predictions.npz")
    with torch.no_grad():
        again = classifier(ours)(torch.from_numpy(kept["features"]).float()).numpy()
    np.testing.assert_allclose(again, kept["logits"], atol=0.02)  # features are kept in float16

    maps = class_maps(ours, choose_cams(ours, (size, size), "GradCAM", None).chosen[0], inputs(run, size), [0, 1, 2, 3])
    assert maps.shape == (4, size, size)
    assert maps.max() > 0.9


def test_pictures_are_predicted_and_blocks_compared(trained, pictures):
    run = trained(VIT, 32)
    picture = next((pictures / "test").rglob("*.png"))
    assert list(analyze.main(AnalyzeConfig(run=str(run), predict=[str(picture)]))) == [str(picture)]
    config = AnalyzeConfig(
        run=str(run), images=10, only=["gradcam"], cam_method="ShapleyCAM", cam_layer="blocks.5,blocks.11.norm1"
    )
    summary = analyze.main(config)
    assert [row["layer"] for row in summary["cam_road"]] == ["blocks.5", "blocks.11.norm1"]
    assert (run / "analysis/cam_grid.png").exists()


def test_a_stopped_run_ends_with_the_same_weights(pictures, tmp_path):
    changes = {"epochs": 2, "optimizer": "muon", "ema_decay": 0.9, "decay_norm_and_bias": False}
    straight, stopped = (options(pictures, tmp_path / name, SMALL_VIT, 32, **changes) for name in ("a", "b"))
    train_accelerate.main(straight)
    train_accelerate.main(replace(stopped, max_steps=3))  # of four; inside an epoch
    train_accelerate.main(stopped)
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


# -- where it looks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "form", "prefix"),
    [
        (VIT, "patch_embed", "tokens", 0),
        (VIT, "blocks.0", "tokens", 1),
        ("timm:vit_wee_patch16_reg1_gap_256", "blocks.0", "tokens", 1),
        ("timm:deit_tiny_distilled_patch16_224", "blocks.0", "tokens", 2),
        ("timm:convnext_atto", "stages.2", "channels first", 0),
        ("timm:swin_tiny_patch4_window7_224", "layers.0", "channels last", 0),
    ],
)
@pytest.mark.parametrize(  # the place in fields of 4 pixels, down and to the right
    ("size", "place"), [((32, 32), (1, 6)), ((32, 32), (5, 2)), ((32, 64), (2, 13)), ((64, 32), (13, 2))]
)
def test_what_changes_in_a_patch_changes_most_at_its_place_in_the_map(name, layer, form, prefix, size, place):
    model = build(name, size)
    chosen = feature_maps(model, size)[layer]
    assert (chosen.form, chosen.prefix) == (form, prefix)
    down, right = place
    images = torch.zeros(2, 3, *size)
    images[1, :, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4] = 3
    kept = []
    handle = chosen.module.register_forward_hook(lambda *seen: kept.append(chosen.as_map(seen[2])))
    with torch.no_grad():
        model(images)
    handle.remove()
    assert kept[0].shape == (2, chosen.channels, *chosen.size)
    fields = size[0] // 4, size[1] // 4
    change = nn.functional.adaptive_avg_pool2d((kept[0][1] - kept[0][0]).abs().sum(0, keepdim=True), fields)[0]
    assert divmod(int(change.argmax()), fields[1]) == place


class SeesOnePatch(nn.Module):
    """Two prefix tokens and 8x8 of patches; the logit of class 1 is the brightness at (1, 6), that of 2 at (5, 2)."""

    num_prefix_tokens = 2

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 3, 4, 4)
        nn.init.constant_(self.embed.weight, 1 / 48)
        nn.init.zeros_(self.embed.bias)
        self.tokens = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.tokens.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.tokens(torch.cat([torch.ones_like(patches[:, :2]), patches], dim=1))[:, 2:].mean(2)
        return torch.stack([0 * tokens[:, 0], tokens[:, 8 * 1 + 6], tokens[:, 8 * 5 + 2]], dim=1)


@pytest.mark.parametrize("name", ["HiResCAM", "LayerCAM", "GradCAMElementWise"])
def test_heat_lies_on_the_patch_that_decides(name):
    model = SeesOnePatch().eval()
    images = torch.ones(2, 3, 32, 32)
    cam = choose_cams(model, (32, 32), name, "tokens").chosen[0]
    assert (cam.layer.form, cam.layer.prefix, cam.layer.size) == ("tokens", 2, (8, 8))
    for found, (down, right) in zip(class_maps(model, cam, images, [1, 2]), [(1, 6), (5, 2)], strict=True):
        assert abs(np.average(np.arange(32), weights=found.sum(1)) - (4 * down + 1.5)) < 0.6
        assert abs(np.average(np.arange(32), weights=found.sum(0)) - (4 * right + 1.5)) < 0.6


@pytest.mark.parametrize(
    ("name", "size", "view", "layer", "side"),
    [
        ("timm:tf_efficientnet_lite0", 32, 133, "bn2", 5),
        ("timm:tf_efficientnet_lite0", 96, 160, "bn2", 5),  # blocks.4, and four stages behind it
        ("timm:tf_efficientnet_lite0", 160, 160, "bn2", 5),
        ("timm:tf_efficientnet_lite0", 224, 224, "bn2", 7),
        ("timm:mobilenetv3_small_050", 96, 160, "blocks.5", 5),
        ("timm:convnext_atto", 32, 80, "stages.2", 5),
        ("timm:convnext_atto", 96, 96, "stages.2", 6),  # stages.3 alone follows
        ("timm:convnext_atto", 160, 160, "stages.3", 5),
        ("timm:resnet18", 64, 80, "layer3", 5),
        (VIT, 96, 96, "blocks.10", 6),
        ("timm:swin_tiny_patch4_window7_224", 96, 96, "layers.2", 6),  # takes images of one size
        ("timm:swin_tiny_patch4_window7_224", 224, 224, "norm", 7),
    ],
)
def test_late_layers_are_seen_in_larger_images_where_a_model_takes_them(name, size, view, layer, side):
    torch.manual_seed(0)
    fixed = {"img_size": size} if name == VIT or "swin" in name else {}
    model = create_model(name, 10, **fixed).eval()
    found = choose_view(model, (size, size))
    chosen = choose_layer(model, found)
    assert (found, chosen.name, chosen.size) == ((view, view), layer, (side, side))


def test_ablation_takes_a_channel_away_at_all_places(vit):
    image, layer = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), choose_layer(vit, (32, 32))
    kept, drops = [], []
    with torch.no_grad():
        handle = layer.module.register_forward_hook(lambda *seen: kept.append(seen[2]))
        logit = vit(image)[0, 1]
        handle.remove()
        for channel in range(layer.channels):
            without = kept[0].clone()
            without[..., channel] = 0
            handle = layer.module.register_forward_hook(lambda *seen, without=without: without)
            drops.append(logit - vit(image)[0, 1])
            handle.remove()
    expected = torch.einsum("c,chw->hw", torch.stack(drops), layer.as_map(kept[0])[0]).clamp(min=0)
    expected = cv2.resize(((expected - expected.min()) / (expected.max() - expected.min())).numpy(), (32, 32))
    found = class_maps(vit, choose_cams(vit, (32, 32), "AblationCAM", None).chosen[0], image, [1])[0]
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-2)


@pytest.mark.parametrize("name", list(cam_methods()))
def test_every_method_works_on_tokens(vit, name):
    cam = choose_cams(vit, (32, 32), name, None).chosen[0]
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = class_maps(vit, cam, image, [1])
    assert maps.shape == (1, 32, 32)
    assert np.isfinite(maps).all()
    assert 0.5 < maps.max() <= 1
    assert not any(module._forward_hooks for module in vit.modules())


def test_a_layer_that_the_answer_does_not_depend_on_is_refused_with_the_reason(vit):
    """The last block's image tokens are read by nobody: a map of them would be empty for every image."""
    assert choose_layer(vit, (32, 32)).name == "blocks.1"
    for layer in ("blocks.2", "norm"):
        with pytest.raises(UserError, match=rf"cam_layer: {layer} is not allowed; the model's answer does not depend"):
            choose_layer(vit, (32, 32), layer)
    assert choose_layer(vit, (32, 32), "blocks.2.norm1").size == (8, 8)


def test_a_layer_that_is_overwritten_is_explained_as_it_was():
    """timm's ReLUs work in place; what a norm layer gives them may be negative."""
    seen = []

    class NotedGradCAM(GradCAM):
        def get_cam_weights(self, input_tensor, target_layers, targets, activations, grads):
            seen.append(activations)
            return super().get_cam_weights(input_tensor, target_layers, targets, activations, grads)

    model = build("timm:resnet18")
    cam = replace(choose_cams(model, (32, 32), "GradCAM", "bn1").chosen[0], method=NotedGradCAM)
    class_maps(model, cam, torch.randn(1, 3, 32, 32), [1])
    assert seen[0].min() < 0


# -- what it is built with --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("timm:resnet18", 224, {}),
        ("timm:convnext_atto", 96, {"patch_size": 3}),
        ("timm:convnext_atto_ols", 32, {"output_stride": 8}),  # a stem without patches
        (VIT, 28, {"img_size": 28, "patch_size": 4}),
        (VIT, 224, {"img_size": 224}),
        ("timm:swin_tiny_patch4_window7_224", 64, {"img_size": 64, "patch_size": 2}),
        ("timm:densenet121", 32, {}),  # timm offers nothing
    ],
)
def test_small_images_get_what_timm_offers(name, size, arguments):
    assert timm_arguments(name, ((size, size),)) == arguments


@pytest.mark.parametrize("size", [(32, 48), (64, 32)])
@pytest.mark.parametrize(
    "name",
    [
        *("timm:resnet18", "timm:convnext_atto", VIT, "timm:swin_tiny_patch4_window7_224", "timm:mobilevit_xs"),
        *("timm:levit_128", "timm:pvt_v2_b0", "timm:eva02_tiny_patch14_224"),
    ],
)
def test_images_need_not_be_square(name, size):
    model = create_model(name, 10, **timm_arguments(name, (size,))).eval()
    layers = feature_maps(model, size)
    assert model(torch.zeros(2, 3, *size)).shape == (2, 10)
    assert layers
    assert all((layer.size[0] > layer.size[1]) == (size[0] > size[1]) for layer in layers.values())


def test_a_run_on_images_that_are_not_square_is_trained_exported_explained_and_predicted(trained, pictures):
    run = trained(SMALL_VIT, "32x48")
    saved = json.loads((run / "model/config.json").read_text())
    assert (saved["image_size"], saved["arguments"]) == ([32, 48], {"img_size": [32, 48], "patch_size": 4})
    summary = analyze.main(AnalyzeConfig(run=str(run), images=10, only=["gradcam", "model"]))
    assert (summary["count"], summary["cam_layer_size"]) == (TEST_IMAGES, [8, 12])
    picture = next((pictures / "test").rglob("*.png"))
    said = analyze.main(AnalyzeConfig(run=str(run), predict=[str(picture)], whole=True))[str(picture)]
    assert ImageClassifier.from_pretrained(run / "model").predict(picture) == pytest.approx(said, rel=1e-4)
    (program,) = export_programs(run / "model", ["torch"], torch.zeros(2, 32, 48, 3, dtype=torch.uint8))
    assert program.difference < 1e-5


def test_building_to_look_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.random.get_rng_state()
    timm_arguments(VIT, ((40, 40),))
    timm_arguments("timm:convnext_atto", ((40, 40),))
    assert torch.equal(torch.random.get_rng_state(), expected)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model": "timm:resnt18"},
            "model: 'timm:resnt18' is not allowed; timm has no resnt18; did you mean resnet18?",
        ),
        ({"model": "timm:resnet18.a1_in1k"}, "hf-hub:timm/resnet18.a1_in1k names its weights"),
        ({"model": "timm:hf-hub:timm/resnet18"}, "timm has no hf-hub:timm/resnet18"),
        ({"model": VIT, "norm": "group"}, f"norm: group is not allowed with {VIT}; it is for resnet18"),
        ({"model": VIT, "width": 32}, f"width: 32 is not allowed with {VIT}; it is for resnet18"),
        ({"model": VIT, "image_size": 37}, "image_size: 37 is not allowed with .*; choose a size .* such as 40"),
        ({"model": VIT, "resolution": "16@0.5,32"}, f"resolution: 16, 32 is not allowed with {VIT}, which"),
        ({"model": "timm:mixer_s32_224"}, "timm:mixer_s32_224 does not accept {'img_size': 32, 'patch_size': 4} "),
        (
            {"model": "timm:inception_v3"},
            r"image_size: 32 is not allowed with timm:inception_v3 \(.*\); choose 299, the ",
        ),
        (
            {"model": "timm:crossvit_tiny_240", "image_size": "240x160"},
            r"image_size: 240x160 is .*; choose 240, the size ",
        ),
        (
            {"model": VIT, "image_size": "37x48"},
            "image_size: 37x48 is not allowed with .*; choose a size .* such as 40x48",
        ),
        (
            {"model": "timm:inception_v3", "image_size": "96x128", "resolution": "32x40@0.5,96x128"},
            r"resolution: 32x40 is not allowed with timm:inception_v3 .*; begin with a larger size, or ",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(changes, line):
    config = TrainConfig(dataset="digits", **changes)
    with pytest.raises(UserError, match=line) as refused:
        model_arguments(config, config.size)
    assert "\n" not in str(refused.value)


def test_a_convolutional_network_may_begin_with_smaller_images():
    config = TrainConfig(model="timm:resnet18", resolution="16@0.5,32")
    assert model_arguments(config, (32, 32)) == {"output_stride": 8}


def test_a_mistaken_name_is_told_before_a_download(tmp_path):
    config = TrainConfig(
        model="timm:resnt18", data_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "run"), trackers=["none"]
    )
    assert run_processes(train_script, config, log=tmp_path / "log") == [2]
    assert (tmp_path / "log").read_text().startswith("error: model: 'timm:resnt18' is not allowed; ")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_without_timm_the_way_to_get_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm, which is not installed; pip install -r requirements.txt$"):
        create_model(VIT, 10)


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"checkpoint_path": "weights.pth"}),
        ("timm:resnet18", {"output_stride": "8"}),
        ("timm:resnet18", {"patch_size": 2}),
        ("timm:local-dir:/tmp", {}),
    ],
)
def test_a_saved_model_can_ask_timm_for_nothing_but_its_form(trained, tmp_path, capsys, architecture, arguments):
    """What lies in a run directory must not load files or reach for the network."""
    run = Path(shutil.copytree(trained("timm:resnet18", 32), tmp_path / "run"))
    change(run / "model/config.json", architecture=architecture, arguments=arguments)
    assert f"model: {architecture}" in refusal(capsys, run=str(run)).replace("'", "")


# -- how it is trained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [VIT, "timm:convnext_atto"])
def test_norms_biases_tokens_and_position_embeddings_are_told_from_weights(name):
    model = build(name)
    options = {"weight_decay": 0.1, "decay_norm_and_bias": False, "norm_bias_lr_factor": 64.0}
    optimizer = create_optimizer("muon", model, **options)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    weights = {id(layer.weight) for layer in layers}
    norms = {id(module.bias) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) > 10
    for path, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert (group["weight_decay"] > 0) == (id(parameter) in weights), path
        assert (group["lr_factor"] == 64) == (id(parameter) in norms), path
        assert group["muon"] == (id(parameter) in weights and parameter is not classifier(model).weight), path


def test_synchronised_batch_norm_keeps_the_activation_inside_a_norm_layer():
    """torch's own conversion would lose it."""
    model, image = build("timm:lcnet_035"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(image)
        converted = with_synchronised_batch_norm(model)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        torch.testing.assert_close(converted.eval()(image), expected)
