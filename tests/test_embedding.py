"""What the map of the test images promises."""

import csv

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import analyze
from utils.analysis.predictions import Predictions
from utils.analysis.sections import embedding
from utils.config import AnalyzeConfig


@pytest.fixture(scope="module")
def mapped(digits_run, tmp_path_factory):
    """The results of an analysis with the map alone."""
    folder = tmp_path_factory.mktemp("mapped")
    analyze.main(AnalyzeConfig(run=str(digits_run), output_dir=str(folder), only=["embedding"]))
    return folder


def predictions_of(images: int, mistakes: int) -> Predictions:
    """Ten classes in turn; the first `mistakes` images are predicted as the next class."""
    labels = np.arange(images) % 10
    logits = np.eye(10, dtype=np.float32)[np.where(np.arange(images) < mistakes, (labels + 1) % 10, labels)]
    return Predictions(logits, np.zeros((images, 4), np.float16), labels)


def test_every_mistake_is_on_the_map_and_right_images_of_each_class_fill_it():
    chosen = embedding.choose_points(predictions_of(20_000, 1500))
    assert len(chosen) == len(set(chosen)) == embedding.MOST_POINTS
    assert set(range(1500)) <= set(chosen)
    np.testing.assert_array_equal(np.bincount(chosen[chosen >= 1500] % 10), 350)


def test_a_model_with_many_mistakes_has_right_images_on_its_map_too():
    chosen = embedding.choose_points(predictions_of(20_000, 15_000))
    assert len(chosen) == embedding.MOST_POINTS
    assert (chosen < 15_000).sum() == embedding.MOST_MISTAKES


def test_the_map_does_not_depend_on_the_threads():
    features = np.random.default_rng(0).standard_normal((200, 60)).astype(np.float16)
    maps = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            maps.append(embedding.embed(features, np.arange(200)))
    np.testing.assert_array_equal(maps[0].tsne, maps[1].tsne)
    np.testing.assert_array_equal(maps[0].pca, maps[1].pca)


def test_names_that_would_overlap_are_moved_apart():
    centres = np.array([[500, 500], [510, 505], [505, 495], [900, 500]])
    free = embedding.apart(centres, np.full(4, 100.0), 30)
    np.testing.assert_array_equal(free[:, 0], centres[:, 0])
    assert (np.diff(np.sort(free[:3, 1])) >= 30).all()
    np.testing.assert_array_equal(free[3], centres[3])


def test_images_of_one_class_lie_together(mapped):
    with open(mapped / "embedding.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(360))
    places = np.array([[float(row["tsne_1"]), float(row["tsne_2"])] for row in rows])
    labels = np.array([row["true"] for row in rows])
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).mean() > 0.6  # by chance 0.1


def test_pointer_and_arrow_keys_show_the_image_behind_a_point(mapped):
    expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright (requirements-dev.txt)").expect
    from tests.browser import open_browser

    errors = []
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((mapped / "report.html").as_uri())
        tsne, pca = page.locator(".maps svg").all()
        card = page.locator(".maps .card")
        expect(card).to_be_hidden()

        box = tsne.bounding_box()
        path = tsne.locator("path").first
        x, y = (int(number) for number in path.get_attribute("d").split("h")[0].removeprefix("M").split())
        tsne.hover(position={"x": x * box["width"] / 1000, "y": y * box["height"] / 1000})
        expect(card).to_be_visible()
        expect(card).to_contain_text("Test image")
        expect(card.locator(".fact")).to_contain_text("correct")
        expect(pca.locator(".marker")).to_be_visible()
        page.mouse.move(1, 1)
        expect(card).to_be_hidden()

        page.get_by_label("mistakes only").check()
        expect(tsne.locator("path.dot").first).to_be_hidden()
        page.get_by_label("mistakes only").focus()
        page.keyboard.press("Tab")
        expect(tsne).to_be_focused()
        expect(card).to_contain_text("predicted")
        shown = {card.inner_text()}
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):  # in some direction there is another point
            page.keyboard.press(key)
            shown.add(card.inner_text())
        assert len(shown) > 1
        page.keyboard.press("Escape")
        expect(card).to_be_hidden()
    assert not errors
