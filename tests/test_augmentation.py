"""Augmentation is a function of (seed, epoch, image index) alone, and does what its papers say."""

import warnings

import numpy as np
import pytest

from data.augmentation import Augmentation
from data.datasets import Split
from data.loaders import TrainLoader

SIZE = 32
FILL = (0.4914, 0.4822, 0.4465)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """64 different pictures without a zero, so that padding shows, and without symmetry."""
    return np.random.default_rng(0).integers(1, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)


def everything(seed: int = 0) -> Augmentation:
    return Augmentation(SIZE, crop_padding=4, horizontal_flip="random", cutout=16, fill=FILL, seed=seed)


def position_image() -> np.ndarray:
    """Every pixel says where it came from: 1 + row in the first channel, 1 + column in the second."""
    row, column = np.mgrid[1 : SIZE + 1, 1 : SIZE + 1]
    return np.stack([row, column, np.full_like(row, 200)], axis=-1).astype(np.uint8)


# -- a function of (seed, epoch, index) -------------------------------------------------------------------------------


def test_result_does_not_depend_on_what_was_augmented_before(images):
    forward, backward = everything(), everything()
    keys = [(epoch, index) for epoch in range(3) for index in range(20)]
    first = {key: forward(images[key[1]], *key) for key in keys}
    second = {key: backward(images[key[1]], *key) for key in reversed(keys)}
    assert all((first[key] == second[key]).all() for key in keys)
    assert (forward(images[3], 1, 3) == first[1, 3]).all()


def test_result_does_not_depend_on_the_global_generators(images):
    import random

    results = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        results.append(everything()(images[0], 0, 0))
    assert (results[0] == results[1]).all()


def test_every_seed_epoch_and_index_gives_another_result():
    """One image, so that only the augmentation can differ; the chance of a collision is small but not zero."""
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    results = [
        everything(seed)(image, epoch, index).tobytes() for seed in (0, 1) for epoch in range(4) for index in range(50)
    ]
    assert len(set(results)) >= 399


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_and_epochs_neither_change_nor_repeat_an_augmentation(images, num_workers):
    """albumentations alone gives 32 to 96 distinct results here."""
    image = np.repeat(images[:1], 64, axis=0)
    split = Split(image, np.arange(64))
    here, there = (TrainLoader(split, everything(), 8, seed=0, num_workers=workers) for workers in (0, num_workers))
    distinct = set()
    for epoch in range(3):
        for ours, theirs in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert (ours.images == theirs.images).all()
            distinct |= {result.numpy().tobytes() for result in theirs.images}
    assert len(distinct) >= 190


def test_nothing_asked_for_changes_nothing(images):
    assert (Augmentation(SIZE)(images[0], 0, 0) == images[0]).all()


def test_image_given_stays_as_it_is(images):
    before = images.copy()
    for index in range(8):
        for flip in ("random", "alternating"):
            Augmentation(SIZE, 4, flip, 16, FILL)(images[index], 0, index)
    assert (images == before).all()


def test_result_is_a_uint8_image_of_the_same_size(images):
    result = everything()(images[0], 0, 0)
    assert result.shape == (SIZE, SIZE, 3)
    assert result.dtype == np.uint8


def test_no_argument_name_is_unknown_to_albumentations():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for flip in ("none", "random", "alternating"):
            Augmentation(SIZE, 4, flip, 16, FILL)(np.zeros((SIZE, SIZE, 3), np.uint8), 0, 0)


# -- crop -------------------------------------------------------------------------------------------------------------


def test_crop_offsets_are_uniform_from_minus_to_plus_the_padding():
    augmentation, image = Augmentation(SIZE, crop_padding=4), position_image()
    counts = np.zeros((9, 9), int)
    for index in range(4050):
        down, right, _ = augmentation(image, 0, index)[16, 16].astype(int) - image[16, 16]
        counts[down + 4, right + 4] += 1
    expected = 4050 / 81
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert counts.min() > 0
    assert 45 < chi_square < 135  # 80 degrees of freedom: outside by chance once in 10,000


def test_crop_pads_with_zeros_and_moves_the_rest_unchanged():
    augmentation, image = Augmentation(SIZE, crop_padding=4), position_image()
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    for index in range(100):
        result = augmentation(image, 0, index)
        matches = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if (padded[top : top + SIZE, left : left + SIZE] == result).all()
        ]
        assert len(matches) == 1


# -- flip -------------------------------------------------------------------------------------------------------------


def flipped(augmentation: Augmentation, epochs: int, count: int) -> np.ndarray:
    """(epochs, count) of whether an image came out mirrored."""
    image = position_image()
    mirrored = np.zeros((epochs, count), bool)
    for epoch in range(epochs):
        for index in range(count):
            result = augmentation(image, epoch, index)
            mirrored[epoch, index] = (result == image[:, ::-1]).all()
            assert mirrored[epoch, index] or (result == image).all()
    return mirrored


def test_random_flip_mirrors_half_of_the_images_independently():
    mirrored = flipped(Augmentation(SIZE, horizontal_flip="random"), 2, 1000)
    assert (np.abs(mirrored.mean(1) - 0.5) < 0.07).all()
    assert 0.4 < (mirrored[0] == mirrored[1]).mean() < 0.6


def test_alternating_flip_mirrors_every_image_in_every_other_epoch():
    mirrored = flipped(Augmentation(SIZE, horizontal_flip="alternating"), 6, 400)
    assert (mirrored[1:] != mirrored[:-1]).all()
    assert 0.4 < mirrored[0].mean() < 0.6


def test_no_flip_mirrors_nothing():
    assert not flipped(Augmentation(SIZE, horizontal_flip="none"), 1, 100).any()


# -- CutOut -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def holes() -> np.ndarray:
    """(4000, 32, 32) of what CutOut 16 erased from black images."""
    augmentation = Augmentation(SIZE, cutout=16, fill=FILL)
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    return np.stack([augmentation(black, 0, index)[..., 0] > 0 for index in range(4000)])


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


def test_cutout_centres_are_uniform_over_the_rows_and_columns(holes):
    """Where one border cuts the hole its other edge shows the centre, so that all 32 positions can be told."""
    for axis in (2, 1):
        spans = holes.any(axis)
        first, last = spans.argmax(1), SIZE - 1 - spans[:, ::-1].argmax(1)
        tops = np.where(first > 0, first, last - 15)
        counts = np.bincount(tops + 8, minlength=SIZE)
        assert len(counts) == SIZE
        chi_square = ((counts - 125) ** 2 / 125).sum()
        assert 9 < chi_square < 70  # 31 degrees of freedom


def test_cutout_fills_with_the_mean_on_the_scale_of_the_image():
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    result = Augmentation(SIZE, cutout=16, fill=FILL)(white, 0, 0)
    erased = result[(result != 255).any(-1)]
    assert len(erased) >= 64
    assert (erased == [125, 123, 114]).all()


@pytest.mark.parametrize("side", [1, 5, 8, 31, 32])
def test_cutout_of_any_side(side):
    augmentation, black = Augmentation(SIZE, cutout=side, fill=(1, 1, 1)), np.zeros((SIZE, SIZE, 3), np.uint8)
    areas = [(augmentation(black, 0, index)[..., 0] == 255).sum() for index in range(300)]
    assert max(areas) <= side**2
    assert min(areas) >= (side // 2) ** 2
    assert min(areas) > 0


def test_crop_comes_before_the_hole_is_cut():
    """The padding's zeros are covered by the hole, never the hole by zeros."""
    augmentation = Augmentation(SIZE, crop_padding=4, cutout=16, fill=(1, 1, 1))
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    areas = [(augmentation(grey, 0, index)[..., 0] == 255).sum() for index in range(500)]
    assert min(areas) >= 64
