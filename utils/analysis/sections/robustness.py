"""How fast does accuracy fall when the images get worse? A probe with six simple corruptions, not CIFAR-10-C.

Their strengths are not those of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv:1903.12261): the numbers compare runs
of this suite with each other and with nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.figure import Figure

from data.images import Images, Positions
from data.splits import Split
from utils.analysis.cache import Arrays, Form, cached
from utils.analysis.inference import fingerprint, predict_split
from utils.analysis.predictions import Predictions, stratified_choice
from utils.analysis.section import Analysis, Row, Section
from utils.evaluation.scores import accuracy_interval
from utils.plots.figures import COLOURS, GREY, new_figure

LABEL = "Robustness"
COST = "slow"
NEEDS = ()

IMAGES = 1000  # of the test set, each at every strength of every corruption
STRENGTHS = 5


def _noise(image: np.ndarray, deviation: float, index: int) -> np.ndarray:
    pattern = np.random.default_rng([0, index]).standard_normal(image.shape, np.float32)
    return image + 255 * deviation * pattern


def _blur(image: np.ndarray, deviation: float, index: int) -> np.ndarray:
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), deviation * min(image.shape[:2]))


def _contrast(image: np.ndarray, share: float, index: int) -> np.ndarray:
    mean = image.mean()
    return mean + share * (image - mean)


def _brightness(image: np.ndarray, added: float, index: int) -> np.ndarray:
    return image + 255 * added


def _jpeg(image: np.ndarray, quality: float, index: int) -> np.ndarray:
    bgr = image[..., ::-1]  # OpenCV's order
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]


def _pixelate(image: np.ndarray, share: float, index: int) -> np.ndarray:
    height, width = image.shape[:2]
    small = max(1, round(share * width)), max(1, round(share * height))
    coarse = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


@dataclass(frozen=True)
class Corruption:
    """`make(image, value, index)` gives the corrupted image, not yet rounded.

    `values` are those of strengths 1 to 5, of `unit`.
    """

    make: Callable[[np.ndarray, float, int], np.ndarray]
    unit: str
    values: tuple[float, ...]


CORRUPTIONS = {
    "noise": Corruption(_noise, "standard deviation, black to white = 1", (0.01, 0.02, 0.03, 0.05, 0.08)),
    "blur": Corruption(_blur, "standard deviation of the Gaussian / shorter side", (0.015, 0.025, 0.035, 0.045, 0.06)),
    "contrast": Corruption(_contrast, "remaining contrast", (0.75, 0.6, 0.45, 0.3, 0.2)),
    "brightness": Corruption(_brightness, "added, black to white = 1", (0.1, 0.2, 0.3, 0.4, 0.5)),
    "JPEG": Corruption(_jpeg, "quality", (80, 50, 30, 15, 7)),
    "pixelate": Corruption(_pixelate, "remaining side / side", (0.75, 0.5, 0.375, 0.25, 0.1875)),
}


def corrupt(image: np.ndarray, name: str, strength: int, index: int) -> np.ndarray:
    """An image, uint8 (H, W, 3), at a strength from 0 (unchanged) to 5; a function of its arguments alone.

    `index` is its position in the test set, which seeds its noise.
    """
    if strength == 0:
        return image
    corruption = CORRUPTIONS[name]
    return corruption.make(image, corruption.values[strength - 1], index).clip(0, 255).round().astype(np.uint8)


class Corrupted(Images):
    """Some images at every strength of every corruption, made on access.

    Position (c x 5 + s - 1) x n + i is image i of n at strength s of the c-th corruption.
    """

    def __init__(self, images: np.ndarray, indices: np.ndarray):
        """`images` uint8 (n, H, W, 3) are those at `indices` of the test set."""
        self.images, self.indices = images, indices
        self.levels = [(name, strength) for name in CORRUPTIONS for strength in range(1, STRENGTHS + 1)]

    def __len__(self) -> int:
        return len(self.levels) * len(self.images)

    def take(self, indices: Positions) -> np.ndarray:
        places = [divmod(int(index), len(self.images)) for index in indices]
        return np.stack(
            [corrupt(self.images[image], *self.levels[level], int(self.indices[image])) for level, image in places]
        )


def find(analysis: Analysis, predictions: Predictions) -> Arrays:
    """Predicts some test images at every strength of every corruption.

    Returns `correct`, bool (corruptions, strengths, n): which of n chosen images are classified correctly.
    """
    test = analysis.test
    chosen = stratified_choice(test.labels, IMAGES)
    shape = (len(CORRUPTIONS), STRENGTHS, len(chosen))

    def compute() -> Arrays:
        images = Corrupted(np.stack([test.images[index] for index in chosen]), chosen)
        split = Split(images, np.tile(test.labels[chosen], shape[0] * shape[1]))
        corrupted = predict_split(analysis, split, "corrupted images")
        return {"correct": (corrupted.classes == corrupted.labels).reshape(shape)}

    settings = {name: [corruption.unit, *corruption.values] for name, corruption in CORRUPTIONS.items()}
    depends_on = fingerprint(analysis, test) | {"images": len(chosen), "corruptions": settings}
    forms = {"correct": Form("b", shape)}
    return cached(analysis.accelerator, [analysis.folder], "robustness", depends_on, forms, compute)


def section(analysis: Analysis, predictions: Predictions, found: Arrays) -> Section:
    """Accuracy over strength, and what each strength looks like."""
    test = analysis.test
    chosen = stratified_choice(test.labels, IMAGES)
    clean, corrupted, count = predictions.classes[chosen] == test.labels[chosen], found["correct"], len(chosen)
    rows = []
    for (name, corruption), levels in zip(CORRUPTIONS.items(), corrupted, strict=True):
        values = (None, *corruption.values)
        for strength, (value, correct) in enumerate(zip(values, (clean, *levels), strict=True)):
            low, high = accuracy_interval(int(correct.sum()), count)
            rows.append(
                {
                    "corruption": name,
                    "strength": strength,
                    "value": value,
                    "unit": corruption.unit,
                    "images": count,
                    "accuracy": float(correct.mean()),
                    "interval_95_low": low,
                    "interval_95_high": high,
                }
            )
    accuracies = dict(zip(CORRUPTIONS, corrupted.mean(2).tolist(), strict=True))
    example = int(chosen[0])
    return Section(
        summary={
            "robustness": {"images": count, "clean": float(clean.mean()), "mean": float(corrupted.mean()), **accuracies}
        },
        page={"total": len(test), "interval": rows[0], "corruptions": list(CORRUPTIONS)},
        figures={
            "robustness": robustness_figure(rows, count, len(test)),
            "corruptions": corruptions_figure(test.images[example], example),
        },
        tables={"robustness": rows},
    )


def robustness_figure(rows: Sequence[Row], count: int, total: int) -> Figure:
    """A panel per corruption: accuracy over strength with its 95 % interval, beside the accuracy without corruption."""
    figure = new_figure(7.4, 5.4)
    figure.suptitle(f"Accuracy of {count} of {total} test images (a probe, not CIFAR-10-C)")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, name in zip(panels.flat, CORRUPTIONS, strict=True):
        levels = [row for row in rows if row["corruption"] == name]
        strengths = [row["strength"] for row in levels]
        low, high = [row["interval_95_low"] for row in levels], [row["interval_95_high"] for row in levels]
        accuracies = [row["accuracy"] for row in levels]
        axes.axhline(accuracies[0], color=GREY, linestyle="--", linewidth=1, label="no corruption")
        axes.fill_between(strengths, low, high, color=COLOURS["test"], alpha=0.25, linewidth=0, label="95 % interval")
        axes.plot(strengths, accuracies, "o-", color=COLOURS["test"], markersize=4, label="accuracy")
        axes.set_title(name, fontsize="medium")
        axes.set(ylim=(0, 1), xticks=strengths, xlabel="strength (0: unchanged)", ylabel="accuracy")
        axes.label_outer()
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def corruptions_figure(image: np.ndarray, index: int) -> Figure:
    """An image of the test set at every strength of every corruption."""
    (height, width), gap = image.shape[:2], max(1, min(image.shape[:2]) // 16)
    down, across = height + gap, width + gap
    cells = np.full((len(CORRUPTIONS), STRENGTHS + 1, down, across, 3), 255, np.uint8)
    for row, name in enumerate(CORRUPTIONS):
        for strength in range(STRENGTHS + 1):
            cells[row, strength, :height, :width] = corrupt(image, name, strength, index)
    figure = new_figure(6.4, 6.4 * min(2.0, max(0.5, down / across)))
    axes = figure.subplots()
    axes.imshow(cells.swapaxes(1, 2).reshape(len(cells) * down, -1, 3), interpolation="nearest")
    axes.set_title(f"Test image {index} at each strength")
    axes.set_xticks((width - 1) / 2 + across * np.arange(STRENGTHS + 1), range(STRENGTHS + 1))
    axes.set_yticks((height - 1) / 2 + down * np.arange(len(CORRUPTIONS)), CORRUPTIONS)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
