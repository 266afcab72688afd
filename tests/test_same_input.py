"""The same photo gives the same input of the model, to the bit, wherever and however it is handed in."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

import models
from data.files import decode_file
from data.loaders import EvaluationLoader
from data.preprocessing import FITS, INTERPOLATIONS, Geometry, fit, to_input
from data.resample import fit_batch
from data.sources import load_split
from models.saved import ModelConfig, export_model
from utils.analysis.inference import predict_split
from utils.analysis.setup import set_up
from utils.config import AnalyzeConfig
from utils.release.classifier import ImageClassifier
from utils.release.export import export_programs
from utils.system.runtime import create_accelerator

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SIZES = ((16, 16), (24, 16), (16, 40))
# Every fit with every interpolation; crop_pct and size change from one to the next.
GEOMETRIES = [
    Geometry(SIZES[number % 3], fitted, (1.0, 0.875, 0.9)[number // 3] if fitted != "pad" else 1.0, interpolation)
    for number, (fitted, interpolation) in enumerate((fitted, name) for fitted in FITS for name in INTERPOLATIONS)
]


class Shown(nn.Module):
    """A model whose logits are its input, as many of its values as there are classes."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.stage, self.fc, self.num_classes = nn.Conv2d(3, 1, 1), nn.Identity(), num_classes

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs.flatten(1))[:, : self.num_classes] + 0 * self.stage(inputs).sum()


def name_of(geometry: Geometry) -> str:
    return geometry.cache_name.removesuffix("-000000")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """An image folder: a large JPEG, turned by EXIF, grey, transparent, portrait, tiny, and with a palette."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)

    def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
        channels = len(mode)
        coarse = generator.integers(0, 256, (height // 5 + 2, width // 5 + 2, channels), dtype=np.uint8)
        image = Image.fromarray(coarse.squeeze(), mode=mode).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 25, (height, width, channels)).squeeze()
        return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8), mode=mode)

    turned = Image.Exif()
    turned[0x0112] = 6
    (folder / "test/a").mkdir(parents=True)
    picture(1203, 801).save(folder / "test/a/large.jpg", quality=90)
    picture(300, 200).save(folder / "test/a/turned.jpg", exif=turned)
    picture(90, 70, "L").save(folder / "test/a/grey.jpg")
    picture(83, 61, "RGBA").save(folder / "test/a/transparent.png")
    picture(200, 300).save(folder / "test/a/portrait.webp", quality=80)
    picture(3, 1).save(folder / "test/a/tiny.png")
    picture(64, 48).quantize(16).save(folder / "test/a/palette.png")
    (folder / "train").symlink_to(folder / "test")
    return folder


@pytest.fixture
def model_folder(tmp_path, monkeypatch):
    """Writes a model that shows its input, for a geometry."""
    monkeypatch.setitem(models.MODELS, "shown", Shown)

    def write(geometry: Geometry, names: tuple[str, ...] = ()) -> Path:
        height, width = geometry.size
        names = names or tuple(map(str, range(3 * height * width)))
        config = ModelConfig(
            "shown", {}, names, [height, width], MEAN, STD,
            fit=geometry.fit, crop_pct=geometry.crop_pct, interpolation=geometry.interpolation,
        )  # fmt: skip
        export_model(tmp_path / "model", config, config.create_model().state_dict())
        return tmp_path / "model"

    return write


def inputs_of(images: np.ndarray) -> np.ndarray:
    return to_input(torch.tensor(images), torch.tensor(MEAN), torch.tensor(STD)).flatten(1).numpy()


def upright(path: Path) -> np.ndarray:
    """The pixels of a photo as whoever decodes it himself would have them."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


# -- in Python --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=name_of)
def test_training_evaluation_analysis_and_predict_see_the_same(photos, model_folder, geometry):
    folder = model_folder(geometry, ("a",))
    saved = ImageClassifier.from_pretrained(folder).model_config.geometry  # with the colour that pad adds
    split, _ = load_split("imagefolder", photos, "test", saved)
    expected = inputs_of(np.stack([fit(Image.fromarray(upright(Path(path))), saved) for path in split.paths]))
    on_disk, _ = load_split("imagefolder", photos, "train", saved, memory_fraction=0)
    assert split.images.in_memory is not None
    assert on_disk.images.in_memory is None
    np.testing.assert_array_equal(inputs_of(split.images[:]), expected)
    np.testing.assert_array_equal(inputs_of(on_disk.images[:]), expected)
    for evaluated in (split, on_disk):
        (batch,) = EvaluationLoader(evaluated)
        np.testing.assert_array_equal(inputs_of(batch[0].numpy()), expected)

    given = AnalyzeConfig(run=str(folder), dataset="imagefolder", data_dir=str(photos))
    analysis = set_up(given, create_accelerator())
    np.testing.assert_array_equal(shown(analysis), expected)
    predicted = set_up(AnalyzeConfig(run=str(folder), predict=list(split.paths)), create_accelerator())
    np.testing.assert_array_equal(shown(predicted), expected)


def shown(analysis) -> np.ndarray:
    """What the model of an analysis is given."""
    seen = []
    handle = analysis.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1).clone()))
    predict_split(analysis, analysis.test, "predicting")
    handle.remove()
    return torch.cat(seen).numpy()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=name_of)
def test_a_path_bytes_an_open_file_a_pil_image_and_an_array_are_the_same(photos, model_folder, geometry):
    classifier, seen = ImageClassifier.from_pretrained(model_folder(geometry)), []
    classifier.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1).clone()))
    for path in sorted((photos / "test/a").iterdir()):
        fitted = fit(decode_file(path), classifier.model_config.geometry)
        content = path.read_bytes()
        with open(path, "rb") as file, Image.open(path) as opened, Image.open(io.BytesIO(content)) as decoded:
            decoded.load()
            ways = [path, str(path), content, memoryview(content), io.BytesIO(content), file, opened, decoded]
            for way in [*ways, upright(path)]:
                classifier.predict(way)
            classifier.predict([*ways[:4], io.BytesIO(content)])
            assert not file.closed
        with torch.no_grad():
            classifier(torch.from_numpy(upright(path))[None])
        rows = torch.cat(seen).numpy()
        assert len(rows) == 9 + 5 + 1
        np.testing.assert_array_equal(rows, np.repeat(inputs_of(fitted[None]), len(rows), 0), err_msg=path.name)
        seen.clear()


# -- by torch alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("fitted", FITS)
def test_torch_fits_as_pillow_does_to_the_bit(fitted, interpolation, crop_pct):
    """Larger, smaller, of one pixel; landscape and portrait; where halves must be rounded as Pillow rounds them."""
    generator = np.random.default_rng(0)
    for height, width in ((37, 50), (64, 64), (333, 500), (1, 7), (9, 2), (1, 1), (48, 64), (700, 31)):
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for size in ((16, 16), (64, 48), (8, 100)):
            geometry = Geometry(size, fitted, crop_pct, interpolation, (10, 20, 30))
            found = fit_batch(torch.from_numpy(image)[None], geometry)[0].numpy()
            np.testing.assert_array_equal(
                found, fit(Image.fromarray(image), geometry), err_msg=str((image.shape, size))
            )


def test_torch_leaves_an_image_of_the_models_size_alone_and_takes_several():
    images = torch.randint(256, (3, 24, 40, 3), dtype=torch.uint8)
    for fitted in FITS:
        for interpolation in INTERPOLATIONS:
            assert torch.equal(fit_batch(images, Geometry((24, 40), fitted, 1.0, interpolation)), images)
    several = fit_batch(images, Geometry((16, 16)))
    assert torch.equal(several, torch.cat([fit_batch(image[None], Geometry((16, 16))) for image in images]))


# -- in exported programs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=name_of)
def test_exported_programs_are_given_raw_photos_and_see_the_same(photos, model_folder, geometry):
    """To the bit as far as pixels go; subtracting and dividing by mean and std may round otherwise in ONNX."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = model_folder(geometry)
    classifier = ImageClassifier.from_pretrained(folder)
    height, width = geometry.size
    found = export_programs(folder, ["onnx", "torch"], torch.zeros(2, height, width, 3, dtype=torch.uint8))
    assert all(program.difference < 1e-6 for program in found)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    program = torch.export.load(folder / "model.pt2").module()
    for path in sorted((photos / "test/a").iterdir()):
        raw = upright(path)[None]
        expected = fit(Image.fromarray(raw[0]), classifier.model_config.geometry)[None]
        by_onnx = session.run(["logits"], {"images": raw})[0]
        by_torch = program(torch.from_numpy(raw)).detach().numpy()
        for logits in (by_onnx, by_torch):
            assert np.abs(logits - inputs_of(expected)).max() < 1e-5, path.name
            np.testing.assert_array_equal(levels(logits, geometry), expected, err_msg=path.name)


def levels(inputs: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The pixels, uint8 (N, height, width, 3), that normalised inputs (N, 3 x height x width) came from."""
    normalised = inputs.reshape(-1, 3, *geometry.size).transpose(0, 2, 3, 1)
    return (255 * (normalised * np.float32(STD) + np.float32(MEAN))).round().astype(np.uint8)
