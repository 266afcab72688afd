"""What the robustness probe promises of its corruptions."""

import csv

import numpy as np
import pytest
import torch

import analyze
from data.sources import load_split
from models.saved import load_model
from utils.analysis.sections.robustness import CORRUPTIONS, STRENGTHS, Corrupted, corrupt
from utils.config import AnalyzeConfig


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Photograph-like: smooth colours with edges, uint8 (20, 32, 32, 3)."""
    return load_split("digits", "", "test", 32)[0].images[:20] // 2 + np.arange(0, 96, 3, dtype=np.uint8)[:, None]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strength_0_is_the_image_and_more_is_further_from_it(images, name):
    distances = []
    for strength in range(STRENGTHS + 1):
        corrupted = np.stack([corrupt(image, name, strength, index) for index, image in enumerate(images)])
        assert corrupted.dtype == np.uint8
        assert corrupted.shape == images.shape
        distances.append(float(np.abs(corrupted.astype(float) - images).mean()))
    assert distances[0] == 0
    assert (np.diff(distances) > 0).all(), distances


def test_corruptions_are_functions_of_image_and_index_alone(images):
    for name in CORRUPTIONS:
        np.testing.assert_array_equal(corrupt(images[0], name, 3, 7), corrupt(images[0], name, 3, 7))
    assert (corrupt(images[0], "noise", 3, 7) != corrupt(images[0], "noise", 3, 8)).any()


def test_noise_has_the_deviation_that_is_written_down():
    grey = np.full((64, 64, 3), 128, np.uint8)
    for strength, deviation in enumerate(CORRUPTIONS["noise"].values, 1):
        assert corrupt(grey, "noise", strength, 0).std() == pytest.approx(255 * deviation, rel=0.03)


def test_every_image_comes_at_every_strength_of_every_corruption(images):
    indices = np.arange(100, 103)
    corrupted = Corrupted(images[:3], indices)
    assert len(corrupted) == len(CORRUPTIONS) * STRENGTHS * 3
    blur_2_of_the_last = (1 * STRENGTHS + 1) * 3 + 2
    np.testing.assert_array_equal(corrupted[blur_2_of_the_last], corrupt(images[2], "blur", 2, 102))
    np.testing.assert_array_equal(corrupted[np.array([0, blur_2_of_the_last])][1], corrupted[blur_2_of_the_last])


def test_accuracies_are_those_of_the_corrupted_images(run):
    summary = analyze.main(AnalyzeConfig(run=str(run), only=["robustness"]))
    probe = summary["robustness"]
    assert probe["images"] == 360  # fewer than are asked for: all
    assert probe["clean"] == summary["accuracy"]
    assert all(len(probe[name]) == STRENGTHS for name in CORRUPTIONS)
    split, _ = load_split("digits", "", "test", 16)
    blurred = np.stack([corrupt(image, "blur", 4, index) for index, image in enumerate(split.images[:])])
    model, config = load_model(run / "model")
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    with torch.no_grad():
        logits = model((torch.from_numpy(blurred).permute(0, 3, 1, 2) / 255 - mean) / std)
    assert probe["blur"][3] == pytest.approx((logits.argmax(1).numpy() == split.labels).mean(), abs=1 / 360)
    with open(run / "analysis/robustness.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CORRUPTIONS) * (STRENGTHS + 1)
    assert {float(row["accuracy"]) for row in rows if row["strength"] == "0"} == {summary["accuracy"]}
    assert all(float(row["interval_95_low"]) < float(row["accuracy"]) < float(row["interval_95_high"]) for row in rows)
    page = (run / "analysis/report.html").read_text()
    assert "not CIFAR-10-C" in page
