"""layer_decay, head_lr_factor, --print_groups: lr and decay of each layer, which are timm's, and what is printed."""

import json
from typing import Any

import pytest
import torch
from torch import nn

import train_accelerate
from analyze import main as analyze
from models import create_model
from models.saved import load_model
from tests.processes import tiny_config
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.consistency import without_effect
from utils.runs.saved_run import open_run
from utils.system.errors import UserError
from utils.training.groups import head_parameters, layers_of, parts
from utils.training.optimizers import create_optimizer, set_learning_rate
from utils.training.print_groups import compact, describe_groups, group_lines

FAMILIES = (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto",
    "tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050",
)  # fmt: skip
LAYERS = {"resnet18": 10, "resnet34": 18, "speednet": 5}  # stem, blocks, head


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, 5)


def config_of(name: str, **options: Any) -> TrainConfig:
    return TrainConfig(**{"model": name, "trackers": ["none"], "weight_decay": 0.05, **options})


def by_parameter(config: TrainConfig, model: nn.Module) -> dict[str, tuple[float, float]]:
    """lr factor and weight decay."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr_factor"], group["weight_decay"])
        for group in create_optimizer(config, model).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", FAMILIES)
def test_lr_and_weight_decay_of_every_parameter_are_those_of_timm(name, optimizer):
    optim = pytest.importorskip("timm.optim")
    model = on_meta(f"timm:{name}")
    without = getattr(model, "no_weight_decay", set)()
    expected = optim.param_groups_layer_decay(model, 0.05, without, layer_decay=0.7)
    names = {parameter: path for path, parameter in model.named_parameters()}
    found = by_parameter(config_of(f"timm:{name}", layer_decay=0.7, optimizer=optimizer), model)
    assert found == {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in expected
        for parameter in group["params"]
    }
    assert len({factor for factor, _ in found.values()}) > 5


@pytest.mark.parametrize("name", LAYERS)
def test_our_own_models_have_layers_from_the_stem_to_the_head(name):
    model = on_meta(name)
    layers = layers_of(config_of(name, layer_decay=0.5), model)
    assert layers.keys() == dict(model.named_parameters()).keys()
    assert set(layers.values()) == set(range(LAYERS[name]))
    numbers = list(layers.values())
    assert numbers == sorted(numbers)
    head = {path for path, number in layers.items() if number == LAYERS[name] - 1}
    assert head == {path for path in layers if path.startswith("fc.")}


def test_our_resnet_has_the_layers_of_timms():
    pytest.importorskip("timm")
    ours, theirs = (layers_of(config_of(name), on_meta(name)) for name in ("resnet18", "timm:resnet18"))
    assert {path: number for path, number in ours.items() if "conv" in path} == {
        path: number for path, number in theirs.items() if "conv" in path
    }


def test_the_head_has_the_full_lr_times_its_factor():
    model = on_meta("resnet18")
    found = by_parameter(config_of("resnet18", layer_decay=0.5, head_lr_factor=3.0), model)
    assert found["fc.weight"] == (3.0, 0.05)
    assert found["layer4.1.conv2.weight"] == (0.5, 0.05)
    assert found["conv1.weight"] == (0.5**9, 0.05)
    assert by_parameter(config_of("resnet18", head_lr_factor=3.0), model)["conv1.weight"] == (1.0, 0.05)


def test_both_heads_of_a_distilled_transformer_are_the_head():
    pytest.importorskip("timm")
    model = on_meta("timm:deit_tiny_distilled_patch16_224")
    assert len(head_parameters(model)) == 4
    found = by_parameter(config_of("timm:deit_tiny_distilled_patch16_224", head_lr_factor=2.0), model)
    assert {path for path, (factor, _) in found.items() if factor == 2.0} == {
        f"{head}.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")
    }


def test_biases_of_norm_layers_keep_their_decay_per_step_within_a_layer():
    model = on_meta("resnet18")
    options = {"layer_decay": 0.5, "norm_bias_lr_factor": 4.0, "decay_norm_and_bias": True}
    found = by_parameter(config_of("resnet18", **options), model)
    factor, decay = found["layer4.1.norm2.bias"]
    assert (factor, factor * decay) == (2.0, 0.5 * 0.05)  # four times the layer's lr, and the layer's decay


def test_one_lr_for_all_gives_the_groups_that_there_always_were():
    """In their order, which the optimizers' sums depend on."""
    model = on_meta("resnet18")
    groups = create_optimizer(config_of("resnet18", optimizer="sgd", norm_bias_lr_factor=4.0), model).param_groups
    assert [(group["lr_factor"], group["weight_decay"]) for group in groups] == [(1.0, 0.05), (1.0, 0.0), (4.0, 0.0)]
    assert [group["name"] for group in groups] == ["all", "all, no decay", "all, norm biases, no decay"]


def test_the_lr_of_a_step_reaches_every_group():
    optimizer = create_optimizer(config_of("resnet18", layer_decay=0.5, head_lr_factor=3.0), on_meta("resnet18"))
    set_learning_rate(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {*(0.1 * 0.5**n for n in range(1, 10)), 0.1 * 3.0}


def test_a_model_without_known_layers_is_refused_in_one_line():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

    with pytest.raises(UserError, match=r"^layer_decay: 0\.5 is not allowed with plain, whose layers are not known;"):
        parts(config_of("plain", layer_decay=0.5), Plain())
    assert parts(config_of("plain", head_lr_factor=2.0), Plain())["fc.weight"].lr_factor == 2.0


def test_a_run_with_an_impossible_layer_decay_ends_before_anything_is_written(tmp_path):
    pytest.importorskip("timm")
    config = tiny_config(
        tmp_path / "run", model="timm:pit_ti_224", width="auto", layer_decay=0.5, image_size=64, dataset="cifar10",
        data_dir=str(tmp_path / "none"),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"layer_decay: 0\.5 is not allowed with timm:pit_ti_224"):
        train_accelerate.main(config)
    assert not list(tmp_path.iterdir())


def test_print_groups_prints_a_table_and_makes_no_run(tmp_path, capsys):
    options = {"optimizer": "muon", "lr": 0.02, "weight_decay": 0.5, "decay_norm_and_bias": False}
    assert (
        train_accelerate.main(
            tiny_config(tmp_path / "run", layer_decay=0.5, head_lr_factor=3.0, print_groups=True, **options)
        )
        == {}
    )
    lines = capsys.readouterr().out.splitlines()
    table = [line.rstrip() for line in lines]
    assert table[0].split() == [
        "group", "what", "tensors", "parameters", "lr", "weight", "decay", "from", "epoch"
    ]  # fmt: skip
    assert table[1].split() == ["layer", "0,", "muon", "conv1.weight", "1", "432", "3.91e-05", "0.5", "1"]
    assert table[-2].split() == ["head,", "no", "decay", "fc.bias", "1", "10", "0.06", "0", "1"]
    assert table[-1].startswith("20 groups, 701,466 of 701,466 parameters are trained")
    assert len({len(line) for line in lines[:-1]}) == 1
    assert not (tmp_path / "run").exists()


def test_the_table_says_from_which_epoch_a_group_is_trained():
    config = config_of("resnet18", init_from="weights", norm="batch", width=64, freeze_epochs=2, lr="auto")
    rows = [line.split() for line in group_lines(config, on_meta("resnet18"))]
    assert {row[0].rstrip(","): row[-1] for row in rows[1:-1]} == {"backbone": "3", "head": "1"}
    assert rows[0][-6:-4] == ["lr", "factor"]


def test_the_table_has_the_lr_that_a_short_run_reaches():
    config = config_of("resnet18", init_from="weights", norm="batch", width=64)
    rows = [line.split() for line in group_lines(config, on_meta("resnet18"), peak_factor=0.12)]
    assert [row[-3] for row in rows[1:-1]] == ["2.4e-05"] * (len(rows) - 2)


def test_names_are_shown_by_the_modules_that_hold_them():
    assert compact(["blocks.1.0.conv.weight", "blocks.1.0.bn.bias"]) == "blocks.1.0"
    assert compact(["fc.bias"]) == "fc.bias"
    assert compact(["blocks.6.0.a", "blocks.6.0.b", "conv_head.weight", "bn2.weight", "bn2.bias"]) == (
        "blocks.6.0, conv_head.weight, bn2"
    )
    assert compact(["a.x", "b.x", "c.x", "d.x", "e.x"]) == "a.x, b.x, ..., e.x"


@pytest.mark.slow
def test_the_groups_are_in_environment_json_and_if_they_differ_in_the_report(tmp_path):
    config = tiny_config(tmp_path / "run", layer_decay=0.5, head_lr_factor=3.0, max_steps=1, find_lr=True)
    train_accelerate.main(config)
    groups = json.loads((tmp_path / "run" / "environment.json").read_text())["lr_groups"]
    model, _ = load_model(tmp_path / "run" / "model")
    assert groups == describe_groups(create_optimizer(config, model))
    assert sum(group["parameters"] for group in groups) == sum(p.numel() for p in model.parameters())
    assert open_run(tmp_path / "run").lr_groups == groups
    analyze(AnalyzeConfig(run=str(tmp_path / "run"), only=["model"]))
    report = (tmp_path / "run" / "analysis" / "report.html").read_text()
    assert f"Learning rates of its {len(groups)} parameter groups" in report
    assert '<th scope="row">head</th><td>3</td>' in report


@pytest.mark.parametrize(
    "value", [None, 3, "x", [3], [{}], [{"name": "<b>", "lr_factor": "1"}], [{"name": 1}], [{}] * 2000]
)
def test_groups_of_another_form_are_not_shown(digits_run, tmp_path, value):
    run = open_run(digits_run)
    environment = {**run.environment, "lr_groups": value}
    assert type(run)(**{**vars(run), "environment": environment}).lr_groups == []


def test_what_has_no_effect_with_a_frozen_backbone_is_said():
    config = TrainConfig(init_from="weights", freeze="backbone", layer_decay=0.5, trackers=["none"])
    assert without_effect(config) == "no effect: layer_decay with freeze backbone, which trains no step"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_epochs": 1}, "freeze_epochs: 1 is not allowed without init_from"),
        ({"init_from": "x", "epochs": 2, "freeze_epochs": 3}, "freeze_epochs: 3 is not allowed; it must be at most"),
        ({"layer_decay": 1.5}, "layer_decay: 1.5 is not allowed"),
        ({"head_lr_factor": 0.0}, "head_lr_factor: 0.0 is not allowed"),
        ({"init_from": "x", "freeze": "backbone", "print_groups": True}, "print_groups: true is not allowed"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**options, trackers=["none"])
