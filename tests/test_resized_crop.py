"""RandomResizedCrop draws as torchvision does, from (seed, epoch, index), and cuts from the unfitted image."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from data.augment import BatchPipeline, ImagePipeline
from data.augment.resized_crop import TRIES, ResizedCrop, scale_one_by_one, scale_together
from data.files import ImageFiles, decode_file
from data.images import InMemory
from data.loaders import DeviceLoader, Steps, TrainLoader
from data.photo import TORCH_MODES
from data.preprocessing import INTERPOLATIONS, Geometry, square
from data.sources import load_dataset, load_split
from data.splits import Split
from tests.conftest import augmentations
from utils.config import TrainConfig
from utils.system.errors import UserError
from utils.training import loading
from utils.training.loading import choose_backend

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SIZES = [(32, 32), (375, 500), (600, 200), (100, 1000), (1000, 30), (3, 5), (1, 1)]


def boxes(height: int, width: int, count: int, **options) -> np.ndarray:
    return ResizedCrop(square(32), **options).draw_boxes(np.random.default_rng(0), height, width, count)


def pipelines(size: int, **options) -> tuple[ImagePipeline, BatchPipeline]:
    steps = [ResizedCrop(square(size)), *augmentations(size, **options)]
    return ImagePipeline(steps), BatchPipeline(steps)


# -- the draw ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_lie_in_the_image(height, width):
    top, left, box_height, box_width = boxes(height, width, 5000)
    assert (box_height.min(), box_width.min()) >= (1, 1)
    assert (top.min(), left.min()) >= (0, 0)
    assert (top + box_height).max() <= height
    assert (left + box_width).max() <= width


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_are_those_of_the_published_loop(height, width):
    uniform = np.random.default_rng(0).random((300, 2 * TRIES + 2))
    for row, found in zip(uniform, boxes(height, width, 300).T.tolist(), strict=True):
        for trial in range(TRIES):
            area = height * width * (SCALE[0] + row[trial] * (SCALE[1] - SCALE[0]))
            low, high = math.log(RATIO[0]), math.log(RATIO[1])
            ratio = math.exp(low + row[TRIES + trial] * (high - low))
            box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                top, left = int(row[-2] * (height - box_height + 1)), int(row[-1] * (width - box_width + 1))
                break
        else:
            box_height, box_width = height, width
            if width / height < RATIO[0]:
                box_height = round(width / RATIO[0])
            elif width / height > RATIO[1]:
                box_width = round(height * RATIO[1])
            top, left = (height - box_height) // 2, (width - box_width) // 2
        assert found == [top, left, box_height, box_width]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_single_image_gets_the_box_of_a_batch_of_one(height, width):
    augmentation = ResizedCrop(square(32))
    for seed in range(300):
        single = augmentation.draw_box(np.random.default_rng(seed), height, width)
        assert list(single) == augmentation.draw_boxes(np.random.default_rng(seed), height, width, 1)[:, 0].tolist()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (375, 500), (600, 200)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(3000)]).T
    ours = boxes(height, width, 3000)
    for first, second in zip([*ours, ours[2] * ours[3]], [*theirs, theirs[2] * theirs[3]], strict=True):
        assert ks_2samp(first, second).pvalue > 1e-4


def test_area_is_uniform_and_the_logarithm_of_the_ratio_too():
    _, _, height, width = boxes(4000, 4000, 20_000, scale=(0.1, 0.5)).astype(float)
    area = height * width / 4000**2
    assert np.histogram(area, 8, (0.1, 0.5))[0] == pytest.approx(2500, rel=0.1)
    assert np.histogram(np.log(width / height), 8, tuple(np.log(RATIO)))[0] == pytest.approx(2500, rel=0.1)


def test_choices_of_an_image_depend_on_seed_epoch_and_index_alone():
    augmentation = ResizedCrop(square(32))
    many = augmentation.draw(1, 2, 1000)
    for count in (1, 7, 999):
        assert (augmentation.draw(1, 2, count) == many[:, :count]).all()
    for seed, epoch in ((2, 2), (1, 3)):
        assert (augmentation.draw(seed, epoch, 1000) == many).all(0).mean() < 0.05


# -- the image --------------------------------------------------------------------------------------------------------


def by_pillow(image: np.ndarray, box: list[int], size: tuple[int, int], interpolation: str) -> np.ndarray:
    top, left, height, width = box
    part = Image.fromarray(image[top : top + height, left : left + width])
    return np.asarray(part.resize(size[::-1], INTERPOLATIONS[interpolation]))


@pytest.mark.parametrize(
    ("way", "interpolation"),
    [
        *((scale_one_by_one, mode) for mode in TORCH_MODES.values()),
        *((scale_together, mode) for mode in INTERPOLATIONS),
    ],
)
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, (32, 32)), (64, 40, (40, 24)), (9, 120, (30, 30)), (1, 1, (4, 3))]
)
def test_batches_are_scaled_as_pillow_does(height, width, size, way, interpolation):
    images = np.random.default_rng(0).integers(0, 256, (60, height, width, 3), dtype=np.uint8)
    parts = boxes(height, width, 60)
    found = way(torch.from_numpy(images), torch.from_numpy(parts), size, interpolation).numpy()
    pairs = zip(images, parts.T.tolist(), strict=True)
    expected = np.stack([by_pillow(image, box, size, interpolation) for image, box in pairs])
    assert (found.shape, found.dtype) == (expected.shape, np.uint8)
    difference = np.abs(found.astype(int) - expected)
    assert (difference.max() <= 2, (difference > 1).mean() < 1e-4) == (True, True)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_batch_gets_the_parts_that_were_drawn(interpolation):
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    pipeline = BatchPipeline([ResizedCrop(Geometry((32, 32), interpolation=interpolation))])
    choices = pipeline.draw(0, len(images))
    found = pipeline(torch.from_numpy(images), choices)
    expected = scale_together(torch.from_numpy(images), choices.T, (32, 32), interpolation)
    assert (found.int() - expected.int()).abs().max() <= 2


def test_a_part_that_is_shrunk_is_antialiased():
    """Stripes of single pixels become their mean, not some of them."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[::2] = 200
    image, batch = pipelines(16)
    result = image(stripes, 0, 0)
    assert result.shape == (16, 16, 3)
    assert np.abs(result.astype(int) - 100).max() < 20
    choices = torch.tensor([[32, 32, 128, 128]])
    assert np.abs(batch(torch.from_numpy(stripes)[None], choices).numpy().astype(int) - 100).max() < 20


def test_flip_and_cutout_follow_on_the_scaled_image():
    image = np.full((300, 200, 3), 100, np.uint8)
    single, batch = pipelines(32, horizontal_flip="random", cutout=16, fill=(1, 1, 1))
    results = [single(image, 0, index) for index in range(50)]
    squares = torch.from_numpy(np.full((50, 32, 32, 3), 100, np.uint8))
    for result in [*results, *batch(squares, batch.draw(0, 50)).numpy()]:
        assert result.shape == (32, 32, 3)
        assert 64 <= (result[..., 0] == 255).sum() <= 256
        assert set(np.unique(result)) == {100, 255}  # no padding


def test_nothing_changes_unless_it_is_asked_for():
    for options in ({}, {"crop_padding": 4}, {"cutout": 8, "horizontal_flip": "random"}):
        assert not any(augmentation.needs_original for augmentation in augmentations(32, **options))


# -- the loaders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of photos of different sizes: red at both ends, blue in the square that fitting would leave."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(6):
                side = 40 + 16 * index
                photo = Image.new("RGB", (3 * side, side), (200, 0, 0))
                photo.paste((0, 0, 200), (side, 0, 2 * side, side))
                photo.save(folder / f"{index}.{'png' if index % 2 else 'jpg'}")
    return tmp_path


def load(root: Path, memory_fraction: float) -> Split:
    return load_split("imagefolder", root, "train", 24, memory_fraction)[0]


@pytest.mark.parametrize("memory_fraction", [0.0, 0.5])
def test_the_unfitted_photo_reaches_it_from_memory_and_from_disk(photos, memory_fraction):
    split = load(photos, memory_fraction)
    assert split.images[:][..., 0].max() < 60  # fitted, all are blue
    assert [photo.whole().shape for photo in split.images.photos([0, 1])] == [(40, 120, 3), (56, 168, 3)]
    (batch,) = TrainLoader(split, pipelines(24)[0], Steps(12, 12, 0, 0, 1)).epoch(0)
    assert batch.images.shape == (12, 24, 24, 3)
    assert (batch.images[..., 0] > 150).flatten(1).any(1).sum() >= 8


def test_photos_are_the_same_in_any_order_and_on_any_number_of_workers_and_ranks(photos):
    seen, single = set(), pipelines(24)[0]
    originals = load(photos, 0.0).images.photos(range(12))
    expected = [single(image, 2, index) for index, image in enumerate(originals)]
    assert all((single(originals[index], 2, index) == expected[index]).all() for index in reversed(range(12)))
    for memory_fraction, workers, world_size in ((0.0, 2, 1), (0.5, 0, 1), (0.0, 1, 2)):
        split = load(photos, memory_fraction)
        for rank in range(world_size):
            steps = Steps(12, 5, 3, rank, world_size)
            batches = TrainLoader(split, single, steps, workers).epoch(2)
            for places, batch in zip(steps.positions(2), batches, strict=True):
                assert (batch.images.numpy() == np.stack([expected[place] for place in places])).all()
                seen |= set(places.tolist())
    assert len(seen) == 12


def test_a_subset_has_the_originals_of_its_own_images(photos):
    for memory_fraction in (0.0, 0.5):
        part = load(photos, memory_fraction).subset(np.array([7, 2]))
        assert part.images.fitted
        for photo, path in zip(part.images.photos([0, 1]), part.paths, strict=True):
            assert (photo.whole() == np.asarray(decode_file(path))).all()


def test_arrays_are_cut_on_the_device():
    images = np.random.default_rng(0).integers(0, 256, (20, 24, 24, 3), dtype=np.uint8)
    split, steps = Split(InMemory(images), np.arange(20)), Steps(20, 8, 0, 0, 1)
    single, batch = pipelines(24)
    for loader in (DeviceLoader(split, batch, steps, torch.device("cpu")), TrainLoader(split, single, steps)):
        for step in loader.epoch(0):
            assert (step.images.numpy() != images[step.labels]).any((1, 2, 3)).mean() > 0.5


def test_fitted_images_are_augmented_one_by_one_and_refused_on_the_device(photos, monkeypatch):
    data = load_dataset("imagefolder", photos, 24, memory_fraction=0.5)
    accelerator = Accelerator(cpu=True)
    assert choose_backend(TrainConfig(), None, data, accelerator) == "tensor"
    monkeypatch.setattr(loading, "create_augmentations", lambda *_: [ResizedCrop(square(24))])
    assert choose_backend(TrainConfig(), None, data, accelerator) == "albumentations"
    with pytest.raises(UserError, match=r"tensor augments images that were fitted.*use auto or albumentations"):
        choose_backend(TrainConfig(augment_backend="tensor"), None, data, accelerator)
    digits = load_dataset("digits", "", 24)
    assert choose_backend(TrainConfig(), None, digits, accelerator) == "tensor"


def test_a_photo_is_decoded_at_its_own_size_unless_it_is_fitted(tmp_path):
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "photo.jpg")
    assert decode_file(tmp_path / "photo.jpg").size == (1600, 1200)
    assert decode_file(tmp_path / "photo.jpg", 12).size == (200, 150)
    files = ImageFiles([tmp_path / "photo.jpg"], square(100))
    assert (files.take([0]).shape, files.photos([0])[0].whole().shape) == ((1, 100, 100, 3), (1200, 1600, 3))
