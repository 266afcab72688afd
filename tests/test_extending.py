"""The pages of docs/extending say what is true: their code, put where they say, trains, resumes and is analysed."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data.sources import load_split
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))
BLOCK = re.compile(r"```(python|jinja|diff)\n(.*?)```", re.DOTALL)
COUNT = 60  # images of each split
OPTIONS = """--dataset arrays --model plainnet --optimizer lion --trackers csv --lr 0.001 --width 16 --batch_size 16
    --epochs 1 --crop_padding 1 --cutout 0 --log_every_steps 1 --invert 0.5"""
INVERT = """
import numpy as np, torch
from data.augment import BatchPipeline, ImagePipeline, create_augmentations
from data.preprocessing import square
from utils.config import TrainConfig

images = np.random.default_rng(0).integers(256, size=(200, 8, 8, 3), dtype=np.uint8)
config = TrainConfig(crop_padding=0, horizontal_flip="none", cutout=0, invert=0.25)
augmentations = create_augmentations(config, square(8), (0, 0, 0), (1, 1, 1))
batch, single = BatchPipeline(augmentations), ImagePipeline(augmentations)
for augmented in (
    batch(torch.from_numpy(images), batch.draw(0, len(images))).numpy(),
    np.stack([single(image, 0, index) for index, image in enumerate(images)]),
):
    inverted = (augmented == 255 - images).all((1, 2, 3))
    assert (augmented[~inverted] == images[~inverted]).all()
    print(inverted.sum())
"""


def apply(page: Path, root: Path) -> list[Path]:
    """Puts the code of a page into the file that it names last before it; returns the new files."""
    text, new = page.read_text(), []
    for block in BLOCK.finditer(text):
        path = root / re.findall(r"`([\w/]+\.(?:py|html\.jinja))`", text[: block.start()])[-1]
        kind, content = block.groups()
        if kind != "diff":
            assert not path.exists()
            path.write_text(content)
            new.append(path)
            continue
        lines = content.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert path.read_text().count(before) == 1, f"{page.name}: {path.name} has no such lines:\n{before}"
        path.write_text(path.read_text().replace(before, after))
    return new


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the suite with the code of all pages, which must not get in each other's way."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("data", "models", "utils"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train_accelerate.py", "analyze.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    new = [path for page in PAGES for path in apply(page, root)]
    new = [path for path in new if path.suffix == ".py"]
    assert len(new) == len(PAGES)
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff:
        for check in (["check"], ["format", "--check"]):
            subprocess.run([ruff, *check, "--no-cache", *new], cwd=root, check=True)
    return root


def python(root: Path, *words: str) -> str:
    """What a script of the copy prints."""
    done = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(extended) -> Path:
    """A run that was stopped after two steps, went on to the third, and was analysed."""
    images = extended / "images"
    images.mkdir()
    for split in ("train", "test"):
        digits, names = load_split("digits", "", split, 16)
        np.savez(images / f"{split}.npz", images=digits.images[:COUNT], labels=digits.labels[:COUNT], class_names=names)
    train = ["train_accelerate.py", *OPTIONS.split(), "--data_dir", str(images), "--output_dir", "run"]
    python(extended, *train, "--max_steps", "2")
    assert "resumed from run/checkpoints/step-000002" in python(extended, *train, "--max_steps", "3")
    python(extended, "analyze.py", "run", "--only", "classes,gradcam,coverage,model", "--images", "10")
    return extended / "run"


def test_added_data_set_is_trained_and_evaluated(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_count"] == COUNT
    assert list(summary["per_class_accuracy"]) == [str(digit) for digit in range(10)]


def test_added_augmentation_is_drawn_by_both_backends(extended):
    for inverted in python(extended, "-c", INVERT).split():
        assert 25 < int(inverted) < 75  # of 200, a quarter of them


def test_added_model_is_explained(run):
    assert json.loads((run / "model/config.json").read_text())["architecture"] == "plainnet"
    summary = json.loads((run / "analysis/summary.json").read_text())
    assert summary["cam_layer"].startswith("layers")
    assert min(summary["cam_layer_size"]) >= 5


def test_added_optimizer_is_resumed_with_its_state(run):
    state = load_file(run / "checkpoints/step-000003/optimizer.safetensors")
    weights = load_file(run / "checkpoints/step-000003/model.safetensors")
    assert state["fc.weight/mean"].any()
    assert {name.removesuffix("/mean") for name in state} <= set(weights)


def test_added_section_is_in_the_report(run):
    summary = json.loads((run / "analysis/summary.json").read_text())
    half = summary["accuracy_of_the_confident_half"]
    page = (run / "analysis/report.html").read_text()
    assert '<li><a href="#coverage">Coverage</a></li>' in page
    assert f"The accuracy is {100 * half:.2f} % on the more confident half" in page
    assert (run / "analysis/coverage.png").exists()
    assert 0 <= half <= 1


def test_added_tracker_has_every_line_once(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [[str(row["step"]), f"{row['split']}/loss", str(row["loss"])] for row in rows]
    written = list(csv.reader((run / "metrics.csv").read_text().splitlines()))
    assert [row for row in written if re.fullmatch(r"(train|test)/loss", row[1])] == expected
    assert [int(row["step"]) for row in rows if row["split"] == "train"] == [1, 2, 3]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_page_are_accepted(extended, page):
    commands = re.findall(r"`python ((?:train_accelerate|analyze)\.py [^`]+)`", page.read_text())
    assert commands
    for command in commands:
        python(extended, *command.split(), "--print_config")
