"""What analyze.py promises about a saved run."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import analyze
from data.sources import load_split
from models.saved import export_model, load_model
from tests.saved_runs import change
from utils.analysis.inference import predict_test
from utils.analysis.predictions import Mistake, find_mistakes
from utils.analysis.scores import most_confused
from utils.analysis.sections.classes import confusion_matrix_figure
from utils.analysis.sections.gallery import misclassified_figure
from utils.analysis.setup import set_up
from utils.config import AnalyzeConfig
from utils.evaluation.scores import accuracy_interval
from utils.plots.curves import epoch_curves
from utils.system.errors import UserError
from utils.system.files import to_json
from utils.system.runtime import create_accelerator

ROOT = Path(__file__).parents[1]
FIGURES = ("curves", "lr", "misclassified", "gradcam", "confusion_matrix", "calibration", "label_issues")
FILES = {
    *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
    *("report.html", "per_class.csv", "mistakes.csv", "label_issues.csv", "model_summary.txt", "summary.json"),
    *("predictions.npz", "cache", ".lock"),
}
KEYS = {
    *("accuracy", "accuracy_interval_95", "count", "loss", "expected_calibration_error", "per_class", "most_confused"),
    *("misclassified_count", "cam_layer", "cam_layer_size", "cam_method", "cam_refused_layers", "cam_road"),
    "cam_view",
    "label_issue_candidates",
}


def images_of(page: str, alt: str) -> list[np.ndarray]:
    """The embedded images whose alternative text begins so."""
    found = re.findall(rf'<img src="data:image/png;base64,([^"]+)" alt="{alt}', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for content in found]


# -- results ----------------------------------------------------------------------------------------------------------


def test_every_designed_file_and_key_is_there(analysed):
    summary = json.loads((analysed / "analysis/summary.json").read_text())
    assert {path.name for path in (analysed / "analysis").iterdir()} == FILES
    assert set(summary) == KEYS
    assert summary["count"] == 360
    assert summary["cam_layer"] == "layer2"
    assert summary["cam_layer_size"] == [8, 8]
    low, high = summary["accuracy_interval_95"]
    assert low < summary["accuracy"] < high


def test_the_report_shows_what_the_model_got_in_training(analysed):
    (shown,) = images_of((analysed / "analysis/report.html").read_text(), "Training images in rows")
    with Image.open(analysed / "augmentations.png") as page:
        np.testing.assert_array_equal(shown, np.asarray(page))


def test_accuracy_and_loss_are_those_of_the_training_run(analysed):
    trained = json.loads((analysed / "summary.json").read_text())
    summary = json.loads((analysed / "analysis/summary.json").read_text())
    assert summary["accuracy"] == trained["test_accuracy"]
    assert summary["loss"] == pytest.approx(trained["test_loss"], rel=1e-5)
    recalls = {name: scores["recall"] for name, scores in summary["per_class"].items()}
    assert recalls == pytest.approx(trained["per_class_accuracy"], abs=1e-6)


def test_predictions_are_in_the_order_of_the_test_set(analysed):
    model, config = load_model(analysed / "model")
    split, _ = load_split("digits", "", "test", 16)
    images = torch.from_numpy(split.images[:]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    with torch.no_grad():
        expected = model((images - mean) / std)
    predictions = np.load(analysed / "analysis/predictions.npz")
    assert predictions["logits"].dtype == np.float32
    np.testing.assert_allclose(predictions["logits"], expected, atol=1e-3)
    np.testing.assert_array_equal(predictions["labels"], split.labels)
    np.testing.assert_array_equal(predictions["indices"], np.arange(360))


def test_a_second_call_predicts_nothing_and_says_the_same(analysed, tmp_path):
    run = Path(shutil.copytree(analysed, tmp_path / "run"))
    files = {path.name: path.read_bytes() for path in (run / "analysis").iterdir() if path.suffix in (".json", ".csv")}
    written = [(run / "analysis" / name).stat() for name in ("predictions.npz", "cache/predictions.safetensors")]
    assert to_json(analyze.main(AnalyzeConfig(run=str(run)))) == files["summary.json"]
    again = [(run / "analysis" / name).stat() for name in ("predictions.npz", "cache/predictions.safetensors")]
    assert [(one.st_ino, one.st_mtime_ns) for one in again] == [(one.st_ino, one.st_mtime_ns) for one in written]
    assert files == {name: (run / "analysis" / name).read_bytes() for name in files}


def test_changed_weights_changed_images_and_damage_are_predicted_anew(run, tmp_path):
    def predict(**options):
        return predict_test(set_up(AnalyzeConfig(run=str(run), **options), create_accelerator()))

    written = run / "analysis/predictions.npz"
    predict()
    for path in (run / "analysis/cache/predictions.safetensors", written):
        content = path.read_bytes()
        for length in (0, 100, len(content) // 2, len(content) - 10):  # of a file that a full disk or a kill cut off
            path.write_bytes(content[:length])
            predict()
            assert path.read_bytes() == content
    model, config = load_model(run / "model")
    model.fc.bias.data[3] += 100
    export_model(run / "model", config, model.state_dict())
    assert (predict().classes == 3).all()
    change(run / "model/config.json", image_size=24)
    before = written.read_bytes()
    predict()
    assert written.read_bytes() != before


def test_the_gallery_shows_the_pixels_of_the_data_set(analysed):
    page = (analysed / "analysis/report.html").read_text()
    split, _ = load_split("digits", "", "test", 16)
    indices = [int(index) for index in re.findall(r'alt="Test image (\d+):', page)]
    assert len(indices) == 20
    np.testing.assert_array_equal(images_of(page, "Test image"), split.images[indices])


def test_the_report_needs_no_network(analysed):
    page = (analysed / "analysis/report.html").read_text()
    assert not re.search(r"https?://|<script[^>]* src|<link|@import", page)
    assert page.count("<img ") == page.count(' alt="')


# -- numbers and figures ----------------------------------------------------------------------------------------------


def test_an_epochs_mean_weights_its_lines_by_their_images():
    def line(step, epoch, split, loss, accuracy, images=None):
        row = {"step": step, "epoch": epoch, "split": split, "loss": loss, "accuracy": accuracy}
        return row if images is None else {**row, "lr": 0.1, "images": images}

    rows = [
        line(10, 1, "train", 4.0, 0.1, 1000),
        line(16, 1, "train", 1.0, 0.4, 500),
        line(16, 1, "test", 2.0, 0.3),
        line(20, 2, "train", 1.0, 0.5, 400),
        line(32, 2, "train", 0.4, 0.8, 800),
        line(32, 2, "test", 1.5, 0.6),
    ]
    curves = epoch_curves(rows)
    assert list(curves) == ["train", "test"]
    assert curves["train"] == [(1, pytest.approx(3.0), pytest.approx(0.2)), (2, pytest.approx(0.6), pytest.approx(0.7))]
    assert curves["test"] == [(1, 2.0, 0.3), (2, 1.5, 0.6)]


def test_accuracy_interval_is_wilsons():
    low, high = accuracy_interval(9412, 10000)  # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (low, high) == (pytest.approx(0.93642, abs=1e-5), pytest.approx(0.94564, abs=1e-5))
    assert accuracy_interval(10, 10)[1] == 1.0


def test_mistakes_come_most_confident_first():
    probabilities = np.array([[0.6, 0.4, 0.0], [0.1, 0.8, 0.1], [0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    mistakes = find_mistakes(probabilities, np.array([1, 0, 0, 1]))
    assert [mistake.index for mistake in mistakes] == [1, 0, 3]
    assert mistakes[0] == Mistake(1, true=0, predicted=1, true_confidence=0.1, predicted_confidence=0.8)


def test_most_confused_leaves_out_what_is_right():
    matrix = np.array([[50, 3, 0], [7, 40, 0], [0, 0, 9]])
    assert most_confused(matrix, ("a", "b", "c")) == [
        {"true": "b", "predicted": "a", "count": 7},
        {"true": "a", "predicted": "b", "count": 3},
    ]


def test_no_mistakes_and_few_mistakes_are_said():
    assert "No image" in misclassified_figure([], [], 0, ["a", "b"]).texts[0].get_text()
    mistake, image = Mistake(0, 0, 1, 0.1, 0.9), np.zeros((8, 8, 3), np.uint8)
    assert (
        misclassified_figure([mistake] * 3, [image] * 3, 3, ["a", "b"]).get_suptitle() == "All 3 misclassified images"
    )


def test_a_confusion_matrix_of_many_classes_has_no_numbers(tmp_path):
    many = confusion_matrix_figure(np.eye(100, dtype=int), [f"class {index} $" for index in range(100)])
    assert not many.axes[0].texts
    many.savefig(tmp_path / "many.png")
    assert len(confusion_matrix_figure(np.eye(10, dtype=int), [str(digit) for digit in range(10)]).axes[0].texts) == 10


def test_analysis_and_training_do_not_import_each_other():
    shared = [path for folder in ("data", "models", "utils", "utils/tracking") for path in (ROOT / folder).glob("*.py")]
    analysis = [ROOT / "analyze.py", *(ROOT / "utils/analysis").rglob("*.py"), *shared]
    training = [ROOT / "train_accelerate.py", *(ROOT / "utils/training").glob("*.py"), *shared]
    for files, other in ((analysis, r"utils\.training|train_accelerate"), (training, r"utils\.analysis|analyze")):
        found = [path.name for path in files if re.search(rf"^\s*(from|import) ({other})\b", path.read_text(), re.M)]
        assert not found


def test_a_wrong_option_is_refused_as_in_training():
    with pytest.raises(UserError, match="images: 3 is not allowed"):
        AnalyzeConfig(run="x", images=3)
