"""augment_file: an own pipeline in place of the suite's augmentations, as exact as they are, and part of the run."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import yaml
from accelerate import Accelerator
from PIL import Image

from data.augment import ImagePipeline
from data.augment.pipeline_file import FilePipeline
from data.loaders import Steps, TrainLoader
from data.photo import ArrayPhoto
from data.sources import load_split
from data.splits import Split
from tests.processes import join, run, start, tiny_config, train_script, wait_for
from tests.saved_runs import training_refusal
from tests.test_resume import logged_steps, outcome
from utils.config import TrainConfig
from utils.system.errors import UserError
from utils.system.files import digest
from utils.training import build

SIZE = 16
PIPELINE = A.Compose(
    [
        A.RandomResizedCrop((SIZE, SIZE), scale=(0.3, 1.0), p=1),
        A.OneOf([A.HorizontalFlip(p=1), A.Sequential([A.Rotate(p=1), A.CoarseDropout(fill="random", p=1)], p=1)], p=1),
        A.SomeOf([A.ColorJitter(p=1), A.GaussNoise(p=1), A.ToGray(method="pca", p=1), A.MotionBlur(p=1)], n=2),
    ]
)
RUN = {
    "epochs": 2, "batch_size": 8, "checkpoint_every_steps": 3, "dataset": "imagefolder", "norm": "group",
    "crop_padding": 4, "cutout": 8, "horizontal_flip": "alternating",  # the defaults: others would be without effect
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with 42 training photos of two classes, no two of a size."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 21), ("test", 4)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                height, width = 20 + number, 45 - number
                pixels = random.integers(256, size=(height // 4, width // 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((width, height)).save(root / split / label / f"{number}.png")
    return root


@pytest.fixture
def pipeline(tmp_path) -> Path:
    A.save(PIPELINE, tmp_path / "pipeline.yaml", data_format="yaml")
    return tmp_path / "pipeline.yaml"


def written(path: Path, *transforms: dict) -> Path:
    path.write_text(yaml.safe_dump({"transform": {"__class_fullname__": "Compose", "transforms": list(transforms)}}))
    return path


def split_of(photos: Path) -> Split:
    return load_split("imagefolder", photos, "train", SIZE)[0]


def epoch_of(split: Split, path: Path, world_size: int, num_workers: int, batch_size: int = 8) -> list[np.ndarray]:
    """The global batches of the second epoch from the third step on."""
    augmentation = FilePipeline(path.read_bytes(), str(path), (SIZE, SIZE))
    parts = []
    for rank in range(world_size):
        steps = Steps(len(split), batch_size, 5, rank, world_size)
        loader = TrainLoader(split, ImagePipeline([augmentation], 5), steps, num_workers)
        parts.append([batch.images[: batch.count].numpy() for batch in loader.epoch(1, 2)])
    return [np.concatenate(batch) for batch in zip(*parts, strict=True)]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (3, 2)])
def test_images_are_the_same_for_any_number_of_processes_and_workers(photos, pipeline, world_size, num_workers):
    split = split_of(photos)
    expected = epoch_of(split, pipeline, 1, 0)
    assert [batch.shape for batch in expected] == [(8, SIZE, SIZE, 3)] * 3 + [(2, SIZE, SIZE, 3)]
    for batch, same in zip(epoch_of(split, pipeline, world_size, num_workers), expected, strict=True):
        np.testing.assert_array_equal(batch, same)


def test_the_pipeline_gets_the_photo_in_its_own_size(photos, tmp_path):
    path = written(tmp_path / "corner.yaml", {"__class_fullname__": "Crop", "x_max": SIZE, "y_max": SIZE, "p": 1.0})
    split = split_of(photos)
    augment = ImagePipeline([FilePipeline(path.read_bytes(), str(path), (SIZE, SIZE))])
    for index, photo in enumerate(split.images.photos(range(len(split)))):
        with Image.open(split.paths[index]) as image:
            np.testing.assert_array_equal(augment(photo, 0, index), np.asarray(image)[:SIZE, :SIZE])


def test_images_need_not_be_square():
    content = b"transform: {__class_fullname__: RandomResizedCrop, size: [16, 24], p: 1.0}"
    photo = ArrayPhoto(np.zeros((30, 30, 3), np.uint8))
    assert FilePipeline(content, "pipeline.yaml", (16, 24)).cut(photo, 0, 0, 0).shape == (16, 24, 3)
    with pytest.raises(UserError, match="has 16x24 pixels, and image_size is 24x16"):
        FilePipeline(content, "pipeline.yaml", (24, 16)).cut(photo, 0, 0, 0)


def test_a_pipeline_leaves_the_images_in_memory_as_they_are(pipeline):
    image = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    before, augmentation = image.copy(), FilePipeline(pipeline.read_bytes(), "pipeline.yaml", (SIZE, SIZE))
    for index in range(50):
        augmentation.cut(ArrayPhoto(image), 0, 0, index)
    np.testing.assert_array_equal(image, before)


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0)])  # fewer workers leave torch more threads
def test_a_run_stopped_inside_an_epoch_ends_with_the_same_weights(photos, pipeline, tmp_path, world_size, num_workers):
    options = {**RUN, "data_dir": str(photos), "num_workers": num_workers}
    config = tiny_config(tmp_path / "unbroken", **options, augment_file=str(pipeline))
    assert set(run(train_script, config, world_size=world_size)) == {0}
    config = dataclasses.replace(config, output_dir=str(tmp_path / "run"))
    processes = start(train_script, config, world_size=world_size)
    wait_for(lambda: logged_steps(tmp_path / "run") >= 4, processes)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)  # killed, it would leave its loader workers behind here
    join(processes)
    moved = Path(pipeline.rename(tmp_path / "moved.yaml"))  # the content counts, not the path
    config = dataclasses.replace(config, augment_file=str(moved))
    assert set(run(train_script, config, world_size=world_size)) == {0}
    assert outcome(tmp_path / "run") == outcome(tmp_path / "unbroken")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["augment_file_sha256"] == digest([moved.read_bytes()])


@pytest.mark.slow
def test_a_resume_with_another_pipeline_or_none_is_refused(capsys, photos, pipeline, tmp_path):
    config = tiny_config(
        tmp_path / "run", **RUN, data_dir=str(photos), augment_file=str(pipeline), max_steps=4, mixup=0.2
    )
    assert run(train_script, config) == [0]
    sha256 = digest([pipeline.read_bytes()])[:12]
    pipeline.write_text(pipeline.read_text() + "# a comment\n")
    line = training_refusal(capsys, dataclasses.replace(config, max_steps=8))
    assert f"augment_file: {pipeline} (SHA-256 {digest([pipeline.read_bytes()])[:12]}...) differs from that of" in line
    assert f"(SHA-256 {sha256}...); resume with the same or choose another output_dir" in line
    line = training_refusal(capsys, dataclasses.replace(config, max_steps=8, augment_file=None))
    assert "augment_file: null (no pipeline) differs from that of" in line


@pytest.mark.slow
def test_every_rank_uses_what_the_main_process_read(photos, pipeline, tmp_path):
    """The file is gone, or another one, on the second machine."""
    config = tiny_config(tmp_path / "run", **RUN, data_dir=str(photos), augment_file=str(pipeline))
    log = tmp_path / "log"
    assert run(train_where_only_rank_0_has_the_file, config, world_size=2, log=log) == [0, 0], log.read_text()
    assert set(run(train_script, dataclasses.replace(config, output_dir=str(tmp_path / "both")), world_size=2)) == {0}
    assert outcome(tmp_path / "run") == outcome(tmp_path / "both")


def train_where_only_rank_0_has_the_file(config: TrainConfig) -> None:
    if os.environ["RANK"] == "1":
        config = dataclasses.replace(config, augment_file=f"{config.augment_file}.elsewhere")
    train_script(config)


# -- what a pipeline must give ----------------------------------------------------------------------------------------


WRONG = {  # transforms, words of the line
    "another size": (
        [{"__class_fullname__": "RandomResizedCrop", "size": [8, 24], "p": 1.0}],
        "has 8x24 pixels, and image_size is 16x16; add a transform that always gives this size, such as "
        "RandomResizedCrop (size: [16, 16], p: 1.0) or Resize (height: 16, width: 16, p: 1.0)",
    ),
    "the photo's own size": ([{"__class_fullname__": "HorizontalFlip"}], "and image_size is 16x16"),
    "a size for some images": (
        [
            {"__class_fullname__": "Resize", "height": SIZE, "width": SIZE, "p": 1.0},
            {"__class_fullname__": "RandomScale", "scale_limit": [0.5, 0.5], "p": 0.5},
        ],
        "has 24x24 pixels, and image_size is 16x16",
    ),
    "one channel": (
        [
            {"__class_fullname__": "Resize", "height": SIZE, "width": SIZE, "p": 1.0},
            {"__class_fullname__": "ToGray", "num_output_channels": 1, "p": 1.0},
        ],
        "set num_output_channels: 3 in ToGray",
    ),
    "a crop larger than the photo": (
        [{"__class_fullname__": "RandomCrop", "height": 64, "width": 64, "p": 1.0}],
        "fails for an image of",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("transforms", "words"), WRONG.values(), ids=WRONG.keys())
def test_another_output_is_refused_before_the_first_epoch(capsys, photos, tmp_path, monkeypatch, transforms, words):
    path = written(tmp_path / "pipeline.yaml", *transforms)
    monkeypatch.setattr(build, "create_optimizer", None)  # which comes after
    config = tiny_config(tmp_path / "run", **RUN, data_dir=str(photos), augment_file=str(path))
    line = training_refusal(capsys, config)
    assert line.startswith("error: augment_file: ")
    assert str(path) in line
    assert words in line
    assert not (tmp_path / "run").exists()


def test_another_type_is_refused(tmp_path):
    augmentation = FilePipeline(PIPELINE_OF_ONE, "pipeline.yaml", (SIZE, SIZE))
    augmentation.transform = A.Compose([A.Resize(SIZE, SIZE, p=1), A.ToFloat(p=1)])
    with pytest.raises(UserError, match="are float32, and the model takes uint8, which it normalises by itself"):
        augmentation.cut(ArrayPhoto(np.zeros((20, 20, 3), np.uint8)), 0, 0, 0)


PIPELINE_OF_ONE = b"transform: {__class_fullname__: Resize, height: 16, width: 16, p: 1.0}"


def test_the_batches_of_the_device_backend_are_refused(pipeline):
    with pytest.raises(UserError, match=r"augment_backend: tensor is not allowed with augment_file.*auto or albument"):
        TrainConfig(augment_file=str(pipeline), augment_backend="tensor")


def test_auto_is_image_by_image(photos, pipeline, tmp_path):
    config = tiny_config(tmp_path / "run", **RUN, data_dir=str(photos), augment_file=str(pipeline))
    assert build.choose_backend(config, None, None, Accelerator(cpu=True)) == "albumentations"
