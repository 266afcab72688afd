"""The probe: the head that fits the frozen features, exact on any number of processes, cached, scored and told."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import analyze
import train_accelerate
from data.preprocessing import Geometry, to_input
from data.sources import load_dataset
from models import classifiers, create_model
from models.head import find_head
from tests.processes import run, tiny_config, train_script
from tests.timm_folder import LITE0, timm_folder
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.consistency import without_effect
from utils.evaluation.features import NEIGHBOURS, neighbour_accuracy
from utils.runs.checkpoint import list_checkpoints
from utils.runs.metrics_file import MetricsFile
from utils.system.errors import UserError
from utils.training.feature_cache import KEPT, FeatureCache
from utils.training.logistic import FIXED, FOLDS, STRENGTHS, fit_head

PLAIN = {"crop": "none", "horizontal_flip": "none", "cutout": 0}  # nothing is augmented
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def small_weights(place: Path, name: str) -> Path:
    """Of a model with 7 classes, for 16 pixels."""
    half = [0.5, 0.5, 0.5]
    facts = {"input_size": [3, 16, 16], "crop_pct": 1.0, "interpolation": "bilinear", "mean": half, "std": half}
    return timm_folder(place, name, classes=7, **facts)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return small_weights(tmp_path_factory.mktemp("weights") / "resnet", "test_resnet")


def fine_tuning(place: Path, weights: Path, **changes: Any) -> TrainConfig:
    """A short run on the digits whose features are cached beside it."""
    (place.parent / "data").mkdir(exist_ok=True)
    options = {
        "dataset": "digits", "data_dir": str(place.parent / "data"), "init_from": str(weights), "epochs": 1,
        "batch_size": 256, "trackers": ["none"], "output_dir": str(place),
    } | PLAIN  # fmt: skip
    return TrainConfig(**{**options, **changes})


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(MetricsFile(folder / "metrics.jsonl").rows())


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def probe(weights, tmp_path_factory) -> Path:
    """A finished run of the probe alone, with its output beside it."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    config = fine_tuning(folder, weights, freeze="backbone", validation_fraction=0.2, seed=3)
    log = folder.with_name("log")
    assert run(train_script, config, ONE_THREAD, log=log) == [0], log.read_text()
    return folder


@torch.no_grad()
def features_by_hand(weights: Path, run: Path, split: Any) -> np.ndarray:
    """The features of a split, by timm alone, in the architecture of a run."""
    config = json.loads((run / "model" / "config.json").read_text())
    model = timm.create_model(config["architecture"].partition(":")[2], num_classes=7, **config["arguments"]).eval()
    model.load_state_dict(load_file(weights / "model.safetensors"))
    half = torch.full((3,), 0.5)
    inputs = to_input(torch.from_numpy(split.images[:]), half, half)
    return model.forward_head(model.forward_features(inputs), pre_logits=True).numpy()


# -- what it computes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensor", "albumentations"])
def test_head_is_the_same_to_the_bit_on_any_number_of_processes(weights, tmp_path, backend):
    outcomes = []
    for world_size in (1, 2, 3):
        place = tmp_path / str(world_size)
        place.mkdir()
        config = fine_tuning(
            place / "run", weights, freeze="backbone", validation_fraction=0.2, probe_views=2, augment_backend=backend,
            horizontal_flip="random", crop="pad", overfit_batches=1,
        )  # fmt: skip
        assert run(train_script, config, ONE_THREAD, world_size=world_size) == [0] * world_size
        model = (place / "run" / "model" / "model.safetensors").read_bytes()
        outcomes.append((model, rows(place / "run"), summary(place / "run")["start_knn_accuracy"]))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert [row["split"] for row in outcomes[0][1]] == ["validation", "test"]


def test_head_and_scores_are_those_of_scikit_learn_on_the_same_features(probe, weights):
    data = load_dataset("digits", "", Geometry((16, 16)), 0.2, 3)
    features = {name: features_by_hand(weights, probe, getattr(data, name)) for name in ("train", "validation", "test")}
    strength = float(probe.with_name("log").read_text().split("  C ")[1].split()[0])
    mean = features["train"].mean(0)
    scale = np.sqrt(np.square(features["train"] - mean).mean())
    expected = LogisticRegression(C=strength, tol=1e-3, max_iter=200)
    expected.fit((features["train"] - mean) / scale, data.train.labels)
    found = summary(probe)
    for name in ("validation", "test"):
        logits = expected.decision_function((features[name] - mean) / scale)
        labels = getattr(data, name).labels
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        row = next(row for row in rows(probe) if row["split"] == name)
        assert row["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean(), abs=2 / len(labels))
        assert row["loss"] == pytest.approx(loss, rel=0.01)
    saved = load_file(probe / "model" / "model.safetensors")
    logits = features["test"] @ saved["fc.weight"].numpy().T + saved["fc.bias"].numpy()
    assert found["test_accuracy"] == found["probe_accuracy"] == (logits.argmax(1) == data.test.labels).mean()
    neighbours = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(features["train"], data.train.labels)
    assert found["start_knn_accuracy"] == neighbours.score(features["test"], data.test.labels)


def test_only_the_head_differs_from_the_weights(probe, weights):
    found, start = load_file(probe / "model" / "model.safetensors"), load_file(weights / "model.safetensors")
    assert {name for name in found if not torch.equal(found[name], start[name])} == {"fc.weight", "fc.bias"}


def cloud(
    images: int, classes: int, views: int = 1, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features (views, images, 12) around a centre for each class, and labels, each class as often."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    centres = np.random.default_rng(1).normal(size=(classes, 12))
    noise = random.normal(size=(views, images, 12))
    return (5 + 3 * (centres[labels] + spread * noise)).astype(np.float32), labels


def accuracy(fit: Any, features: np.ndarray, labels: np.ndarray) -> float:
    return float(((features @ fit.weight.T + fit.bias).argmax(1) == labels).mean())


def test_strength_is_chosen_by_the_loss_of_the_cross_validation():
    features, labels = cloud(300, 4, spread=2.0)
    fit = fit_head(features, labels, 4, seed=0)
    assert fit.folds == FOLDS
    assert fit.strength in STRENGTHS[1:-1]
    fresh, truth = cloud(2000, 4, spread=2.0, seed=9)
    assert accuracy(fit, fresh[0], truth) == pytest.approx(fit.accuracy, abs=0.06)
    assert fit_head(features, labels, 4, seed=0).weight.tobytes() == fit.weight.tobytes()


def test_views_of_an_image_are_on_one_side_of_a_fold():
    random = np.random.default_rng(0)
    image = random.normal(size=(1, 200, 300)).astype(np.float32)
    labels = random.integers(0, 2, 200)  # nothing to learn, but to remember
    views = image + 0.01 * random.normal(size=(4, 200, 300)).astype(np.float32)
    assert fit_head(views, labels, 2, seed=0).accuracy < 0.65


def test_the_same_view_again_changes_nothing():
    features, labels = cloud(120, 3)
    once, again = (fit_head(np.repeat(features, views, 0), labels, 3, seed=0) for views in (1, 3))
    assert once.strength == again.strength
    np.testing.assert_allclose(once.weight, again.weight, rtol=1e-2, atol=1e-4)


def test_scale_and_offset_of_the_features_change_nothing():
    features, labels = cloud(200, 3)
    one, other = fit_head(features, labels, 3, seed=0), fit_head(100 * features - 7, labels, 3, seed=0)
    assert one.strength == other.strength
    np.testing.assert_allclose(one.weight, 100 * other.weight, rtol=1e-2, atol=1e-4)


def test_many_images_choose_the_strength_on_some_of_them(monkeypatch):
    monkeypatch.setattr("utils.training.logistic.CHOSEN_ON", 200)
    features, labels = cloud(1000, 4)
    fit = fit_head(features, labels, 4, seed=0)
    assert (fit.chosen_on, fit.folds) == (200, FOLDS)
    assert "on 200 of the images" in fit.describe(1000)


@pytest.mark.parametrize(
    ("counts", "folds"),
    [([3, 3, 3], 3), ([50, 50, 2], 5), ([50, 2], 2), ([1, 1, 1], 0), ([50, 1], 0), ([50, 50, 1], 5)],
)
def test_few_images_have_fewer_folds_and_single_ones_a_fixed_strength(counts, folds):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(1, len(labels), 12)).astype(np.float32) + 4 * labels[:, None]
    fit = fit_head(features.astype(np.float32), labels, len(counts), seed=0)
    assert fit.folds == folds
    assert (fit.accuracy is None) == (folds == 0)
    if folds == 0:
        assert fit.strength == FIXED
        assert "fixed" in fit.describe(len(labels))


def test_a_class_without_images_is_not_predicted():
    features, labels = cloud(90, 3)
    fit = fit_head(features, 2 * labels, 6, seed=0)  # of 6 classes, those with odd numbers have none
    assert accuracy(fit, features[0], 2 * labels) > 0.9
    assert fit_head(features, np.zeros(90, int), 2, seed=0).weight.any() == np.False_


def test_two_classes_have_a_row_each():
    features, labels = cloud(100, 2)
    fit = fit_head(features, labels, 2, seed=0)
    assert accuracy(fit, features[0], labels) > 0.9
    np.testing.assert_allclose(fit.weight[0], -fit.weight[1])


def test_neighbours_are_those_of_scikit_learn():
    (known, known_labels), (new, labels) = cloud(150, 5, spread=2.0), cloud(77, 5, spread=2.0, seed=5)
    expected = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(known[0], known_labels).score(new[0], labels)
    found = neighbour_accuracy(known[0], known_labels, new[0], labels, torch.device("cpu"))
    assert 0.3 < found < 1
    assert found == expected
    few = KNeighborsClassifier(4, metric="cosine").fit(known[0, :4], known_labels[:4]).score(new[0], labels)
    assert neighbour_accuracy(known[0, :4], known_labels[:4], new[0], labels, torch.device("cpu")) == few


# -- heads ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["speednet", "resnet18", "timm:test_vit", "timm:test_convnext", "timm:test_efficientnet", "timm:test_nfnet",
     "timm:deit_tiny_distilled_patch16_224"],
)  # fmt: skip
def test_head_is_found_in_every_architecture(name):
    arguments = {"width": 16} if ":" not in name else {"img_size": 32, "patch_size": 16} if "deit" in name else {}
    size = (160, 160) if name == "timm:test_vit" else (32, 32)
    model = create_model(name, 5, **arguments)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    head = find_head(model, size)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert len(head.layers) == (2 if "distilled" in name else 1)
    weight, bias = torch.randn(5, head.width), torch.randn(5) if head.has_bias else torch.zeros(5)
    head.load(weight, bias)
    inputs: list[torch.Tensor] = []
    for layer in classifiers(model):
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    logits = model.eval()(torch.randn(3, 3, *size))
    features = torch.cat(inputs, 1)
    torch.testing.assert_close(logits, features @ weight.T + bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.logits(features), logits, rtol=1e-4, atol=1e-4)


def test_head_that_is_not_linear_is_refused_in_one_line():
    model = timm.create_model("resnetv2_50", num_classes=3)  # a convolution
    with pytest.raises(UserError, match=r"head_init: probe .* no linear layer \(Conv2d\); --head_init random"):
        find_head(model, (32, 32))


# -- the run ----------------------------------------------------------------------------------------------------------


def test_probe_alone_is_a_finished_run(probe, weights, capsys):
    assert {path.name for path in probe.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
    }
    assert [path.name for path in list_checkpoints(probe / "checkpoints")] == ["step-000000"]
    found = summary(probe)
    assert (found["steps"], found["epochs"]) == (0, 0)
    assert found["train_seconds"] > 0 < found["images_per_second"]
    assert found["probe_validation_accuracy"] == found["best_validation_accuracy"] == rows(probe)[0]["accuracy"]
    assert [(row["step"], row["epoch"], row["split"]) for row in rows(probe)] == [(0, 0, "validation"), (0, 0, "test")]
    assert len(found["launches"]) == 1
    weights_before, lines = (probe / "model" / "model.safetensors").read_bytes(), (probe / "metrics.jsonl").read_bytes()
    resumed = train_accelerate.main(fine_tuning(probe, weights, freeze="backbone", validation_fraction=0.2, seed=3))
    assert "is finished (0 steps" in capsys.readouterr().out
    assert (probe / "model" / "model.safetensors").read_bytes() == weights_before
    assert (probe / "metrics.jsonl").read_bytes() == lines
    for name in (
        "test_accuracy",
        "probe_accuracy",
        "probe_loss",
        "start_knn_accuracy",
        "train_seconds",
        "probe_seconds",
    ):
        assert resumed[name] == found[name], name


def test_probe_alone_can_be_analysed(probe):
    analyze.main(AnalyzeConfig(run=str(probe), only=["curves", "classes"], track=False))
    page = (probe / "analysis" / "report.html").read_text()
    assert "No step was trained" in page
    assert (probe / "analysis" / "curves.png").exists()
    assert not (probe / "analysis" / "lr.png").exists()


def test_options_of_steps_have_no_effect_beside_a_frozen_backbone(weights, tmp_path):
    config = fine_tuning(tmp_path / "run", weights, freeze="backbone", lr=0.5, crop="pad")
    line = without_effect(config)
    assert "epochs, lr" in line
    assert "crop" in line.split("without probe_views")[0]
    assert "batch_size" not in line


def test_training_begins_with_the_probe_and_does_not_repeat_it_after_a_resume(weights, tmp_path, capsys):
    options = {"lr": 1e-4, "full_lr_steps": 60, "ema_decay": 0.9, "lookahead_steps": 2}
    config = fine_tuning(tmp_path / "run", weights, max_steps=2, **options)
    first = train_accelerate.main(config)
    out = capsys.readouterr().out
    assert out.index("probe") < out.index("epoch 1/1")
    assert "lr: 6 steps are fewer than full_lr_steps 60; lr is 10% of 0.0001\n" in out
    trained = [row["lr"] for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert 0 < max(trained) <= 1e-5
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    heads = [load_file(newest / f"{name}.safetensors")["fc.weight"] for name in ("model", "unaveraged", "lookahead")]
    for head in heads[:2]:  # the averages began with the same head
        torch.testing.assert_close(head, heads[2], rtol=0, atol=1e-4)
    assert heads[0].std() > 1e-3
    config.max_steps = None
    second = train_accelerate.main(config)
    out = capsys.readouterr().out
    assert "probe " not in out
    assert "full_lr_steps" not in out
    assert [row["split"] for row in rows(tmp_path / "run") if row["step"] == 0] == ["test"]
    names = ("probe_accuracy", "probe_loss", "start_knn_accuracy", "probe_seconds")
    assert [first[name] for name in names] == [second[name] for name in names]
    assert second["steps"] > first["steps"]


def test_probe_competes_for_the_best_epoch_and_a_worse_training_is_told(weights, probe, tmp_path, capsys):
    config = fine_tuning(tmp_path / "run", weights, validation_fraction=0.2, seed=3, lr=0.3, full_lr_steps=0, epochs=2)
    found = train_accelerate.main(config)
    error = capsys.readouterr().err
    assert "no epoch was better on the validation images than the probe" in error
    assert "--freeze backbone" in error
    assert found["best_validation_accuracy"] == found["probe_validation_accuracy"]
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == (
        probe / "model" / "model.safetensors"
    ).read_bytes()
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert json.loads((newest / "trainer.json").read_text())["state"]["best_step"] == 0
    again = train_accelerate.main(config)
    assert again["test_accuracy"] == found["test_accuracy"]


def test_without_validation_a_fall_on_the_test_split_is_told(weights, tmp_path, capsys):
    found = train_accelerate.main(fine_tuning(tmp_path / "run", weights, lr=0.3, full_lr_steps=0, max_steps=3))
    error = capsys.readouterr().err
    assert found["test_accuracy"] < found["probe_accuracy"]
    assert f"training ended below its probe (test accuracy {found['test_accuracy']:.2%} after" in error


def test_head_that_is_kept_is_scored_before_training(tmp_path, capsys):
    digits = timm_folder(tmp_path / "weights", "test_resnet", label_names=list("0123456789"))
    config = fine_tuning(tmp_path / "run", digits, freeze="backbone", keep_head=True)
    found = train_accelerate.main(config)
    assert "the head of the weights, kept" in capsys.readouterr().out
    assert found["probe_accuracy"] == found["test_accuracy"] == rows(tmp_path / "run")[0]["accuracy"]
    assert found["start_knn_accuracy"] is None


def test_random_head_is_not_scored(weights, tmp_path, capsys):
    found = train_accelerate.main(fine_tuning(tmp_path / "run", weights, head_init="random", max_steps=1))
    assert "probe" not in capsys.readouterr().out
    assert not [row for row in rows(tmp_path / "run") if row["step"] == 0]
    for name in ("probe_accuracy", "probe_loss", "probe_validation_accuracy", "probe_seconds", "start_knn_accuracy"):
        assert found[name] is None


def test_run_from_random_weights_has_no_probe(tmp_path):
    found = train_accelerate.main(tiny_config(tmp_path / "run", epochs=1, max_steps=1))
    assert found["probe_accuracy"] is None
    assert rows(tmp_path / "run")[0]["step"] == 1


# -- the cache --------------------------------------------------------------------------------------------------------


def cached_files(folder: Path) -> list[Path]:
    return sorted((folder / ".decoded").glob("features-*"))


def test_second_run_takes_the_features_from_the_cache(weights, tmp_path, capsys):
    options = {"freeze": "backbone", "overfit_batches": 1}
    first = train_accelerate.main(fine_tuning(tmp_path / "one", weights, **options))
    assert "cache" not in capsys.readouterr().out
    files = cached_files(tmp_path / "data")
    assert [path.name.split("-")[1] for path in files] == ["test", "train"]
    second = train_accelerate.main(fine_tuning(tmp_path / "two", weights, **options))
    assert "features from the cache" in capsys.readouterr().out
    for name in ("probe_accuracy", "probe_loss", "start_knn_accuracy"):
        assert first[name] == second[name]
    assert cached_files(tmp_path / "data") == files


@pytest.mark.parametrize("changed", ["weights", "images", "size", "views"])
def test_features_of_other_inputs_are_computed(weights, tmp_path, capsys, changed):
    options: dict[str, Any] = {
        "freeze": "backbone",
        "overfit_batches": 1,
        "probe_views": 1,
        "horizontal_flip": "random",
    }
    train_accelerate.main(fine_tuning(tmp_path / "one", weights, **options))
    before = set(cached_files(tmp_path / "data"))
    other = weights
    if changed == "weights":
        other = small_weights(tmp_path / "other", "test_resnet")
        tensors = load_file(other / "model.safetensors")
        scaled = {name: 1.01 * value if value.is_floating_point() else value for name, value in tensors.items()}
        save_file(scaled, other / "model.safetensors")
    options |= {"images": {"validation_fraction": 0.5}, "size": {"image_size": 24}, "views": {"seed": 1}}.get(
        changed, {}
    )
    train_accelerate.main(fine_tuning(tmp_path / "two", other, **options))
    new = {path.name.split("-")[1] for path in set(cached_files(tmp_path / "data")) - before}
    expected = {"views": {"views"}, "images": {"train", "views", "validation"}}
    assert new == expected.get(changed, {"train", "views", "test"})


def _rewrite(path: Path, change: str) -> None:
    content = bytearray(path.read_bytes())
    if change == "a bit":
        content[-100] ^= 1
    elif change == "half":
        del content[len(content) // 2 :]
    elif change == "longer":
        content += bytes(10_000)
    elif change == "header":
        content[:8] = (2**62).to_bytes(8, "little")
    elif change == "empty":
        content.clear()
    path.unlink()
    if change == "a pipe":
        os.mkfifo(path)
    elif change == "a link":
        path.symlink_to("/dev/zero")
    elif change == "a folder":
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("change", ["a bit", "half", "longer", "header", "empty", "a pipe", "a link", "a folder"])
def test_damaged_cache_is_told_and_not_used(tmp_path, capsys, change):
    cache, features = FeatureCache(tmp_path), np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    path = cache.path("train", {"seed": 0})
    assert cache.read(path, (50, 8)) is None
    cache.write(path, features)
    np.testing.assert_array_equal(cache.read(path, (50, 8)), features)
    assert capsys.readouterr().err == ""
    _rewrite(path, change)
    assert cache.read(path, (50, 8)) is None
    assert capsys.readouterr().err == f"warning: {path} is damaged; its features are computed again\n"
    if change not in ("a folder",):
        cache.write(path, features)
        np.testing.assert_array_equal(cache.read(path, (50, 8)), features)


def test_cache_keeps_the_features_that_were_used_last(tmp_path):
    cache, features = FeatureCache(tmp_path), np.zeros((2, 3), np.float32)
    paths = [cache.path("train", {"seed": seed}) for seed in range(KEPT + 2)]
    for age, path in enumerate(paths):
        cache.write(path, features)
        os.utime(path, (1e9 + age, 1e9 + age))
        if age == KEPT - 1:
            assert cache.read(paths[0], (2, 3)) is not None  # which makes it the one that was used last
    assert [path.exists() for path in paths] == [True, False, False, *[True] * (KEPT - 1)]


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(tmp_path, weights, capsys):
    config = fine_tuning(tmp_path / "run", weights, freeze="backbone", overfit_batches=1, data_dir=str(tmp_path / "no"))
    assert train_accelerate.main(config)["probe_accuracy"] > 0.5
    assert capsys.readouterr().err.count("features are not cached") == 1


def stop_at_the_test_split(config: TrainConfig) -> None:
    """Training that gets a SIGTERM once the features of the training images are computed."""
    from utils.training.features import RunFeatures

    compute = RunFeatures.of

    def of(self: RunFeatures, name: str, split: Any) -> np.ndarray:
        if name == "test":
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(self, name, split)

    RunFeatures.of = of
    train_script(config)


def test_stopped_while_features_are_computed(weights, tmp_path):
    log = tmp_path / "log"
    config = fine_tuning(tmp_path / "run", weights, freeze="backbone", overfit_batches=1)
    assert run(stop_at_the_test_split, config, log=log) == [128 + signal.SIGTERM]
    assert "stopped before training, in the first look at the weights; the same command starts over" in log.read_text()
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")
    assert run(train_script, config, log=log) == [0]
    assert "some features from the cache" in log.read_text()
    assert len(rows(tmp_path / "run")) == 1


# -- real weights -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not LITE0.is_dir(), reason="no pretrained weights here")
def test_pretrained_features_know_digits_that_they_never_saw(tmp_path):
    config = fine_tuning(tmp_path / "run", LITE0, freeze="backbone", image_size=64, overfit_batches=2)
    found = train_accelerate.main(config)
    assert found["probe_accuracy"] > 0.85
    assert 0.6 < found["start_knn_accuracy"] < found["probe_accuracy"]


def test_weights_that_are_not_finite_are_one_line(weights, tmp_path):
    place = small_weights(tmp_path / "broken", "test_resnet")
    tensors = load_file(place / "model.safetensors")
    save_file({name: value * float("inf") for name, value in tensors.items()}, place / "model.safetensors")
    with pytest.raises(UserError, match=r"conv1\.0\.weight has values that are not finite"):
        train_accelerate.main(fine_tuning(tmp_path / "run", place, overfit_batches=1))
