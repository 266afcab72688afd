"""Stochastic depth: timm's rates and scaling, and the same draws however the global batch is divided."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import DropPath as TimmDropPath
from torch import nn

from models import create_model
from models.drop_path import Draws, DropPath, put_drop_path
from models.timm_models import drop_path_rates
from tests.processes import run, tiny_config, train_script
from tests.test_same_run import WHOLE_RUN, rows, train_in_float64
from tests.timm_folder import fine_tuning, small_model, timm_folder
from utils.system.errors import UserError

CPU = torch.device("cpu")
NAMES = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [None, 0.0, 0.3])
def test_blocks_have_the_rates_of_timm(name, rate):
    wanted = {} if rate is None else {"drop_path_rate": rate}
    theirs = timm.create_model(name, num_classes=3, **wanted)
    ours = create_model(f"timm:{name}", 3)
    before = list(ours.state_dict())
    put_drop_path(ours, drop_path_rates(f"timm:{name}", {}, rate))
    expected = {at: x.drop_prob for at, x in theirs.named_modules() if isinstance(x, TimmDropPath) and x.drop_prob}
    assert {at: x.rate for at, x in ours.named_modules() if isinstance(x, DropPath)} == pytest.approx(expected)
    assert not any(isinstance(layer, TimmDropPath) for layer in ours.modules())
    assert list(ours.state_dict()) == before
    assert bool(expected) == (rate == 0.3 or (rate is None and name.startswith("swin")))


def test_an_image_is_kept_whole_and_scaled_or_dropped_as_in_timm():
    ours, theirs = DropPath(0.3), TimmDropPath(0.3)
    inputs = torch.rand(4000, 2, 3, dtype=torch.float64) + 1
    model = nn.Sequential(ours)
    draws = Draws(model, seed=1)
    draws.begin_step(5, 0, len(inputs), CPU)
    draws.apply(0, len(inputs))
    torch.manual_seed(0)
    for layer in (ours, theirs):
        ratio = layer.train()(inputs) / inputs
        kept = (ratio != 0).flatten(1)
        assert torch.equal(kept.all(1), kept.any(1))
        assert kept[:, 0].double().mean() == pytest.approx(0.7, abs=0.03)  # four standard errors
        torch.testing.assert_close(ratio[kept.all(1)], torch.full_like(ratio[kept.all(1)], 1 / 0.7))
        assert torch.equal(layer.eval()(inputs), inputs)


def test_draws_are_those_of_position_and_block_and_differ_between_steps_and_seeds():
    model = nn.Sequential(*(DropPath(0.5) for _ in range(5)))

    def drawn(seed: int, step: int, first: int, count: int) -> torch.Tensor:
        draws = Draws(model, seed)
        draws.begin_step(step, first, count, CPU)
        draws.apply(0, count)
        return torch.stack([layer.draws for layer in model], 1)

    whole = drawn(0, 3, 0, 40)
    assert whole.shape == (40, 5)
    assert len(whole.unique()) > 190
    assert torch.equal(drawn(0, 3, 13, 20), whole[13:33])
    for seed, step in ((0, 4), (1, 3)):
        assert (drawn(seed, step, 0, 40) != whole).float().mean() > 0.95


def test_the_draws_of_a_pass_stay_for_its_repetition_and_a_copy_is_a_model_of_its_own():
    model = small_model("test_vit")
    put_drop_path(model, drop_path_rates("timm:test_vit", {}, 0.5))
    average = copy.deepcopy(model)
    draws, inputs = Draws(model, 0), torch.rand(6, 3, 160, 160)
    draws.begin_step(0, 0, 6, CPU)
    draws.apply(0, 6)
    first, again, undropped = model(inputs), model(inputs), average(inputs)
    assert torch.equal(first, again)
    assert not torch.allclose(first, undropped)
    assert torch.equal(model.eval()(inputs), average.eval()(inputs))


@pytest.mark.parametrize("name", ["vgg11", "efficientvit_m0"])
def test_a_model_without_it_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=f"drop_path: 0.2 is not allowed with timm:{name}, which has no stochastic dep"):
        drop_path_rates(f"timm:{name}", {}, 0.2)


@pytest.mark.slow
def test_loss_at_every_step_is_the_same_on_any_number_of_processes(tmp_path):
    losses, options = {}, {"model": "timm:test_vit", "width": 64, "batch_size": 20, "lr": 0.01, "drop_path": 0.4}
    cases = {1: {}, 2: {"micro_batch_size": 7}, 3: {"micro_batch_size": 4, "grad_checkpointing": True}}
    for world_size, changes in cases.items():
        config = tiny_config(tmp_path / f"{world_size}", **options, mixup=0.2, max_steps=4, **changes)
        assert run(train_in_float64, config, world_size=world_size) == [0] * world_size
        losses[world_size] = [row["loss"] for row in rows(tmp_path / f"{world_size}")]
    assert len(losses[1]) == 5
    for world_size in (2, 3):
        np.testing.assert_allclose(losses[world_size], losses[1], rtol=WHOLE_RUN)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights_and_the_saved_model_knows_nothing_of_it(tmp_path):
    weights, ends = timm_folder(tmp_path / "weights", "test_resnet"), {}
    for name, stops in (("whole", [None]), ("stopped", [3, None]), ("without", [None])):
        for stop in stops:
            rate = 0.0 if name == "without" else 0.4
            config = fine_tuning(tmp_path / name, weights, drop_path=rate, max_steps=stop, ema_decay=0.5)
            assert run(train_script, config) == [0]
        ends[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    assert all(torch.equal(ends["stopped"][key], tensor) for key, tensor in ends["whole"].items())
    assert not all(torch.equal(ends["without"][key], tensor) for key, tensor in ends["whole"].items())
    saved = [json.loads((tmp_path / name / "model" / "config.json").read_text()) for name in ends]
    assert saved[0] == saved[2]
