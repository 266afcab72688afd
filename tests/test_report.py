"""What report.html promises, read back in a real browser."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import softmax

import analyze
from data.images import InMemory
from data.sources import load_split
from data.splits import Split
from models.saved import load_model
from tests.saved_runs import sections_of
from utils.analysis.predictions import Predictions
from utils.analysis.report.atlas import Atlas, tiles_of
from utils.analysis.report.page import render_report
from utils.analysis.scores import headline
from utils.analysis.sections import MODULES, choose_sections
from utils.config import AnalyzeConfig
from utils.runs.saved_run import open_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (requirements-dev.txt)")
from axe_playwright_python.sync_playwright import Axe  # noqa: E402

from tests.browser import find_chromium, open_browser  # noqa: E402

ROOT = Path(__file__).parents[1]
# A folder may be named so; where the page took it for HTML, it would run, ask for a file or end the script.
NAMES = tuple(f'{digit}<img src=x onerror="fail()"> & long' for digit in range(10))
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def weak_run(digits_run, tmp_path_factory) -> Path:
    """The analysis of a run on an image folder, whose model makes more than a hundred mistakes."""
    run = Path(shutil.copytree(digits_run, tmp_path_factory.mktemp("weak") / "run"))
    split, _ = load_split("digits", "", "test", 16)
    for part in ("train", "test"):
        for index, (image, label) in enumerate(zip(split.images[:], split.labels, strict=True)):
            folder = run / "images" / part / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.png")
    for name, values in (
        ("config.yaml", {"dataset": "imagefolder", "data_dir": str(run / "images")}),
        ("model/config.json", {"class_names": NAMES}),
    ):
        content = yaml.safe_load((run / name).read_text()) | values
        (run / name).write_text(json.dumps(content) if name.endswith("json") else yaml.safe_dump(content))
    weights = load_file(run / "model/model.safetensors")
    noise = torch.randn(weights["fc.weight"].shape, generator=torch.Generator().manual_seed(0))
    weights["fc.weight"] += 0.8 * weights["fc.weight"].std() * noise
    save_file(weights, run / "model/model.safetensors")
    summary = analyze.main(AnalyzeConfig(run=str(run)))
    assert 100 < summary["misclassified_count"] < 340  # which ones depends on how the machine rounds
    return run


@pytest.fixture(scope="module")
def report(weak_run) -> Path:
    return weak_run / "analysis/report.html"


@pytest.fixture(scope="module")
def summary(weak_run) -> dict:
    return json.loads((weak_run / "analysis/summary.json").read_text())


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the page must say, from predictions.npz and the image folder."""

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> np.ndarray:
        return self.probabilities.max(1)

    @property
    def wrong(self) -> np.ndarray:
        """Indices of the mistakes."""
        return np.flatnonzero(self.predicted != self.labels)

    def cell(self, true: int, predicted: int) -> list[int]:
        """Indices of the images of a cell of the confusion matrix."""
        return np.flatnonzero((self.labels == true) & (self.predicted == predicted)).tolist()


@pytest.fixture(scope="module")
def truth(weak_run) -> Truth:
    kept = np.load(weak_run / "analysis/predictions.npz")
    split, _ = load_split("imagefolder", weak_run / "images", "test", 16)
    return Truth(split.images[:], kept["labels"], softmax(kept["logits"].astype(float), axis=1))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if find_chromium() is None:
        pytest.skip("needs Chromium: the system's, or that of `playwright install chromium`")
    with open_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser):
    """Opens a file in a context of the given options; in the end nothing else was asked for and nothing went wrong."""
    contexts, faults = [], []

    def look_at(request: playwright.Request, path: Path) -> None:
        if request.url not in (path.as_uri(), path.as_uri() + "#classes") and not request.url.startswith("data:"):
            faults.append(f"asked for {request.url}")

    def open_file(path: Path, **options) -> playwright.Page:
        desktop = {"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce"}
        context = browser.new_context(**{**desktop, **options})
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on("request", lambda request: look_at(request, path))
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def page(open_page, report) -> playwright.Page:
    return open_page(report)


def shown(page: playwright.Page, gallery: str) -> list[int]:
    """Indices of the images that a gallery shows now, in order."""
    texts = page.locator(f"#{gallery} .tile").evaluate_all("tiles => tiles.map(tile => tile.innerText)")
    return [int(re.search(r"Test image (\d+)", text)[1]) for text in texts]


def facts(tile: playwright.Locator) -> dict[str, str]:
    """The classes below an image."""
    return dict(re.split(r"\s+", text, maxsplit=1) for text in tile.locator(".fact").all_inner_texts())


def choice(page: playwright.Page, label: str) -> playwright.Locator:
    """A control of the gallery of mistakes."""
    return page.locator("#mistakes").get_by_label(label, exact=True)


def all_shown(page: playwright.Page, gallery: str) -> list[int]:
    """The same after everything there is to show was asked for."""
    more = page.locator(f"#{gallery} .more")
    while more.is_visible():
        more.click()
    return shown(page, gallery)


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_headline_is_that_of_the_summary(page, summary, weak_run):
    numbers = dict(zip(page.locator(".numbers dt").all_inner_texts(), page.locator(".numbers dd").all(), strict=True))
    trained = json.loads((weak_run / "summary.json").read_text())
    low, high = (100 * bound for bound in summary["accuracy_interval_95"])
    accuracy = numbers["Test accuracy"].inner_text()
    assert f"{100 * summary['accuracy']:.2f} %" in accuracy
    assert f"{summary['count'] - summary['misclassified_count']} of {summary['count']} images" in accuracy
    assert f"95 % interval {low:.2f}–{high:.2f} %" in accuracy
    assert f"{summary['loss']:.4f}" in numbers["Test loss"].inner_text()
    assert f"{summary['expected_calibration_error']:.4f}" in numbers["Calibration error"].inner_text()
    assert f"{trained['parameters']:,}" in numbers["Parameters"].inner_text()
    assert f"{trained['train_seconds']:.1f} s" in numbers["Training time"].inner_text()
    recipe = page.locator(".recipe code").all_inner_texts()
    assert {"epochs 2", "lr 0.1", "batch_size 64", "width 16"} <= set(recipe)


def test_scores_of_each_class_are_those_of_the_summary(page, summary):
    rows = page.locator(".scores tbody tr").all()
    for row, (name, scores) in zip(rows, summary["per_class"].items(), strict=True):
        expected = [f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")]
        assert row.locator("th").inner_text() == name
        assert row.locator("td").all_inner_texts()[:4] == [*expected, str(scores["support"])]


def test_class_names_are_shown_as_they_are(page):
    assert page.locator(".matrix tbody th").all_inner_texts() == list(NAMES)
    assert NAMES[0] in choice(page, "True class").locator("option").nth(1).inner_text()
    assert any(name in page.locator("#mistakes .tile").first.inner_text() for name in NAMES)
    assert page.locator("img[src=x]").count() == 0


def test_the_navigation_leads_to_every_section(page):
    targets = [link.get_attribute("href").removeprefix("#") for link in page.locator("nav a").all()]
    shown = [name for name in choose_sections(AnalyzeConfig(run="x")) if name != "start"]  # there were no start weights
    assert targets == shown
    assert shown == [
        name for name, module in MODULES.items() if module.COST == "quick" and name not in ("compare", "start")
    ]
    assert targets == [section.get_attribute("id") for section in page.locator("section").all()]
    page.locator("nav a", has_text="Classes").click()
    assert page.locator("#classes h2").first.is_visible()


def test_without_javascript_the_page_still_reads(open_page, report, summary):
    page = open_page(report, java_script_enabled=False)
    assert f"{100 * summary['accuracy']:.2f} %" in page.locator("header").inner_text()
    assert "with JavaScript" in page.locator("#gallery").inner_text()
    assert page.locator(".matrix button").count() == 100
    assert page.locator("select, .more").count() == 0


# -- the confusion matrix ---------------------------------------------------------------------------------------------


def test_a_cell_shows_exactly_its_images(page, truth):
    counts = {cell: len(truth.cell(*cell)) for cell in np.ndindex(10, 10) if cell[0] != cell[1]}
    for true, predicted in sorted(counts, key=counts.get)[-3:]:
        button = page.locator(f'.matrix button[data-true="{true}"][data-predicted="{predicted}"]')
        assert button.inner_text() == str(counts[true, predicted])
        button.click()
        assert page.locator(".behind h3").inner_text() == f"{NAMES[true]} predicted as {NAMES[predicted]}"
        indices = all_shown(page, "cell")
        assert sorted(indices) == truth.cell(true, predicted)
        for index, tile in zip(indices, page.locator("#cell .tile").all(), strict=True):
            assert facts(tile) == {"true": NAMES[true], "predicted": NAMES[predicted]}
            bars = [text.split("\n") for text in tile.locator("li").all_inner_texts()]
            top = np.argsort(-truth.probabilities[index], kind="stable")[:3].tolist()
            labels = top if true in top else [*top, true]
            assert [name for name, _ in bars] == [NAMES[label] for label in labels]
            values = [float(value.removesuffix(" %")) for _, value in bars]
            assert values == pytest.approx(100 * truth.probabilities[index, labels], abs=0.06)


def test_the_diagonal_shows_the_least_confident_right_images(page, truth):
    right = truth.cell(4, 4)
    page.locator('.matrix button[data-true="4"][data-predicted="4"]').click()
    assert shown(page, "cell") == sorted(right, key=truth.confidence.__getitem__)[:20]
    assert facts(page.locator("#cell .tile").first) == {"correct": NAMES[4]}


def test_an_empty_cell_says_so(page, truth):
    true, predicted = next(cell for cell in np.ndindex(10, 10) if not truth.cell(*cell))
    page.locator(f'.matrix button[data-true="{true}"][data-predicted="{predicted}"]').click()
    assert page.locator("#cell [role=status]").inner_text() == "No images"
    assert shown(page, "cell") == []


def test_the_matrix_works_by_keyboard(page, truth):
    assert page.locator('.matrix button[tabindex="0"]').count() == 1
    page.locator('.matrix button[tabindex="0"]').focus()
    for key in ("Control+Home", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.locator(".behind h3").inner_text() == f"{NAMES[2]} predicted as {NAMES[1]}"
    assert sorted(all_shown(page, "cell")) == truth.cell(2, 1)
    for key in ("End", "ArrowRight", "Control+End", "Home", "Space"):
        page.keyboard.press(key)
    assert page.locator(".behind h3").inner_text() == f"{NAMES[9]} predicted as {NAMES[0]}"
    assert page.locator('.matrix button[tabindex="0"]').count() == 1
    assert page.locator(".matrix button[aria-current]").get_attribute("data-true") == "9"


def test_the_list_of_confusions_opens_its_cells(page, truth, summary):
    for entry, pair in zip(page.locator(".pairs button").all(), summary["most_confused"], strict=True):
        assert entry.inner_text().split("\n") == [
            f"{pair['true']} predicted as {pair['predicted']}",
            str(pair["count"]),
        ]
    entry.click()
    assert sorted(all_shown(page, "cell")) == truth.cell(NAMES.index(pair["true"]), NAMES.index(pair["predicted"]))


# -- the gallery ------------------------------------------------------------------------------------------------------


def test_mistakes_sort_by_confidence_and_class(page, truth):
    sort = choice(page, "Sort")
    confidence = np.sort(truth.confidence[truth.wrong])
    assert set(all_shown(page, "mistakes")) == set(truth.wrong)
    for order, expected in (("most confident first", confidence[::-1]), ("least confident first", confidence)):
        sort.select_option(order)
        np.testing.assert_allclose(truth.confidence[all_shown(page, "mistakes")], expected, atol=1e-6)
    sort.select_option("by true class")
    assert truth.labels[all_shown(page, "mistakes")].tolist() == sorted(truth.labels[truth.wrong])
    sort.select_option("by predicted class")
    assert truth.predicted[all_shown(page, "mistakes")].tolist() == sorted(truth.predicted[truth.wrong])


def test_mistakes_filter_by_true_and_predicted_class(page, truth):
    by_true, by_predicted = choice(page, "True class"), choice(page, "Predicted class")
    status = page.locator("#mistakes [role=status]")
    true, predicted = max(((t, p) for t, p in np.ndindex(10, 10) if t != p), key=lambda cell: len(truth.cell(*cell)))
    by_true.select_option(str(true))
    of_class = [index for index in truth.wrong if truth.labels[index] == true]
    assert sorted(all_shown(page, "mistakes")) == of_class
    assert status.inner_text().startswith(f"{len(of_class)} mistake")
    by_predicted.select_option(str(predicted))
    assert sorted(all_shown(page, "mistakes")) == truth.cell(true, predicted)
    offered = by_predicted.locator("option").all_inner_texts()
    assert offered[predicted + 1] == f"{NAMES[predicted]} ({len(truth.cell(true, predicted))})"
    by_true.select_option("")
    assert sorted(all_shown(page, "mistakes")) == [i for i in truth.wrong if truth.predicted[i] == predicted]


def test_the_gallery_shows_60_and_more_on_a_press(page, truth):
    status, more = page.locator("#mistakes [role=status]"), page.locator("#mistakes .more")
    total = len(truth.wrong)
    first = shown(page, "mistakes")
    assert status.inner_text() == f"{total} mistakes, 60 shown"
    more.focus()
    page.keyboard.press("Enter")
    assert len(first) == 60
    assert shown(page, "mistakes")[:60] == first
    assert len(set(shown(page, "mistakes"))) == min(120, total)
    assert sorted(all_shown(page, "mistakes")) == truth.wrong.tolist()
    assert status.inner_text() == f"{total} mistakes"
    assert page.evaluate("document.activeElement.getAttribute('role')") == "status"


def test_images_are_the_pixels_of_the_data_set(page, truth):
    page.evaluate("Promise.all(sheets)")
    read = "all => all.map(one => Array.from(one.getContext('2d').getImageData(0, 0, one.width, one.height).data))"
    pixels = np.array(page.locator("#mistakes canvas").evaluate_all(read)).reshape(-1, 16, 16, 4)
    np.testing.assert_array_equal(pixels[..., :3], truth.images[shown(page, "mistakes")])


def test_mistakes_csv_names_the_files(weak_run, truth):
    with open(weak_run / "analysis/mistakes.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["index"]) for row in rows) == truth.wrong.tolist()
    for row in rows[:5]:
        np.testing.assert_array_equal(np.asarray(Image.open(row["path"])), truth.images[int(row["index"])])


# -- everyone can read it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {**PHONE, "color_scheme": "dark"}])
def test_axe_finds_no_barrier(open_page, report, options):
    """Contrast of texts, names of controls, alternative texts, the grid's roles: WCAG 2 as axe-core checks it."""
    page = open_page(report, **options)
    page.locator("summary").click()
    found = Axe().run(page, options={"resultTypes": ["violations", "passes"]}).response
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found["violations"]] == []
    checked = {rule["id"]: len(rule["nodes"]) for rule in found["passes"]}
    assert checked["color-contrast"] > 200
    assert checked["role-img-alt"] >= 60


def test_dark_mode_is_dark_and_print_is_not(open_page, report):
    page = open_page(report, color_scheme="dark")

    def luminance() -> float:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return float(np.mean([int(value) for value in re.findall(r"\d+", colour)[:3]]))

    assert luminance() < 60
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance() == 255
    assert not page.locator("nav").is_visible()
    assert not page.locator("#mistakes .controls").is_visible()


def test_a_phone_scrolls_in_one_direction_only(open_page, report):
    page = open_page(report, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator('.matrix button[data-true="3"][data-predicted="3"]').tap()
    assert page.locator(".behind h3").inner_text().startswith(f"{NAMES[3]} classified correctly")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_page_moves_by_itself_only_for_those_who_like_it(open_page, report):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert open_page(report).evaluate(behaviour) == "auto"
    assert open_page(report, reduced_motion="no-preference").evaluate(behaviour) == "smooth"


# -- size and many classes --------------------------------------------------------------------------------------------


def noise(count: int, side: int = 32) -> np.ndarray:
    """Images that compress worst."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def guesses(images: np.ndarray, classes: int) -> tuple[Split, Predictions]:
    """A test set and a model that guesses its classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(len(images)) % classes
    logits = generator.normal(size=(len(images), classes)).astype(np.float32)
    return Split(InMemory(images), labels), Predictions(logits, np.empty((len(images), 0), np.float16), labels)


def written_page(run: Path, folder: Path, split: Split, predictions: Predictions, names: tuple[str, ...]) -> Path:
    """The page of these predictions, with the two sections that show images."""
    _, config = load_model(run / "model")
    config = dataclasses.replace(config, class_names=names, image_size=32)
    sections = sections_of(("classes", "gallery"), predictions, split, config)
    page = render_report(
        run=open_run(run),
        model_config=config,
        mixed_precision="no",
        parameters=1,
        summary=headline(predictions, names),
        sections=sections,
        figures={name: path for section in sections.values() for name, path in section.write(folder).items()},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def test_a_page_with_thousands_of_mistakes_stays_under_8_mb_and_says_what_is_left_out(open_page, digits_run, tmp_path):
    split, predictions = guesses(noise(8000), 10)
    path = written_page(digits_run, tmp_path, split, predictions, tuple(f"class {index}" for index in range(10)))
    assert 7_000_000 < path.stat().st_size < 8_000_000
    page = open_page(path)
    left_out = int(re.search(r"no room for ([\d,]+)", page.locator("footer").inner_text())[1].replace(",", ""))
    total = int(page.evaluate("data.images.length"))
    assert page.evaluate("data.sheets.order.length") == total - left_out
    choice(page, "Sort").select_option("least confident first")
    assert page.locator("#mistakes .tile").first.locator(".blank").inner_text() == "no room for the image"
    assert page.locator("#mistakes .tile").first.locator("li").count() >= 3


def test_images_are_lossless_then_compressed_then_fewer_the_least_important_first():
    split, predictions = guesses(noise(300), 10)
    atlas = Atlas()
    hover = atlas.place(tiles_of(split.images, predictions, range(100)), last=True)
    listed = atlas.place(tiles_of(split.images, predictions, range(50, 300)))
    assert hover[50:] == listed[:50]
    lossless, compressed, fewer = (atlas.sheets(limit) for limit in (2_000_000, 1_000_000, 200_000))
    assert lossless["lossless"]
    assert not compressed["lossless"]
    assert len(lossless["order"]) == len(compressed["order"]) == 300
    assert sum(map(len, compressed["sources"])) <= 1_000_000
    assert 0 < len(fewer["order"]) < 250
    assert set(fewer["order"]) <= set(listed)
    assert sum(map(len, fewer["sources"])) <= 200_000
    assert atlas.sheets(0)["order"] == []


def test_large_images_are_scaled_down(open_page, digits_run, tmp_path):
    split, predictions = guesses(np.full((12, 100, 100, 3), (200, 100, 50), np.uint8), 3)
    page = open_page(written_page(digits_run, tmp_path, split, predictions, ("a", "b", "c")))
    page.evaluate("Promise.all(sheets)")
    canvas = page.locator("#mistakes canvas").first
    read = "one => [one.width, one.height, ...one.getContext('2d').getImageData(63, 63, 1, 1).data]"
    assert canvas.evaluate(read) == [64, 64, 200, 100, 50, 255]


@pytest.mark.parametrize(("height", "width"), [(16, 24), (60, 20)])
def test_images_that_are_not_square_keep_their_shape_and_their_pixels(open_page, digits_run, tmp_path, height, width):
    images = np.zeros((70, height, width, 3), np.uint8)
    images[:, -1, -1] = np.arange(70)[:, None] + (1, 50, 100)  # in the last corner, another colour in each
    split, predictions = guesses(images, 3)
    page = open_page(written_page(digits_run, tmp_path, split, predictions, ("a", "b", "c")))
    page.evaluate("Promise.all(sheets)")
    for place in (0, 30):
        canvas = page.locator("#mistakes canvas").nth(place)
        read = f"one => [...one.getContext('2d').getImageData({width - 1}, {height - 1}, 1, 1).data]"
        index = shown(page, "mistakes")[place]
        assert canvas.evaluate("one => [one.height, one.width]") == [height, width]
        assert canvas.evaluate(read) == [index + 1, index + 50, index + 100, 255]
        box = canvas.bounding_box()
        cell = (8 * -(-height // 8)) / (8 * -(-width // 8))
        assert box["height"] / box["width"] == pytest.approx(cell, rel=0.02)


def test_many_classes_show_the_figure_and_a_list_of_confusions(open_page, digits_run, tmp_path):
    split, predictions = guesses(noise(200), 40)
    names = tuple(f"class {index}" for index in range(40))
    page = open_page(written_page(digits_run, tmp_path, split, predictions, names))
    assert page.locator(".matrix").count() == 0
    assert "Confusion matrix of 40 classes" in page.locator(".counts img").get_attribute("alt")
    entry = page.locator(".pairs button").nth(7)
    true, predicted = (int(entry.get_attribute(f"data-{kind}")) for kind in ("true", "predicted"))
    entry.click()
    expected = np.flatnonzero((predictions.labels == true) & (predictions.classes == predicted))
    assert sorted(shown(page, "cell")) == expected.tolist()


def test_a_model_without_mistakes_has_a_page_too(open_page, digits_run, tmp_path):
    labels = np.arange(40)
    logits = 9 * np.eye(40, dtype=np.float32)
    split, predictions = Split(InMemory(noise(40)), labels), Predictions(logits, np.empty((40, 0), np.float16), labels)
    page = open_page(written_page(digits_run, tmp_path, split, predictions, tuple(f"class {i}" for i in labels)))
    assert page.locator("#mistakes [role=status]").inner_text() == "No mistakes"
    assert page.locator(".behind").count() == 0


def test_the_picture_for_the_readme(report, browser, tmp_path):
    command = [sys.executable, "tests/browser.py", str(report), str(tmp_path / "report.png")]
    subprocess.run(command, cwd=ROOT, check=True)
    picture = Image.open(tmp_path / "report.png")
    assert picture.width == 1200
    assert 1000 < picture.height < 3000
