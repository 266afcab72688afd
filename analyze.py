"""Shows what a trained model learned and where it is wrong, from the saved run alone.

    python analyze.py runs/resnet18                                     # figures, report.html and more in RUN/analysis/
    python analyze.py runs/resnet18 --images 50 --cam_method EigenCAM
    python analyze.py runs/resnet18 --predict photo.png holiday/        # class probabilities and CAMs of photos
    python analyze.py runs/resnet18 --compare runs/other                # fixed, broken and shared mistakes
    accelerate launch analyze.py runs/resnet18                          # inference on all devices

RUN is a run directory, one of its checkpoints, or a folder with config.json and model.safetensors; for a model without
its run, --dataset and --data_dir name the images.
"""

from utils.config import AnalyzeConfig
from utils.config.parser import parse_config
from utils.system.home import provide_home
from utils.system.streams import keep_streams

if __name__ == "__main__":  # --help and mistaken options are answered before the libraries are loaded
    keep_streams()
    provide_home()
    CONFIG = parse_config(AnalyzeConfig, description=__doc__)

import contextlib
from pathlib import Path
from typing import Any

from utils.analysis import photos, sections
from utils.analysis.inference import predict_split, predict_test
from utils.analysis.predictions import Predictions
from utils.analysis.report.page import render_report
from utils.analysis.scores import headline
from utils.analysis.section import Analysis
from utils.analysis.setup import set_up
from utils.analysis.tracking import track_analysis
from utils.runs.saved_run import trained_precision
from utils.system.compilation import say_uncompiled
from utils.system.errors import raise_on_all_ranks, run_script
from utils.system.files import lock_folder, replace_file, to_json
from utils.system.runtime import create_accelerator
from utils.tracking.tracker import Page


def main(config: AnalyzeConfig) -> dict:
    """Analyses the run, or predicts photos with its model.

    Returns, on the main process, the content of summary.json or the probabilities by photo; elsewhere nothing.
    """
    accelerator = create_accelerator(default_precision=trained_precision(Path(config.run)))
    say_uncompiled(accelerator)
    with contextlib.ExitStack() as held:
        with raise_on_all_ranks(accelerator):
            analysis = set_up(config, accelerator)
            if accelerator.is_main_process:
                held.enter_context(lock_folder(analysis.folder))
        results = describe_photos(analysis) if config.predict else report(analysis)
    accelerator.end_training()
    return results


def describe_photos(analysis: Analysis) -> dict:
    """Predicts the user's photos on all processes, and explains each prediction."""
    predictions = predict_split(analysis, analysis.test, "predicting")
    with raise_on_all_ranks(analysis.accelerator):
        return photos.write_results(analysis, predictions) if analysis.accelerator.is_main_process else {}


def report(analysis: Analysis) -> dict:
    """Predicts on all processes whatever the sections need, then builds and writes them on the main process."""
    predictions = predict_test(analysis)
    found = sections.find(analysis, predictions)
    with raise_on_all_ranks(analysis.accelerator):
        return write_results(analysis, predictions, found) if analysis.accelerator.is_main_process else {}


def write_results(analysis: Analysis, predictions: Predictions, found: dict[str, tuple[Any, ...]]) -> dict:
    """Builds the sections, writes every file of the analysis, shows it in the trackers, and returns the summary."""
    folder, built = analysis.folder, sections.build(analysis, predictions, found)
    summary = headline(predictions, analysis.model_config.class_names)
    figures: dict[str, Path] = {}
    for section in built.values():
        summary |= section.summary
        figures |= section.write(folder)
    replace_file(folder / "summary.json", to_json(summary))
    page = render_report(
        run=analysis.run,
        model_config=analysis.model_config,
        mixed_precision=analysis.accelerator.mixed_precision,
        parameters=sum(parameter.numel() for parameter in analysis.model.parameters()),
        summary=summary,
        sections=built,
        figures=figures,
    )
    replace_file(folder / "report.html", page.encode())
    count, correct = summary["count"], summary["count"] - summary["misclassified_count"]
    low, high = summary["accuracy_interval_95"]
    print(f"test accuracy {correct}/{count} ({correct / count:.2%}; 95 % interval {low:.2%}-{high:.2%})")
    if analysis.run.note:
        print(analysis.run.note)
    if analysis.config.track:
        track_analysis(analysis, predictions, summary, built.values(), figures, Page(page, folder / "report.html"))
    print(f"report: {folder / 'report.html'}")
    return summary


if __name__ == "__main__":
    run_script(main, CONFIG)
