"""The results of an analysis in the trackers' runs of the training."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.analysis.cam.overlay import enlarge
from utils.analysis.gradcam import Example
from utils.analysis.predictions import Predictions
from utils.analysis.scores import confusion_matrix
from utils.analysis.section import Section
from utils.runs.saved_run import SavedRun
from utils.tracking.tracker import Confusion, Media, Page, Picture, Table
from utils.tracking.trackers import Trackers, identify_run, tracked_as

# The other tables have a row for every image.
TABLES = {"per_class", "label_issues", "cam_grid", "robustness", "neighbours", "compare"}


def track_analysis(
    run: SavedRun,
    summary: Mapping[str, Any],
    sections: Sequence[Section],
    pictures: Mapping[str, Path],
    predictions: Predictions,
    class_names: Sequence[str],
    page: Page,
) -> None:
    """Shows everything as `analysis/...` in the runs of the training, online or offline as these are.

    A fault of a tracker costs a warning on stderr, not the analysis.
    """
    names = [name for name in run.config.trackers if find_spec(name)]
    known = tracked_as(run.environment)
    if not names or "run_id" not in known:
        return
    examples = [example for section in sections for example in section.page.get("examples", ())]
    counts = confusion_matrix(predictions.labels, predictions.classes, len(class_names))
    content: dict[str, float | Media] = {
        **{key: value for key, value in summary.items() if isinstance(value, (int, float))},
        **{name: Picture(path) for name, path in pictures.items()},
        **_tables(sections),
        **_galleries(examples, predictions, class_names),
        "confusion": Confusion(class_names, counts),
        "report": page,
    }
    step = run.rows[-1]["step"] if run.rows else 0
    trackers = Trackers(names, identify_run(run.config, run.directory, known, "analysis"))
    try:
        trackers.each(lambda tracker: tracker.show({f"analysis/{key}": value for key, value in content.items()}, step))
    finally:
        trackers.close(finished=True)


def _tables(sections: Sequence[Section]) -> dict[str, Table]:
    found = {name: rows for section in sections for name, rows in section.tables.items() if name in TABLES and rows}
    return {
        f"{name}_table": Table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
        for name, rows in found.items()
    }


def _cell(value: Any) -> Any:
    """As a tracker takes it: lists as text."""
    return value if value is None or isinstance(value, (int, float, str)) else str(value)


def _galleries(
    examples: Sequence[Example], predictions: Predictions, class_names: Sequence[str]
) -> dict[str, float | Media]:
    """The mistakes that are explained: the images, their heat maps, and a table with what each class was given."""
    if not examples:
        return {}
    images, cams, rows = [], [], []
    for example in examples:
        mistake = example.mistake
        true, predicted = class_names[mistake.true], class_names[mistake.predicted]
        caption = f"true {true}, predicted {predicted} ({mistake.predicted_confidence:.0%})"
        images.append(Picture(enlarge(example.image), caption))
        cam = None if example.predicted_map is None else Picture(example.predicted_map, caption)
        cams += [cam] if cam else []
        probabilities = predictions.probabilities[mistake.index].tolist()
        rows.append([mistake.index, images[-1], cam, true, predicted, f"{true} → {predicted}", *probabilities])
    columns = ["index", "image", "cam", "true", "predicted", "confusion", *(f"p({name})" for name in class_names)]
    return {
        "misclassified_images": images,
        "misclassified_table": Table(columns, rows),
        **({"cam_images": cams} if cams else {}),
    }
