"""What analyze.py --predict promises about the user's own photos."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import analyze
from data.sources import load_split
from tests.saved_runs import change, refusal
from utils.analysis.inference import predict_test
from utils.analysis.photos import find_photos
from utils.analysis.setup import set_up
from utils.config import AnalyzeConfig
from utils.config.parser import parse_config, read_config
from utils.system.errors import UserError
from utils.system.runtime import create_accelerator

COUNT = 6


@pytest.fixture
def photos(tmp_path) -> list[str]:
    """The first test images as files."""
    images = load_split("digits", "", "test", 16)[0].images[:COUNT]
    paths = [tmp_path / f"{index}.png" for index in range(COUNT)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"resolution": 24, "tta": "flip_translate"}])
def test_pictures_are_predicted_as_the_test_set_is(run, photos, settings):
    change(run / "model/config.json", **settings)
    tested = predict_test(set_up(AnalyzeConfig(run=str(run)), create_accelerator()))
    results = analyze.main(AnalyzeConfig(run=str(run), predict=photos))
    assert list(results) == photos
    probabilities = [list(row.values()) for row in results.values()]
    np.testing.assert_allclose(probabilities, tested.probabilities[:COUNT], atol=1e-5)


def test_no_data_set_is_needed_and_no_report_is_written(run, photos, capsys):
    change(run / "config.yaml", dataset="imagefolder", data_dir="nowhere", trackers=["wandb"])
    results = analyze.main(AnalyzeConfig(run=str(run), predict=photos))
    folder = run / "analysis/predict"
    assert [path.name for path in (run / "analysis").iterdir()] == ["predict"]
    assert not (run / "wandb").exists()
    figures = {f"{number}-{number - 1}.png" for number in range(1, COUNT + 1)}
    assert {path.name for path in folder.iterdir()} == {"predictions.csv", "predict.html", ".lock", *figures}
    with open(folder / "predictions.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "predicted", *map(str, range(10))]
    lines = capsys.readouterr().out.splitlines()
    for path, line, row in zip(photos, lines, rows, strict=False):
        (best, share), (second, _), *_ = sorted(results[path].items(), key=lambda pair: -pair[1])
        assert row[:2] == [path, best]
        assert [float(value) for value in row[2:]] == list(results[path].values())
        assert re.match(rf"{re.escape(path)}: {best} {share:.1%}, {second} ", line)
    assert lines[-1] == f"page: {folder / 'predict.html'}"


def test_a_photo_is_turned_upright_and_its_middle_is_cut_out(run, photos, tmp_path):
    image = Image.open(photos[0])
    wide = Image.new("RGB", (40, 16))
    wide.paste(image, (12, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    folder = str(tmp_path / "out")
    results = analyze.main(
        AnalyzeConfig(run=str(run), predict=[photos[0], str(tmp_path / "photo.png")], output_dir=folder)
    )
    first, second = results.values()
    assert first == pytest.approx(second, abs=1e-6)


def test_names_are_shown_as_they_are_and_the_page_stays_small(run, photos, tmp_path, monkeypatch):
    names = ["path", "predicted", "<b>bold</b>", "$x$", *"456789"]
    change(run / "model/config.json", class_names=names)
    odd = tmp_path / "a,b <i>$y$.png"
    Path(photos[0]).rename(odd)
    monkeypatch.setattr("utils.analysis.photos.PAGE_PHOTOS", 2)
    analyze.main(AnalyzeConfig(run=str(run), predict=[str(odd), *photos[1:]]))
    page = (run / "analysis/predict/predict.html").read_text()
    assert "a,b &lt;i&gt;$y$.png" in page
    assert not re.search(r"https?://|<script|<link|@import|<i>|<b>", page)
    assert page.count("<img ") + page.count("no positive evidence") == 2 * 2
    assert page.count("<img ") == page.count(' alt="')
    assert f"{COUNT - 2} more photos" in page
    with open(run / "analysis/predict/predictions.csv", newline="") as file:
        header, row, *_ = csv.reader(file)
    assert header[2:] == names
    assert row[0] == str(odd)


# -- which photos ---------------------------------------------------------------------------------------------------


def test_folders_are_searched_and_each_photo_comes_once(tmp_path):
    inside = [tmp_path / name for name in ("a/1.JPG", "a/b/2.webp", "a/b/3.jpeg", "a/c.png")]
    other = tmp_path / "named.bmp"
    touch(*inside, other, tmp_path / "a/notes.txt", tmp_path / "a/.hidden.png", tmp_path / "a/.cache/4.png")
    touch(tmp_path / "a/results/1-1.png")
    names = [str(other), str(tmp_path / "a"), str(tmp_path / "a/c.png"), str(tmp_path / "a/../a/b")]
    assert find_photos(names, tmp_path / "a/results") == [other, *inside]
    assert find_photos([str(tmp_path / "a/b")], tmp_path / "a") == inside[1:3]
    with pytest.raises(UserError, match="it holds the photos"):
        find_photos([str(tmp_path / "a")], tmp_path / "a")


def test_what_is_no_photo_is_refused_in_one_line(run, photos, tmp_path, capsys):
    broken, empty = tmp_path / "broken.png", tmp_path / "empty"
    broken.write_text("no photo")
    touch(empty / "notes.txt")

    def line(*names: Path | str, **options) -> str:
        return refusal(capsys, run=str(run), predict=[str(name) for name in names], **options)

    assert line(tmp_path / "missing.png").startswith(f"error: predict: {tmp_path / 'missing.png'} does not exist")
    assert line(photos[0], broken).startswith(f"error: predict: {broken} is not a readable image")
    assert line(empty).startswith(f"error: predict: {empty} holds no photo (looking for .jpeg, .jpg, .png, .webp)")
    assert "it holds the photos" in line(photos[0], output_dir=str(tmp_path))
    assert not (run / "analysis").exists()


# -- the option -------------------------------------------------------------------------------------------------------


def test_several_paths_are_words_and_may_hold_commas(tmp_path):
    config = read_config(AnalyzeConfig, ["RUN", "--predict", "a,b.png", "my photos", "--images", "12"])
    assert config == AnalyzeConfig(run="RUN", predict=["a,b.png", "my photos"], images=12)
    file = tmp_path / "options.yaml"
    file.write_text("predict:\n- a,b.png\n- '[x].png'\n")
    assert read_config(AnalyzeConfig, ["RUN", "--config", str(file)]).predict == ["a,b.png", "[x].png"]


def test_paths_that_are_no_list_or_missing_are_refused(tmp_path, capsys):
    file = tmp_path / "options.yaml"
    for text in ("predict: a.png", "predict: null", "predict: [1]"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"predict: .* is not allowed; it must be a list of texts"):
            read_config(AnalyzeConfig, ["RUN", "--config", str(file)])
    with pytest.raises(SystemExit) as end:
        parse_config(AnalyzeConfig, ["RUN", "--predict"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: predict: the value is missing; it must be a list of texts\n"
