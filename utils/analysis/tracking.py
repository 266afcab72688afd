"""Shows the results of an analysis in the trackers of its run."""

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.analysis.predictions import Predictions
from utils.analysis.scores import confusion_matrix
from utils.analysis.section import Analysis, Section
from utils.tracking.tracker import Confusion, Media, Page, Picture, Table
from utils.tracking.trackers import Trackers, identify_run, tracked_as


def track_analysis(
    analysis: Analysis,
    predictions: Predictions,
    summary: Mapping[str, Any],
    sections: Collection[Section],
    figures: Mapping[str, Path],
    page: Page,
) -> None:
    """Shows everything as `analysis/...` in the run's trackers, online or offline as training had them.

    A failing tracker costs a warning on stderr, not the analysis.
    """
    run, class_names = analysis.run, analysis.model_config.class_names
    names = [name for name in run.config.trackers if find_spec(name)]
    known = tracked_as(run.environment)
    if not names or "run_id" not in known:
        return
    counts = confusion_matrix(predictions.labels, predictions.classes, len(class_names))
    content: dict[str, float | Media] = {
        **{key: value for key, value in summary.items() if isinstance(value, (int, float))},
        **{name: Picture(path) for name, path in figures.items()},
        **{
            f"{name}_table": Table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
            for section in sections
            for name, rows in section.tables.items()
            if rows
        },
        **{name: media for section in sections for name, media in section.media.items()},
        "confusion": Confusion(class_names, counts),
        "report": page,
    }
    step = run.rows[-1]["step"] if run.rows else 0
    trackers = Trackers(names, identify_run(run.config, run.directory, known, "analysis"))
    try:
        trackers.each(lambda tracker: tracker.show({f"analysis/{key}": value for key, value in content.items()}, step))
    finally:
        trackers.close(finished=True)


def _cell(value: Any) -> Any:
    """A value that a tracker can show: lists become text."""
    return value if value is None or isinstance(value, (int, float, str)) else str(value)
