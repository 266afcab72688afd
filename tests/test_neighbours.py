"""What the nearest training images promise."""

import csv
import json

import numpy as np
from safetensors import safe_open

import analyze
from data.sources import load_split
from data.splits import stratified_split
from tests.saved_runs import change
from utils.analysis.sections.neighbours import PER_IMAGE, nearest
from utils.config import AnalyzeConfig


def test_the_nearest_have_the_largest_cosines_and_come_in_their_order():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((7, 12)).astype(np.float16)
    training = generator.standard_normal((200, 12)).astype(np.float16)
    positions, similarities = nearest(features, training)
    one, other = (
        each.astype(float) / np.linalg.norm(each.astype(float), axis=1)[:, None] for each in (features, training)
    )
    cosines = one @ other.T
    expected = np.argsort(-cosines, axis=1)[:, :PER_IMAGE]
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(similarities, np.take_along_axis(cosines, expected, 1), atol=1e-5)


def test_an_image_that_was_trained_on_is_its_own_nearest_however_strong_its_features():
    training = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float16)
    positions, similarities = nearest(2 * training[[3, 7]], training)
    np.testing.assert_array_equal(positions[:, 0], [3, 7])
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-3)


def test_few_training_images_and_no_mistakes_are_no_fault():
    training = np.ones((2, 4), np.float16)
    assert nearest(np.ones((3, 4), np.float16), training)[0].shape == (3, 2)
    assert nearest(np.ones((0, 4), np.float16), training)[0].shape == (0, 2)


def test_every_mistake_has_neighbours_among_what_was_trained_on_and_a_second_call_asks_no_model(run, monkeypatch):
    change(run / "config.yaml", validation_fraction=0.5)
    config = AnalyzeConfig(run=str(run), only=["neighbours"])
    summary = analyze.main(config)
    train, names = load_split("digits", "", "train", 16)
    _, held_out = stratified_split(train.labels, 0.5, seed=0)
    with open(run / "analysis/neighbours.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == PER_IMAGE * summary["misclassified_count"] > 0
    positions = [int(row["training_index"]) for row in rows]
    assert not np.isin(positions, held_out).any()
    assert [row["training_label"] for row in rows] == [names[label] for label in train.labels[positions]]
    for which in ("predicted", "true"):
        share = np.mean([row["training_label"] == row[which] for row in rows])
        assert summary["neighbours"][f"of_the_{which}_class"] == share
    page = (run / "analysis/report.html").read_text()
    assert page.count('<li><script type="application/json">{"positions":') == min(20, summary["misclassified_count"])

    monkeypatch.setattr("utils.analysis.sections.neighbours.predict_split", None)
    monkeypatch.setattr("utils.analysis.inference.predict_split", None)
    assert analyze.main(config) == summary
    with safe_open(run / "analysis/cache/neighbours.safetensors", framework="np") as file:
        fingerprint = json.loads(file.metadata()["fingerprint"])
    assert len(fingerprint["images_sha256"]) == 2  # of the test and of the training images
