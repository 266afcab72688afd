"""How images of any size become the model's: fit, crop_pct, interpolation, and sizes that are not square."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from data.augment import BatchPipeline, ImagePipeline, create_augmentations
from data.preprocessing import INTERPOLATIONS, Geometry, fit, mean_colour, square, to_input
from data.sources import load_dataset
from models.saved import ModelConfig, parse_model_config, read_model_config
from tests.processes import run, tiny_config, train_script
from utils.config import TrainConfig
from utils.config.parser import parse_config, read_config
from utils.config.resolution import parse_size
from utils.system.errors import UserError

SHAPES = [(61, 47), (20, 90), (300, 35), (48, 32), (24, 16), (7, 5)]  # width and height of images
SIZES = [(32, 32), (24, 16), (16, 24), (56, 9)]  # height and width of results
EXTREME = [(1, 4096), (4096, 1), (1, 1), (2, 3000), (9000, 7)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """Without an edge that a pixel more or less could move."""
    return picture(6, 6).resize((width, height), Image.Resampling.BICUBIC)


# -- the three fits against Pillow and torchvision --------------------------------------------------------------------


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_is_pillows_fit_to_the_bit(shape, size, name):
    expected = ImageOps.fit(picture(*shape), size[::-1], INTERPOLATIONS[name])
    assert (fit(picture(*shape), Geometry(size, interpolation=name)) == np.asarray(expected)).all()


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_squash_is_pillows_resize_to_the_bit(shape, size, name):
    expected = picture(*shape).resize(size[::-1], INTERPOLATIONS[name])
    assert (fit(picture(*shape), Geometry(size, "squash", interpolation=name)) == np.asarray(expected)).all()


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pad_is_pillows_contain_in_the_middle_of_the_colour(shape, size, name):
    inside = np.asarray(ImageOps.contain(picture(*shape), size[::-1], INTERPOLATIONS[name]))
    top, left = ((outer - inner) // 2 for outer, inner in zip(size, inside.shape, strict=False))
    expected = np.full((*size, 3), (9, 120, 255), np.uint8)
    expected[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    found = fit(picture(*shape), Geometry(size, "pad", interpolation=name, fill=(9, 120, 255)))
    assert (found == expected).all()


@pytest.mark.parametrize(("crop_pct", "resized"), [(0.875, 64), (0.7, 80), (1.0, 56)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(160, 160), (320, 160), (160, 480), (192, 384)])
def test_crop_pct_is_torchvisions_resize_and_centre_crop_within_a_level(shape, name, crop_pct, resized):
    """Of shapes whose resized sides are whole pixels; torchvision rounds others, and where it cuts."""
    mode = v2.InterpolationMode(name)
    theirs = v2.Compose([v2.Resize(resized, mode, antialias=True), v2.CenterCrop(56)])
    found = fit(smooth(*shape), Geometry((56, 56), "crop", crop_pct, name)).astype(int)
    difference = np.abs(found - np.asarray(theirs(smooth(*shape))).astype(int))
    inside = difference[1:-1, 1:-1]  # at a border a filter of theirs reaches beyond what is cut
    assert (inside <= 1).mean() > 0.999
    assert inside.max() <= 2


@pytest.mark.parametrize("crop_pct", [0.5, 0.8])
def test_squash_cuts_crop_pct_of_both_sides(crop_pct):
    image = smooth(200, 100)
    part = image.crop((100 - 100 * crop_pct, 50 - 50 * crop_pct, 100 + 100 * crop_pct, 50 + 50 * crop_pct))
    found = fit(image, Geometry((20, 30), "squash", crop_pct)).astype(int)
    assert np.abs(found - np.asarray(part.resize((30, 20), Image.Resampling.BILINEAR)))[1:-1, 1:-1].max() <= 1


def test_an_image_of_the_size_stays_as_it_is():
    for name in ("crop", "squash", "pad"):
        assert (fit(picture(16, 24), Geometry((24, 16), name)) == np.asarray(picture(16, 24))).all()


# -- the part that the model sees -------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
@pytest.mark.parametrize("name", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(24, 16), (16, 40), (32, 32)])
@pytest.mark.parametrize("shape", [(200, 100), (90, 250), (128, 128)])
def test_region_is_where_each_pixel_of_the_result_comes_from(shape, size, name, crop_pct):
    """On an image whose colours are its coordinates."""
    geometry = Geometry(size, name, 1.0 if name == "pad" else crop_pct)
    width, height = shape
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = np.arange(width), np.arange(height)[:, None], 255
    left, top, right, bottom = geometry.region(width, height)
    found = fit(Image.fromarray(image), geometry).astype(float)
    seen = found[..., 2] == 255  # pad adds black
    across = left + (np.arange(size[1]) + 0.5) * (right - left) / size[1] - 0.5
    down = top + (np.arange(size[0]) + 0.5) * (bottom - top) / size[0] - 0.5
    step = max((right - left) / size[1], (bottom - top) / size[0])
    inside = ((across >= 0) & (across <= width - 1)) & ((down >= 0) & (down <= height - 1))[:, None]
    assert (seen == inside).mean() > 0.9  # the border is rounded to a pixel
    both = seen & inside
    assert np.abs(found[..., 0] - across)[both].max() <= step + 1
    assert np.abs(found[..., 1] - down[:, None])[both].max() <= step + 1


@pytest.mark.parametrize("name", ["crop", "squash", "pad"])
def test_region_is_central_and_of_the_shape_of_the_size(name):
    generator = np.random.default_rng(0)
    for width, height, *size in generator.integers(1, 3000, (500, 4)).tolist():
        geometry = Geometry((size[0], size[1]), name)
        left, top, right, bottom = geometry.region(width, height)
        across, down = (right - left) / size[1], (bottom - top) / size[0]  # pixels of the image in one of the result
        rounded = name == "pad"  # to whole pixels of the result, of which there is at least one
        assert left + right == pytest.approx(width, abs=1.001 * across if rounded else None)
        assert top + bottom == pytest.approx(height, abs=1.001 * down if rounded else None)
        if rounded:
            scale = min(size[1] / width, size[0] / height)
            assert max(1 / 2, abs(width / across - width * scale)) <= max(1 / 2, 1 - width * scale) + 1e-6
            assert max(1 / 2, abs(height / down - height * scale)) <= max(1 / 2, 1 - height * scale) + 1e-6
        elif name == "crop":
            assert across == pytest.approx(down)
        within = left >= 0 and top >= 0 and right <= width and bottom <= height
        around = left <= 0 and top <= 0 and right >= width and bottom >= height
        assert {"crop": within, "squash": within and around, "pad": around}[name]
        assert (left == 0 and right == width) or (top == 0 and bottom == height)


@pytest.mark.parametrize("shape", [(62, 240), (462, 759), (103, 83), (726, 987)])
@pytest.mark.parametrize("name", ["crop", "pad"])
def test_an_image_of_the_same_shape_and_another_size_is_seen_whole(shape, name):
    """Rounded, its part would begin 1e-15 pixels outside of it, which Pillow refuses."""
    width, height = shape
    for size in {(height, width), (2 * height, 2 * width), (120, 31), (253, 154), (166, 206), (329, 242)}:
        if size[0] * width == size[1] * height:
            assert Geometry(size, name).region(width, height) == (0, 0, width, height)
        assert fit(picture(*shape), Geometry(size, name)).shape == (*size, 3)


@pytest.mark.parametrize("crop_pct", [1.0, 0.1])
@pytest.mark.parametrize("name", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", EXTREME)
def test_images_of_extreme_shape_are_fitted(shape, name, crop_pct):
    image = Image.new("RGB", shape, (200, 30, 90))
    for interpolation in INTERPOLATIONS:
        found = fit(image, Geometry((24, 16), name, crop_pct, interpolation, fill=(1, 2, 3)))
        assert found.shape == (24, 16, 3)
        colours = {tuple(colour) for colour in found.reshape(-1, 3).tolist()}
        assert (200, 30, 90) in colours
        assert colours <= {(200, 30, 90), (1, 2, 3)}


# -- the colour that pad adds -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Dark red and bright blue photos of several shapes, so that their mean is far from grey."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 8), ("test", 3)):
        for place, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.asarray(picture(20 + 9 * index, 70 - 5 * index, 10 * place + index)) // (3, 5, 2)
                Image.fromarray(pixels.astype(np.uint8) + np.uint8(60 * place)).save(
                    root / split / name / f"{index}.png"
                )
    return root


@pytest.mark.parametrize("validation_fraction", [0.0, 0.5])
def test_pad_adds_the_mean_colour_of_the_training_images_alone(folder, validation_fraction):
    geometry = Geometry((24, 16), "pad", interpolation="bicubic")
    on_disk, in_memory = (
        load_dataset("imagefolder", folder, geometry, validation_fraction, memory_fraction=fraction)
        for fraction in (0.0, 0.25)
    )
    assert on_disk.train.images.in_memory is None
    assert in_memory.train.images.in_memory is not None
    whole = np.stack([np.asarray(Image.open(path).resize((16, 24), 3)) for path in in_memory.train.paths]) / 255
    for data in (on_disk, in_memory):
        np.testing.assert_allclose(data.mean, whole.mean((0, 1, 2)), atol=1e-9)
        np.testing.assert_allclose(data.std, whole.std((0, 1, 2)), atol=1e-9)
        assert data.geometry.fill == mean_colour(data.mean) == tuple(np.rint(255 * whole.mean((0, 1, 2))))
        normalised = (np.array(data.geometry.fill) / 255 - data.mean) / data.std
        assert np.abs(normalised).max() < 0.5 / 255 / min(data.std) + 1e-9
        for split in (data.train, data.test, *([data.validation] if data.validation else [])):
            for image, path in zip(split.images[:], split.paths, strict=True):
                assert (image == fit(Image.open(path), data.geometry)).all()
                width, height = Image.open(path).size
                if width * 24 > 17 * height:
                    assert (image[0] == data.geometry.fill).all()
    assert on_disk.train.digest() != in_memory.test.digest()


@pytest.mark.parametrize("name", ["crop", "squash", "pad"])
def test_statistics_and_images_are_the_same_from_disk_and_from_memory(folder, name):
    geometry = Geometry((16, 24), name, 1.0 if name == "pad" else 0.9, "lanczos")
    loaded = [load_dataset("imagefolder", folder, geometry, 0.25, memory_fraction=part) for part in (0.0, 0.25)]
    assert loaded[0].geometry == loaded[1].geometry
    assert (loaded[0].mean, loaded[0].std) == (loaded[1].mean, loaded[1].std)
    for split in ("train", "validation", "test"):
        images = [getattr(data, split).images[:] for data in loaded]
        assert images[0].shape[1:] == (16, 24, 3)
        assert (images[0] == images[1]).all()


def test_every_geometry_has_a_cache_of_its_own(folder):
    geometries = [
        square(16), Geometry((16, 24)), Geometry((24, 16)), Geometry((16, 16), "squash"),
        Geometry((16, 16), crop_pct=0.9), Geometry((16, 16), interpolation="bicubic"), Geometry((16, 16), "pad"),
        Geometry((16, 16), "pad", fill=(1, 2, 3)),
    ]  # fmt: skip
    assert len({geometry.cache_name for geometry in geometries}) == len(geometries)
    assert square(16).cache_name == "16"  # as caches of earlier versions are called


# -- model/config.json ------------------------------------------------------------------------------------------------

SAVED = {
    "architecture": "resnet18", "arguments": {"norm": "batch", "width": 16}, "class_names": ["a", "b"],
    "image_size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "resolution": 16, "tta": "none",
    "format_version": 2,
}  # fmt: skip


def parsed(**changes) -> ModelConfig:
    return parse_model_config(json.dumps(SAVED | changes).encode(), Path("config.json"))


@pytest.mark.parametrize("version", [1, 2])
def test_models_of_older_versions_see_images_as_they_did(version):
    old = parsed(format_version=version)
    assert (old.fit, old.crop_pct, old.interpolation) == ("crop", 1.0, "bilinear")
    assert old.geometry == Geometry((16, 16))
    expected = ImageOps.fit(picture(50, 30), (16, 16), Image.Resampling.BILINEAR)
    assert (fit(picture(50, 30), old.geometry) == np.asarray(expected)).all()


@pytest.mark.parametrize("size", [16, [24, 16]])
@pytest.mark.parametrize("name", ["crop", "squash", "pad"])
def test_the_geometry_of_a_model_comes_back_from_its_file(name, size):
    written = dataclasses.replace(
        parsed(), image_size=size, resolution=size, fit=name, crop_pct=0.875, interpolation="bicubic", format_version=3
    )
    read = parse_model_config(written.to_bytes(), Path("config.json"))
    assert read == written
    expected = (16, 16) if size == 16 else (24, 16)
    assert read.input_size == expected
    fill = (128, 102, 76) if name == "pad" else (0, 0, 0)
    assert read.geometry == Geometry(expected, name, 0.875, "bicubic", fill)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"fit": "stretch"}, "fit must be one of crop, squash, pad"),
        ({"fit": ["crop"]}, "fit must be one of"),
        ({"fit": None}, "fit must be one of"),
        ({"interpolation": "nearest"}, "interpolation one of bilinear, bicubic, lanczos"),
        ({"interpolation": ["bilinear"]}, "interpolation one of"),
        ({"interpolation": {}}, "interpolation one of"),
        ({"crop_pct": 0}, "crop_pct must be a number from 0.1 to 1"),
        ({"crop_pct": 2}, "crop_pct must be a number"),
        ({"crop_pct": True}, "crop_pct must be a number"),
        ({"crop_pct": "0.9"}, "crop_pct must be a number"),
        ({"crop_pct": float("nan")}, ""),
        ({"image_size": [0, 5]}, "image_size is [0, 5], it must be a number of pixels up to 4096, or height and width"),
        ({"image_size": [16]}, "image_size is [16]"),
        ({"image_size": [16, 16, 16]}, "image_size is"),
        ({"image_size": [16.0, 16]}, "image_size is"),
        ({"image_size": "16x16"}, "image_size is 16x16"),
        ({"image_size": [[16, 16], 16]}, "image_size is"),
        ({"image_size": None}, "image_size is None"),
        ({"resolution": [16, 4097]}, "resolution is [16, 4097]"),
        ({"fit": "pad", "mean": [5, 0, 0]}, "mean and std must be three numbers from 0 to 1"),
    ],
    ids=str,
)
def test_a_geometry_that_cannot_be_is_refused_in_one_line(changes, line):
    with pytest.raises(UserError) as refused:
        parsed(format_version=3, **changes)
    assert str(refused.value).startswith("config.json: ")
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


# -- the option image_size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value", "size"),
    [("224", 224, (224, 224)), ("224x160", "224x160", (224, 160)), ("64x64", 64, (64, 64)), ("8x9", "8x9", (8, 9))],
)
def test_image_size_is_the_same_from_everywhere_it_is_given(tmp_path, capsys, word, value, size):
    given = ["--dataset", "digits", "--cutout", "0", "--crop_padding", "0"]
    config = read_config(TrainConfig, [*given, "--image_size", word])
    assert (config.image_size, config.size) == (value, size)
    (tmp_path / "recipe.yaml").write_text(f"image_size: {word}\n")
    assert read_config(TrainConfig, [*given, "--config", str(tmp_path / "recipe.yaml")]) == config
    with pytest.raises(SystemExit):
        parse_config(TrainConfig, [*given, "--image_size", word, "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert read_config(TrainConfig, ["--config", str(tmp_path / "printed.yaml")]) == config


@pytest.mark.parametrize("value", [7, 5000, "7x9", "9x5000", "x", "9x", "9x9x9", "0x10", "-8", "8.5", "9 x9y", ""])
@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_a_size_that_cannot_be_is_refused_whatever_the_data_set(dataset, value):
    with pytest.raises(UserError, match=r"^image_size: .* is not allowed; it must "):
        TrainConfig(dataset=dataset, image_size=value, cutout=0, crop_padding=0)


def test_a_size_is_read_with_and_without_a_width():
    assert (parse_size(32), parse_size("32"), parse_size(" 24x16 ")) == ((32, 32), (32, 32), (24, 16))


def test_a_run_on_images_that_are_not_square_says_so_in_all_its_files(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(
        tmp_path / "run", image_size="24x16", fit="pad", interpolation="bicubic", resolution="12x8@0.5,24x16", epochs=1,
        overfit_batches=2, trackers=["tensorboard"],
    )  # fmt: skip
    log = tmp_path / "log"
    assert run(train_script, config, log=log) == [0], log.read_text()
    assert "image_size: 24x16\n" in (tmp_path / "run/config.yaml").read_text()
    model = read_model_config(tmp_path / "run/model")
    assert (model.image_size, model.resolution, model.fit, model.interpolation) == (
        [24, 16],
        [24, 16],
        "pad",
        "bicubic",
    )
    board = EventAccumulator(str(tmp_path / "run/tensorboard"))
    board.Reload()
    texts = [
        event.tensor_proto.string_val[0].decode() for tag in board.Tags()["tensors"] for event in board.Tensors(tag)
    ]
    assert any("24x16" in text for text in texts)
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert "[24, 16]" in json.dumps(environment)


# -- augmentations of images of any shape -----------------------------------------------------------------------------

AUGMENTED = [
    {"crop": "pad", "crop_padding": 4}, {"crop": "pad", "crop_padding": 7, "padding_mode": "reflect"},
    {"crop": "resized"}, {"crop": "resized", "crop_scale": [0.01, 0.01]}, {"horizontal_flip": "random"},
    {"vertical_flip": True}, {"rotate": 45.0}, {"policy": "trivial"}, {"policy": "rand:10,30"}, {"policy": "auto"},
    {"color_jitter": [1.0, 1.0, 1.0, 0.5]}, {"grayscale": 1.0}, {"blur": 1.0}, {"cutout": 8}, {"erase": 1.0},
    {"erase": 1.0, "erase_mode": "constant"},
]  # fmt: skip
OFF = {"crop": "none", "horizontal_flip": "none", "cutout": 0}


@pytest.mark.parametrize("changes", AUGMENTED, ids=str)
@pytest.mark.parametrize("shade", [None, 0, 200])
@pytest.mark.parametrize("size", [(8, 8), (8, 40), (48, 9)])
def test_every_augmentation_takes_tiny_grey_and_long_images(size, shade, changes):
    """In both backends, and photos of a single pixel."""
    chosen = create_augmentations(TrainConfig(**OFF | changes), Geometry(size), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    images = np.full((6, *size, 3), shade or 0, np.uint8)
    if shade is None:
        images = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    single, batch = ImagePipeline(chosen, seed=1), BatchPipeline(chosen, seed=1)
    for epoch in range(3):
        augmented = batch(torch.from_numpy(images.copy()), batch.draw(epoch, 6))
        assert (augmented.shape, augmented.dtype) == (images.shape, torch.uint8)
        assert to_input(augmented, torch.zeros(3), torch.ones(3)).shape == (6, 3, *size)
        for index, image in enumerate(images):
            found = single(image, epoch, index)
            assert (found.shape, found.dtype) == (image.shape, np.uint8)
    if changes.get("crop") == "resized":
        assert single(np.full((1, 1, 3), 7, np.uint8), 0, 0).tolist() == np.full((*size, 3), 7).tolist()


def test_without_a_crop_images_stay_in_their_place():
    assert create_augmentations(TrainConfig(**OFF), square(32), (0, 0, 0), (1, 1, 1)) == []
    kinds = [
        type(step).__name__ for step in create_augmentations(TrainConfig(crop="none"), square(32), (0, 0, 0), (1, 1, 1))
    ]
    assert kinds == ["HorizontalFlip", "CutOut"]
