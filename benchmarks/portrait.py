"""What `fit` costs if the objects stand at the edges of portrait photos: a Markdown table of test accuracies.

    python benchmarks/portrait.py            # 4 fits, 3 seeds each; minutes on two cores
    python benchmarks/portrait.py --quick    # a few steps, to see that it works

The photos are made, 160 pixels wide and 240 high: a ball, whose colour is the class, at the upper or the lower edge of
a background with the spectrum of photos (amplitude 1 / frequency; Field 1987). Of the ball, fit crop sees what reaches
into the 160 rows in the middle. A photo is a function of its number alone, so every training sees the same ones.
"""

import argparse
import colorsys
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_accelerate
from utils.config import TrainConfig
from utils.system.errors import run_script

WIDTH, HEIGHT = 160, 240  # pixels of a photo
RADIUS = (14, 22)  # of a ball, in pixels
GAP = (0, 8)  # pixels between a ball and the edge
CONTRAST = 0.15  # standard deviation of the background, of the whole range
IMAGES = {"train": 200, "test": 100}  # of each class
QUICK_IMAGES = {"train": 8, "test": 4}
FITS: list[tuple[str, int | str]] = [("crop", 64), ("squash", 64), ("pad", 64), ("crop", "96x64")]  # with image_size


CLASSES = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "blue": 2 / 3}  # by their hue, in turns of the colour circle
HUES = 0.04  # largest difference from that


class Row(NamedTuple):
    """Test accuracies of a fit, one per seed."""

    fit: str
    image_size: int | str
    accuracies: list[float]

    def __str__(self) -> str:
        mean, low, high = statistics.mean(self.accuracies), min(self.accuracies), max(self.accuracies)
        return f"| {self.fit} | {self.image_size} | {mean:.1%} ({low:.1%} to {high:.1%}) |"


def background(generator: np.random.Generator) -> np.ndarray:
    """float (HEIGHT, WIDTH, 3) from 0 to 1: noise whose amplitude falls with its frequency, as in photos."""
    frequencies = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequencies[0, 0] = 1.0
    noise = np.fft.rfft2(generator.standard_normal((3, HEIGHT, WIDTH))) / frequencies
    noise[:, 0, 0] = 0
    grey, *colours = np.fft.irfft2(noise, (HEIGHT, WIDTH))
    shades = [grey + 0.3 * colour for colour in (colours[0], colours[1], -colours[0])]
    image = np.stack([shade / shade.std() for shade in shades], axis=-1)
    return (generator.uniform(0.35, 0.65, 3) + CONTRAST * image).clip(0, 1)


def photo(name: str, number: int) -> Image.Image:
    """A photo of a class; another one for every number."""
    generator = np.random.default_rng([list(CLASSES).index(name), number])
    image = Image.fromarray((255 * background(generator)).astype(np.uint8))
    radius = generator.uniform(*RADIUS)
    x, y = generator.uniform(radius, WIDTH - radius), radius + generator.uniform(*GAP)
    y = y if generator.random() < 0.5 else HEIGHT - y
    hue = (CLASSES[name] + generator.uniform(-HUES, HUES)) % 1
    colour = colorsys.hsv_to_rgb(hue, generator.uniform(0.6, 1), generator.uniform(0.5, 1))
    fill = tuple(round(255 * value) for value in colour)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    return image


def write_photos(root: Path, images: dict[str, int]) -> None:
    """An image folder: root/train/CLASS/N.jpg and root/test/CLASS/N.jpg."""
    for name in CLASSES:
        first = 0
        for split, count in images.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(first, first + count):
                photo(name, number).save(folder / f"{number}.jpg", quality=90)
            first += count


def accuracy(photos: Path, run: Path, seed: int, quick: bool, **changes: Any) -> float:
    """Test accuracy of a training."""
    config = TrainConfig(
        dataset="imagefolder", data_dir=str(photos), width=16, epochs=6, batch_size=32, optimizer="sgd", lr=0.1,
        schedule="onecycle", warmup_fraction=0.25, horizontal_flip="random", cutout=0, seed=seed, trackers=["none"],
        output_dir=str(run), max_steps=1 if quick else None, **changes,
    )  # fmt: skip
    return train_accelerate.main(config)["test_accuracy"]


def main(settings: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory(prefix="portrait-") as place:
        photos = Path(place) / "photos"
        write_photos(photos, QUICK_IMAGES if settings.quick else IMAGES)
        for fit, size in FITS:
            found = [
                accuracy(photos, Path(place) / f"{len(rows)}-{seed}", seed, settings.quick, fit=fit, image_size=size)
                for seed in range(1 if settings.quick else settings.seeds)
            ]
            rows.append(Row(fit, size, found))
    seeds = len(rows[0].accuracies)
    print(f"\n| `fit` | `image_size` | test accuracy, mean over {seeds} seed(s) (lowest to highest) |")
    print("| --- | --- | --- |")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a step of each training on a few photos")
    run_script(main, parser.parse_args())
