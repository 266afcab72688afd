"""A run that starts from weights: what it says, what it keeps, and that a resume needs them no more."""

import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.hub_server import COMMIT, running_hub
from tests.processes import run as run_processes
from tests.processes import train_script
from tests.saved_runs import change, reseal, training_refusal
from tests.test_weights import repository
from tests.timm_folder import timm_folder
from utils.config import TrainConfig
from utils.config.parser import read_config
from utils.system.files import digest
from utils.training.start import with_weights

OPTIONS = {
    "dataset": "digits", "image_size": 32, "batch_size": 64, "epochs": 1, "head_init": "random", "trackers": ["none"],
    "log_every_steps": 1,
}  # fmt: skip


def fine_tuning(folder: Path, source: Path | str, **changes) -> TrainConfig:
    return TrainConfig(**{**OPTIONS, "init_from": str(source), "output_dir": str(folder), **changes})


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return timm_folder(tmp_path_factory.mktemp("start") / "weights", "test_vit", license="mit")


@pytest.fixture(scope="module")
def trained(weights, tmp_path_factory) -> Path:
    """A run of four steps from weights, and beside it what it said."""
    root = tmp_path_factory.mktemp("trained")
    config = fine_tuning(root / "run", weights, max_steps=4)
    assert run_processes(train_script, config, log=root / "log") == [0], (root / "log").read_text()
    return root / "run"


def exported(run: Path) -> str:
    return digest([(run / "model" / "model.safetensors").read_bytes()])


def environment(run: Path) -> dict:
    return json.loads((run / "environment.json").read_text())


def test_the_start_says_what_became_of_the_weights_and_what_differs_from_them(trained, weights):
    lines = trained.with_name("log").read_text().splitlines()
    sha256 = digest([(weights / "model.safetensors").read_bytes()])
    (first,) = [line for line in lines if line.startswith("start: ")]
    assert first.startswith(f"start: timm:test_vit from {weights}/model.safetensors (mit, SHA-256 {sha256[:8]}...): ")
    assert first.endswith(
        "76 tensors loaded, 2 adapted, pos_embed resampled from 1x101x64 to 1x65x64, patch_embed.proj.weight "
        "resampled from 64x3x16x16 to 64x3x4x4, head made anew for 10 classes"
    )
    assert (
        "preprocessing of the weights: image_size 160, fit crop, crop_pct 0.95, interpolation bicubic, mean "
        "0.5/0.5/0.5, std 0.5/0.5/0.5; image_size is 32 instead"
    ) in lines


def test_run_and_model_keep_the_preprocessing_and_the_origin(trained, weights):
    options = yaml.safe_load((trained / "config.yaml").read_text())
    assert (options["init_from"], options["model"]) == (str(weights), "timm:test_vit")
    assert (options["image_size"], options["crop_pct"], options["interpolation"]) == (32, 0.95, "bicubic")
    config = json.loads((trained / "model" / "config.json").read_text())
    assert (config["mean"], config["std"], config["crop_pct"]) == ([0.5] * 3, [0.5] * 3, 0.95)
    assert config["arguments"] == {"img_size": 32, "patch_size": 4}
    described = {
        "source": str(weights),
        "file": "model.safetensors",
        "repository": None,
        "revision": None,
        "license": "mit",
        "sha256": digest([(weights / "model.safetensors").read_bytes()]),
    }
    assert environment(trained)["start_weights"] == described
    (checkpoint,) = (trained / "checkpoints").iterdir()
    assert json.loads((checkpoint / "trainer.json").read_text())["start_weights"] == described
    card = (trained / "model" / "README.md").read_text()
    assert f"The weights `model.safetensors` of weights, SHA-256 {described['sha256']}, whose licence is mit." in card
    assert "init_from: weights" in card
    assert str(weights) not in card


def test_a_resume_needs_no_weights_and_ends_as_the_run_that_was_never_stopped(trained, weights, tmp_path):
    lost = Path(shutil.copytree(weights, tmp_path / "weights"))
    stopped = fine_tuning(tmp_path / "run", lost, max_steps=2)
    assert run_processes(train_script, stopped) == [0]
    described = environment(tmp_path / "run")["start_weights"]
    shutil.rmtree(lost)
    assert run_processes(train_script, fine_tuning(tmp_path / "run", lost, max_steps=4)) == [0]
    assert exported(tmp_path / "run") == exported(trained)
    assert environment(tmp_path / "run")["start_weights"] == described
    assert described["sha256"] in (tmp_path / "run" / "model" / "README.md").read_text()


def test_two_processes_start_from_the_same_weights(trained, weights, tmp_path):
    config = fine_tuning(tmp_path / "run", weights, max_steps=1)
    assert run_processes(train_script, config, world_size=2, log=tmp_path / "log") == [0, 0]
    assert (tmp_path / "log").read_text().count("start: timm:test_vit") == 1
    alone, shared = (
        json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (trained, tmp_path / "run")
    )
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_a_run_that_has_begun_takes_no_other_weights(trained, weights, digits_run, tmp_path, capsys):
    for run, source, before in ((trained, "random", str(weights)), (digits_run, str(weights), "random")):
        copy = Path(shutil.copytree(run, tmp_path / f"from-{Path(before).name}"))
        config = fine_tuning(copy, source, head_init="random")
        line = training_refusal(capsys, config)
        assert line.startswith(f"error: init_from: {source} differs from {before} in ")
        assert line.endswith("give the same as before, or start another run with --output_dir NEW")


def test_an_origin_that_is_none_is_refused(trained, weights, tmp_path, capsys):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (checkpoint,) = (run / "checkpoints").iterdir()
    change(checkpoint / "trainer.json", start_weights={"sha256": [1]})
    reseal(checkpoint)
    assert "invalid start_weights" in training_refusal(capsys, fine_tuning(run, weights, max_steps=4))


def test_weights_that_do_not_fit_are_refused_before_images_are_read(weights, tmp_path, capsys):
    folder = Path(shutil.copytree(weights, tmp_path / "other"))
    save_file(load_file(folder / "model.safetensors") | {"extra": torch.zeros(2)}, folder / "model.safetensors")
    config = fine_tuning(tmp_path / "run", folder, dataset="imagefolder", data_dir=str(tmp_path / "none"))
    assert "do not fit the model (the model has no extra)" in training_refusal(capsys, config)
    assert not (tmp_path / "run").exists()


def test_print_config_shows_what_the_weights_decide_and_the_command_line_wins(weights):
    config = with_weights(read_config(TrainConfig, ["--init_from", str(weights), "--dataset", "digits"]))
    assert (config.model, config.image_size, config.crop_pct, config.fit) == ("timm:test_vit", 160, 0.95, "crop")
    argv = ["--init_from", str(weights), "--dataset", "digits", "--image_size", "96", "--fit", "squash"]
    config = with_weights(read_config(TrainConfig, argv))
    assert (config.image_size, config.fit, config.interpolation) == (96, "squash", "bicubic")


def test_the_preview_and_a_trial_of_one_step_start_from_the_weights_too(weights, tmp_path):
    for changes in ({"preview_augment": str(tmp_path / "a.png")}, {"fast_dev_run": True}):
        config = fine_tuning(tmp_path / "run", weights, **changes)
        assert run_processes(train_script, config, log=tmp_path / "log") == [0], (tmp_path / "log").read_text()
    assert (tmp_path / "a.png").is_file()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_processes_of_a_machine_download_once(weights, tmp_path):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    options = "--dataset digits --image_size 32 --max_steps 1 --trackers none --head_init random"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "train_accelerate.py"), *options.split(), "--init_from", "hf-hub:ada/vit"]
    with running_hub(public=True) as server:
        server.files["ada/vit"] = repository(weights, "bsd-3-clause")
        values = {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url}
        more = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--output_dir", str(tmp_path / "run")],
            env=inherited | values | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert len([line for line in server.asked if line == "GET /ada/vit/resolve/main/model.safetensors"]) == 1
    described = environment(tmp_path / "run")["start_weights"]
    assert (described["repository"], described["revision"]) == ("ada/vit", COMMIT)
    card = html.unescape((tmp_path / "run" / "model" / "README.md").read_text())
    assert "base_model: ada/vit" in card
    assert f"of ada/vit, revision {COMMIT}, SHA-256" in card
    assert "start: timm:test_vit from ada/vit, revision" in done.stdout
