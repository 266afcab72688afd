"""The photos of `--predict`, the user's own images without labels: reads them, and shows their probabilities and where
the model looks."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from data.files import SUFFIXES, FilePhoto, ImageFiles, read_image
from data.images import InMemory
from data.preprocessing import Geometry
from data.splits import Split
from utils.analysis.cam.maps import Cam, class_maps, draw_map, overlay
from utils.analysis.predictions import Predictions
from utils.analysis.report.page import render
from utils.analysis.section import Analysis, open_table
from utils.analysis.views import View, whole_view
from utils.plots.figures import GREY, new_figure, shown_name
from utils.system.errors import UserError, one_line
from utils.system.files import replace_file, replacing

UNKNOWN = -1  # the label of a photo
PRINTED = 3  # classes on the line of a photo
DRAWN = 5  # classes with a bar
FIGURE_SIDE = 320  # pixels of a photo in its figure
PAGE_SIDE = 160  # pixels of a photo on the page
PAGE_PHOTOS = 100  # on the page: about 8 MB


def read_photos(names: Sequence[str], geometry: Geometry, results: Path) -> Split:
    """The named photos, and all in the named folders, decoded like the images of an image folder.

    Each comes once, upright, and fitted by the model's geometry. Files in the folder `results`, such as the figures of
    an earlier call, are ignored. Raises UserError for a missing or unreadable file.
    """
    paths = find_photos(names, results)
    try:
        files = ImageFiles(paths, geometry)
        images = files.decode(range(len(files)))
    except UserError as error:
        raise UserError("predict: " + str(error).removeprefix("data_dir: ")) from error
    return Split(InMemory(images, files), np.full(len(paths), UNKNOWN), [str(path) for path in paths])


def find_photos(names: Sequence[str], results: Path) -> list[Path]:
    """The files, in the order of the names and sorted within a folder. Hidden files in a folder are ignored."""
    results = results.resolve()
    found: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if results == (path if path.is_dir() else path.parent).resolve():
            raise UserError(f"output_dir: {results} is not allowed; it holds the photos; name another folder")
        if path.is_dir():
            inside = [file for file in _walk(path) if file.resolve().parent != results]
            if not inside:
                raise UserError(f"predict: {path} holds no photo (looking for {', '.join(sorted(SUFFIXES))})")
        elif path.is_file():
            inside = [path]
        else:
            raise UserError(f"predict: {path} does not exist")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _walk(folder: Path) -> list[Path]:
    """All photos in a folder and its subfolders, sorted."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        files += [Path(place, name) for name in names if name[0] != "." and Path(name).suffix.lower() in SUFFIXES]
    return sorted(files)


@dataclass(frozen=True)
class Described:
    """A photo with its prediction.

    Attributes:
        path: as the user named it.
        geometry: that the photo is fitted by.
        figure: file name of its figure.
        classes: the most probable ones by name with their probabilities, most probable first.
        fitted: as the model sees it, uint8 (height, width, 3).
        cam: the CAM of the most probable class, float (h, w).
        whole: show the whole photo, not the part that the model sees.
    """

    path: Path
    geometry: Geometry
    figure: str
    classes: list[tuple[str, float]]
    fitted: np.ndarray
    cam: np.ndarray
    whole: bool = False

    def seen(self, side: int) -> np.ndarray:
        """The photo as the model sees it or whole, uint8 (height, width, 3), the longer side of `side` pixels."""
        if self.whole:
            return self._view(side).picture
        height, width = self.geometry.size
        scale = side / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        return read_image(self.path, replace(self.geometry, size=size))

    def explained(self, side: int) -> np.ndarray | None:
        """The map over the model's input, or over the whole photo as `seen` shows it; None without evidence."""
        return self._view(side).overlay(self.cam) if self.whole else overlay(self.fitted, self.cam)

    def _view(self, side: int) -> View:
        return whole_view(FilePhoto(self.path), self.geometry, side)


def write_results(analysis: Analysis, predictions: Predictions) -> dict[str, dict[str, float]]:
    """Explains the predictions of photos: prints a line for each; writes predictions.csv, figures, and predict.html.

    Returns: the probability of every class by the path of the photo.
    """
    folder, cam, names = analysis.folder, analysis.cams.chosen[0], analysis.model_config.class_names
    images, paths, probabilities = analysis.test.images[:], analysis.test.paths, predictions.probabilities
    maps = class_maps(analysis.model, cam, analysis.inputs_of(images), predictions.classes.tolist())
    described, geometry, whole = [], analysis.model_config.geometry, analysis.config.whole
    rows = zip(paths, images, probabilities, maps, strict=True)
    for number, (path, image, row, cam_map) in enumerate(rows, 1):
        order = np.argsort(-row, kind="stable")[:DRAWN]
        classes = [(names[index], float(row[index])) for index in order]
        readable = "".join(letter if letter.isprintable() else "_" for letter in Path(path).stem)
        stem = readable.encode()[:100].decode(errors="ignore")  # a name has at most 255 bytes
        figure = f"{number:0{len(str(len(paths)))}d}-{stem}.png"
        described.append(Described(Path(path), geometry, figure, classes, image, cam_map, whole))
        print(one_line(f"{path}: " + ", ".join(f"{name} {share:.1%}" for name, share in classes[:PRINTED])))
    _write_table(folder / "predictions.csv", paths, probabilities, names)
    for photo in tqdm(described, "figures", leave=False, disable=None):
        with replacing(folder / photo.figure) as file:
            photo_figure(photo, cam).savefig(file, format="png")
    page = render(
        "predict.html.jinja",
        run=analysis.run,
        model_config=analysis.model_config,
        cam=cam,
        photos=described[:PAGE_PHOTOS],
        more=len(described[PAGE_PHOTOS:]),
        side=PAGE_SIDE,
        whole=whole,
    )
    replace_file(folder / "predict.html", page.encode(errors="backslashreplace"))
    print(f"page: {folder / 'predict.html'}")
    return {path: dict(zip(names, row.tolist(), strict=True)) for path, row in zip(paths, probabilities, strict=True)}


def photo_figure(described: Described, cam: Cam) -> Figure:
    """The photo, where the model looks, and the probabilities of the most probable classes."""
    figure = new_figure(9, 3.2)
    figure.suptitle(shown_name(described.path.name, longest=80))
    photo, heat, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    photo.imshow(described.seen(FIGURE_SIDE))
    shown = "in the frame:\nwhat the model sees" if described.whole else "the photo\nas the model sees it"
    photo.set_title(shown, fontsize=9)
    draw_map(heat, described.explained(FIGURE_SIDE))
    best = shown_name(described.classes[0][0])
    heat.set_title(f"{cam}:\n" + (f"evidence for {best}" if cam.knows_classes else "salient regions"), fontsize=9)
    for axes in (photo, heat):
        axes.set_axis_off()
    labels, shares = zip(*described.classes, strict=True)
    places = range(len(labels))
    bars.barh(places, shares, color=GREY)
    for place, share in zip(places, shares, strict=True):
        bars.text(share + 0.02, place, f"{share:.1%}", va="center", fontsize=9)
    bars.set(xlim=(0, 1.2), ylim=(DRAWN - 0.5, -0.5), xlabel="probability", xticks=(0, 0.5, 1))
    bars.set_yticks(places, [shown_name(label) for label in labels])
    bars.xaxis.set_major_formatter("{x:.0%}")
    bars.spines[["top", "right"]].set_visible(False)
    bars.spines["bottom"].set_bounds(0, 1)
    return figure


def _write_table(path: Path, paths: Sequence[str], probabilities: np.ndarray, names: Sequence[str]) -> None:
    """A row for each photo with a column for each class. Not by name: a class may be called `path`."""
    with open_table(path) as file:
        writer = csv.writer(file)
        writer.writerow(["path", "predicted", *names])
        for photo, row in zip(paths, probabilities, strict=True):
            writer.writerow([photo, names[row.argmax()], *row.tolist()])
