"""Colour, grey, blur and the vertical flip: torchvision's v2 kernels and distributions, in both backends."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as theirs

from data.augment import BatchPipeline, ImagePipeline, create_augmentations
from data.augment.augmentation import UNIT
from data.augment.blur import GaussianBlur, blur_one_by_one, blur_together, gaussians
from data.augment.color_jitter import ORDERS, ColorJitter
from data.augment.grayscale import Grayscale
from data.preprocessing import Geometry
from utils.config import TrainConfig

PLAIN = {"crop_padding": 0, "horizontal_flip": "none", "cutout": 0}
EVERYTHING = {
    "vertical_flip": True,
    "color_jitter": [0.4, 0.3, 0.2, 0.1],
    "grayscale": 0.2,
    "blur": 0.5,
    "erase": 0.5,
}
KERNELS = (theirs.adjust_brightness, theirs.adjust_contrast, theirs.adjust_saturation, theirs.adjust_hue)
NAMES = ("brightness", "contrast", "saturation", "hue")
SIZES = [(32, 32), (40, 24), (1, 1), (2, 3), (230, 290)]  # the mean of the last is not exact in float32
BOTH = pytest.mark.parametrize("backend", ["albumentations", "tensor"])


def pictures(count: int, height: int, width: int) -> Tensor:
    """Noise, then smooth, grey, black and white images, and one of full colours: uint8 (count, height, width, 3)."""
    images = np.random.default_rng(0).integers(256, size=(count, height, width, 3))
    row, column = np.mgrid[:height, :width]
    images[1] = np.stack([255 * row // height, 255 * column // width, (row + column) % 256], 2)
    images[2] = images[0][..., :1]
    images[3], images[4] = 0, 255
    images[5] = np.where(images[5] > 128, 255, 0)
    return torch.from_numpy(images.astype(np.uint8))


def kinds(size: tuple[int, int] = (32, 32), **options) -> list:
    return create_augmentations(TrainConfig(**{**PLAIN, **options}), Geometry(size), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def augment(backend: str, images: Tensor, epoch: int = 0, seed: int = 0, **options) -> np.ndarray:
    """Images 0 to n - 1 in an epoch, as a backend augments them."""
    steps = kinds(tuple(images.shape[1:3]), **options)
    if backend == "tensor":
        pipeline = BatchPipeline(steps, seed)
        return pipeline(images, pipeline.draw(epoch, len(images))).numpy()
    single = ImagePipeline(steps, seed)
    return np.stack([single(image, epoch, index) for index, image in enumerate(images.numpy())])


def kernel(function: Callable[..., Tensor], image: Tensor, *arguments) -> Tensor:
    """A kernel of torchvision on one image (height, width, 3)."""
    return function(image.permute(2, 0, 1), *arguments).permute(1, 2, 0)


def difference(ours: Tensor, expected: Tensor) -> Tensor:
    assert (ours.shape, ours.dtype) == (expected.shape, torch.uint8)
    return (ours.int() - expected.int()).abs()


def fixed(*values: float) -> Tensor:
    return torch.tensor([round(UNIT * value) for value in values])


# -- the kernels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["one by one", "together"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("number", range(4), ids=NAMES)
def test_each_change_is_torchvisions(number, height, width, way):
    images = pictures(12, height, width)
    strengths = [0.0] * 4
    strengths[number] = 0.5 if number == 3 else 1.0
    jitter = ColorJitter(strengths)
    span = np.linspace(-0.5, 0.5, 12) if number == 3 else np.linspace(0, 2, 12)
    amounts = np.random.default_rng(1).permutation(np.rint(span * UNIT) / UNIT).astype(np.float32)
    choices = [torch.zeros(12, dtype=torch.int64) for _ in range(5)]
    choices[1 + number] = fixed(*amounts)
    if way == "one by one":
        ours = jitter.alter(images, *choices)
    else:
        ours = jitter.together(images, [ORDERS[0]] * 12, torch.stack(choices[1:]).float() / UNIT)
    expected = [kernel(KERNELS[number], image, float(a)) for image, a in zip(images, amounts, strict=True)]
    off = difference(ours, torch.stack(expected))
    assert off.max() <= (0 if number == 0 else 1)
    assert (off > 0).float().mean() < 1e-3


@pytest.mark.parametrize("way", ["one by one", "together"])
def test_color_jitter_is_torchvisions_in_the_order_that_was_drawn(way):
    """A level that one change rounds otherwise can become two in the next ones."""
    images = pictures(96, 32, 40)
    jitter, transform = ColorJitter([0.8, 0.8, 0.8, 0.2]), v2.ColorJitter(0.8, 0.8, 0.8, 0.2)
    choices = torch.from_numpy(jitter.draw(0, 0, len(images)))
    orders = [ORDERS[number] for number in choices[0]]
    assert len(set(orders)) > 20
    amounts = choices[1:].float() / UNIT
    ours = jitter.alter(images, *choices) if way == "one by one" else jitter.together(images, orders, amounts)
    names = [f"{name}_factor" for name in NAMES]
    expected = [
        kernel(transform.transform, image, {"fn_idx": order, **dict(zip(names, own, strict=True))})
        for image, order, own in zip(images, orders, amounts.T.tolist(), strict=True)
    ]
    off = difference(ours, torch.stack(expected))
    assert off.max() <= 4
    assert (off > 0).float().mean() < 1e-3


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_grayscale_is_torchvisions_to_the_bit_and_leaves_the_others(height, width):
    images = pictures(20, height, width)
    chosen = torch.arange(20) % 3 == 1
    ours = Grayscale(0.5).alter(images, chosen.long())
    for image, result, grey in zip(images, ours, chosen, strict=True):
        assert torch.equal(result, kernel(theirs.rgb_to_grayscale, image, 3) if grey else image)


@pytest.mark.parametrize("way", [blur_one_by_one, blur_together])
@pytest.mark.parametrize(("height", "width", "taps"), [(2, 3, 3), (32, 32, 3), (100, 60, 7), (224, 230, 23)])
def test_blur_is_torchvisions_with_a_kernel_of_a_tenth_of_the_shorter_side(height, width, taps, way):
    images, sigma = pictures(6, height, width), [0.1, 0.3, 0.5, 1.0, 1.5, 2.0]
    assert GaussianBlur((height, width), 0.5).width == taps
    expected = [
        kernel(theirs.gaussian_blur, image, [taps, taps], [own, own]) for image, own in zip(images, sigma, strict=True)
    ]
    off = difference(way(images, gaussians(torch.tensor(sigma), taps)), torch.stack(expected))
    assert off.max() <= 1
    assert (off > 0).float().mean() < 1e-3


def test_blur_leaves_the_images_that_were_not_chosen():
    images, sigma = pictures(6, 20, 30), fixed(1, 0, 0, 0, 0, 2)
    for result, image, own in zip(GaussianBlur((20, 30), 0.5).alter(images, sigma), images, sigma, strict=True):
        assert torch.equal(result, image) == (own == 0)


@BOTH
def test_vertical_flip_turns_half_of_the_images_upside_down(backend):
    images = pictures(600, 6, 5)[[0]].expand(600, -1, -1, -1)
    turned = [augment(backend, images, epoch, vertical_flip=True) for epoch in range(2)]
    same, flipped = ((np.stack(turned) == other).all((2, 3, 4)) for other in (images.numpy(), images.flip(1).numpy()))
    assert (same ^ flipped).all()
    assert (np.abs(flipped.mean(1) - 0.5) < 0.08).all()
    assert 0.4 < (flipped[0] == flipped[1]).mean() < 0.6


# -- the draws --------------------------------------------------------------------------------------------------------


def test_factors_and_orders_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    transform = v2.ColorJitter(0.4, 1.0, 0.2, 0.1)
    expected = [transform.make_params([]) for _ in range(4000)]
    order, *ours = ColorJitter([0.4, 1.0, 0.2, 0.1]).draw(0, 0, 4000)
    for name, own in zip(NAMES, ours, strict=True):
        assert ks_2samp(own / UNIT, [params[f"{name}_factor"] for params in expected]).pvalue > 1e-3
    assert chisquare(np.bincount(order, minlength=24)).pvalue > 1e-3
    assert sorted(ORDERS) == sorted({tuple(params["fn_idx"].tolist()) for params in expected})


def test_factors_do_not_depend_on_each_other_or_on_the_order():
    rows = ColorJitter([0.4, 0.4, 0.4, 0.1]).draw(0, 0, 10_000)
    assert np.abs(np.corrcoef(rows) - np.eye(5)).max() < 0.04


def test_strength_that_is_0_changes_nothing_and_is_never_below_0():
    _, brightness, contrast, saturation, hue = ColorJitter([0.0, 1.0, 0.0, 0.0]).draw(0, 0, 1000)
    assert (brightness == UNIT).all()
    assert (saturation == UNIT).all()
    assert (hue == 0).all()
    assert 0 <= contrast.min() < 0.02 * UNIT


def test_sigmas_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    transform = v2.GaussianBlur(3, (0.1, 2.0))
    (ours,) = GaussianBlur((32, 32), 0.5).draw(0, 0, 4000)
    assert 0.47 < (ours > 0).mean() < 0.53
    expected = [transform.make_params([])["sigma"][0] for _ in range(2000)]
    assert ks_2samp(ours[ours > 0] / UNIT, expected).pvalue > 1e-3


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_the_images_turns_grey_or_is_blurred(backend, share):
    images = pictures(6, 8, 8)[[0]].expand(800, -1, -1, -1)
    grey = augment(backend, images, grayscale=share)
    assert abs((grey == grey[..., :1]).all((1, 2, 3)).mean() - share) < 0.06
    blurred = (augment(backend, images, blur=share) != images.numpy()).any((1, 2, 3)).mean()
    assert 0.85 * share - 0.06 < blurred < share + 0.06  # a narrow Gaussian changes nothing


def test_both_backends_jitter_from_the_same_distribution():
    flat = torch.tensor([180, 100, 60], dtype=torch.uint8).expand(2000, 4, 4, 3)
    for strengths in ([0.4, 0, 0, 0], [0, 0, 0.9, 0], [0, 0, 0, 0.3], [0.4, 0.4, 0.4, 0.1]):
        ours, others = (
            augment(backend, flat, color_jitter=strengths)[:, 0, 0].astype(int)
            for backend in ("tensor", "albumentations")
        )
        assert (ours != others).any()
        for channel in range(3):
            assert ks_2samp(ours[:, channel], others[:, channel]).pvalue > 1e-3


@pytest.mark.parametrize("name", EVERYTHING)
def test_choices_of_an_image_depend_on_seed_epoch_and_index_alone(name):
    (augmentation,) = kinds(**{name: EVERYTHING[name]})
    many = augmentation.draw(1, 2, 1000)
    assert many.dtype == np.int64
    for count in (0, 1, 7, 999):
        assert (augmentation.draw(1, 2, count) == many[:, :count]).all()
    for seed, epoch in ((2, 2), (1, 3)):
        assert (augmentation.draw(seed, epoch, 1000) == many).all(0).mean() < 0.95


def test_no_two_augmentations_share_a_stream():
    every = kinds(**EVERYTHING, crop="resized", horizontal_flip="random")
    every += kinds(crop_padding=4, cutout=8)
    streams = [number for augmentation in every for number in augmentation.streams]
    assert len(streams) == len(set(streams))


# -- the pipelines ----------------------------------------------------------------------------------------------------


@BOTH
def test_result_depends_neither_on_the_division_of_a_batch_nor_on_its_order(backend):
    images = pictures(60, 40, 64)
    whole = augment(backend, images, **EVERYTHING)
    steps = kinds((40, 64), **EVERYTHING)
    positions = np.random.default_rng(2).permutation(60)
    for part in np.array_split(positions, [1, 3, 40]):
        if backend == "tensor":
            pipeline = BatchPipeline(steps)
            assert (pipeline(images[part], pipeline.draw(0, 60)[part]).numpy() == whole[part]).all()
        else:
            single = ImagePipeline(steps)
            assert all((single(images[i].numpy(), 0, i) == whole[i]).all() for i in part.tolist())


@BOTH
def test_images_that_are_given_and_torchs_generator_stay_as_they_are(backend):
    images = pictures(60, 24, 32)
    before, state = images.clone(), torch.get_rng_state()
    for options in ({name: value} for name, value in EVERYTHING.items()):
        assert (augment(backend, images, **options) != before.numpy()).any()
        assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@BOTH
@pytest.mark.parametrize("size", [(8, 8), (8, 300), (2, 3)])
def test_tiny_and_long_images_are_augmented(backend, size):
    images = pictures(30, *size)
    result = augment(backend, images, **EVERYTHING)
    assert (result.shape, result.dtype) == (images.shape, np.uint8)
    assert (result != images.numpy()).any()


def test_read_only_and_mirrored_arrays_are_augmented():
    image = pictures(6, 16, 16)[0].numpy()
    single = ImagePipeline(kinds((16, 16), color_jitter=[0.4], erase=1.0))
    expected = single(image[:, ::-1].copy(), 0, 3)
    mirrored = image[:, ::-1]
    mirrored.flags.writeable = False
    assert (single(mirrored, 0, 3) == expected).all()


def test_layout_of_a_batch_in_memory_changes_nothing():
    images = pictures(20, 24, 32)
    pipeline = BatchPipeline(kinds((24, 32), **EVERYTHING, horizontal_flip="random"))
    choices, channels_first = pipeline.draw(0, 20), images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(pipeline(channels_first, choices), pipeline(images, choices))


def test_nothing_is_on_by_default():
    names = {type(augmentation).__name__ for augmentation in kinds(crop_padding=4, cutout=8)}
    assert names == {"PaddedCrop", "CutOut"}
    defaults = create_augmentations(TrainConfig(), Geometry((32, 32)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert {type(augmentation).__name__ for augmentation in defaults} == {"PaddedCrop", "HorizontalFlip", "CutOut"}


@pytest.mark.parametrize(("given", "strengths"), [([0.4], (0.4, 0.4, 0.4, 0)), ([0.4, 0.3, 0.2], (0.4, 0.3, 0.2, 0))])
def test_hue_stays_unless_its_strength_is_given(given, strengths):
    (jitter,) = kinds(color_jitter=given)
    assert (jitter.draw(0, 0, 50) == ColorJitter(strengths).draw(0, 0, 50)).all()
    assert not jitter.draw(0, 0, 50)[4].any()
    assert not kinds(color_jitter=[0.0, 0.0, 0.0])
