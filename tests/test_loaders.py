"""The k-th step sees the same images for every number of processes and workers, and evaluation each image once."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from data.augment import BatchPipeline, ImagePipeline
from data.files import ImageFiles
from data.images import InMemory
from data.loaders import Batch, DeviceLoader, EvaluationLoader, Steps, TrainLoader, epoch_order
from data.preprocessing import square, to_input
from data.splits import Split
from tests.conftest import augmentations
from utils.system.errors import UserError

SIZE = 8
KINDS = (TrainLoader, DeviceLoader)
EVERYTHING = (2, "random", 4, (0.5, 0.5, 0.5))


def numbered(count: int) -> Split:
    """Images whose pixels, and whose labels, are their position."""
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    images[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Split(InMemory(images), np.arange(count))


def coloured(count: int) -> Split:
    """Images of noise, whose labels are their position."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return Split(InMemory(images), np.arange(count))


def loader(
    split: Split,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    kind: type = TrainLoader,
    lead: bool = False,
    seed: int = 0,
    augmentation: tuple = (),
    **options,
) -> TrainLoader | DeviceLoader:
    steps = Steps(len(split), batch_size, seed, rank, world_size, lead)
    chosen = augmentations(SIZE, *augmentation)
    if kind is DeviceLoader:
        return DeviceLoader(split, BatchPipeline(chosen, seed), steps, torch.device("cpu"))
    return TrainLoader(split, ImagePipeline(chosen, seed), steps, **options)


def weighted(batch: Batch, lead: bool = False) -> list[int]:
    """Positions of the images of a batch that carry weight, without a lead."""
    kept = batch.labels[int(lead) :][: batch.count].tolist()
    assert len(kept) == batch.count
    assert len(batch.labels) == max(1, batch.count) + lead
    return kept


def of_numbered(batches: Iterator[Batch]) -> list[Batch]:
    """The batches, which must hold the images that belong to their labels."""
    batches = list(batches)
    assert all((batch.labels[:, None, None, None] == batch.images).all() for batch in batches)
    return batches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch_size", "copies"), [(8, 2), (9, 2), (7, 3), (50, 4), (200, 2), (3, 3)])
def test_copies_of_an_image_share_a_step_and_differ_by_their_augmentation(kind, batch_size, copies):
    split = coloured(50)

    def repeating(rank: int, world_size: int, augmented: bool = True) -> list[Batch]:
        steps = Steps(50, batch_size, 0, rank, world_size, repeated=copies)
        chosen = augmentations(SIZE, 4, "random")
        if kind is DeviceLoader:
            device = torch.device("cpu")
            return list(DeviceLoader(split, BatchPipeline(chosen), steps, device).epoch(1, augmented=augmented))
        return list(TrainLoader(split, ImagePipeline(chosen), steps).epoch(1, augmented=augmented))

    seen, different = list[int](), 0
    for batch, *parts in zip(repeating(0, 1), repeating(0, 2), repeating(1, 2), strict=True):
        assert batch.labels.tolist() == [index for part in parts for index in weighted(part)]
        assert torch.equal(batch.images, torch.cat([part.images[: part.count] for part in parts]))
        images, counts = np.unique(batch.labels, return_counts=True)
        assert (len(images), counts.max() - counts.min() <= 1) == (math.ceil(len(batch.labels) / copies), True)
        different += len(torch.unique(batch.images, dim=0))
        seen += images.tolist()
    assert len(seen) == len(set(seen))  # none in two steps
    assert different > 45  # of 50, drawn from 162 places and directions
    without = [index for batch in repeating(0, 1, augmented=False) for index in weighted(batch)]
    assert sorted(without) == list(range(50))


# -- training: order and parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 7, 16, 50, 200])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_step_sees_the_same_images_for_any_number_of_ranks(kind, batch_size, world_size):
    split = numbered(50)
    alone = [weighted(batch) for batch in of_numbered(loader(split, batch_size, kind=kind).epoch(1))]
    ranks = [of_numbered(loader(split, batch_size, rank, world_size, kind).epoch(1)) for rank in range(world_size)]
    assert {len(steps) for steps in ranks} == {len(alone)} == {math.ceil(50 / batch_size)}
    for step, images in enumerate(alone):
        parts = [steps[step] for steps in ranks]
        together = [index for part in parts for index in weighted(part)]
        assert together == images
        assert {part.global_count for part in parts} == {len(images)}
        assert max(len(part.labels) for part in parts) - min(len(part.labels) for part in parts) <= 1


@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 16, 200])
def test_both_loaders_give_the_same_order_and_parts(batch_size, world_size, lead):
    split = numbered(50)
    for rank in range(world_size):
        ours, theirs = (loader(split, batch_size, rank, world_size, kind, lead, seed=3) for kind in KINDS)
        last = math.ceil(50 / batch_size) - 1
        for epoch, first_step in ((0, 0), (2, last // 2), (2, last)):
            pairs = list(zip(ours.epoch(epoch, first_step), theirs.epoch(epoch, first_step), strict=True))
            assert len(pairs) == last + 1 - first_step
            for one, other in pairs:
                assert one.labels.tolist() == other.labels.tolist()
                assert torch.equal(one.images, other.images)
                assert (one.count, one.global_count) == (other.count, other.global_count)


def test_an_epoch_visits_every_image_once():
    visited = [index for batch in loader(numbered(50), 8).epoch(3) for index in weighted(batch)]
    assert sorted(visited) == list(range(50))


def test_last_batch_is_short_and_says_so():
    batches = list(loader(numbered(50), 16).epoch(0))
    assert [batch.count for batch in batches] == [16, 16, 16, 2]
    assert [batch.global_count for batch in batches] == [16, 16, 16, 2]


@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rank_without_an_image_gets_a_filler_without_weight(kind, lead):
    """5 images in batches of 2 for 4 ranks: ranks 2 and 3 never have one, rank 1 has none in the last step."""
    split, order = numbered(5), epoch_order(0, 0, 5)
    counts = []
    for rank in range(4):
        batches = of_numbered(loader(split, 2, rank, 4, kind, lead).epoch(0))
        counts.append([batch.count for batch in batches])
        assert [batch.global_count for batch in batches] == [2, 2, 1]
        for step, batch in enumerate(batches):
            members = order[2 * step : 2 * step + 2]
            assert len(batch.images) == len(batch.labels) == 1 + lead
            assert batch.count == 1 or batch.labels[-1] == members[0]  # the filler is the batch's first image
    assert counts == [[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 7, 16, 50])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_lead_is_the_image_before_the_part_in_the_global_batch(kind, batch_size, world_size):
    """The first image follows the last one, so that every image has one before it."""
    split, order = numbered(50), epoch_order(0, 1, 50).tolist()
    for rank in range(world_size):
        plain = loader(split, batch_size, rank, world_size, kind).epoch(1)
        leading = of_numbered(loader(split, batch_size, rank, world_size, kind, lead=True).epoch(1))
        for step, (without, with_lead) in enumerate(zip(plain, leading, strict=True)):
            members = order[step * batch_size : (step + 1) * batch_size]
            first, *rest = with_lead.labels.tolist()
            assert rest == without.labels.tolist()
            assert first == members[members.index(rest[0]) - 1]
            assert (with_lead.count, with_lead.global_count) == (without.count, without.global_count)


def test_filler_of_a_mixed_batch_has_its_lead_too():
    """3 images for 4 ranks: the last rank's filler is the first image, after the last."""
    order = epoch_order(0, 0, 3).tolist()
    batch = next(loader(numbered(3), 8, 3, 4, lead=True).epoch(0))
    assert (batch.labels.tolist(), batch.count) == ([order[-1], order[0]], 0)


def test_resume_steps_are_counted_from_the_first_that_remains():
    steps = Steps(50, 8, 0, 0, 1)
    assert steps.steps_per_epoch == 7
    for first_step in range(8):
        assert len(list(steps.positions(0, first_step))) == 7 - first_step


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_parts_are_contiguous_and_as_equal_as_can_be(count, world_size):
    order, ranks = epoch_order(0, 0, count).tolist(), range(world_size)
    parts = [next(Steps(count, count, 0, rank, world_size).positions(0)).tolist() for rank in ranks]
    assert list(itertools.chain(*parts[:count])) == order
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == order[:1] for part in parts[count:])


def test_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(5)}
    assert len(set(orders.values())) == 15
    assert all(tuple(epoch_order(*key, 50)) == order for key, order in reversed(orders.items()))


# -- training: resumed, left early, shared out ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "num_workers"), [(TrainLoader, 0), (TrainLoader, 2), (DeviceLoader, 0)])
def test_resume_inside_an_epoch_gives_the_remaining_batches(kind, num_workers):
    split = coloured(50)
    whole = list(loader(split, 8, kind=kind, augmentation=EVERYTHING).epoch(2))
    resumed = loader(split, 8, kind=kind, augmentation=EVERYTHING, num_workers=num_workers)
    for first_step in (0, 1, 5, 6):
        rest = list(resumed.epoch(2, first_step))
        assert [batch.global_count for batch in rest] == [8, 8, 8, 8, 8, 8, 2][first_step:]
        for ours, theirs in zip(rest, whole[first_step:], strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("kind", [TrainLoader, DeviceLoader])
def test_nothing_is_left_after_the_last_step(kind):
    assert list(loader(numbered(50), 8, kind=kind).epoch(2, 7)) == []


@pytest.mark.parametrize(("kind", "num_workers"), [(TrainLoader, 0), (TrainLoader, 2), (DeviceLoader, 0)])
def test_epoch_that_was_left_early_does_not_disturb_the_next(kind, num_workers):
    split = numbered(50)
    ours = loader(split, 8, kind=kind, num_workers=num_workers)
    abandoned = ours.epoch(9)
    next(abandoned)
    next(abandoned)
    assert [weighted(batch) for batch in ours.epoch(1)] == [weighted(batch) for batch in loader(split, 8).epoch(1)]


def test_number_of_workers_changes_nothing():
    split = coloured(50)
    loaders = [loader(split, 8, seed=1, augmentation=EVERYTHING, num_workers=workers) for workers in (0, 1, 2)]
    for epoch in range(2):
        for batches in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
            assert all(torch.equal(batches[0].images, other.images) for other in batches[1:])
            assert all(torch.equal(batches[0].labels, other.labels) for other in batches[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize("batch_size", [3, 8, 30])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_number_of_ranks_changes_no_augmentation(kind, lead, batch_size, world_size):
    """Whatever a rank gets, as its part, its lead or a filler, looks as in a run on one rank."""
    options = {"kind": kind, "seed": 1, "augmentation": EVERYTHING}
    split = coloured(30)
    alone = {int(b.labels[i]): b.images[i] for b in loader(split, 8, **options).epoch(1) for i in range(len(b.labels))}
    assert len(alone) == 30
    for rank in range(world_size):
        for batch in loader(split, batch_size, rank, world_size, lead=lead, **options).epoch(1):
            for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
                assert torch.equal(image, alone[label])


@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_augments_anew(kind):
    split = coloured(30)
    ours = loader(split, 30, kind=kind, augmentation=EVERYTHING)
    first, second = (
        batch.images[batch.labels.argsort()] for epoch in (0, 1) for batch in itertools.islice(ours.epoch(epoch), 1)
    )
    assert (first != second).flatten(1).any(1).sum() >= 29


@pytest.mark.parametrize("augmentation", [(), (2,), (0, "random"), (0, "none", 4), EVERYTHING])
def test_images_on_the_device_stay_as_they_are(augmentation):
    split = coloured(30)
    before = split.images.array.copy()
    batches = [
        batch
        for epoch in range(2)
        for batch in loader(split, 8, kind=DeviceLoader, augmentation=augmentation).epoch(epoch)
    ]
    for batch in batches:
        to_input(batch.images, torch.full((3,), 0.5), torch.full((3,), 0.25))
        batch.images.zero_()
    assert (split.images.array == before).all()


def test_unreadable_file_reaches_the_user_from_a_worker(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    split = Split(ImageFiles([tmp_path / "broken.png"] * 4, square(SIZE)), np.zeros(4, np.int64))
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
    split = coloured(20)
    images = torch.cat([images for images, _ in EvaluationLoader(split, batch_size=6)])
    assert (images.numpy() == split.images[:]).all()


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


MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (1, 1, 1, 3), (3, 32, 32, 3), (0, 8, 8, 3)])
def test_input_is_the_plain_formula_to_the_bit(channels_last, shape):
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = ((images.to(torch.float32) - 255 * MEAN) / (255 * STD)).permute(0, 3, 1, 2)
    assert torch.equal(to_input(images, MEAN, STD, channels_last), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_smaller_input_is_the_mean_over_areas(channels_last):
    images = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = to_input(images, MEAN, STD)
    halved = to_input(images, MEAN, STD, channels_last, size=16)
    expected = whole.reshape(4, 3, 16, 2, 16, 2).mean((3, 5))
    assert halved.shape == (4, 3, 16, 16)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, expected, rtol=1e-5, atol=1e-6)
    assert halved.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert halved.is_contiguous() is not channels_last


def test_smaller_input_of_any_size_keeps_a_flat_image_and_the_mean_of_a_ramp():
    ramp = torch.arange(32, dtype=torch.uint8)[:, None, None].expand(32, 32, 3)[None]
    for size in (8, 12, 16, 20, 24, 28, 31):
        flat = to_input(torch.full((1, 32, 32, 3), 77, dtype=torch.uint8), MEAN, STD, size=size)
        torch.testing.assert_close(flat, ((77 / 255 - MEAN) / STD)[None, :, None, None].expand(1, 3, size, size))
        scaled = to_input(ramp.contiguous(), torch.zeros(3), torch.full((3,), 1 / 255), size=size)
        assert scaled.mean().item() == pytest.approx(15.5, abs=1e-3)
        assert (scaled.diff(dim=2) > 0).all()


def test_input_of_the_size_that_it_has_is_not_scaled():
    images = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_input(images, MEAN, STD, size=32), to_input(images, MEAN, STD))


@pytest.mark.parametrize("augmentation", [(), (2,), (0, "random"), (0, "none", 4), EVERYTHING])
def test_input_takes_what_either_loader_gives(augmentation):
    for kind in KINDS:
        batch = next(loader(coloured(20), 8, kind=kind, augmentation=augmentation).epoch(0))
        expected = ((batch.images.to(torch.float32) - 255 * MEAN) / (255 * STD)).permute(0, 3, 1, 2)
        assert torch.equal(to_input(batch.images, MEAN, STD), expected)
