"""The benchmarks of fine-tuning measure what they say, once; what they measured is published elsewhere."""

import dataclasses
import json
import multiprocessing
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.fine_tuning import ablation
from benchmarks.peer_timm import RECIPES
from benchmarks.seeds import alone, measured, read_results, table, watched
from tests.conftest import ROOT
from utils.config import TrainConfig

# train.py of timm in miniature: the options that it is given, and what is read of its run.
TRAIN = """
import csv, os, sys
folder = os.path.join(sys.argv[sys.argv.index("--output") + 1], sys.argv[sys.argv.index("--experiment") + 1])
os.makedirs(folder)
open(os.path.join(folder, "last.pth.tar"), "w").close()
open("arguments", "a").write(" ".join(sys.argv[1:]) + "\\n")
for epoch, accuracy in enumerate((50.0, 87.5, 75.0)):
    with open(os.path.join(folder, "summary.csv"), "a") as file:
        rows = csv.DictWriter(file, ["epoch", "eval_top1", "lr"])
        if epoch == 0:
            rows.writeheader()
        rows.writerow({"epoch": epoch, "eval_top1": accuracy, "lr": 0.1})
    print("epoch", epoch)
"""


def command(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, f"benchmarks/{script}", *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Noise in two colours: train/ and val/ of two classes, with more than one batch of 64."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 36), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = generator.integers(128 * label, 128 * label + 128, (40, 48, 3), np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A timm folder with random weights of a small network."""
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("weights")
    timm.models.save_for_hf(timm.create_model("test_resnet"), folder, safe_serialization=True)
    return folder


def results_of(folder: Path, name: str) -> list[dict]:
    return read_results(folder)[name]


def test_a_result_is_measured_once_and_an_interrupted_one_from_its_beginning(tmp_path):
    folder, calls = tmp_path / "suite" / "seed-0", []

    def measure(place: Path) -> dict:
        assert list(place.iterdir()) == []
        (place / "half").touch()
        calls.append(place)
        if len(calls) == 1:
            raise RuntimeError("interrupted")
        return {"accuracy": 0.5, "seconds": 2.0, "scores": [[2.0, 0.5]]}

    with pytest.raises(RuntimeError, match="interrupted"):
        measured(folder, measure)
    found = [measured(folder, measure) for _ in range(2)]
    assert calls == [folder, folder]
    assert found[0] == found[1]
    assert found[0]["accuracy"] == 0.5


def test_scores_are_dated_when_the_command_that_made_them_speaks(tmp_path):
    path = tmp_path / "scores"
    code = f"import time\nfor n in '123': open({str(path)!r}, 'a').write(n); print(n); time.sleep(0.3)"

    def accuracies() -> list[float]:
        return [int(digit) / 10 for digit in path.read_text()] if path.exists() else []

    seconds, scores = watched([sys.executable, "-c", code], tmp_path / "log", accuracies, tmp_path)
    dates = [date for date, _ in scores]
    assert [accuracy for _, accuracy in scores] == [0.1, 0.2, 0.3]
    assert dates[1] - dates[0] > 0.2
    assert dates[-1] < seconds - 0.2
    with pytest.raises(RuntimeError, match=r"ended with 3(.|\n)*no luck"):
        watched([sys.executable, "-c", "print('no luck'); exit(3)"], tmp_path / "log", list, tmp_path)


def start_method() -> str:
    return multiprocessing.get_start_method()


def test_a_training_of_its_own_process_starts_loader_processes_as_a_script_does():
    assert alone(start_method) == multiprocessing.get_context(None).get_start_method()


def test_the_table_has_the_best_first_and_no_time_to_what_a_seed_never_reached(tmp_path):
    for name, seed, accuracy, seconds in (("good", 0, 0.9, 10), ("good", 1, 0.8, 20), ("better", 0, 0.95, 30)):
        result = {"accuracy": accuracy, "seconds": seconds, "scores": [[seconds / 2, 0.7], [seconds, accuracy]]}
        (tmp_path / name / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / name / f"seed-{seed}" / "result.json").write_text(json.dumps(result))
    assert table(tmp_path, [0.7, 0.85]).splitlines()[2:] == [
        "| better | 95.0% | - | 30 | 15 | 30 | 1 |",
        "| good | 85.0% (80.0% to 90.0%) | - | 15 | 8 | - | 2 |",
    ]


def test_train_py_of_timm_gets_the_recipe_and_its_last_epoch_counts(photos, tmp_path):
    checkout = tmp_path / "timm"
    checkout.mkdir()
    (checkout / "train.py").write_text(TRAIN)
    results = tmp_path / "results"
    options = ["--data_dir", photos, "--weights", tmp_path, "--output_dir", results]
    for recipe in (*RECIPES, "plain"):
        done = command("peer_timm.py", checkout, *options, "--recipe", recipe, "--seeds", 4, 5)
    calls = (checkout / "arguments").read_text().splitlines()
    assert len(calls) == 2 * len(RECIPES)
    for call, (recipe, seed) in zip(calls, [(recipe, seed) for recipe in RECIPES for seed in (4, 5)], strict=True):
        words = call.split()
        expected = {**RECIPES[recipe], "seed": str(seed), "num-classes": "2", "img-size": "160", "val-split": "val"}
        for name, value in expected.items():
            assert not value or words[words.index(f"--{name}") + 1] == value
        assert call.count("--lr ") == call.count("--sched ") == 1
    (first, _) = results_of(results, "timm-plain")
    assert (first["accuracy"], first["best"]) == (0.75, 0.875)
    assert [accuracy for _, accuracy in first["scores"]] == [0.5, 0.875, 0.75]
    assert not list(results.rglob("*.pth.tar"))
    assert "| timm-advised | 75.0% (75.0% to 75.0%) |" in done.stdout


@pytest.mark.slow
def test_regression_on_features_of_random_weights_tells_dark_from_light(photos, weights, tmp_path):
    done = command(
        *("peer_sklearn.py", "--data_dir", photos, "--weights", weights, "--image_size", 32, "--output_dir", tmp_path)
    )
    (result,) = results_of(tmp_path, "sklearn")
    assert result["accuracy"] == 1.0
    assert result["scores"] == [[round(result["seconds"], 2), 1.0]]
    assert "| sklearn | 100.0% | - |" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("fastai"), reason="fastai is installed apart")
@pytest.mark.parametrize("recipe", ["plain", "advised"])
def test_fastai_fine_tunes_our_photos_from_our_weights(recipe, photos, weights, tmp_path):
    options = ["--data_dir", photos, "--weights", weights, "--image_size", 32, "--output_dir", tmp_path]
    command("peer_fastai.py", *options, "--recipe", recipe, "--epochs", 1, "--seeds", 0)
    (result,) = results_of(tmp_path, f"fastai-{recipe}")
    assert len(result["scores"]) == (2 if recipe == "plain" else 5)
    assert 0 <= result["accuracy"] <= 1


def test_every_row_of_the_ablation_is_allowed_and_differs_from_the_defaults():
    config = TrainConfig(init_from="weights")
    rows = ablation(config)
    changed = [dataclasses.asdict(dataclasses.replace(config, **options)) for options in rows.values()]
    assert next(iter(rows)) == "default"
    assert changed[0] == dataclasses.asdict(config)
    assert all(first != second for number, first in enumerate(changed) for second in changed[:number])


@pytest.mark.slow
def test_a_case_and_an_ablation_end_in_a_table(photos, weights, tmp_path):
    options = ["--data_dir", photos, "--weights", weights, "--image_size", 32]
    case = ["fine_tuning.py", "--case", "flowers", *options, "--seeds", 1, "--output_dir", tmp_path / "case"]
    done = command(*case, "--", "--epochs", 2)
    (result,) = results_of(tmp_path / "case", "suite")
    run = tmp_path / "case" / "suite" / "seed-1" / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tested = [row["accuracy"] for row in rows if row["split"] == "test"]
    assert result["accuracy"] == json.loads((run / "summary.json").read_text())["test_accuracy"]
    assert [accuracy for _, accuracy in result["scores"]] == tested
    assert result["scores"][-1][0] < result["seconds"]
    assert not (run / "checkpoints").exists()
    assert "| suite | " in done.stdout
    assert command(*case, "--", "--epochs", 2).stdout == done.stdout.split("\n", 1)[1]

    names = ["default", "EMA 0.95"]
    folder = tmp_path / "ablation"
    done = command(
        *("fine_tuning.py", "--ablation", *options, "--only", *names, "--seeds", 0, "--output_dir", folder),
        *("--", "--epochs", 1),
    )
    assert set(read_results(folder)) == set(names)
    (result,) = results_of(folder, "EMA 0.95")
    assert "--validation_fraction=0.2" in result["options"]
    assert "| validation accuracy | " in done.stdout


@pytest.mark.slow
def test_speed_is_compared_in_both_precisions_or_in_fp32_alone(photos, weights, tmp_path):
    path = tmp_path / "speed.json"
    done = command("fine_tuning_speed.py", "--quick", "--data_dir", photos, "--weights", weights, "--json", path)
    results = json.loads(path.read_text())
    assert list(results) in (["32 px, fp32", "32 px, bf16"], ["32 px, fp32"])
    for rates in results.values():
        assert set(rates) == {"suite", "timm", "bare", "bare, batch statistics", "bare, contiguous"}
        assert all(len(values) == 1 and values[0] > 0 for values in rates.values())
    assert "| suite / bare | " in done.stdout
    assert "| suite / timm | " in done.stdout
