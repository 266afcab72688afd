"""What the run started from, and what training added to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.analysis.predictions import Predictions
from utils.analysis.section import Analysis, Section
from utils.evaluation.scores import accuracy_interval
from utils.runs.saved_run import SavedRun
from utils.system.reading import is_count, is_number, is_text, shown

LABEL = "Start weights"
COST = "quick"
NEEDS = ()

TRAINED = "this model, trained"

FACTS = {
    "source": "Source", "file": "File", "repository": "Repository", "revision": "Revision", "license": "Licence",
    "sha256": "SHA-256",
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A classifier on the way from the start weights to the model: its accuracy on the test images of the training."""

    name: str
    accuracy: float
    interval: tuple[float, float]


def section(analysis: Analysis, predictions: Predictions) -> Section | None:
    """Where the weights come from, and the accuracy of the untouched features, of the first head, and of the model.

    None for a run that began with random weights, or does not say. All accuracies are those that training recorded: of
    the same images, in the same precision, without test-time augmentation.
    """
    run = analysis.run
    weights = run.environment.get("start_weights")
    if not isinstance(weights, dict):
        return None
    facts = {label: shown(weights[name]) for name, label in FACTS.items() if is_text(weights.get(name))}
    stages = stages_of(run)
    return Section(
        summary={"start": {name: weights.get(name) for name in ("source", "sha256")} | _accuracies(run.summary)},
        page={"facts": facts | {"Head": _head(run)}, "stages": stages, "gain": gain(stages)},
    )


def stages_of(run: SavedRun) -> list[Stage]:
    """In the order of the training; those that are recorded."""
    count, found = run.summary.get("test_count"), _accuracies(run.summary)
    if not (is_count(count) and count):
        return []
    config, probe = run.config, "logistic regression on the untouched features"
    names = {"knn": "10 nearest neighbours, on the untouched features"}
    if config.freeze == "backbone":
        names["model"] = f"this model: the probe, {probe}"
    else:
        names["start"] = "before training, with the head of the weights" if config.keep_head else f"the probe: {probe}"
        names["model"] = TRAINED
    known = [(name, found[key]) for key, name in names.items()]
    return [
        Stage(name, accuracy, accuracy_interval(round(accuracy * count), count))
        for name, accuracy in known
        if accuracy is not None
    ]


def _accuracies(summary: Mapping[str, Any]) -> dict[str, float | None]:
    keys = {"knn": "start_knn_accuracy", "start": "probe_accuracy", "model": "test_accuracy_without_tta"}
    values = {name: summary.get(key) for name, key in keys.items()}
    return {name: value if is_number(value, 0, 1) else None for name, value in values.items()}


def _head(run: SavedRun) -> str:
    if run.config.keep_head:
        return "kept"
    return f"made anew, {'fitted to the features' if run.config.head_init == 'probe' else 'random'}"


def gain(stages: Sequence[Stage]) -> str:
    """What training added to the stage before it, in a sentence; empty if either is unknown."""
    if len(stages) < 2 or stages[-1].name != TRAINED:
        return ""
    before, after = stages[-2:]
    points = 100 * (after.accuracy - before.accuracy)
    words = f"Training {'lost' if points < 0 else 'added'} {abs(points):.2f} points"
    if after.interval[0] <= before.interval[1] and before.interval[0] <= after.interval[1]:
        words += ", which may be chance: the intervals overlap"
    advice = " Try a smaller lr or fewer epochs, or keep the probe: --freeze backbone." if points < 0 else ""
    return f"{words}.{advice}"
