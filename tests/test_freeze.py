"""freeze_epochs: the head first, then all; the frozen part stays as it is to the bit, and nothing depends on stops or
processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import create_model
from tests.optimizers import create_optimizer
from tests.processes import run, tiny_config, train_script
from tests.test_same_run import WHOLE_RUN, rows, train_in_float64
from tests.timm_folder import timm_folder
from train_accelerate import main
from utils.config import TrainConfig
from utils.runs.checkpoint import list_checkpoints
from utils.training.freezing import Freezing
from utils.training.plan import Plan

STEPS = 23  # of an epoch of the digits
HEAD = {"timm:test_resnet": {"fc.weight", "fc.bias"}, "timm:test_convnext": {"head.fc.weight", "head.fc.bias"}}
OPTIONS: dict[str, Any] = {
    "width": "auto", "norm_statistics": "trained", "head_init": "random", "optimizer": "adamw", "lr": 0.01,
    "weight_decay": 0.1, "freeze_epochs": 1, "image_size": 16, "full_lr_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    return {name: timm_folder(root / name.removeprefix("timm:"), name.removeprefix("timm:")) for name in HEAD}


@pytest.fixture(scope="module")
def fine_tuned(weights):
    """The options of a run from the weights of a model."""

    def config(folder: Path, name: str = "timm:test_resnet", **changes: Any) -> TrainConfig:
        return tiny_config(folder, init_from=str(weights[name]), model=name, **{**OPTIONS, **changes})

    return config


def tensors(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    return load_file(list_checkpoints(folder / "checkpoints")[-1] / name)


AVERAGES = {"ema_decay": 0.9, "lookahead_steps": 5, "grad_clip_norm": 1.0}
KINDS = {
    "adamw": {},
    "sgd": {"optimizer": "sgd"},
    "muon": {"optimizer": "muon"},
    "averages and layers": {**AVERAGES, "layer_decay": 0.8, "head_lr_factor": 3.0, "decay_norm_and_bias": True},
    "another size within the frozen epoch": {"resolution": "12@0.1,16", "micro_batch_size": 24},
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_head_changes_at_first_and_then_everything(weights, fine_tuned, tmp_path, kind):
    name = "timm:test_resnet"
    start, folder = load_file(weights[name] / "model.safetensors"), tmp_path / "run"
    config = fine_tuned(folder, name, **KINDS[kind])
    main(TrainConfig(**{**vars(config), "max_steps": STEPS}))
    files = [path.name for path in list_checkpoints(folder / "checkpoints")[-1].glob("*.safetensors")]
    for file in files:
        found = tensors(folder, file)
        if file == "optimizer.safetensors":  # AdamW's first step of a frozen parameter is still to come
            assert {key.rpartition("/")[0] for key in found} == HEAD[name]
            continue
        changed = {key for key in found if found[key].shape != start[key].shape or not found[key].equal(start[key])}
        assert changed == HEAD[name], file  # norm statistics too are those of the weights, to the bit
    main(TrainConfig(**{**vars(config), "max_steps": STEPS + 1}))
    last = "unaveraged.safetensors" if "ema_decay" in KINDS[kind] else "model.safetensors"
    found, state = tensors(folder, last), tensors(folder, "optimizer.safetensors")
    unchanged = {key for key in found if key not in HEAD[name] and found[key].equal(start[key])}
    assert not unchanged
    counts = {key: int(value) for key, value in state.items() if key.endswith("/step")}
    assert all(count == (STEPS + 1 if key.rpartition("/")[0] in HEAD[name] else 1) for key, count in counts.items())
    norms = [row["gradient_norm"] for row in rows(folder) if row["split"] == "train"]
    assert len(norms) == STEPS + 1
    assert all(np.isfinite(norms))


def test_the_first_step_that_trains_all_is_that_of_a_new_optimizer(fine_tuned, tmp_path):
    """A frozen parameter has neither state nor decay from the steps before."""
    model = create_model("timm:test_resnet", 10)
    optimizer = create_optimizer("adamw", model, weight_decay=0.1)
    freezing, images = Freezing(model, optimizer), torch.randn(4, 3, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freezing.set(True)
    features = model.forward_features(images)
    assert not features.requires_grad  # nothing of the backbone is kept for a backward pass
    model(images).sum().backward()
    optimizer.step()
    assert {name for name, value in model.state_dict().items() if not value.equal(before[name])} == {
        "fc.weight", "fc.bias"
    }  # fmt: skip
    freezing.set(False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_parameters_that_are_never_trained_stay_untrained():
    model = create_model("speednet", 10, width=16)
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    freezing = Freezing(model, create_optimizer("sgd", model))
    for on in (True, False):
        freezing.set(on)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == fixed


def test_the_plan_says_when_all_is_trained():
    plan = Plan(tiny_config(Path("run"), init_from="weights", freeze_epochs=2), 100, (16, 16))
    assert [plan.trains_all(step) for step in (1, 4, 5, 6)] == [False, False, True, True]
    plan = Plan(tiny_config(Path("run")), 100, (16, 16))
    assert plan.trains_all(1)


def test_the_head_alone_can_be_all_that_is_trained(weights, fine_tuned, tmp_path):
    main(fine_tuned(tmp_path / "run", epochs=1))
    found = load_file(tmp_path / "run" / "model" / "model.safetensors")
    start = load_file(weights["timm:test_resnet"] / "model.safetensors")
    assert {key for key in found if found[key].shape != start[key].shape or not found[key].equal(start[key])} == {
        "fc.weight", "fc.bias"
    }  # fmt: skip


def test_the_range_test_trains_the_whole_model(fine_tuned, tmp_path, monkeypatch):
    """Its lr is for the epochs that train all of it."""
    import train_accelerate

    seen = []

    def step(*arguments: Any) -> Any:
        result = take(*arguments)
        seen.append(len(arguments[0].optimizer.state))
        return result

    take = train_accelerate.train_step
    monkeypatch.setattr(train_accelerate, "train_step", step)
    main(fine_tuned(tmp_path / "run", find_lr=True, max_steps=1))
    assert seen[0] > 2  # states of the range test's first step
    assert seen[-1] == 2  # of the first step of the run: the head's


# Stopped inside the frozen epoch, at its end, right after it and inside the next.
@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "stops"), [(1, [10, STEPS, STEPS + 1, 30]), (2, [10, STEPS, 30])])
def test_a_run_resumes_bit_for_bit_at_every_boundary(fine_tuned, tmp_path, world_size, stops):
    more = {"epochs": 2, **AVERAGES, "horizontal_flip": "random"}
    assert set(run(train_script, fine_tuned(tmp_path / "unbroken", **more), world_size=world_size)) == {0}
    for stop in (*stops, None):
        config = fine_tuned(tmp_path / "run", **more, max_steps=stop)
        assert set(run(train_script, config, world_size=world_size)) == {0}
    for file in ("model", "unaveraged", "lookahead", "optimizer"):
        expected, found = (tensors(tmp_path / folder, f"{file}.safetensors") for folder in ("unbroken", "run"))
        assert expected.keys() == found.keys()
        assert all(found[key].equal(expected[key]) for key in expected), file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "changes"), [(2, {"micro_batch_size": 7}), (3, {})], ids=["2 processes", "3 processes"]
)
def test_loss_at_every_step_is_the_same_on_any_number_of_processes(fine_tuned, tmp_path, world_size, changes):
    more = {"epochs": 3, "layer_decay": 0.8, **AVERAGES, "lr": 0.002, "overfit_batches": 5, "batch_size": 35}
    found = []
    for count, options in ((1, {}), (world_size, changes)):
        config = fine_tuned(tmp_path / str(count), "timm:test_convnext", **more, **options)
        assert set(run(train_in_float64, config, world_size=count)) == {0}
        found.append([row["loss"] for row in rows(tmp_path / str(count))])
    assert len(found[0]) == 3 * 5 + 3
    np.testing.assert_allclose(found[1], found[0], rtol=WHOLE_RUN)
    groups = json.loads((tmp_path / "1" / "environment.json").read_text())["lr_groups"]
    assert groups[-1]["name"] == "head"
