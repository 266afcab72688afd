"""Random rotation: uniform angles, torchvision's pixels, corners of the mean colour."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data.augment import BatchPipeline, ImagePipeline
from data.augment.rotate import STEPS, Rotate
from data.preprocessing import square
from utils.config import TrainConfig

FILL = (125, 60, 30)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(256, size=(count, height, width, 3), dtype=np.uint8))


def by_torchvision(image: torch.Tensor, angle: float) -> torch.Tensor:
    """(height, width, 3), by a fill of zeros around an image from which the colour is subtracted."""
    fill = torch.tensor(FILL)[:, None, None]
    turned = F.rotate((image.permute(2, 0, 1) - fill).float(), angle, InterpolationMode.BILINEAR) + fill
    return turned.permute(1, 2, 0)


def single_angle(step: Rotate, seed: int, epoch: int, index: int) -> float:
    """The angle of a single image, by a generator in the same state."""
    entropy = np.random.SeedSequence([seed, epoch, index]).generate_state(2, np.uint64)
    return step.angles(step.choose(np.random.Generator(np.random.PCG64(int(entropy[0]))), 1)[0])[0]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 21), (40, 64), (8, 8), (1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("degrees", [10, 180])
def test_images_are_turned_as_by_torchvision_to_half_a_level(height, width, degrees):
    """Which is what rounding to whole levels makes."""
    given, step = noise(40, height, width), Rotate(degrees, FILL)
    batch, single = BatchPipeline([step], seed=3), ImagePipeline([step], seed=3)
    choices = batch.draw(1, len(given))
    results = batch(given, choices)
    assert results.dtype == torch.uint8
    assert results.shape == given.shape
    assert results.is_contiguous()
    for index, image in enumerate(given):
        expected = by_torchvision(image, step.angles(choices[index].numpy())[0])
        assert (results[index] - expected).abs().max() < 0.51
        expected = by_torchvision(image, single_angle(step, 3, 1, index))
        assert (torch.from_numpy(single(image.numpy(), 1, index)) - expected).abs().max() < 0.51


def test_all_but_the_edge_is_what_torchvision_gives_with_a_fill():
    """Which lets the corners shine through a pixel on the edge twice, see Rotate."""
    given, step = noise(30, 40, 64), Rotate(90, FILL)
    batch = BatchPipeline([step])
    choices = batch.draw(0, len(given))
    inside = torch.ones(1, 40, 64)
    for result, image, choice in zip(batch(given, choices), given, choices, strict=True):
        angle = step.angles(choice.numpy())[0]
        part = F.rotate(inside, angle, InterpolationMode.BILINEAR)[0]  # of each pixel that the image covers
        expected = F.rotate(image.permute(2, 0, 1), angle, InterpolationMode.BILINEAR, fill=FILL).permute(1, 2, 0)
        whole = (part < 1e-6) | (part > 1 - 1e-6)
        assert 0.8 < whole.float().mean() < 1
        assert (result.int() - expected.int())[whole].abs().max() <= 1


def test_flat_image_of_the_fill_stays_as_it_is():
    """No line along its edge."""
    flat = torch.tensor(FILL, dtype=torch.uint8).expand(50, 24, 24, 3)
    batch = BatchPipeline([Rotate(180, FILL)])
    assert torch.equal(batch(flat, batch.draw(0, 50)), flat)


def test_corners_get_the_mean_colour():
    config, mean = TrainConfig(rotate=45.0), (125 / 255, 60 / 255, 30 / 255)
    step = Rotate.from_config(config, square(32), mean, (0.25, 0.25, 0.25))
    batch = BatchPipeline([step])
    choices = torch.tensor([[0], [STEPS - 1], [STEPS // 2]])  # -45, 45 and 0 degrees
    white = torch.full((3, 32, 32, 3), 255, dtype=torch.uint8)
    left, right, unmoved = batch(white, choices)
    for result in (left, right):
        assert result[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [list(FILL)] * 4
        assert (result[12:20, 12:20] == 255).all()
    assert (unmoved == 255).all()
    assert Rotate.from_config(TrainConfig(), square(32), mean, mean) is None


def test_positive_angles_turn_counter_clockwise():
    image = torch.zeros(1, 9, 9, 3, dtype=torch.uint8)
    image[:, 4, 5:] = 255  # a hand that points to the right
    step = Rotate(90, (0, 0, 0))
    result = BatchPipeline([step])(image, torch.tensor([[STEPS - 1]]))
    assert (result[0, :4, 4] == 255).all()


@pytest.mark.parametrize("backend", ["tensor", "albumentations"])
def test_angles_are_uniform_up_to_the_degrees_either_way(backend):
    step = Rotate(15, FILL)
    if backend == "tensor":
        angles = step.angles(step.draw(0, 2, 4000)[0])
    else:
        angles = np.array([single_angle(step, 0, 2, index) for index in range(4000)])
    assert np.abs(angles).max() <= 15
    assert kstest(angles, "uniform", args=(-15, 30)).pvalue > 1e-3


def test_turn_of_an_image_is_a_function_of_seed_epoch_and_index_alone():
    step = Rotate(30, FILL)
    for epoch in (0, 3):
        many = step.draw(1, epoch, 1000)
        assert many.dtype == np.int64
        for count in (1, 2, 7, 999):
            assert (step.draw(1, epoch, count) == many[:, :count]).all()
    drawn = [step.draw(seed, epoch, 1000)[0] for seed in (0, 1) for epoch in (0, 1)]
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.13  # 0.032 is one standard deviation
    given, batch = noise(50, 31, 45), BatchPipeline([step], seed=2)
    before, choices = given.clone(), batch.draw(1, 50)
    whole = batch(given, choices)
    assert torch.equal(given, before)
    for size in (1, 7, 32):
        parts = [batch(*part) for part in zip(given.split(size), choices.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_single_image_given_stays_as_it_is_and_may_be_read_only():
    image = noise(1, 20, 30)[0].numpy()
    before = image.copy()
    image.flags.writeable = False
    assert not np.array_equal(ImagePipeline([Rotate(90, FILL)])(image, 0, 0), before)
    assert np.array_equal(image, before)
