"""What the calibration promises: the error is measured right, and the temperature is never chosen on the test set."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torchmetrics.functional.classification import multiclass_calibration_error

import analyze
from data.sources import load_dataset
from tests.saved_runs import change
from utils.analysis.predictions import Predictions
from utils.analysis.scores import reliability
from utils.analysis.sections.calibration import fit_temperature, negative_log_likelihood, section
from utils.config import AnalyzeConfig


def uncertain(images: int = 4000, seed: int = 0) -> Predictions:
    """Predictions whose probabilities are true: labels are drawn from them."""
    generator = np.random.default_rng(seed)
    logits = (2 * generator.standard_normal((images, 10))).astype(np.float32)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (chances.cumsum(1) < generator.random((images, 1))).sum(1).clip(max=9)
    return Predictions(logits, np.zeros((images, 2), np.float16), labels)


def test_calibration_error_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 10, generator=generator)).softmax(1)
    labels = torch.randint(10, (500,), generator=generator)
    expected = multiclass_calibration_error(probabilities, labels, num_classes=10, n_bins=15, norm="l1")
    found = reliability(probabilities.double().numpy(), labels.numpy())
    assert found.counts.sum() == 500
    assert found.expected_calibration_error == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_the_factor_by_which_a_model_is_too_sure_is_found(factor):
    predictions = uncertain()
    assert fit_temperature(factor * predictions.logits, predictions.labels) == pytest.approx(factor, rel=0.05)


def test_temperature_scaling_mends_the_calibration_and_changes_no_prediction():
    test, validation = (uncertain(seed=seed).at_temperature(0.4) for seed in (1, 2))
    found = section(None, test, validation)
    scaled = test.at_temperature(found.summary["temperature"])
    np.testing.assert_array_equal(scaled.classes, test.classes)
    before = reliability(test.probabilities, test.labels).expected_calibration_error
    assert before > 0.1
    assert found.summary["expected_calibration_error_scaled"] < 0.03
    assert found.page["loss_scaled"] == pytest.approx(negative_log_likelihood(scaled.logits, test.labels))
    assert found.page["loss_scaled"] < found.page["loss"]
    assert len(found.figures["calibration"].axes) == 4


def test_where_all_validation_images_are_right_no_temperature_is_fitted():
    right = Predictions(np.eye(10, dtype=np.float32), np.zeros((10, 2), np.float16), np.arange(10))
    found = section(None, uncertain(100), right)
    assert not found.summary
    assert "All 10 validation images are classified correctly" in found.page["missing"]


def test_the_temperature_is_fitted_on_what_training_held_out_and_never_on_the_test_set(run):
    change(run / "config.yaml", validation_fraction=0.2)
    summary = analyze.main(AnalyzeConfig(run=str(run), only=["calibration"]))
    held_out = load_dataset("digits", "", 16, validation_fraction=0.2, seed=0).validation
    logits = load_file(run / "analysis/cache/validation.safetensors")["logits"]
    assert summary["temperature"] == fit_temperature(logits, held_out.labels)
    page = (run / "analysis/report.html").read_text()
    assert f"{len(held_out)} validation images" in page
    assert f"{summary['expected_calibration_error_scaled']:.4f}" in page


def test_without_a_validation_split_nothing_is_fitted_and_the_page_says_so(analysed):
    assert "temperature" not in (analysed / "analysis/summary.json").read_text()
    assert "validation_fraction 0" in (analysed / "analysis/report.html").read_text()
