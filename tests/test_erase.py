"""Random erasing: torchvision's boxes, timm's noise, and a pixel's noise the same in every batch and backend."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest, norm
from torch import Tensor
from torchvision.transforms import v2

from data.augment import BatchPipeline, ImagePipeline
from data.augment.erase import AREA, LEVELS, RATIO, TRIES, Erase, normal_levels, pixels_of, random_bits

MEAN, STD = (0.3, 0.5, 0.7), (0.1, 0.25, 0.2)
BOTH = pytest.mark.parametrize("backend", ["albumentations", "tensor"])
SIZES = [(32, 32), (24, 60), (5, 3), (2, 2), (1, 9), (1, 1)]


def eraser(size: tuple[int, int] = (32, 32), probability: float = 1.0, mode: str = "pixel") -> Erase:
    return Erase(size, probability, mode, MEAN, STD)


def draw(erase: Erase, count: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return erase.draw(seed, epoch, count)


def black(count: int, height: int, width: int) -> Tensor:
    return torch.zeros(count, height, width, 3, dtype=torch.uint8)


def noise(count: int, height: int, width: int, **stream: int) -> Tensor:
    """The noise of whole images, which a box never covers: uint8 (count, height, width, 3)."""
    erase = eraser((height, width))
    *_, start, stride = torch.from_numpy(draw(erase, count, **stream))
    whole = [torch.full((count,), value) for value in (0, 0, height, width)]
    return erase.alter(black(count, height, width), *whole, start, stride)


# -- the box ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_are_those_of_the_published_loop(height, width):
    uniform = np.random.default_rng(0).random((300, 5 + 2 * TRIES))
    drawn = eraser((height, width), 0.7).choose(np.random.default_rng(0), 300)
    for row, found in zip(uniform.tolist(), drawn.T.tolist(), strict=True):
        expected = [0] * 6
        for trial in range(TRIES):
            area = height * width * (AREA[0] + row[5 + trial] * (AREA[1] - AREA[0]))
            low, high = (math.log(ratio) for ratio in RATIO)
            ratio = math.exp(low + row[5 + TRIES + trial] * (high - low))
            box_height, box_width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if box_height < height and box_width < width:
                top, left = int(row[1] * (height - box_height + 1)), int(row[2] * (width - box_width + 1))
                expected = [top, left, box_height, box_width, int(row[3] * 2**31), int(row[4] * 2**31)]
                break
        assert found == (expected if row[0] < 0.7 else [0] * 6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (224, 160), (30, 90)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    transform, image = v2.RandomErasing(1.0, scale=AREA, ratio=RATIO), torch.empty(3, height, width)
    expected = [transform.make_params([image]) for _ in range(3000)]
    theirs = np.array([[params[name] for name in "ijhw"] for params in expected if params["v"] is not None]).T
    ours = draw(eraser((height, width)), 3000)[:4]
    ours = ours[:, ours[2] > 0]
    assert abs(ours.shape[1] - theirs.shape[1]) < 60
    for first, second in zip([*ours, ours[2] * ours[3]], [*theirs, theirs[2] * theirs[3]], strict=True):
        assert ks_2samp(first, second).pvalue > 1e-3


@BOTH
@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_share_of_the_images_loses_one_box(backend, probability):
    erase = eraser((20, 16), probability, "constant")
    images = black(1000, 20, 16)
    if backend == "tensor":
        pipeline = BatchPipeline([erase])
        results = pipeline(images, pipeline.draw(0, 1000)).numpy()
    else:
        single = ImagePipeline([erase])
        results = np.stack([single(image, 0, index) for index, image in enumerate(images.numpy())])
    erased = (results == [76, 128, 178]).all(3)
    assert (erased == results.any(3)).all()
    count = erased.sum((1, 2))
    assert abs((count > 0).mean() - probability) < 0.05
    assert (count == erased.any(1).sum(1) * erased.any(2).sum(1)).all()  # full boxes
    share = count[count > 0] / 320
    assert abs(share.mean() - (0.02 + 1 / 3) / 2) < 0.04
    assert share.max() < 0.4


@pytest.mark.parametrize("mode", ["pixel", "constant"])
def test_pixels_outside_of_the_box_stay(mode):
    images = torch.randint(256, (50, 24, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    erase, before = eraser((24, 40), mode=mode), images.clone()
    choices = torch.from_numpy(draw(erase, 50))
    results = erase.alter(images, *choices)
    assert torch.equal(images, before)
    for image, result, box in zip(images, results, choices.T.tolist(), strict=True):
        top, left, height, width = box[:4]
        inside = torch.zeros(24, 40, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert torch.equal(result[~inside], image[~inside])
        if mode == "constant":
            value = torch.tensor([76, 128, 178], dtype=torch.uint8)[:, None, None]
            expected = v2.functional.erase(image.permute(2, 0, 1), top, left, height, width, value)
            assert torch.equal(result, expected.permute(1, 2, 0))


@pytest.mark.parametrize(("height", "width"), [(40, 28), (5, 3)])
def test_boxes_that_are_filled_together_as_on_a_device_are_those_filled_one_by_one(height, width):
    erase, images = eraser((height, width), 0.6), torch.full((50, height, width, 3), 7, dtype=torch.uint8)
    choices = torch.from_numpy(draw(erase, 50))
    expected, chosen = erase.alter(images, *choices), (choices[2] * choices[3]).nonzero()[:, 0]
    assert 10 < len(chosen) < 40
    erase.fill(images, chosen, choices[:, chosen])
    assert torch.equal(images, expected)


def test_pixels_of_a_box_are_found_row_by_row():
    boxes = torch.tensor([[1, 0], [2, 5], [2, 1], [3, 2]])  # 2 x 3 at (1, 2), and 1 x 2 at (0, 5)
    box, pixel = pixels_of(boxes, 10, 3, 3)
    assert box.tolist() == [0, 0, 1]
    assert pixel.tolist() == [[12, 13, 14], [22, 23, 24], [5, 6, 6]]


@BOTH
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiny_images_are_erased_or_stay(backend, height, width):
    erase, images = eraser((height, width)), black(40, height, width)
    if backend == "tensor":
        pipeline = BatchPipeline([erase])
        results = pipeline(images, pipeline.draw(0, 40)).numpy()
    else:
        results = np.stack([ImagePipeline([erase])(image, 0, index) for index, image in enumerate(images.numpy())])
    assert results.shape == tuple(images.shape)
    assert results.any() == (min(height, width) > 1)  # torchvision erases no box as high or as wide as the image


# -- the noise --------------------------------------------------------------------------------------------------------


def test_bits_are_those_of_the_hash_in_unlimited_integers():
    def reference(start: int, stride: int, counter: int) -> int:
        bits = (start + (stride | 1) * counter) % 2**32
        bits = (bits ^ (bits >> 16)) * 0x21F0AAAD % 2**32
        bits = (bits ^ (bits >> 15)) * 0x735A2D97 % 2**32
        return bits ^ (bits >> 15)

    inputs = np.random.default_rng(0).integers(2**31, size=(3, 5000))
    inputs[:, :3] = [[0, 0, 2**31 - 1], [0, 1, 2**31 - 1], [0, 1, 2**31 - 1]]
    found = random_bits(*torch.from_numpy(inputs).int()).numpy().astype(np.int64) % 2**32
    assert found.tolist() == [reference(*row) for row in inputs.T.tolist()]


def test_every_bit_of_the_counter_and_of_the_image_turns_half_of_the_bits():
    generator = np.random.default_rng(0)
    start, stride, counter = (torch.from_numpy(generator.integers(2**31, size=20_000)).int() for _ in range(3))
    before = random_bits(start, stride, counter)
    for bit in range(31):
        flips = [(start ^ (1 << bit), stride, counter), (start, stride, counter ^ (1 << bit))]
        for changed in flips:
            turned = np.unpackbits((before ^ random_bits(*changed)).numpy().view(np.uint8)).reshape(-1, 32)
            assert abs(turned.mean() - 0.5) < 0.02
            assert np.abs(turned.mean(0) - 0.5).max() < 0.1


def test_quantiles_of_an_image_are_uniform():
    start, stride = torch.tensor([12345], dtype=torch.int32), torch.tensor([678], dtype=torch.int32)
    bits = random_bits(start, stride, torch.arange(300_000, dtype=torch.int32))
    assert len(bits.unique()) == len(bits)
    assert chisquare(np.bincount((bits & (LEVELS - 1)).numpy() >> 6, minlength=1024)).pvalue > 1e-3


def test_levels_are_those_of_a_normal_distribution_clamped_to_uint8():
    values = noise(8, 200, 200).numpy()
    edges = np.concatenate([[-np.inf], np.arange(255) + 0.5, [np.inf]])
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        counts = np.bincount(values[..., channel].ravel(), minlength=256)
        expected = np.diff(norm.cdf(edges, 255 * mean, 255 * std)) * counts.sum()
        often = expected > 20
        observed, expected = (np.append(number[often], number[~often].sum()) for number in (counts, expected))
        assert chisquare(observed[expected > 5], expected[expected > 5], sum_check=False).pvalue > 1e-3
    assert normal_levels(MEAN, STD).view(3, LEVELS).diff(dim=1).min() >= 0


def test_noise_of_pixels_channels_images_and_epochs_is_independent():
    values = noise(40, 60, 50).double().numpy()
    others = {
        "row": (values[:, 1:], values[:, :-1]),
        "column": (values[:, :, 1:], values[:, :, :-1]),
        "channel": (values[..., 1:], values[..., :-1]),
        "image": (values[1:], values[:-1]),
        "epoch": (values, noise(40, 60, 50, epoch=1).double().numpy()),
        "seed": (values, noise(40, 60, 50, seed=1).double().numpy()),
    }
    for name, (first, second) in others.items():
        for channel in range(first.shape[-1]):
            found = np.corrcoef(first[..., channel].ravel(), second[..., channel].ravel())[0, 1]
            assert abs(found) < 0.015, name  # 0.003 is one standard deviation
    means = values.mean((1, 2))[:, 1] / 255
    assert kstest((means - 0.5) / (0.25 / math.sqrt(3000)), "norm").pvalue > 1e-3


def test_noise_of_a_pixel_does_not_depend_on_the_box_or_on_the_rest_of_the_batch():
    images, erase = black(30, 40, 28), eraser((40, 28))
    choices = torch.from_numpy(draw(erase, 30))
    whole, erased = noise(30, 40, 28), erase.alter(images, *choices)
    inside = erased.bool().any(3)
    assert inside.flatten(1).any(1).all()
    assert (erased[inside] == whole[inside]).float().mean() > 0.999  # of which a few are black
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    for part in order.split(7):
        assert torch.equal(erase.alter(images[part], *choices[:, part]), erased[part])
        for index in part.tolist():
            assert torch.equal(erase.alter(images[[index]], *choices[:, [index]])[0], erased[index])


@BOTH
def test_both_backends_erase_with_noise_of_the_training_images(backend):
    erase, images = eraser((48, 48)), black(400, 48, 48)
    if backend == "tensor":
        pipeline = BatchPipeline([erase])
        results = pipeline(images, pipeline.draw(0, 400)).numpy()
    else:
        single = ImagePipeline([erase])
        results = np.stack([single(image, 0, index) for index, image in enumerate(images.numpy())])
    values = results[results.any(3)] / 255
    quantiles = norm.ppf((np.arange(10_000)[:, None] + 0.5) / 10_000)
    expected = (MEAN + STD * quantiles).clip(0, 1)
    assert np.abs(values.mean(0) - expected.mean(0)).max() < 0.003
    assert np.abs(values.std(0) - expected.std(0)).max() < 0.003


@BOTH
def test_noise_is_a_function_of_seed_epoch_and_index(backend):
    def results(seed: int, epoch: int, indices: list[int]) -> np.ndarray:
        if backend == "tensor":
            pipeline = BatchPipeline([eraser()], seed)
            return pipeline(black(len(indices), 32, 32), pipeline.draw(epoch, 20)[indices]).numpy()
        single = ImagePipeline([eraser()], seed)
        return np.stack([single(black(1, 32, 32)[0].numpy(), epoch, index) for index in indices])

    first = results(0, 0, list(range(20)))
    assert (results(0, 0, list(range(19, -1, -1)))[::-1] == first).all()
    assert (
        len({image.tobytes() for image in [*first, *results(1, 0, list(range(20))), *results(0, 1, list(range(20)))]})
        > 57
    )
