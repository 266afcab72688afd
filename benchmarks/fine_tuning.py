"""What the plain command of fine-tuning reaches, seed by seed, and what each of its defaults is worth. Prints Markdown.

    python benchmarks/fine_tuning.py --case flowers --data_dir flowers --weights tf_efficientnet_lite0
    python benchmarks/fine_tuning.py --case ants_bees --data_dir hymenoptera --weights tf_efficientnet_lite0
    python benchmarks/fine_tuning.py --case cifar10 --data_dir cifar10-jpeg --weights tf_efficientnet_lite0
    python benchmarks/fine_tuning.py --ablation --data_dir flowers --weights tf_efficientnet_lite0
    python benchmarks/seeds.py runs/fine_tuning/flowers --reach 0.86      # the table again

A case runs `accelerate launch train_accelerate.py --dataset imagefolder --data_dir DIR --init_from WEIGHTS` with the
size of CASES in fp32, and seeds 0, 1 and 2. Seconds are those of the process, from its start to its end. What follows
`--` goes to train_accelerate.py as well:

    python benchmarks/fine_tuning.py --case flowers --name config ... -- --config recipes/flowers.yaml

The ablation holds out a fifth of the training images, never looks at the test split, and changes one thing at a time
(`ablation`): validation accuracy of the last epoch, for two seeds, at 128 pixels.

Runs and results lie in output_dir. Finished seeds are not run again, and with --output_dir of the peers' benchmarks
(peer_timm.py, peer_fastai.py, peer_sklearn.py) there is one table of all.
"""

import argparse
import functools
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.seeds import measured, parser_of, table, watched
from utils.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
CASES = {"flowers": 160, "ants_bees": 224, "cifar10": 96}  # sides in pixels
ABLATION_SIZE, ABLATION_SEEDS, HELD_OUT = 128, [0, 1], 0.2
Options = dict[str, Any]


def ablation(config: TrainConfig) -> dict[str, Options]:
    """What is changed, by the name of its row.

    Args:
        config: the defaults.
    """
    lr = float(config.lr)
    return {
        "default": {},
        "probe alone": {"freeze": "backbone"},
        "head random": {"head_init": "random"},
        "batch norm trained": {"norm_statistics": "trained"},
        "head random, batch norm trained": {"head_init": "random", "norm_statistics": "trained"},
        "layer decay 0.75": {"layer_decay": 0.75},
        "head's lr x 10": {"head_lr_factor": 10},
        "lr x 3": {"lr": 3 * lr},
        "lr over 2": {"lr": lr / 2},
        "all of lr in a short run": {"full_lr_steps": 0},
        "epochs x 2": {"epochs": 2 * config.epochs},
        "no augmentation": {"crop": "none", "horizontal_flip": "none"},
        "crops from 0.08": {"crop_scale": 0.08},
        "TrivialAugment": {"policy": "trivial"},
        "label smoothing 0.1": {"label_smoothing": 0.1},
        "gradients clipped at 1": {"grad_clip_norm": 1.0},
        "EMA 0.95": {"ema_decay": 0.95},
        "EMA 0.99": {"ema_decay": 0.99},
    }


def main() -> int:
    arguments = sys.argv[1:]
    more = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    settings = parse_arguments(arguments[: len(arguments) - len(more)])
    split = "test" if settings.case else "validation"
    failures = 0
    for (name, options), seed in itertools.product(trainings(settings).items(), settings.seeds):
        folder = settings.output_dir / name / f"seed-{seed}"
        options = {"image_size": settings.image_size, "seed": seed, **options}
        try:
            measured(folder, functools.partial(train, settings, options, more, split))
        except RuntimeError as error:  # the other rows are worth having without it
            print(f"{folder}: {error}", file=sys.stderr)
            failures += 1
    print(table(settings.output_dir, settings.reach if settings.case else (), split))
    return 1 if failures else 0


def trainings(settings: argparse.Namespace) -> dict[str, Options]:
    """What differs from the plain command, by the name in the table."""
    if settings.case:
        return {settings.name: {}}
    rows = ablation(TrainConfig(init_from=str(settings.weights)))
    return {name: {"validation_fraction": HELD_OUT, **rows[name]} for name in settings.only or rows}


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, "runs/fine_tuning")
    parser.set_defaults(image_size=None, seeds=None, output_dir=None)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--case", choices=CASES, help="the plain command on this data set")
    kind.add_argument("--ablation", action="store_true", help="the defaults, one changed at a time")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"rows of the ablation; of {', '.join(ROWS)}")
    parser.add_argument("--name", default="suite", help="of the training, in the table of a case")
    parser.add_argument("--reach", type=float, nargs="*", default=[0.86], help="accuracies to which the time is given")
    settings = parser.parse_args([word for word in arguments if word != "--"])
    if unknown := set(settings.only or ()) - set(ROWS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: no such row")
    settings.output_dir = settings.output_dir or Path("runs/fine_tuning") / (settings.case or "ablation")
    settings.image_size = settings.image_size or CASES.get(settings.case, ABLATION_SIZE)
    settings.seeds = settings.seeds or ([0, 1, 2] if settings.case else ABLATION_SEEDS)
    return settings


ROWS = list(ablation(TrainConfig(init_from="weights")))


def train(settings: argparse.Namespace, options: Options, more: list[str], split: str, folder: Path) -> dict[str, Any]:
    """One training by the command line, and its scores on a split; its checkpoints are deleted at the end."""
    run = folder.resolve() / "run"
    options = {
        "dataset": "imagefolder",
        "data_dir": settings.data_dir.resolve(),
        "init_from": settings.weights.resolve(),
        **options,
        "trackers": "none",
        "output_dir": run,
    }
    words = [f"--{name}={value}" for name, value in options.items()] + more
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    rows = functools.partial(read_rows, run / "metrics.jsonl", split)
    seconds, scores = watched(
        [*launch, "train_accelerate.py", *words], folder / "log", lambda: [row["accuracy"] for row in rows()], ROOT
    )
    summary = json.loads((run / "summary.json").read_text())
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return {
        "accuracy": summary["test_accuracy"] if split == "test" else rows()[-1]["accuracy"],
        "probe": summary.get("probe_accuracy" if split == "test" else "probe_validation_accuracy"),
        "probe_seconds": summary.get("probe_seconds"),
        "seconds": seconds,
        "train_seconds": summary["train_seconds"],
        "images_per_second": summary["images_per_second"],
        "scores": scores,
        "options": words,
    }


def read_rows(path: Path, split: str) -> list[dict[str, Any]]:
    """The lines of a split so far; a line that is being written is left for later."""
    text = path.read_text() if path.exists() else ""
    rows = (json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines())
    return [row for row in rows if row["split"] == split]


if __name__ == "__main__":
    sys.exit(main())
