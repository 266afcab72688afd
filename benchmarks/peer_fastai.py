"""Fine-tunes with fastai's vision_learner on an image folder, from weights that lie in a folder.

    python -m venv /tmp/fastai && /tmp/fastai/bin/pip install fastai timm
    /tmp/fastai/bin/python benchmarks/peer_fastai.py --data_dir flowers --weights tf_efficientnet_lite0
    /tmp/fastai/bin/python benchmarks/peer_fastai.py --data_dir flowers --weights tf_efficientnet_lite0 --recipe advised

The recipes; the backbone comes from timm, which fastai calls for every name of a model that is a string:

- plain: what the tutorials begin with: images of image_size (item_tfms=Resize), batches of 64, `fine_tune(4)`, which
  is an epoch of the head alone and four of everything, at its own rates.
- advised: what its book ("fastbook") arrives at for pretrained weights. Chapter 5: photos presized to 460/224 of
  image_size, aug_transforms(min_scale=0.75) of whole batches, the lr that lr_find suggests (valley), then
  `fine_tune(6, freeze_epochs=3)`. Chapter 7: test-time augmentation, tta(). It advises against progressive resizing for
  weights that were trained on similar images and sizes, and takes Mixup only from 80 epochs on. Its channels_last
  callback is used too.

The accuracy is that of the last epoch on the test split, for advised with tta(), whose time counts. Each seed has a
process of its own, with the start of Python and the imports in its time.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.seeds import alone, measure_seeds, parser_of, test_split


def main() -> None:
    parser = parser_of(__doc__, "runs/peers")
    parser.add_argument("--recipe", choices=("plain", "advised"), default="plain")
    parser.add_argument("--epochs", type=int, help="of all layers; unset: 4 for plain, 6 for advised")
    settings = parser.parse_args()
    measure_seeds(settings, f"fastai-{settings.recipe}", train)


def train(settings: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """One training in a process of its own."""
    started = time.time()
    recipe = {"plain": plain, "advised": advised}[settings.recipe]
    found = alone(recipe, settings, seed, folder, started)
    return {**found, "seconds": time.time() - started}


def plain(settings: argparse.Namespace, seed: int, folder: Path, started: float) -> dict[str, Any]:
    from fastai.vision.all import Resize

    learn, clock = learner(settings, seed, folder, started, item_tfms=Resize(settings.image_size))
    with learn.no_bar():
        learn.fine_tune(settings.epochs or 4, cbs=clock)
    return {"accuracy": clock.scores[-1][1], "scores": clock.scores, "recipe": f"fine_tune({settings.epochs or 4})"}


def advised(settings: argparse.Namespace, seed: int, folder: Path, started: float) -> dict[str, Any]:
    from fastai.vision.all import Resize, accuracy, aug_transforms, valley

    size, epochs = settings.image_size, settings.epochs or 6
    tfms = {"item_tfms": Resize(size * 460 // 224), "batch_tfms": aug_transforms(size=size, min_scale=0.75)}
    learn, clock = learner(settings, seed, folder, started, **tfms)
    learn.to_channelslast(use_amp=False)
    with learn.no_bar():
        lr = learn.lr_find(suggest_funcs=valley, show_plot=False).valley
        learn.fine_tune(epochs, base_lr=lr, freeze_epochs=3, cbs=clock)
        without = clock.scores[-1][1]
        found = float(accuracy(*learn.tta()))
    clock.add(found)
    return {"accuracy": found, "without_tta": without, "scores": clock.scores, "lr": lr}


def learner(settings: argparse.Namespace, seed: int, folder: Path, started: float, **options: Any) -> tuple[Any, Any]:
    """A vision_learner on the folder, and a callback that notes when each epoch was scored."""
    from fastai.vision.all import Callback, ImageDataLoaders, accuracy, set_seed, vision_learner

    class Clock(Callback):
        """`scores`: seconds since the start and test accuracy, of each epoch."""

        def __init__(self) -> None:
            self.scores: list[list[float]] = []

        def add(self, found: float) -> None:
            self.scores.append([round(time.time() - started, 2), found])

        def after_epoch(self) -> None:
            self.add(float(self.recorder.metrics[-1].value))

    set_seed(seed, reproducible=True)
    data = settings.data_dir
    dls = ImageDataLoaders.from_folder(data, train="train", valid=test_split(data), seed=seed, **options)
    name = f"local-dir:{settings.weights.resolve()}"
    return vision_learner(dls, name, metrics=accuracy, path=folder), Clock()


if __name__ == "__main__":
    main()
