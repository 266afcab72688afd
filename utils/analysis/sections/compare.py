"""Two runs on the same test images: fixed, broken and shared mistakes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from utils.analysis.comparison import History, compare, history, image_rows, most_confident_first, per_class
from utils.analysis.inference import predict_test
from utils.analysis.predictions import Predictions
from utils.analysis.report.atlas import tiles_of
from utils.analysis.scores import reliability
from utils.analysis.section import Analysis, Row, Section
from utils.analysis.sections.calibration import plot_bins, style_panels
from utils.plots.figures import COLOURS, new_figure, shown_name
from utils.runs.saved_run import SavedRun

LABEL = "Comparison"
COST = "quick"
NEEDS = ("another run",)

# This run and the other one, told apart by lightness and by line style.
STYLES = ({"color": "0.15", "linestyle": "-"}, {"color": "#CC79A7", "linestyle": "--"})
BETTER, WORSE = COLOURS["train"], COLOURS["test"]  # blue and orange, as correct and wrong on the page
MOST_CLASSES = 30  # in the figure; with more, those that differ most
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def find(analysis: Analysis, predictions: Predictions) -> tuple[SavedRun, Predictions]:
    """The other run and its predictions, from the cache of its own analysis if they are there."""
    assert analysis.other is not None
    return analysis.other.run, predict_test(analysis.other, analysis.other.run.path / "analysis")


def section(analysis: Analysis, predictions: Predictions, found: tuple[SavedRun, Predictions]) -> Section:
    """What this run does better and worse than the other one, on the same images."""
    run, test, class_names = analysis.run, analysis.test, analysis.model_config.class_names
    other, other_predictions = found
    both = (predictions, other_predictions)
    outcomes = compare(predictions, other_predictions)
    names = (run.name, other.name) if run.name != other.name else (str(run.path), str(other.path))
    calibration = reliability(other_predictions.probabilities, other_predictions.labels)
    classes = per_class(outcomes, predictions.labels, class_names)
    figures = {"compare_classes": recall_figure(classes, names), "compare_calibration": calibration_figure(both, names)}
    histories = [history(each.rows) for each in (run, other)]
    recorded = [each for each in histories if each]
    if len(recorded) == 2:
        figures["compare_curves"] = curves_figure(recorded, names)
    tiles = {}
    for name in ("fixed", "broken", "shared"):
        positions = most_confident_first(getattr(outcomes, name), predictions)
        captions = [
            f"the other: {class_names[other_predictions.classes[index]]} "
            f"{100 * other_predictions.probabilities[index].max():.1f} %"
            for index in positions
        ]
        tiles[name] = tiles_of(analysis.shown(test), predictions, positions, captions)
    return Section(
        summary={
            "compare": {
                "other": names[1],
                "other_accuracy": float((outcomes.both_right.sum() + outcomes.broken.sum()) / len(test)),
                "other_expected_calibration_error": calibration.expected_calibration_error,
                **outcomes.summary(),
                "recall_difference": {row["class"]: row["recall_difference"] for row in classes},
            }
        },
        page={
            "names": names,
            "classes": classes,
            "last": [points.accuracy[-1] if points else None for points in histories],
            "unrecorded": [name for name, points in zip(names, histories, strict=True) if not points],
            "tiles": tiles,
        },
        figures=figures,
        tables={"compare": classes},
        image_tables={"compare_images": image_rows(outcomes, both, class_names)},
    )


def recall_figure(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """The recall difference of each class with its interval, the best for this run first."""
    known = [row for row in rows if row["images"]]
    shown = sorted(known, key=lambda row: -abs(row["recall_difference"]))[:MOST_CLASSES]
    shown.sort(key=lambda row: -row["recall_difference"])
    figure = new_figure(6.4, 1.5 + 0.26 * len(shown))
    axes = figure.subplots()
    places = range(len(shown))
    differences = [100 * row["recall_difference"] for row in shown]
    colours = [BETTER if difference >= 0 else WORSE for difference in differences]
    axes.barh(places, differences, color=colours, alpha=0.6, height=0.7)
    low, high = ([100 * row[key] for row in shown] for key in ("low_95", "high_95"))
    axes.hlines(places, low, high, color="0.15", linewidth=1)
    axes.axvline(0, color="0.15", linewidth=0.8)
    axes.set_yticks(places, [shown_name(row["class"]) for row in shown])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    chosen = f"the {len(shown)} of {len(known)} classes that differ most" if len(shown) < len(known) else "each class"
    figure.suptitle(f"Recall of {chosen}:\n{shown_name(names[0], 30)} minus {shown_name(names[1], 30)}")
    axes.set_xlabel("percentage points, with 95 % interval; below 0 this run is worse")
    axes.grid(alpha=0.3, axis="x")
    return figure


def calibration_figure(both: Sequence[Predictions], names: Sequence[str]) -> Figure:
    """Reliability diagrams of both runs, and the histograms of their confidences."""
    figure = new_figure(5.4, 5.8)
    diagram, histogram = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    style_panels(diagram, histogram, ":")
    for predictions, label, style in zip(both, labels(names), STYLES, strict=True):
        found = reliability(predictions.probabilities, predictions.labels)
        plot_bins(diagram, found, **style, label=f"{label}: expected error {found.expected_calibration_error:.3f}")
        histogram.stairs(found.counts, found.edges, **style)
    diagram.set_title("Calibration of both")
    figure.legend(loc="outside lower center")
    return figure


def curves_figure(histories: Sequence[History], names: Sequence[str]) -> Figure:
    """Test accuracy over epochs, and over training time if both recorded it."""
    times = [each.seconds for each in histories if each.seconds]
    timed = len(times) == len(histories)
    figure = new_figure(5.4, 5.8 if timed else 3.6)
    panels = figure.subplots(2 if timed else 1, sharey=True, squeeze=False)[:, 0]
    longest = max(seconds[-1] for seconds in times) if timed else 0.0
    unit, length = next((unit for unit in TIME_UNITS if longest >= 2 * unit[1]), TIME_UNITS[-1])
    points = {"marker": "o", "markersize": 3}
    for each, label, style in zip(histories, labels(names), STYLES, strict=True):
        name = f"{label}: {each.accuracy[-1]:.1%} at the end"
        panels[0].plot(each.epochs, each.accuracy, **style, **points, label=name)
        if timed:
            panels[1].plot(np.array(each.seconds) / length, each.accuracy, **style, **points)
    panels[0].set(title="Test accuracy after each epoch", xlabel="epoch")
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if timed:
        panels[1].set(xlabel=f"{unit} of training", xlim=(0, None))
    for axes in panels:
        axes.set_ylabel("test accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    return figure


def labels(names: Sequence[str]) -> list[str]:
    return [f"{role}, {shown_name(name, 30)}" for role, name in zip(("this run", "the other"), names, strict=True)]
