"""What train_accelerate.py promises beside sameness and resume: files, lines, policies, errors."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.preprocessing import to_input
from data.sources import load_dataset, load_split
from models.saved import load_model
from tests.conftest import ROOT
from tests.processes import run, tiny_config, train_script
from tests.saved_runs import training_refusal
from train_accelerate import main
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.files import load_config
from utils.runs.checkpoint import list_checkpoints
from utils.system.duration import duration
from utils.system.threads import available_cores
from utils.training.lr_finder import range_test, suggest


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_headline_recipe_equals_the_defaults():
    assert load_config(TrainConfig, ROOT / "recipes" / "resnet18.yaml") == TrainConfig()


RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.stem != "sweep"]  # that is for W&B


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_how_to_run_it(path):
    load_config(TrainConfig, path)
    assert f"train_accelerate.py --config recipes/{path.name}" in path.read_text()


def test_assignment_recipe_is_the_assignment():
    config = load_config(TrainConfig, ROOT / "recipes" / "assignment.yaml")
    assert (config.model, config.epochs, config.schedule) == ("resnet18", 20, "onecycle")
    assert (config.crop_padding, config.cutout, config.horizontal_flip) == (4, 16, "none")
    assert config.lr == "auto"


# After the second of three epochs.
WEIGHTS = [f"checkpoints/step-000046/{name}.safetensors" for name in ("model", "optimizer")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict, str]:
    """A run called from Python, its returned summary, and what it printed."""
    folder = tmp_path_factory.mktemp("training") / "run"
    log = folder.with_suffix(".log")
    assert run(train_script, tiny_config(folder, log_every_steps=10, keep_checkpoints=2), log=log) == [0]
    return folder, json.loads((folder / "summary.json").read_text()), log.read_text()


def test_run_directory_is_as_designed(finished):
    folder, summary, _ = finished
    lines = rows(folder)
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == [10, 20, 23, 30, 40, 46, 50, 60, 69]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    for line in lines:
        keys = {"step", "epoch", "split", "loss", "accuracy"}
        training = {"lr", "images_per_second", "images", "gradient_norm", "cpu_cores"}
        assert set(line) == keys | (training if line["split"] == "train" else set())
        assert 0 <= line["accuracy"] <= 1
    assert sum(line["images"] for line in train) == 3 * 1437
    assert [line["epoch"] for line in lines if line["split"] == "test"] == [1, 2, 3]
    assert summary["test_accuracy"] == lines[-1]["accuracy"] >= 0.9
    assert summary["test_count"] == 360
    assert (summary["steps"], summary["epochs"], summary["seed"], summary["world_size"]) == (69, 3, 0, 1)
    assert list(summary["per_class_accuracy"]) == [str(digit) for digit in range(10)]
    assert 0 < summary["train_seconds"] < 600
    assert summary["images_per_second"] == pytest.approx(3 * 1437 / summary["train_seconds"], rel=0.01)
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step-000046", "step-000069"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"git_commit", "device", "world_size", "mixed_precision", "command"} <= set(environment)


def test_config_yaml_repeats_the_run(finished, tmp_path):
    folder, summary, _ = finished
    config = load_config(TrainConfig, folder / "config.yaml")
    config.output_dir = str(tmp_path / "again")
    assert run(train_script, config) == [0]
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert {**again, "train_seconds": 0, "images_per_second": 0} == {
        **summary,
        "train_seconds": 0,
        "images_per_second": 0,
    }


def test_exported_model_predicts_as_the_summary_says(finished):
    folder, summary, _ = finished
    model, config = load_model(folder / "model")
    test, names = load_split("digits", "", "test", config.image_size)
    assert config.class_names == names
    with torch.no_grad():
        logits = model(to_input(torch.from_numpy(test.images[:]), torch.tensor(config.mean), torch.tensor(config.std)))
    hits = (logits.argmax(1).numpy() == test.labels).mean()
    assert hits == pytest.approx(summary["test_accuracy"], abs=1e-9)


def test_one_line_per_epoch_and_no_bar_where_there_is_no_terminal(finished):
    _, summary, printed = finished
    lines = [line for line in printed.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3
    correct = round(360 * summary["test_accuracy"])
    pattern = (
        rf"epoch 3/3  train loss [\d.]+ accuracy [\d.]+%  test loss [\d.]+ accuracy {correct}/360 \([\d.]+%\)  [\d.]+ s"
    )
    assert re.fullmatch(pattern, lines[-1])
    assert "step/s" not in printed
    assert "\r" not in printed


def test_max_steps_stops_early_and_a_larger_one_goes_on(finished, tmp_path):
    folder, _, _ = finished
    for max_steps in (30, 46):
        config = tiny_config(tmp_path / "run", log_every_steps=10, max_steps=max_steps)
        assert run(train_script, config) == [0]
        assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{max_steps:06d}"
    for name in WEIGHTS:
        assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()


def test_callable_from_a_notebook(tmp_path, capsys):
    """In this process, and twice, as a notebook's user would."""
    for seed in (0, 1):
        summary = main(tiny_config(tmp_path / str(seed), seed=seed, max_steps=5, epochs=1))
        assert summary["steps"] == 5
        assert summary == json.loads((tmp_path / str(seed) / "summary.json").read_text())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_last_lines_say_how_good_how_long_where_and_what_next(tmp_path, capsys):
    folder = tmp_path / "my run"
    summary = main(tiny_config(folder, max_steps=2, epochs=1))
    result, next_step = capsys.readouterr().out.splitlines()[-2:]
    accuracy = re.escape(f"{summary['test_accuracy']:.2%}")
    assert re.fullmatch(rf"test accuracy \d+/360 \({accuracy}\) after 2 steps in \d+\.\d s of training", result)
    assert next_step == f"run: '{folder}'  next: python analyze.py '{folder}'"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (41.23, "41.2 s"),
        (59.96, "1.0 min"),
        (1434, "23.9 min"),
        (3599, "1 h 00 min"),
        (9063, "2 h 31 min"),
    ],
)
def test_a_duration_is_said_in_the_unit_that_fits(seconds, said):
    assert duration(seconds) == said


def test_best_validation_epoch_is_the_reported_model(tmp_path):
    """A rate that rises to something absurd in the last epoch: the last model is the worst."""
    config = tiny_config(
        tmp_path / "run", validation_fraction=0.2, epochs=3, schedule="constant", warmup_fraction=0.9, lr=1.0
    )
    assert run(train_script, config) == [0]
    lines = rows(tmp_path / "run")
    scores = {
        split: {line["step"]: line["accuracy"] for line in lines if line["split"] == split}
        for split in ("validation", "test")
    }
    best = max(scores["validation"], key=lambda step: (scores["validation"][step], -step))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_validation_accuracy"] == scores["validation"][best]
    assert summary["test_accuracy"] == scores["test"][best]


PROGRESSIVE = {"resolution": "8@0.3,12@0.6,16", "batch_size": 16, "epochs": 2, "log_every_steps": 10}  # 180 steps


def test_progressive_resolution_says_the_size_and_ends_with_statistics_of_full_images(tmp_path):
    assert run(train_script, tiny_config(tmp_path / "run", **PROGRESSIVE)) == [0]
    lines = rows(tmp_path / "run")
    assert all(line["resolution"] == (8 if line["step"] <= 54 else 12 if line["step"] <= 108 else 16)
               for line in lines if line["split"] == "test" or line["step"] % 10 == 0)  # fmt: skip
    model, config = load_model(tmp_path / "run" / "model")
    assert (config.resolution, config.image_size) == (16, 16)

    found = {name: value.clone() for name, value in model.named_buffers() if name.endswith("running_var")}
    images = load_dataset("digits", "", 16).train.images[:]
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over all batches
    model.train()
    with torch.no_grad():
        for block in torch.from_numpy(images).split(16):
            model(to_input(block, torch.tensor(config.mean), torch.tensor(config.std)))
    exact = dict(model.named_buffers())
    ratios = torch.cat([value / exact[name] for name, value in found.items()])
    assert 0.8 < ratios.median() < 1.25


def test_run_that_ends_on_small_images_is_analysed_on_small_images(tmp_path):
    from analyze import main as analyze

    config = tiny_config(tmp_path / "run", **PROGRESSIVE, max_steps=50, tta="flip")
    assert run(train_script, config) == [0]
    _, model_config = load_model(tmp_path / "run" / "model")
    assert (model_config.resolution, model_config.image_size, model_config.tta) == (8, 16, "flip")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert rows(tmp_path / "run")[-1]["accuracy"] == summary["test_accuracy_without_tta"]
    analysed = analyze(AnalyzeConfig(run=str(tmp_path / "run"), only=["gallery", "gradcam"], images=10))
    assert analysed["accuracy"] == summary["test_accuracy"]
    assert summary["test_accuracy"] != summary["test_accuracy_without_tta"]


def test_ema_is_what_is_evaluated_and_exported(tmp_path):
    assert run(train_script, tiny_config(tmp_path / "run", image_size=8, ema_decay=0.9, epochs=2)) == [0]
    last = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    averaged, trained = load_file(last / "model.safetensors"), load_file(last / "unaveraged.safetensors")
    assert all(torch.equal(exported[name], averaged[name]) for name in exported)
    assert not torch.equal(averaged["conv1.weight"], trained["conv1.weight"])


@pytest.mark.parametrize(
    ("first", "second", "chosen"), [("auto", "tensor", "tensor"), ("albumentations", "auto", "albumentations")]
)
def test_backend_is_chosen_once_and_kept(tmp_path, capsys, first, second, chosen):
    folder = tmp_path / "run"
    for max_steps, backend in ((2, first), (4, second)):
        assert run(train_script, tiny_config(folder, image_size=8, augment_backend=backend, max_steps=max_steps)) == [0]
        assert load_config(TrainConfig, folder / "config.yaml").augment_backend == chosen
    other = "tensor" if chosen == "albumentations" else "albumentations"
    line = training_refusal(capsys, tiny_config(folder, image_size=8, augment_backend=other, max_steps=6))
    assert f"error: augment_backend: {other} differs from {chosen}" in line


def test_images_that_stay_on_disk_are_augmented_one_by_one(tmp_path):
    for split in ("train", "test"):
        for label in range(2):
            folder = tmp_path / "images" / split / str(label)
            folder.mkdir(parents=True)
            for position in range(4):
                Image.fromarray(np.full((16, 16, 3), 40 * position, np.uint8)).save(folder / f"{position}.png")
    changes = {"dataset": "imagefolder", "data_dir": str(tmp_path / "images"), "memory_fraction": 0.0, "max_steps": 1}
    assert run(train_script, tiny_config(tmp_path / "auto", **changes)) == [0]
    assert load_config(TrainConfig, tmp_path / "auto" / "config.yaml").augment_backend == "albumentations"
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "tensor", **changes, augment_backend="tensor")
    assert run(train_script, config, log=log) == [2]
    assert "error: augment_backend: tensor needs the images in memory" in log.read_text()


def test_loader_workers_take_their_cores_from_the_training(finished, tmp_path):
    config = tiny_config(tmp_path, augment_backend="albumentations", image_size=8, max_steps=1, num_workers=1)
    assert run(train_script, config) == [0]
    for folder, threads in ((finished[0], available_cores()), (tmp_path, max(1, available_cores() - 1))):
        assert json.loads((folder / "environment.json").read_text())["threads"] == threads


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    """A rate that ends in infinity: steps during the warm-up are harmless and saved, later ones are not."""
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, lr=1e9, schedule="onecycle", checkpoint_every_steps=1, keep_checkpoints=100)
    assert run(train_script, config, log=log) == [1]
    text = log.read_text()
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    for words in ("not finite since step", "(learning rate ", "try a lower --lr"):
        assert words in line
    saved = list_checkpoints(folder / "checkpoints")
    assert f"last good checkpoint: {saved[-1].name if saved else 'none'}" in line
    for checkpoint in saved:
        assert all(bool(weight.isfinite().all()) for weight in load_model(checkpoint)[0].parameters())
    assert all(math.isfinite(row["loss"]) for row in rows(folder))


@pytest.mark.parametrize(
    ("optimizer", "rate", "schedule"),
    [
        ("sgd", 0.05, "onecycle"),
        ("sgd", 0.05, "step"),
        ("adamw", 0.002, "cosine"),
        ("adamw", 0.002, "constant"),
        ("muon", 0.01, "linear"),
        ("muon", 0.01, "constant"),
    ],
)
def test_every_optimizer_and_schedule_learns(tmp_path, optimizer, rate, schedule):
    options = {"optimizer": optimizer, "schedule": schedule, "lr": rate, "warmup_fraction": 0.1, "label_smoothing": 0.1}
    options |= {"image_size": 8, "cutout": 0, "epochs": 2}
    summary = main(tiny_config(tmp_path, **options, grad_clip_norm=5.0, decay_norm_and_bias=False))
    assert summary["test_loss"] < 2.25 or summary["test_accuracy"] > 0.2
    lines = [line for line in rows(tmp_path) if line["split"] == "train"]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]


def test_range_test_leaves_no_trace_in_the_training(finished, tmp_path):
    folder, _, _ = finished
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "run", log_every_steps=10, max_steps=46, find_lr=True)
    assert run(train_script, config, log=log) == [0]
    for name in WEIGHTS:
        assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()
    with open(tmp_path / "run" / "lr_finder.csv") as file:
        table = list(csv.DictReader(file))
    rates = [float(line["lr"]) for line in table]
    assert rates == sorted(rates)
    assert set(table[0]) == {"lr", "loss", "smoothed_loss"}
    assert (tmp_path / "run" / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
    assert "range test suggests" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by_hand", "options"),
    [
        (0.1, {"optimizer": "sgd"}),
        (0.02, {"optimizer": "muon", "momentum": 0.8, "weight_decay": 0.5, "decay_norm_and_bias": False}),
    ],
    ids=["sgd", "muon"],
)
def test_suggested_rate_is_stable_and_as_good_as_the_recipes(by_hand, options, tmp_path):
    """On digits: two seeds within a factor of 2, and at most 1 point under the rate that was chosen by hand."""
    accuracy: dict[object, list[float]] = {"auto": [], by_hand: []}
    suggested = []
    for seed in range(2):
        for rate in accuracy:
            config = tiny_config(tmp_path / f"{rate}-{seed}", lr=rate, seed=seed, cutout=0, epochs=4, **options)
            summary = main(config)
            accuracy[rate].append(summary["test_accuracy"])
            if rate == "auto":
                suggested.append(summary["learning_rate"])
    assert max(suggested) <= 2 * min(suggested)
    assert sum(accuracy["auto"]) / 2 >= sum(accuracy[by_hand]) / 2 - 0.01


@pytest.mark.parametrize(("share", "suggestion"), [(1.0, 0.3), (1 / 3, 0.1)])
def test_suggestion_is_a_share_of_the_rate_with_the_lowest_smoothed_loss(share, suggestion):
    assert suggest([0.1, 0.3, 0.9], [2.0, 1.5, 1.9], share) == pytest.approx(suggestion)


def test_range_test_without_any_finite_loss_is_one_clear_error():
    from utils.system.errors import SuiteError

    with pytest.raises(SuiteError, match="no finite loss"):
        range_test(lambda rate: float("nan"), share=1.0)


def test_command_line_errors_are_one_line_and_exit_code_2(tmp_path):
    for words, expected in (
        (["--model", "resnet50"], "resnet50"),
        (["--dataset", "imagefolder", "--data_dir", str(tmp_path / "nowhere")], "nowhere"),
        (["--batch_size", "0"], "batch_size: 0"),
    ):
        command = [
            sys.executable,
            "train_accelerate.py",
            *words,
            "--output_dir",
            str(tmp_path / "run"),
            "--trackers",
            "none",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: ")
        assert expected in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_error_on_many_processes_is_printed_once(tmp_path):
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "run", dataset="imagefolder", data_dir=str(tmp_path / "nowhere"))
    assert run(train_script, config, world_size=3, log=log) == [2, 2, 2]
    lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1


def test_fp16_on_a_cpu_is_refused(tmp_path):
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "train_accelerate.py", "--dataset", "digits", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no"
