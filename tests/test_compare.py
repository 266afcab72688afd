"""What `analyze.py RUN --compare RUN2` promises."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import analyze
from data.sources import load_split
from tests.conftest import ROOT
from tests.saved_runs import change, refusal
from utils.analysis.comparison import compare, history, mcnemar, paired_interval, per_class
from utils.analysis.predictions import Predictions
from utils.analysis.sections.compare import recall_figure
from utils.analysis.setup import set_up
from utils.config import AnalyzeConfig
from utils.runs.metrics_file import MetricsFile
from utils.system.runtime import create_accelerator

NAMES = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="session")
def pair(digits_run, tmp_path_factory) -> tuple[Path, Path]:
    """A run, and one that was stopped after its first epoch: neither has been analysed. Copy them before a change."""
    folder = tmp_path_factory.mktemp("pair")
    run, early = (Path(shutil.copytree(digits_run, folder / name)) for name in ("run", "early"))
    shutil.rmtree(early / "model")
    (early / "summary.json").unlink()
    shutil.rmtree(max((early / "checkpoints").iterdir()))
    lines = (early / "metrics.jsonl").read_text().splitlines(keepends=True)
    (early / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["epoch"] == 1))
    change(early / "config.yaml", run_name="<b>early</b> $x$")
    return run, early


@pytest.fixture(scope="session")
def compared(pair) -> Path:
    """The analysis folder of the run, compared with the early one."""
    run, early = pair
    analyze.main(AnalyzeConfig(run=str(run), compare=str(early), only=["classes"]))
    return run / "analysis"


def logits(*classes: int, count: int = 3) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[list(classes)]


def predictions(labels: list[int], classes: list[int], count: int = 3) -> Predictions:
    return Predictions(logits(*classes, count=count), np.zeros((len(labels), 1), np.float16), np.array(labels))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_fixed_is_what_this_run_gets_right_and_the_other_wrong():
    labels = [0, 0, 1, 1, 2, 2]
    found = compare(predictions(labels, [0, 0, 0, 2, 0, 0]), predictions(labels, [0, 1, 1, 1, 0, 1]))
    assert np.flatnonzero(found.both_right).tolist() == [0]
    assert np.flatnonzero(found.fixed).tolist() == [1]
    assert np.flatnonzero(found.broken).tolist() == [2, 3]
    assert np.flatnonzero(found.shared).tolist() == [4, 5]
    assert np.flatnonzero(found.same).tolist() == [4]
    assert found.summary()["accuracy_difference"] == pytest.approx(-1 / 6)


def test_mcnemars_test_is_exact():
    assert mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # 2 P(at most 2 of 12)
    assert mcnemar(10, 2) == mcnemar(2, 10)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1.0


def test_the_interval_of_the_difference_is_bonett_and_prices():
    low, high = paired_interval(26, 4, 48)  # ci.prop.ps(.05, 12, 4, 26, 6) of the R package statpsych, by Bonett
    assert (low, high) == (pytest.approx(0.2548067, abs=1e-7), pytest.approx(0.6251933, abs=1e-7))
    assert paired_interval(4, 26, 48) == pytest.approx((-high, -low))
    assert paired_interval(1, 0, 1)[1] == 1.0


def test_a_class_without_test_images_has_no_recall():
    found = compare(predictions([0, 0], [0, 1]), predictions([0, 0], [1, 1]))
    first, empty, _ = per_class(found, np.array([0, 0]), ("a", "b", "c"))
    assert (first["recall"], first["other_recall"], first["recall_difference"]) == (0.5, 0.0, 0.5)
    assert (first["fixed"], first["broken"], first["shared"]) == (1, 0, 1)
    assert (empty["images"], empty["recall"], empty["recall_difference"]) == (0, None, None)
    assert len(recall_figure([first, empty], ("x", "y")).axes[0].patches) == 1


def test_of_many_classes_those_that_differ_most_are_drawn():
    classes = tuple(f"class {index}" for index in range(100))
    labels = np.arange(1000) % 100
    right = np.where(np.arange(1000) < 10 * labels, labels, (labels + 1) % 100)
    found = compare(predictions(labels, right, 100), predictions(labels, (labels + 1) % 100, 100))
    figure = recall_figure(per_class(found, labels, classes), ("this", "other"))
    assert len(figure.axes[0].patches) == 30
    assert "30 of 100 classes" in figure.get_suptitle()


def test_times_are_those_of_training_alone(digits_run):
    rows = list(MetricsFile(digits_run / "metrics.jsonl").rows())
    found = history(rows)
    trained = json.loads((digits_run / "summary.json").read_text())["train_seconds"]
    assert found.epochs == [1, 2]
    assert 0 < found.seconds[0] < found.seconds[1]
    assert found.seconds[1] == pytest.approx(trained, rel=0.02)
    assert found.accuracy == [row["accuracy"] for row in rows if row["split"] == "test"]
    untimed = history([{key: value for key, value in row.items() if key != "images"} for row in rows])
    assert (untimed.accuracy, untimed.seconds) == (found.accuracy, None)
    assert history([]) is None


# -- results ----------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_both_runs_predictions(compared):
    mine, other = (np.load(folder / "predictions.npz") for folder in (compared, compared / "compared"))
    right, other_right = (each["logits"].argmax(1) == each["labels"] for each in (mine, other))
    summary = json.loads((compared / "summary.json").read_text())
    found = summary["compare"]
    assert found["fixed"] == (right & ~other_right).sum() > 0
    assert found["broken"] == (~right & other_right).sum()
    assert found["shared"] == (~right & ~other_right).sum()
    assert found["both_right"] + found["fixed"] == summary["count"] - summary["misclassified_count"]
    assert found["other_accuracy"] == other_right.mean()
    assert found["accuracy_difference"] == pytest.approx(summary["accuracy"] - other_right.mean())
    low, high = found["accuracy_difference_interval_95"]
    assert low < found["accuracy_difference"] < high
    assert found["mcnemar_p_value"] == mcnemar(found["fixed"], found["broken"])


def test_the_other_runs_accuracy_is_the_one_of_its_training(compared, pair):
    tested = [row["accuracy"] for row in MetricsFile(pair[1] / "metrics.jsonl").rows() if row["split"] == "test"]
    assert json.loads((compared / "summary.json").read_text())["compare"]["other_accuracy"] == tested[0]


def test_every_class_and_every_mistake_of_either_is_in_a_table(compared):
    summary = json.loads((compared / "summary.json").read_text())
    classes, images = rows_of(compared / "compare.csv"), rows_of(compared / "compare_images.csv")
    assert [row["class"] for row in classes] == list(NAMES)
    for row in classes:
        assert float(row["recall"]) == summary["per_class"][row["class"]]["recall"]
        assert float(row["recall_difference"]) == summary["compare"]["recall_difference"][row["class"]]
    for outcome in ("fixed", "broken", "shared"):
        count = summary["compare"][outcome]
        assert sum(int(row[outcome]) for row in classes) == count
        assert sum(row["outcome"] == outcome for row in images) == count
    assert all(row["predicted"] == row["true"] for row in images if row["outcome"] == "fixed")
    assert all(row["other_predicted"] == row["true"] for row in images if row["outcome"] == "broken")


def test_figures_and_page_name_both_runs(compared):
    page = (compared / "report.html").read_text()
    for name in ("compare_classes", "compare_calibration", "compare_curves"):
        assert (compared / f"{name}.png").exists()
        assert (compared / f"{name}.svg").exists()
    assert "&lt;b&gt;early&lt;/b&gt; $x$" in page
    assert "<b>early" not in page
    for kind in ("fixed", "broken", "shared"):
        assert f'id="compare-{kind}"' in page


def test_the_galleries_show_these_images_in_a_real_browser(compared):
    pytest.importorskip("playwright.sync_api", reason="needs Playwright (requirements-dev.txt)")
    from tests.browser import find_chromium, open_browser

    if find_chromium() is None:
        pytest.skip("needs Chromium")
    images = rows_of(compared / "compare_images.csv")
    faults: list[str] = []
    with open_browser() as browser:
        page = browser.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((compared / "report.html").as_uri())
        for kind, noun in (("fixed", "fixed mistake"), ("broken", "new mistake"), ("shared", "shared mistake")):
            gallery = page.locator(f"#compare-{kind}")
            mine = [row for row in images if row["outcome"] == kind]
            expected = f"{len(mine) or 'No'} {noun}{'' if len(mine) == 1 else 's'}"
            assert gallery.get_by_role("status").inner_text().split(",")[0] == expected
            for row in sorted(mine, key=lambda row: -float(row["predicted_probability"]))[:1]:
                gallery.locator("select").nth(1).select_option(str(NAMES.index(row["true"])))
                card = gallery.locator(".tile", has_text=re.compile(rf"Test image {row['index']}(?!\d)"))
                answer = f"the other: {row['other_predicted']} {100 * float(row['other_predicted_probability']):.1f} %"
                assert answer in card.inner_text()
    assert faults == []


def test_two_processes_compare_as_one_does(compared, pair, tmp_path):
    launch = "--config_file accelerate_configs/multi_cpu.yaml --main_process_port 29619"
    options = f"--compare {pair[1]} --only classes --output_dir {tmp_path}"
    command = f"-m accelerate.commands.launch {launch} analyze.py {pair[0]} {options}"
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("summary.json", "compare.csv", "compare_images.csv"):
        assert (tmp_path / name).read_bytes() == (compared / name).read_bytes()


# -- the other run ----------------------------------------------------------------------------------------------------


def test_the_other_run_is_not_written_to(compared, digits_run, pair):
    assert not (pair[1] / "analysis").exists()
    assert (compared / "compared/predictions.npz").exists()
    names = {path.relative_to(digits_run) for path in digits_run.rglob("*")}
    assert {path.relative_to(pair[1]) for path in pair[1].rglob("*")} < names


def test_predictions_that_the_other_run_has_are_taken(analysed, run):
    analyze.main(AnalyzeConfig(run=str(run), compare=str(analysed), only=["classes"]))
    found = json.loads((run / "analysis/summary.json").read_text())["compare"]
    assert not (run / "analysis/compared").exists()
    assert (found["fixed"], found["broken"]) == (0, 0)
    assert found["shared"] == found["shared_with_the_same_prediction"] > 0
    assert found["mcnemar_p_value"] == 1.0


def test_a_model_without_its_run_is_asked_about_the_same_images(run, digits_run, tmp_path):
    alone = shutil.copytree(digits_run / "model", tmp_path / "downloaded")
    analyze.main(AnalyzeConfig(run=str(run), compare=str(alone), only=["classes"]))
    assert "no record of the training of downloaded" in (run / "analysis/report.html").read_text()
    assert not (run / "analysis/compare_curves.png").exists()


def test_a_copy_of_the_images_is_as_good_and_other_images_are_refused(run, pair, capsys, tmp_path):
    split, names = load_split("digits", "", "test", 16)
    for part in ("train", "test"):
        for index in range(60):
            folder = tmp_path / "images" / part / names[split.labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[index]).save(folder / f"{index}.png")
    copied = Path(shutil.copytree(tmp_path / "images", tmp_path / "copied"))
    other = Path(shutil.copytree(pair[1], tmp_path / "other"))
    change(run / "config.yaml", dataset="imagefolder", data_dir=str(tmp_path / "images"))
    change(other / "config.yaml", dataset="imagefolder", data_dir=str(copied))
    config = AnalyzeConfig(run=str(run), compare=str(other))
    assert set_up(config, create_accelerator()).other.run.data_dir == str(copied)
    Image.new("RGB", (16, 16)).save(next((copied / "test/0").iterdir()))
    line = refusal(capsys, run=str(run), compare=str(other))
    assert "compare: " in line
    assert "other images" in line
    summary = analyze.main(dataclasses.replace(config, dataset="digits", only=["classes"]))
    assert summary["count"] == 360


def test_what_cannot_be_compared_is_refused_before_any_work(run, pair, capsys, tmp_path):
    other = Path(shutil.copytree(pair[1], tmp_path / "other"))
    checkpoint = max((other / "checkpoints").iterdir())
    shutil.copytree(checkpoint, other / "model", ignore=shutil.ignore_patterns("MANIFEST.json"))
    assert "compare: " in refusal(capsys, run=str(run), compare=str(tmp_path / "missing"))
    assert "compare: " in refusal(capsys, run=str(run), compare=str(other / "checkpoints"))
    change(other / "model/config.json", image_size=24)
    assert "images of 24 pixels" in refusal(capsys, run=str(run), compare=str(other))
    change(other / "model/config.json", image_size=16, class_names=[f"digit {name}" for name in NAMES])
    assert "its classes (digit 0, digit 1" in refusal(capsys, run=str(run), compare=str(other))
    assert not (run / "analysis/predictions.npz").exists()
