"""What a model says of pictures that are the user's own: probabilities, and where it looks."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm

from data.images import Split, read_image
from models.saved import ModelConfig
from utils.analysis.cam.maps import Cam
from utils.analysis.cam.overlay import draw_map, overlay
from utils.analysis.report import render
from utils.analysis.section import open_table
from utils.plots.figures import GREY, new_figure, shown_name
from utils.runs.saved_run import SavedRun
from utils.system.errors import one_line
from utils.system.files import replace_file, replacing

PRINTED = 3  # classes on the line of a picture
DRAWN = 5  # classes with a bar
SHOWN_SIDE = 320  # pixels of a picture in its figure
PAGE_SIDE = 160  # pixels of a picture on the page
PAGE_PICTURES = 100  # the page holds so many: about 8 MB


@dataclass(frozen=True)
class Described:
    """A picture with what the model says of it.

    Attributes:
        path: as the user named it.
        figure: the name of the figure that shows it.
        classes: the most probable ones by name with their probabilities, most probable first.
        map: the CAM of the first of them over what the model was given, uint8 (h, w, 3); None without evidence.
    """

    path: Path
    figure: str
    classes: list[tuple[str, float]]
    map: np.ndarray | None

    def picture(self, side: int) -> np.ndarray:
        """The part of the picture that the model was given, uint8 (side, side, 3)."""
        return read_image(self.path, side)


def write_results(
    folder: Path,
    run: SavedRun,
    model_config: ModelConfig,
    pictures: Split,
    probabilities: np.ndarray,
    cam: Cam,
    maps: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Prints a line for each picture; writes predictions.csv, a figure of each, and predict.html.

    Args:
        pictures: N of them, as utils.analysis.pictures reads them.
        probabilities: (N, classes).
        maps: what speaks for the most probable class, float32 (N, h, w).

    Returns: the probability of every class by the path of the picture.
    """
    names, paths = model_config.class_names, pictures.paths
    described = []
    images = map(pictures.images.__getitem__, range(len(paths)))
    rows = zip(paths, images, probabilities, maps, strict=True)
    for number, (path, image, row, cam_map) in enumerate(rows, 1):
        order = np.argsort(-row, kind="stable")[:DRAWN]
        classes = [(names[index], float(row[index])) for index in order]
        readable = "".join(letter if letter.isprintable() else "_" for letter in Path(path).stem)
        stem = readable.encode()[:100].decode(errors="ignore")  # a name has at most 255 bytes
        figure = f"{number:0{len(str(len(paths)))}d}-{stem}.png"
        described.append(Described(Path(path), figure, classes, overlay(image, cam_map)))
        print(one_line(f"{path}: " + ", ".join(f"{name} {share:.1%}" for name, share in classes[:PRINTED])))
    _write_table(folder / "predictions.csv", paths, probabilities, names)
    for picture in tqdm(described, "figures", leave=False, disable=None):
        with replacing(folder / picture.figure) as file:
            picture_figure(picture, cam).savefig(file, format="png")
    page = render(
        "predict.html.jinja",
        run=run,
        model_config=model_config,
        cam=cam,
        pictures=described[:PAGE_PICTURES],
        left_out=len(described[PAGE_PICTURES:]),
        side=PAGE_SIDE,
    )
    replace_file(folder / "predict.html", page.encode(errors="backslashreplace"))
    print(f"page: {folder / 'predict.html'}")
    return {path: dict(zip(names, row.tolist(), strict=True)) for path, row in zip(paths, probabilities, strict=True)}


def picture_figure(described: Described, cam: Cam) -> Figure:
    """The picture, where the model looks, and the probabilities of the likeliest classes."""
    figure = new_figure(9, 3.2)
    figure.suptitle(shown_name(described.path.name, longest=80))
    picture, heat, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    picture.imshow(described.picture(SHOWN_SIDE))
    picture.set_title("the part of the picture\nthat the model sees", fontsize=9)
    draw_map(heat, described.map)
    best = shown_name(described.classes[0][0])
    heat.set_title(f"{cam}:\n" + (f"speaks for {best}" if cam.knows_classes else "stands out"), fontsize=9)
    for axes in (picture, heat):
        axes.set_axis_off()
    labels, shares = zip(*described.classes, strict=True)
    places = range(len(labels))
    bars.barh(places, shares, color=GREY)
    for place, share in zip(places, shares, strict=True):
        bars.text(share + 0.02, place, f"{share:.1%}", va="center", fontsize=9)
    bars.set(xlim=(0, 1.2), ylim=(DRAWN - 0.5, -0.5), xlabel="probability", xticks=(0, 0.5, 1))
    bars.set_yticks(places, [shown_name(label) for label in labels])
    bars.xaxis.set_major_formatter(PercentFormatter(1))
    bars.spines[["top", "right"]].set_visible(False)
    bars.spines["bottom"].set_bounds(0, 1)
    return figure


def _write_table(path: Path, paths: Sequence[str], probabilities: np.ndarray, names: Sequence[str]) -> None:
    """A row for each picture with a column for each class. Not by name: a class may be called `path`."""
    with open_table(path) as file:
        writer = csv.writer(file)
        writer.writerow(["path", "predicted", *names])
        for picture, row in zip(paths, probabilities, strict=True):
            writer.writerow([picture, names[row.argmax()], *row.tolist()])
