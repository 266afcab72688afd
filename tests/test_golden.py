"""The first steps of every recipe have the losses that they had when golden_losses.json was written.

A change of the order, an augmentation, a model, an optimizer or a schedule shows here; the tolerance is for other
processors alone.
Where a change is meant, `python -m tests.test_golden` writes the file anew, and the commit says why.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from train_accelerate import main
from utils.config import TrainConfig
from utils.config.parser import read_config

GOLDEN = Path(__file__).with_name("golden_losses.json")
# Of the loss of each step: ten times what was found between instructions of SSE 4.1 and AVX2, which grows by the step.
TOLERANCES = (1e-4, 5e-3, 3e-2)
RECIPES = sorted(
    path.stem
    for path in (ROOT / "recipes").glob("*.yaml")
    if path.stem != "sweep" and "init_from" not in path.read_text()
)
# Each on the digits at a width that is quick.
SHORT = f"--dataset digits --width 16 --batch_size 64 --max_steps {len(TOLERANCES)} --log_every_steps 1 --trackers none"
# What no recipe asks for.
MORE = {
    "albumentations": "--augment_backend albumentations --num_workers 0 --optimizer sgd --horizontal_flip random",
    "averages": "--ema_decay 0.9 --lookahead_steps 2 --mixup 0.2 --cutmix 1 --norm group",
    "adamw": "--optimizer adamw --grad_clip_norm 1 --micro_batch_size 24 --schedule cosine --validation_fraction 0.2",
}


def losses(name: str, folder: Path) -> list[float]:
    """Of each step."""
    words = MORE[name].split() if name in MORE else ["--config", str(ROOT / "recipes" / f"{name}.yaml")]
    if name in ("aerial", "photos"):  # whose model is timm's
        words += ["--model", "resnet18"] + (["--image_size", "32"] if name == "photos" else [])
    if name == "assignment":  # its range test, of 100 steps, suggests a rate that depends on the processor
        words += ["--lr", "0.02"]
    main(read_config(TrainConfig, [*words, *SHORT.split(), "--output_dir", str(folder)]))
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]


def test_every_recipe_is_held():
    assert set(json.loads(GOLDEN.read_text())) == {*RECIPES, *MORE}


@pytest.mark.parametrize("name", [*RECIPES, *MORE])
def test_first_steps_have_the_losses_they_had(name, tmp_path):
    for loss, golden, tolerance in zip(
        losses(name, tmp_path / "run"), json.loads(GOLDEN.read_text())[name], TOLERANCES, strict=True
    ):
        assert loss == pytest.approx(golden, rel=tolerance)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        found = {name: losses(name, Path(place) / name) for name in [*RECIPES, *MORE]}
    GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
