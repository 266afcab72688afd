"""Schedules are pure functions of the step, and those that torch has too agree with torch."""

import dataclasses
import itertools
import math
import random
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from tests.conftest import ROOT
from utils.config import TrainConfig
from utils.config.files import load_config
from utils.system.errors import UserError
from utils.training.plan import SCHEDULES, Plan, learning_rate_factor

RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.stem != "sweep"]  # that is for W&B


def factors(schedule: str, total: int, warmup_fraction: float = 0.0) -> list[float]:
    return [learning_rate_factor(schedule, step, total, warmup_fraction) for step in range(total)]


def torch_factors(total: int, create) -> list[float]:
    """What a scheduler of torch gives for a peak of 1, before each of `total` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, rates = create(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optimizer.step was not called
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            if len(rates) < total:
                scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("total", "warmup_fraction"),
    [
        (total, share)
        for total in (10, 97, 1960)
        for share in (0.0, 0.1, 0.25, 0.3, 0.5, 0.9)
        if total * share != 1  # torch divides by zero there
    ],
)
def test_onecycle_is_torchs_at_every_step(total, warmup_fraction):
    theirs = torch_factors(
        total,
        lambda optimizer: OneCycleLR(
            optimizer, max_lr=1.0, total_steps=total, pct_start=warmup_fraction, cycle_momentum=False
        ),
    )
    assert factors("onecycle", total, warmup_fraction) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("total", [1, 2, 10, 97, 1960])
def test_cosine_is_torchs_at_every_step(total):
    theirs = torch_factors(total, lambda optimizer: CosineAnnealingLR(optimizer, T_max=total))
    assert factors("cosine", total) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("total", range(1, 10))
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.05, 0.25, 0.5, 0.75, 0.99])
def test_onecycle_reaches_its_peak_in_a_few_steps_too(total, warmup_fraction):
    rates = factors("onecycle", total, warmup_fraction)
    peak = rates.index(1.0)
    assert abs(peak - (warmup_fraction * total - 1)) <= (0.5 if warmup_fraction * total > 0.5 else 1)
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    if peak:
        assert rates[0] == pytest.approx(1 / 25)
    if peak < total - 1:
        assert rates[-1] == pytest.approx(1 / 250_000)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.05, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 20, 1960])
def test_cosine_and_linear_reach_zero_at_the_end_of_training_whatever_the_warm_up(schedule, warmup_fraction, total):
    assert learning_rate_factor(schedule, total, total, warmup_fraction) == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(schedule, total - 1, total, warmup_fraction) > 0


def first_formula(schedule: str, step: int, total_steps: int, warmup_fraction: float) -> float:
    """What the published runs were trained with."""

    def cosine(first: float, last: float, progress: float) -> float:
        return last + (first - last) / 2 * (1 + math.cos(math.pi * min(1.0, progress)))

    if schedule == "onecycle":
        peak = warmup_fraction * total_steps - 1
        if step <= peak:
            return cosine(1 / 25, 1.0, step / peak if peak > 0 else 1.0)
        return cosine(1.0, 1 / 250_000, (step - peak) / max(1e-9, total_steps - 1 - peak))
    warmup = warmup_fraction * total_steps
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    progress = (step - warmup) / max(1.0, total_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_have_the_rates_of_the_published_runs_to_the_bit(path):
    config, images = load_config(TrainConfig, path), {"cifar10": 50_000, "digits": 1437, "imagefolder": 9_469}
    total = config.epochs * math.ceil(images[config.dataset] / config.batch_size)
    assert config.schedule in ("onecycle", "cosine", "linear")
    expected = [first_formula(config.schedule, step, total, config.warmup_fraction) for step in range(total)]
    assert factors(config.schedule, total, config.warmup_fraction) == expected


def test_linear_falls_to_zero_at_the_end():
    assert factors("linear", 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_step_is_a_tenth_at_half_and_again_at_three_quarters():
    assert factors("step", 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_stays():
    assert factors("constant", 5) == [1.0] * 5


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant"])
@pytest.mark.parametrize(("total", "warmup_fraction"), [(100, 0.1), (97, 0.25), (10, 0.05), (7, 0.4)])
def test_warm_up_rises_evenly_to_the_peak_and_no_further(schedule, total, warmup_fraction):
    rates = factors(schedule, total, warmup_fraction)
    warm = [rate for step, rate in enumerate(rates) if step < warmup_fraction * total]
    assert warm == sorted(set(warm))
    steps = [later - earlier for earlier, later in itertools.pairwise([0.0, *warm])]
    assert steps == pytest.approx([warm[0]] * len(warm))
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    after = rates[len(warm) :]
    assert all(later <= earlier for earlier, later in itertools.pairwise(after))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.25, 0.99])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 101])
def test_factor_lies_above_zero_and_at_most_one(schedule, warmup_fraction, total):
    assert all(0 < factor <= 1 for factor in factors(schedule, total, warmup_fraction))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rate_is_a_function_of_the_step_alone(schedule):
    steps = list(range(50))
    random.Random(0).shuffle(steps)
    shuffled = {step: learning_rate_factor(schedule, step, 50, 0.2) for step in steps}
    assert [shuffled[step] for step in range(50)] == factors(schedule, 50, 0.2)


def test_onecycle_reaches_its_peak_and_ends_far_below_the_start():
    rates = factors("onecycle", 1000, 0.25)
    assert rates[0] == pytest.approx(1 / 25)
    assert rates.index(max(rates)) == 249
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(1 / 250_000)


def test_unknown_schedule_names_what_there_is():
    for step in (0, 5):
        with pytest.raises(UserError, match=r"schedule: 'poly' is not allowed; choose from onecycle, cosine"):
            learning_rate_factor("poly", step, 10, 0.3)


def test_a_run_shorter_than_full_lr_steps_takes_lr_in_proportion():
    for total in (1, 24, 199, 200, 201, 4700):
        config = TrainConfig(init_from="weights", image_size=32, epochs=1)
        plan = Plan(config, total * config.batch_size, (32, 32))
        plain = dataclasses.replace(config, full_lr_steps=0)
        expected = factors(config.schedule, total, config.warmup_fraction)
        assert Plan(plain, plan.images, (32, 32)).peak_factor == 1
        assert plan.peak_factor == min(1, total / 200)
        found = [plan.lr_factor(step) for step in range(1, total + 1)]
        assert found == [min(1, total / 200) * factor for factor in expected]
