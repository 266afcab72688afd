"""What is shown of a photo: what the model sees of it, undistorted, or the whole photo with that part framed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import analyze
from data.files import FilePhoto, ImageFiles, decode_file
from data.images import InMemory
from data.preprocessing import Geometry, fit
from data.sources import load_split
from tests.saved_runs import change
from tests.test_analysis import images_of
from utils.analysis.cam.maps import ENLARGED_SIDE, overlay
from utils.analysis.report.atlas import LONGEST_SIDE, Atlas, Tile
from utils.analysis.views import WHOLE_SIDE, Views, whole_view
from utils.config import AnalyzeConfig

GEOMETRIES = [
    Geometry((96, 96)),
    Geometry((96, 96), crop_pct=0.8),
    Geometry((64, 128), "squash"),
    Geometry((64, 128), "squash", 0.8),
    Geometry((96, 96), "pad", fill=(90, 90, 90)),
    Geometry((128, 64), "pad", fill=(90, 90, 90)),
    Geometry((128, 64)),
]
LANDSCAPE, PORTRAIT = (480, 320), (320, 480)  # width and height


def dotted(folder: Path, size: tuple[int, int], dot: tuple[float, float], orientation: int = 1) -> Path:
    """A black photo with a white dot, at shares of its width and height; stored so that its EXIF turns it upright."""
    width, height = size
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    near = (columns - dot[0] * width) ** 2 + (rows - dot[1] * height) ** 2 < 30**2
    image = Image.fromarray(np.where(near, 255, 0).astype(np.uint8)).convert("RGB")
    stored = {1: image, 3: image.rotate(180), 6: image.rotate(90, expand=True), 8: image.rotate(-90, expand=True)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored[orientation].save(folder / "photo.png", exif=exif)
    return folder / "photo.png"


def heat(shown: np.ndarray) -> np.ndarray:
    """How coloured a map is at each pixel."""
    return shown[..., 0].astype(float) - shown[..., 2]


def centre(values: np.ndarray) -> tuple[float, float]:
    """The centre of gravity, in shares of width and height."""
    height, width = values.shape
    columns, rows = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return float((values * columns).sum() / values.sum()), float((values * rows).sum() / values.sum())


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT], ids=["landscape", "portrait"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.cache_name)
def test_the_map_lies_over_the_part_of_the_whole_photo_that_it_is_of(tmp_path, geometry, size, orientation):
    """The map of a model that looks at what is bright must lie on what is bright in the photo."""
    dot = (0.42, 0.57)
    path = dotted(tmp_path, size, dot, orientation)
    cam = fit(decode_file(path), geometry)[..., 0].astype(np.float32) / 255
    if geometry.fit == "pad":  # its bars are grey
        cam = np.where(cam > 0.6, cam, 0).astype(np.float32)
    view = whole_view(FilePhoto(path), geometry)
    assert view.image.shape == ((213, 320, 3) if size == LANDSCAPE else (320, 213, 3))
    found = heat(view.overlay(cam / cam.max()))
    assert centre(found) == pytest.approx(dot, abs=0.01)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.cache_name)
def test_a_map_of_everything_covers_what_the_model_sees_and_nothing_else(tmp_path, geometry):
    view = whole_view(FilePhoto(dotted(tmp_path, LANDSCAPE, (0.5, 0.5))), geometry)
    covered = heat(view.overlay(np.ones(geometry.size, np.float32))) > 0
    left, top, right, bottom = view.seen
    width, height = min(right, 320) - max(left, 0), min(bottom, 213) - max(top, 0)
    assert covered.sum() == pytest.approx(width * height, rel=0.02)
    shares = {"crop": 1 / 1.5, "squash": 1.0, "pad": 1.0}[geometry.fit] * geometry.crop_pct**2
    if geometry.size[0] == geometry.size[1] or geometry.fit != "crop":
        assert covered.mean() == pytest.approx(shares, rel=0.03)


@pytest.mark.parametrize("geometry", [geometry for geometry in GEOMETRIES if geometry.fit != "pad"])
def test_what_is_in_the_frame_is_what_the_model_sees(tmp_path, geometry):
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((900, 600), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg", quality=95)
    view = whole_view(FilePhoto(tmp_path / "photo.jpg"), geometry)
    left, top, right, bottom = (round(edge) for edge in view.seen)
    inside = Image.fromarray(view.image[top:bottom, left:right]).resize(geometry.size[::-1], Image.Resampling.BILINEAR)
    seen = fit(decode_file(tmp_path / "photo.jpg"), geometry).astype(float)
    assert np.abs(np.asarray(inside) - seen).mean() < 4
    changed = (view.picture != view.image).any(2)
    assert changed[top : top + 2, left:right].mean() > 0.9
    assert not changed[top + 10 : bottom - 10, left + 10 : right - 10].any()
    assert not changed[: max(0, top - 1)].any()


def test_small_photos_are_enlarged_and_their_maps_with_them(tmp_path):
    Image.new("RGB", (30, 20), (9, 9, 9)).save(tmp_path / "photo.png")
    view = whole_view(FilePhoto(tmp_path / "photo.png"), Geometry((16, 16)))
    shown = view.overlay(np.ones((16, 16), np.float32))
    assert view.picture.shape == shown.shape == (120, 180, 3)
    assert np.flatnonzero(heat(shown).any(0))[[0, -1]].tolist() == [30, 149]


def test_images_that_were_not_fitted_are_whole_already():
    split, _ = load_split("digits", "", "test", Geometry((16, 24)))
    views = Views(split.images, Geometry((16, 24)))
    assert views.view(3).seen is None
    np.testing.assert_array_equal(views[3], split.images[3])


def test_a_map_has_the_shape_of_its_image():
    for height, width in ((16, 24), (40, 20), (200, 100)):
        shown = overlay(np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.float32))
        assert shown.shape[0] / shown.shape[1] == height / width
        assert max(shown.shape) >= ENLARGED_SIDE


# -- on the page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 24), (48, 20), (100, 200)])
def test_tiles_keep_the_shape_of_the_images(size):
    images = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    atlas = Atlas()
    atlas.place([Tile("test", index, InMemory(images), 0) for index in range(5)])
    sheets = atlas.sheets(10_000_000)
    factor = min(1.0, LONGEST_SIDE / max(size))
    assert sheets["sizes"] == [(round(size[0] * factor), round(size[1] * factor))]
    assert sheets["scaled"] == (factor < 1)
    assert all(cell - side in range(8) for cell, side in zip(sheets["cell"], sheets["sizes"][0], strict=True))


def test_whole_photos_of_several_shapes_have_tiles_of_several_shapes(tmp_path):
    paths = []
    for number, size in enumerate([LANDSCAPE, PORTRAIT, (30, 30)]):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", size).save(paths[-1])
    geometry, atlas = Geometry((16, 16)), Atlas()
    views = Views(ImageFiles(paths, geometry), geometry)
    atlas.place([Tile("test", index, views, 0) for index in range(3)])
    assert atlas.sheets(10_000_000)["sizes"] == [(43, 64), (64, 43), (64, 64)]


@pytest.fixture
def photo_run(run, tmp_path) -> Path:
    """A run whose test images are portraits: the digits with a band above and one below."""
    split, _ = load_split("digits", "", "test", 16)
    for part in ("train", "test"):
        for index in range(40):
            folder = tmp_path / "photos" / part / str(split.labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.pad(split.images[index], ((8, 8), (0, 0), (0, 0)), mode="edge")
            Image.fromarray(pixels.repeat(20, 0).repeat(20, 1)).save(folder / f"{index}.png")
    change(run / "config.yaml", dataset="imagefolder", data_dir=str(tmp_path / "photos"))
    return run


def test_the_report_shows_whole_photos_and_maps_over_them_on_demand(photo_run):
    for whole, shape in ((False, (16, 16, 3)), (True, (WHOLE_SIDE, WHOLE_SIDE // 2, 3))):
        analyze.main(AnalyzeConfig(run=str(photo_run), whole=whole, only=["gallery", "gradcam"]))
        page = (photo_run / "analysis/report.html").read_text()
        pictures = images_of(page, "Test image")
        assert pictures
        assert {picture.shape for picture in pictures} == {shape}
        maps = images_of(page, "Heat map")
        assert {found.shape[0] / found.shape[1] for found in maps} == {shape[0] / shape[1]}
        assert ("Photos are whole" in page) == whole
        sheets = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["sheets"]
        assert sheets["sizes"] == [[64, 32] if whole else [16, 16]]


def test_predictions_show_whole_photos_on_demand(photo_run, tmp_path):
    photo = next((tmp_path / "photos/test").rglob("*.png"))
    said = []
    for whole, shape in ((False, (160, 160, 3)), (True, (160, 80, 3))):
        said.append(analyze.main(AnalyzeConfig(run=str(photo_run), whole=whole, predict=[str(photo)])))
        page = (photo_run / "analysis/predict/predict.html").read_text()
        (picture,) = images_of(page, photo.name)
        assert picture.shape == shape
        assert ("in the frame: what the model sees" in page) == whole
    assert said[0] == said[1]
