"""The k-th step sees the same images for every number of processes and workers, and evaluation each image once."""

import math

import numpy as np
import pytest
import torch

from data.augmentation import Augmentation
from data.datasets import ImageFiles, Split
from data.loaders import IGNORED, EvaluationLoader, StepSampler, TrainLoader, epoch_order, rank_part, to_input
from utils.errors import UserError

SIZE = 8


def numbered(count: int) -> Split:
    """Images whose pixels, and whose labels, are their position."""
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    images[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Split(images, np.arange(count))


def loader(split: Split, batch_size: int, rank: int = 0, world_size: int = 1, **options) -> TrainLoader:
    return TrainLoader(split, Augmentation(SIZE), batch_size, options.pop("seed", 0), rank, world_size, **options)


def weighted(batch) -> list[int]:
    """Positions of the images of a batch that carry weight."""
    assert ((batch.labels == IGNORED) | (batch.labels == batch.images[:, 0, 0, 0])).all()
    kept = batch.labels[batch.labels != IGNORED].tolist()
    assert len(kept) == batch.count
    return kept


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16, 50, 200])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_step_sees_the_same_images_for_any_number_of_ranks(batch_size, world_size):
    split = numbered(50)
    alone = [weighted(batch) for batch in loader(split, batch_size).epoch(1)]
    ranks = [list(loader(split, batch_size, rank, world_size).epoch(1)) for rank in range(world_size)]
    assert {len(steps) for steps in ranks} == {len(alone)} == {math.ceil(50 / batch_size)}
    for step, images in enumerate(alone):
        parts = [steps[step] for steps in ranks]
        together = [index for part in parts for index in weighted(part)]
        assert together == images
        assert {part.global_count for part in parts} == {len(images)}
        assert max(len(part.labels) for part in parts) - min(len(part.labels) for part in parts) <= 1


def test_an_epoch_visits_every_image_once():
    visited = [index for batch in loader(numbered(50), 8).epoch(3) for index in weighted(batch)]
    assert sorted(visited) == list(range(50))


def test_last_batch_is_short_and_says_so():
    batches = list(loader(numbered(50), 16).epoch(0))
    assert [batch.count for batch in batches] == [16, 16, 16, 2]
    assert [batch.global_count for batch in batches] == [16, 16, 16, 2]


def test_rank_without_an_image_gets_a_filler_without_weight():
    """5 images in batches of 2 for 4 ranks: ranks 2 and 3 never have one, rank 1 has none in the last step."""
    counts = []
    for rank in range(4):
        batches = list(loader(numbered(5), 2, rank, 4).epoch(0))
        counts.append([batch.count for batch in batches])
        for batch in batches:
            assert len(batch.images) == len(batch.labels) == 1
            assert (batch.labels == IGNORED).all() == (batch.count == 0)
    assert counts == [[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_filler_moves_neither_loss_nor_gradient():
    batch = next(iter(loader(numbered(5), 1, rank=1, world_size=2).epoch(0)))
    logits = torch.randn(1, 5, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum", label_smoothing=0.1)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_inside_an_epoch_gives_the_remaining_batches(num_workers):
    split = numbered(50)
    whole = [weighted(batch) for batch in loader(split, 8).epoch(2)]
    resumed = loader(split, 8, num_workers=num_workers)
    for first_step in (0, 1, 5, 6, 7):
        rest = list(resumed.epoch(2, first_step))
        assert [weighted(batch) for batch in rest] == whole[first_step:]
        assert [batch.global_count for batch in rest] == [8, 8, 8, 8, 8, 8, 2][first_step:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_that_was_left_early_does_not_disturb_the_next(num_workers):
    split = numbered(50)
    ours = loader(split, 8, num_workers=num_workers)
    abandoned = ours.epoch(9)
    next(abandoned)
    next(abandoned)
    assert [weighted(batch) for batch in ours.epoch(1)] == [weighted(batch) for batch in loader(split, 8).epoch(1)]


def test_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(5)}
    assert len(set(orders.values())) == 15
    assert all(tuple(epoch_order(*key, 50)) == order for key, order in reversed(orders.items()))


def test_number_of_workers_changes_nothing():
    split = Split(np.random.default_rng(0).integers(0, 256, (50, SIZE, SIZE, 3), dtype=np.uint8), np.arange(50))
    augmentation = Augmentation(SIZE, 2, "random", 4, (0.5, 0.5, 0.5))
    loaders = [TrainLoader(split, augmentation, 8, seed=1, num_workers=workers) for workers in (0, 1, 2)]
    for epoch in range(2):
        for batches in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
            assert all(torch.equal(batches[0].images, other.images) for other in batches[1:])
            assert all(torch.equal(batches[0].labels, other.labels) for other in batches[1:])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_number_of_ranks_changes_no_augmentation(world_size):
    split = Split(np.random.default_rng(0).integers(0, 256, (30, SIZE, SIZE, 3), dtype=np.uint8), np.arange(30))
    augmentation = Augmentation(SIZE, 2, "random", 4, (0.5, 0.5, 0.5))
    alone = [batch.images for batch in TrainLoader(split, augmentation, 8, 1).epoch(1)]
    ranks = [TrainLoader(split, augmentation, 8, 1, rank, world_size).epoch(1) for rank in range(world_size)]
    for images, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        assert torch.equal(torch.cat([part.images[: part.count] for part in parts]), images)


def test_sampler_counts_the_remaining_steps():
    sampler = StepSampler(50, 8, 0, 0, 1)
    assert len(sampler) == 7
    sampler.first_step = 5
    assert len(sampler) == len(list(sampler)) == 2


@pytest.mark.parametrize("count", range(10))
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_rank_parts_are_a_partition(count, world_size):
    parts = [rank_part(np.arange(count), rank, world_size) for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_unreadable_file_reaches_the_user_from_a_worker(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    split = Split(ImageFiles([tmp_path / "broken.png"] * 4, SIZE), np.zeros(4, np.int64))
    with pytest.raises(UserError, match=r"broken\.png is not a readable image"):
        list(loader(split, 2, num_workers=1).epoch(0))


# -- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 10, 50, 51])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_covers_every_image_once_in_equal_rounds(count, world_size):
    split = numbered(count)
    ranks = [list(EvaluationLoader(split, rank, world_size, batch_size=7)) for rank in range(world_size)]
    rounds = math.ceil(math.ceil(count / 7) / world_size)
    assert {len(batches) for batches in ranks} == {rounds}
    in_order = [batches[turn] for turn in range(rounds) for batches in ranks]
    seen = [label for batch in in_order if batch is not None for label in batch[1].tolist()]
    assert seen == list(range(count))
    assert all((batch[0][:, 0, 0, 0] == batch[1]).all() for batch in in_order if batch is not None)


def test_evaluation_batches_are_the_same_for_any_number_of_ranks():
    split = numbered(50)
    alone = [labels.tolist() for _, labels in EvaluationLoader(split, batch_size=7)]
    for world_size in (2, 3):
        dealt = [list(EvaluationLoader(split, rank, world_size, batch_size=7)) for rank in range(world_size)]
        batches = [batch[1].tolist() for turn in zip(*dealt, strict=True) for batch in turn if batch is not None]
        assert batches == alone


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_can_be_repeated_and_a_rank_may_have_nothing(num_workers):
    split = numbered(3)
    busy, idle = (EvaluationLoader(split, rank, 2, num_workers=num_workers) for rank in (0, 1))
    for _ in range(2):
        assert [labels.tolist() for _, labels in busy] == [[0, 1, 2]]
        assert list(idle) == [None]


def test_evaluation_augments_nothing():
    split = Split(np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8), np.arange(20))
    images = torch.cat([images for images, _ in EvaluationLoader(split, batch_size=6)])
    assert (images.numpy() == split.images).all()


# -- to the device ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_input_is_normalised_float32_in_the_layout_asked_for(channels_last):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    result = to_input(torch.from_numpy(pixels), torch.tensor(mean), torch.tensor(std), channels_last)
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert result.dtype == torch.float32
    assert result.shape == (5, 3, 6, 7)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert result.is_contiguous() is not channels_last


def test_input_leaves_the_images_as_they_are():
    images = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    to_input(images, torch.zeros(3), torch.ones(3))
    assert (images == 100).all()
