"""Augmentation is a function of (seed, epoch, image index) alone, and does what its papers say, on both backends."""

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from data.augment import BatchPipeline, ImagePipeline
from data.images import InMemory
from data.loaders import Steps, TrainLoader, epoch_order
from data.splits import Split
from tests.conftest import augmentations

SIZE = 32
FILL = (0.4914, 0.4822, 0.4465)
EVERYTHING = {"crop_padding": 4, "horizontal_flip": "random", "cutout": 16, "fill": FILL}
KINDS = {"albumentations": ImagePipeline, "tensor": BatchPipeline}
Augment = Callable[..., np.ndarray]  # (images, epoch, indices) to images


@pytest.fixture(scope="module", params=list(KINDS))
def backend(request) -> str:
    return request.param


def tensor(*options, seed: int = 0, **more) -> BatchPipeline:
    return BatchPipeline(augmentations(*options, **more), seed)


def create(backend: str, size: int = SIZE, seed: int = 0, **options) -> Augment:
    """Either backend as a function of images (n, size, size, 3), epoch and indices (n,); without: 0 to n - 1."""
    augmentation = KINDS[backend](augmentations(size, **options), seed)

    def augment(images: np.ndarray, epoch: int = 0, indices: np.ndarray | None = None) -> np.ndarray:
        indices = np.arange(len(images)) if indices is None else np.asarray(indices)
        if backend == "albumentations":
            keys = zip(images, indices.tolist(), strict=True)
            return np.stack([augmentation(image, epoch, index) for image, index in keys])
        choices = augmentation.draw(epoch, int(indices.max()) + 1)
        return augmentation(torch.from_numpy(np.ascontiguousarray(images)), choices[indices]).numpy()

    return augment


def copies(image: np.ndarray, count: int) -> np.ndarray:
    """One image so many times, without a copy for each."""
    return np.broadcast_to(image, (count, *image.shape))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """64 different pictures without a zero, so that padding shows, and without symmetry."""
    return np.random.default_rng(0).integers(1, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)


def position_image() -> np.ndarray:
    """Every pixel says where it came from: 1 + row in the first channel, 1 + column in the second."""
    row, column = np.mgrid[1 : SIZE + 1, 1 : SIZE + 1]
    return np.stack([row, column, np.full_like(row, 200)], axis=-1).astype(np.uint8)


def offsets(backend: str, count: int, **options) -> np.ndarray:
    """(count, 2): how far down and right of the image's corner the crops by 4 pixels of padding began."""
    image = position_image()
    results = create(backend, crop_padding=4, **options)(copies(image, count))
    return results[:, 16, 16, :2].astype(int) - image[16, 16, :2]


def chi_square(counts: np.ndarray) -> float:
    """Of counts that are expected to be equal."""
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


# -- a function of (seed, epoch, index) -------------------------------------------------------------------------------


def test_result_does_not_depend_on_what_was_augmented_before(backend, images):
    forward, backward = create(backend, **EVERYTHING), create(backend, **EVERYTHING)
    first = {epoch: forward(images[:20], epoch) for epoch in range(3)}
    for epoch in reversed(range(3)):
        assert (backward(images[19::-1], epoch, np.arange(19, -1, -1))[::-1] == first[epoch]).all()
    assert (forward(images[3:4], 1, [3]) == first[1][3]).all()


def test_result_depends_neither_on_the_global_generators_nor_moves_them(backend, images):
    results, states = [], []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        results.append(create(backend, **EVERYTHING)(images[:4]))
        states.append(before)
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert states[0] != states[1]
    assert (results[0] == results[1]).all()


def test_every_seed_epoch_and_index_gives_another_result(backend):
    """One image, so that only the augmentation can differ; the chance of a collision is small but not zero."""
    image = copies(np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), 50)
    augments = [create(backend, **EVERYTHING, seed=seed) for seed in (0, 1)]
    results = [result.tobytes() for augment in augments for epoch in range(4) for result in augment(image, epoch)]
    assert len(results) == 400
    assert len(set(results)) >= 399


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_and_epochs_neither_change_nor_repeat_an_augmentation(images, num_workers):
    """albumentations alone gives 32 to 96 distinct results here."""
    split, steps = Split(InMemory(np.repeat(images[:1], 64, axis=0)), np.arange(64)), Steps(64, 8, 0, 0, 1)
    pipeline = ImagePipeline(augmentations(SIZE, **EVERYTHING))
    here, there = (TrainLoader(split, pipeline, steps, n) for n in (0, num_workers))
    distinct = set()
    for epoch in range(3):
        for ours, theirs in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert (ours.images == theirs.images).all()
            distinct |= {result.numpy().tobytes() for result in theirs.images}
    assert len(distinct) >= 190


def test_nothing_asked_for_changes_nothing(backend, images):
    for padding_mode in ("zeros", "reflect"):
        assert (create(backend, padding_mode=padding_mode)(images) == images).all()


def test_image_given_stays_as_it_is(backend, images):
    before = images.copy()
    for options in ({}, {"crop_padding": 4}, {"crop_padding": 4, "padding_mode": "reflect"}, {"cutout": 16}):
        for flip in ("none", "random", "alternating"):
            create(backend, horizontal_flip=flip, fill=FILL, **options)(images[:8])
    assert (images == before).all()


def test_result_is_a_uint8_image_of_the_same_size(backend, images):
    result = create(backend, **EVERYTHING)(images[:3])
    assert result.shape == (3, SIZE, SIZE, 3)
    assert result.dtype == np.uint8


def test_no_argument_name_is_unknown_to_albumentations():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for flip in ("none", "random", "alternating"):
            for mode in ("zeros", "reflect"):
                ImagePipeline(augmentations(SIZE, 4, flip, 16, FILL, mode))(np.zeros((SIZE, SIZE, 3), np.uint8), 0, 0)


# -- crop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_crop_offsets_are_uniform_from_minus_to_plus_the_padding(backend, padding_mode):
    """Together, so that rows and columns are also independent of each other."""
    found = offsets(backend, 4050, padding_mode=padding_mode)
    assert (found.min(), found.max()) == (-4, 4)
    counts = np.bincount((found + 4) @ [9, 1], minlength=81)
    assert counts.min() > 0
    assert 45 < chi_square(counts) < 135  # 80 degrees of freedom: outside by chance once in 10,000


@pytest.mark.parametrize("padding", [1, 4, 31])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_crop_is_a_piece_of_the_padded_image_where_it_was_drawn(backend, padding, padding_mode):
    image = position_image()
    widths = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(image, widths, mode="reflect" if padding_mode == "reflect" else "constant")
    results = create(backend, crop_padding=padding, padding_mode=padding_mode)(copies(image, 30))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, (SIZE, SIZE), (0, 1)).transpose(0, 1, 3, 4, 2)
    for result in results:
        assert (pieces == result).all((2, 3, 4)).any()
    assert len({result.tobytes() for result in results}) > 5


# -- flip -------------------------------------------------------------------------------------------------------------


def flipped(augment: Augment, epochs: int, count: int) -> np.ndarray:
    """(epochs, count) of whether an image came out mirrored."""
    image = position_image()
    mirrored = np.zeros((epochs, count), bool)
    for epoch in range(epochs):
        results = augment(copies(image, count), epoch)
        mirrored[epoch] = (results == image[:, ::-1]).all((1, 2, 3))
        assert (mirrored[epoch] | (results == image).all((1, 2, 3))).all()
    return mirrored


def test_random_flip_mirrors_half_of_the_images_independently(backend):
    mirrored = flipped(create(backend, horizontal_flip="random"), 2, 1000)
    assert (np.abs(mirrored.mean(1) - 0.5) < 0.07).all()
    assert 0.4 < (mirrored[0] == mirrored[1]).mean() < 0.6


def test_alternating_flip_mirrors_every_image_in_every_other_epoch(backend):
    mirrored = flipped(create(backend, horizontal_flip="alternating"), 6, 400)
    assert (mirrored[1:] != mirrored[:-1]).all()
    assert 0.4 < mirrored[0].mean() < 0.6


def test_alternating_flip_begins_with_another_half_for_another_seed(backend):
    first, second = (flipped(create(backend, horizontal_flip="alternating", seed=seed), 1, 400) for seed in (0, 1))
    assert 0.35 < (first == second).mean() < 0.65


def test_no_flip_mirrors_nothing(backend):
    assert not flipped(create(backend, horizontal_flip="none"), 1, 100).any()


# -- CutOut -----------------------------------------------------------------------------------------------------------


def draw_holes(backend: str, count: int, side: int) -> np.ndarray:
    """(count, 32, 32) of what CutOut erased from black images."""
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    return create(backend, cutout=side, fill=FILL)(copies(black, count))[..., 0] > 0


def corners(holes: np.ndarray, axis: int, side: int) -> np.ndarray:
    """First row (axis 2) or column (axis 1) of every hole, -side // 2 at the least.

    Where one border cuts the hole its other edge shows where it begins, so that all 32 positions can be told.
    """
    spans = holes.any(axis)
    first, last = spans.argmax(1), SIZE - 1 - spans[:, ::-1].argmax(1)
    return np.where(first > 0, first, last + 1 - side)


@pytest.fixture(scope="module")
def holes(backend) -> np.ndarray:
    return draw_holes(backend, 4000, 16)


def test_cutout_hangs_over_the_border_as_in_the_paper(holes):
    areas = holes.sum((1, 2))
    assert areas.min() == 64
    assert areas.max() == 256
    assert abs(areas.mean() - 196) < 4  # exactly 196 = 14 * 14 for a centre uniform over the 32 x 32 pixels
    assert abs(holes[:, 16, 16].mean() - 0.25) < 0.03


def test_cutout_erases_one_square_up_to_the_border(holes):
    for hole in holes[:500]:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
        for span in (rows, columns):
            assert len(span) == span[-1] - span[0] + 1
            assert len(span) == 16 or span[0] == 0 or span[-1] == SIZE - 1


@pytest.mark.parametrize("side", [16, 15])
def test_cutout_centres_are_uniform_over_the_rows_and_columns(backend, holes, side):
    found = holes if side == 16 else draw_holes(backend, 4000, side)
    for axis in (2, 1):
        counts = np.bincount(corners(found, axis, side) + side // 2, minlength=SIZE)
        assert len(counts) == SIZE
        assert 9 < chi_square(counts) < 70  # 31 degrees of freedom


def test_cutout_row_says_nothing_about_its_column(holes):
    rows, columns = corners(holes, 2, 16), corners(holes, 1, 16)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.06  # 0.016 is one standard deviation
    eighths = np.bincount((rows + 8) // 4 * 8 + (columns + 8) // 4, minlength=64)
    assert 30 < chi_square(eighths) < 115  # 63 degrees of freedom


def test_cutout_fills_with_the_mean_on_the_scale_of_the_image(backend):
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    for result in create(backend, cutout=16, fill=FILL)(copies(white, 10)):
        erased = result[(result != 255).any(-1)]
        assert len(erased) >= 64
        assert (erased == [125, 123, 114]).all()


@pytest.mark.parametrize("side", [1, 5, 8, 31, 32])
def test_cutout_of_any_side_up_to_the_image(backend, side):
    """For an odd side the centre is a pixel, else the one below and right of the middle."""
    areas = draw_holes(backend, 2000, side).sum((1, 2))
    before, after = side // 2, side - side // 2
    assert 0.9 * side**2 < areas.max() <= side**2  # the whole of an image is one position in 1024
    assert min(before + 1, after) ** 2 <= areas.min() < 2 * min(before + 1, after) ** 2
    reach = [min(centre + after, SIZE) - max(centre - before, 0) for centre in range(SIZE)]
    assert abs(areas.mean() - np.mean(reach) ** 2) < 0.05 * side**2


def test_crop_comes_before_the_hole_is_cut(backend):
    """The padding's zeros are covered by the hole, never the hole by zeros."""
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    results = create(backend, crop_padding=4, cutout=16, fill=(1, 1, 1))(copies(grey, 500))
    assert (results[..., 0] == 255).sum((1, 2)).min() >= 64


# -- both backends draw alike, and each choice by itself --------------------------------------------------------------


def chi_square_of_two(first: np.ndarray, second: np.ndarray, bins: int) -> float:
    """Of two equally large samples of numbers below `bins`, against the assumption that they are drawn alike."""
    ours, theirs = np.bincount(first, minlength=bins), np.bincount(second, minlength=bins)
    assert len(ours) == len(theirs) == bins
    return float(((ours - theirs) ** 2 / np.maximum(ours + theirs, 1)).sum())


def test_both_backends_draw_crops_from_the_same_distribution():
    ours, theirs = (offsets(backend, 3000) + 4 for backend in KINDS)
    for axis in (0, 1):
        assert chi_square_of_two(ours[:, axis], theirs[:, axis], 9) < 30  # 8 degrees of freedom
    assert chi_square_of_two(ours @ [9, 1], theirs @ [9, 1], 81) < 135
    assert (ours != theirs).any()


@pytest.mark.parametrize("side", [16, 9])
def test_both_backends_cut_holes_from_the_same_distribution(side):
    ours, theirs = (draw_holes(backend, 3000, side) for backend in KINDS)
    assert abs(ours.sum((1, 2)).mean() - theirs.sum((1, 2)).mean()) < 0.03 * side**2
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.06  # how often each pixel is erased
    for axis in (2, 1):
        first, second = (corners(found, axis, side) + side // 2 for found in (ours, theirs))
        assert chi_square_of_two(first, second, SIZE) < 70  # 31 degrees of freedom


@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
def test_both_backends_flip_equally_often(flip):
    ours, theirs = (flipped(create(backend, horizontal_flip=flip), 4, 500) for backend in KINDS)
    assert abs(ours.mean() - theirs.mean()) < 0.06
    assert abs((ours[1:] == ours[:-1]).mean() - (theirs[1:] == theirs[:-1]).mean()) < 0.08


# -- tensor -----------------------------------------------------------------------------------------------------------


def by_hand(
    image: np.ndarray, choice: list[int], padding: int, mode: str, flip: str, side: int, fill: tuple[float, ...]
) -> np.ndarray:
    """What the tensor backend promises for one image's choices, step by step."""
    drawn = iter(choice)
    mirrored = next(drawn) if flip != "none" else 0
    row, column = (next(drawn), next(drawn)) if padding else (0, 0)
    hole_row, hole_column = (next(drawn), next(drawn)) if side else (0, 0)
    assert not list(drawn)
    if flip != "none" and mirrored:
        image = image[:, ::-1]
    widths = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(image, widths, mode="reflect" if mode == "reflect" else "constant")
    crop = padded[row : row + len(image), column : column + len(image)].copy()
    if side:
        top, left = hole_row - side // 2, hole_column - side // 2
        crop[max(top, 0) : top + side, max(left, 0) : left + side] = [round(255 * value) for value in fill]
    return crop


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
@pytest.mark.parametrize("side", [0, 1, 4, 7, 8])
@pytest.mark.parametrize("padding", [0, 1, 7])
def test_tensor_result_is_that_of_its_choices_applied_one_by_one(mode, flip, side, padding):
    size, count = 8, 200
    pictures = np.random.default_rng(2).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    augmentation = tensor(size, padding, flip, side, FILL, mode, seed=3)
    for epoch in (0, 5):
        choices = augmentation.draw(epoch, count)
        found = augmentation(torch.from_numpy(pictures), choices).numpy()
        keys = zip(pictures, choices.tolist(), strict=True)
        expected = np.stack([by_hand(*key, padding, mode, flip, side, FILL) for key in keys])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
def test_tensor_draw_of_an_image_does_not_depend_on_how_many_there_are(flip):
    augmentation = tensor(SIZE, 4, flip, 16, seed=1)
    for epoch in (0, 3):
        many = augmentation.draw(epoch, 1000)
        for count in (1, 2, 7, 999):
            assert torch.equal(augmentation.draw(epoch, count), many[:count])


def test_tensor_draw_is_within_what_it_counts_and_uses_all_of_it():
    choices = tensor(SIZE, 4, "random", 16, seed=1).draw(0, 2000)
    assert choices.dtype == torch.int64
    assert choices.amin(0).tolist() == [0, 0, 0, 0, 0]
    assert choices.amax(0).tolist() == [1, 8, 8, 31, 31]


@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_tensor_choices_are_independent_of_each_other_and_of_the_next_epoch(flip):
    augmentation = tensor(SIZE, 4, flip, 16, seed=1)
    both = torch.cat([augmentation.draw(epoch, 4000) for epoch in (0, 1)], 1).numpy()
    correlation = np.corrcoef(both.T)
    if flip == "alternating":  # the flips of two epochs are each other's opposite, as they should be
        assert correlation[0, 5] == pytest.approx(-1)
        correlation[0, 5] = correlation[5, 0] = 0
    assert np.abs(correlation - np.eye(10)).max() < 0.07  # 0.016 is one standard deviation


def test_tensor_choices_are_independent_of_the_order_of_the_epoch():
    choices = tensor(SIZE, 4, "random", 16, seed=1).draw(2, 4000)
    order = epoch_order(1, 2, 4000)
    for choice in choices.T.numpy():
        for other in (order, order[::-1]):
            assert abs(np.corrcoef(choice, other)[0, 1]) < 0.07


@pytest.mark.parametrize("options", [{}, {"horizontal_flip": "random"}, {"crop_padding": 4}, {"cutout": 8}, EVERYTHING])
def test_tensor_result_lies_in_memory_image_by_image(images, options):
    """As to_input wants it."""
    augmentation = tensor(SIZE, **options)
    assert augmentation(torch.from_numpy(images), augmentation.draw(0, 64)).is_contiguous()


def test_tensor_augments_a_single_image():
    augmentation = tensor(SIZE, **EVERYTHING)
    image = torch.from_numpy(position_image())[None]
    assert augmentation(image, augmentation.draw(0, 1)).shape == (1, SIZE, SIZE, 3)
