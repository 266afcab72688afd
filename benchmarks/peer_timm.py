"""Fine-tunes with the train.py of timm, as it is, on an image folder and from weights that lie in a folder.

    git clone --depth 1 --branch v1.0.28 https://github.com/huggingface/pytorch-image-models /tmp/timm
    python benchmarks/peer_timm.py /tmp/timm --data_dir flowers --weights tf_efficientnet_lite0
    python benchmarks/peer_timm.py /tmp/timm --data_dir flowers --weights tf_efficientnet_lite0 --recipe advised

timm's package has no train.py, its repository has; it imports the timm that lies beside it. Its loop, augmentation,
loss, optimizer, schedule and evaluation are its own. The recipes (RECIPES), both with batches of 32:

- plain: AdamW at 5e-4, cosine without warm-up, 5 epochs, label smoothing 0.1 and the augmentation that are its
  defaults. Its default warm-up of 5 epochs would be all of the training.
- warmup: the same with that default.
- advised: what its author advises for other data and a new classifier: a tenth of the lr that EfficientNets are trained
  with from scratch, 0.1 * 0.016 * batch / 256 (issue 25 of the repository, 2019), and a head of zeros, which he "often"
  takes for fine-tuning (issue 1718, 2023; --head-init-scale); with what its release notes name for fine-tuning or small
  lrs: layer decay, a short warm-up by step, and an average of the weights that warms up.

The accuracy is that of the last epoch on the test split. train.py itself reports the best epoch on it, which is in
result.json as `best`. Not its default, and a gift to its time on a CPU: --channels-last and two loader processes.
"""

import argparse
import csv
import functools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.seeds import class_count, measure_seeds, parser_of, test_split, watched

PLAIN = {"opt": "adamw", "lr": "5e-4", "sched": "cosine", "warmup-epochs": "0"}
RECIPES: dict[str, dict[str, str]] = {
    "plain": PLAIN,
    "warmup": {**PLAIN, "warmup-epochs": "5"},
    "advised": {
        **PLAIN,
        "lr": "2e-4",
        "warmup-epochs": "1",
        "sched-on-updates": "",
        "head-init-scale": "0",
        "layer-decay": "0.75",
        "model-ema": "",
        "model-ema-warmup": "",
    },
}


def main() -> None:
    parser = parser_of(__doc__, "runs/peers")
    parser.add_argument("checkout", type=Path, help="folder of the checkout")
    parser.add_argument("--recipe", choices=RECIPES, default="plain")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="its loader processes; 4 is its own default")
    settings = parser.parse_args()
    measure_seeds(settings, f"timm-{settings.recipe}", train)


def train(settings: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """One training by train.py, from its start to its end."""
    data, run = settings.data_dir.resolve(), folder.resolve() / "run"
    options = {
        "data-dir": str(data),
        "train-split": "train",
        "val-split": test_split(data),
        "model": f"local-dir:{settings.weights.resolve()}",
        "pretrained": "",
        "num-classes": str(class_count(data)),
        "img-size": str(settings.image_size),
        "batch-size": "32",
        "epochs": str(settings.epochs),
        "device": "cpu",
        "workers": str(settings.workers),
        "channels-last": "",
        "seed": str(seed),
        "output": str(run.parent),
        "experiment": run.name,
        "checkpoint-hist": "1",
        **RECIPES[settings.recipe],
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value) if word]
    command = [sys.executable, settings.checkout.resolve() / "train.py", *words]
    accuracies = functools.partial(read_summary, run / "summary.csv")
    seconds, scores = watched(command, folder / "log", accuracies, settings.checkout)
    for checkpoint in run.glob("*.pth.tar"):
        checkpoint.unlink()
    found = accuracies()
    return {"accuracy": found[-1], "best": max(found), "seconds": seconds, "scores": scores, "options": options}


def read_summary(path: Path) -> list[float]:
    """Test accuracy (0 to 1) of each epoch so far."""
    if not path.exists():
        return []
    with open(path) as file:
        return [float(row["eval_top1"]) / 100 for row in csv.DictReader(file) if row.get("lr")]


if __name__ == "__main__":
    main()
