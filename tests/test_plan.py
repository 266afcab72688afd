"""The course of a training is a pure function of options and counts."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.processes import tiny_config
from utils.system.errors import UserError
from utils.training.plan import Plan, learning_rate_factor

IMAGES = 100  # 4 steps of at most 30 an epoch, 12 in 3 epochs


def plan(**options) -> Plan:
    config = tiny_config(Path("run"), epochs=3, batch_size=30, log_every_steps=3)
    return Plan(replace(config, **options), IMAGES, image_size=(16, 16))


def steps(found) -> list[int]:
    return [step for step in range(1, 13) if found(step)]


def test_a_short_last_batch_is_a_step():
    assert (plan().steps_per_epoch, plan().total_steps, plan().last_step) == (4, 12, 12)
    assert [plan().epoch_end(epoch) for epoch in range(3)] == [4, 8, 12]
    assert plan(batch_size=1000).total_steps == 3


def test_max_steps_ends_the_training_but_not_the_schedule():
    short = plan(max_steps=6)
    assert (short.last_step, short.total_steps) == (6, 12)
    assert [short.pause(epoch) for epoch in range(2)] == [4, 6]
    assert short.lr_factor(6) == plan().lr_factor(6)
    assert plan(max_steps=99).last_step == 12


def test_a_step_of_the_schedule_is_the_update_after_the_finished_ones():
    expected = [learning_rate_factor("onecycle", finished, 12, 0.25) for finished in range(12)]
    assert [plan().lr_factor(step) for step in range(1, 13)] == expected


def test_lines_are_written_every_few_steps_and_at_every_evaluation():
    assert steps(plan().is_logged) == [3, 4, 6, 8, 9, 12]
    assert steps(plan(max_steps=7).is_logged)[:5] == [3, 4, 6, 7, 8]
    assert steps(plan(nan_patience=5).is_checked) == [3, 4, 5, 6, 8, 9, 10, 12]


def test_checkpoints_inside_an_epoch_are_those_that_its_end_does_not_write_anyway():
    assert steps(plan(checkpoint_every_steps=2).is_saved) == [2, 6, 10]
    assert steps(plan(checkpoint_every_steps=2, max_steps=6).is_saved) == [2, 10]
    assert steps(plan().is_saved) == []


def test_image_size_is_a_function_of_the_step():
    growing = plan(resolution="8@0.5,16")
    assert [growing.phase(step).size[0] for step in (0, 1, 6, 7, 12)] == [8, 8, 8, 16, 16]
    assert steps(lambda step: growing.begins_phase(step, step - 1)) == [7]
    assert growing.begins_phase(9, previous=5)  # after a rollback to step 5
    assert not growing.begins_phase(1, previous=0)
    assert not any(plan().begins_phase(step, step - 1) for step in range(1, 13))


def test_a_resolution_that_ends_at_another_size_is_refused():
    with pytest.raises(UserError, match="it must end at the image size, 16"):
        plan(resolution="8@0.5,32")


def test_images_are_counted_with_the_short_batch_of_finished_epochs():
    assert [plan().images_until(step, epochs) for step, epochs in ((0, 0), (3, 0), (4, 1), (6, 1), (12, 3))] == [
        0, 90, 100, 160, 300
    ]  # fmt: skip
