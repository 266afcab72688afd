"""Images are one contract: what implements it is trained on, evaluated, split and identified as an array is."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch

from data.augment import BatchPipeline, ImagePipeline
from data.images import Images, InMemory, Positions
from data.loaders import DeviceLoader, EvaluationLoader, Steps, TrainLoader
from data.preprocessing import channel_statistics
from data.sources import load_dataset, load_split
from data.splits import Split
from tests.conftest import augmentations
from tests.test_datasets import image_folder

PIXELS = np.random.default_rng(0).integers(0, 256, (2100, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(len(PIXELS)) % 7


class Streamed(Images):
    """What a new kind of images has to implement."""

    def __len__(self) -> int:
        return len(PIXELS)

    def take(self, indices: Positions) -> np.ndarray:
        return np.stack([PIXELS[index] for index in indices])


@pytest.fixture
def split() -> Split:
    return Split(Streamed(), LABELS)


def test_a_new_kind_of_images_needs_a_length_and_a_way_to_take_them(split):
    array, part = Split(InMemory(PIXELS), LABELS), np.array([5, 2000, 3])
    assert split.digest() == array.digest()
    assert split.subset(part).digest() == array.subset(part).digest()
    assert channel_statistics(split.images) == channel_statistics(array.images)
    assert (split.images[7] == PIXELS[7]).all()
    assert (split.images[-2:] == PIXELS[-2:]).all()
    assert (split.images[part] == PIXELS[part]).all()
    steps = Steps(len(split), 500, 0, 0, 1)
    pipeline = ImagePipeline(augmentations(8, 2, "random", 4))
    for ours, theirs in zip(*(TrainLoader(one, pipeline, steps).epoch(0) for one in (split, array)), strict=True):
        assert torch.equal(ours.images, theirs.images)
    for ours, theirs in zip(*map(EvaluationLoader, (split, array)), strict=True):
        assert torch.equal(ours[0], theirs[0])


def test_subset_of_a_subset_counts_from_the_whole():
    for images in (Streamed(), InMemory(PIXELS)):
        part = images.subset(np.arange(100, 200)).subset(np.array([3, 1]))
        assert len(part) == 2
        assert (part[:] == PIXELS[[103, 101]]).all()
        assert (np.stack([photo.whole() for photo in part.photos([0, 1])]) == PIXELS[[103, 101]]).all()


def test_only_images_in_memory_are_augmented_on_the_device(split):
    assert split.images.in_memory is split.subset(np.arange(3)).images.in_memory is None
    with pytest.raises(ValueError, match="the images are not in memory"):
        DeviceLoader(split, BatchPipeline([]), Steps(3, 3, 0, 0, 1), torch.device("cpu"))
    array, places = InMemory(PIXELS).subset(np.array([4, 2])).in_memory
    assert array is PIXELS
    assert places.tolist() == [4, 2]


def test_digest_is_over_pixels_and_labels():
    """environment.json of older runs has it."""
    expected = hashlib.sha256(PIXELS.tobytes() + LABELS.tobytes()).hexdigest()
    assert Split(InMemory(PIXELS), LABELS).digest() == expected
    data = load_dataset("digits", "", 8, validation_fraction=0.5)
    described = data.describe()
    assert list(described) == ["name", "classes", "image_size", "train", "validation", "test"]
    assert described["test"] == {"images": 360, "sha256": data.test.digest()}


def test_digest_of_files_is_over_paths_sizes_and_times(tmp_path):
    split, _ = load_split("imagefolder", image_folder(tmp_path), "train", 8, memory_fraction=0.0)
    states = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in split.paths]
    assert split.digest() == hashlib.sha256(json.dumps(states).encode() + split.labels.tobytes()).hexdigest()
