"""Shows what a trained model learned and where it is wrong, from the saved run alone.

    python analyze.py runs/resnet18                                     # figures, report.html and more in RUN/analysis/
    python analyze.py runs/resnet18 --images 50 --cam_method EigenCAM
    accelerate launch analyze.py runs/resnet18                          # inference on all devices

RUN is a run directory, one of its checkpoints, or a folder with config.json and model.safetensors; where the run of a
model is not beside it, --dataset and --data_dir name the images.
"""

from utils.config import AnalyzeConfig, parse_config

if __name__ == "__main__":  # --help and mistaken options are answered before the libraries are loaded
    CONFIG = parse_config(AnalyzeConfig, description=__doc__)

from pathlib import Path

import numpy as np
import torch

from data.loaders import to_input
from utils.analysis import calibration, classes, curves, gradcam, misclassified, model_summary
from utils.analysis.inference import predict_test
from utils.analysis.misclassified import find_mistakes
from utils.analysis.predictions import Predictions
from utils.analysis.report import render_report
from utils.analysis.saved_run import trained_precision
from utils.analysis.scores import headline
from utils.analysis.section import Section
from utils.analysis.setup import Analysis, set_up
from utils.analysis.tracking import track_analysis
from utils.errors import run_script, together
from utils.files import replace_file, to_json
from utils.runtime import create_accelerator


def main(config: AnalyzeConfig) -> dict:
    """Analyses the run; returns the content of analysis/summary.json (on the main process, elsewhere nothing)."""
    accelerator = create_accelerator(default_precision=trained_precision(Path(config.run)))
    with together(accelerator):
        analysis = set_up(config, accelerator)
    predictions = predict_test(analysis)
    summary = {}
    with together(accelerator):
        if accelerator.is_main_process:
            summary = write_results(analysis, predictions)
    accelerator.end_training()
    return summary


def look(analysis: Analysis, predictions: Predictions) -> list[Section]:
    """What each section that was asked for has found."""
    run, names = analysis.run, analysis.model_config.class_names
    builders = {
        "curves": lambda: curves.section(run),
        "classes": lambda: classes.section(predictions, analysis.test, names),
        "gallery": lambda: misclassified.section(predictions, analysis.test, names, analysis.config.images),
        "gradcam": lambda: explain(analysis, predictions),
        "calibration": lambda: calibration.section(predictions),
        "model": lambda: model_summary.section(analysis.model, analysis.model_config.input_size),
    }
    return [builders[name]() for name in analysis.sections if name in builders]


def explain(analysis: Analysis, predictions: Predictions) -> Section:
    """What speaks for the predicted and for the true class in the first mistakes."""
    mistakes = find_mistakes(predictions.probabilities, predictions.labels)
    shown = mistakes[: analysis.config.images]
    config = analysis.model_config
    size = config.image_size
    images = np.array([analysis.test.images[mistake.index] for mistake in shown], np.uint8).reshape(-1, size, size, 3)
    inputs = to_input(torch.from_numpy(images), *analysis.statistics, channels_last=False, size=config.input_size)
    return gradcam.section(analysis.model, analysis.cams, shown, len(mistakes), images, inputs, config.class_names)


def write_results(analysis: Analysis, predictions: Predictions) -> dict:
    """Writes every file of the analysis, tells W&B, and returns the summary."""
    folder, class_names = analysis.folder, analysis.model_config.class_names
    summary = headline(predictions, class_names)
    sections = look(analysis, predictions)
    pictures: dict[str, Path] = {}
    for section in sections:
        summary |= section.summary
        pictures |= section.write(folder)
    replace_file(folder / "summary.json", to_json(summary))
    page = render_report(
        run=analysis.run,
        model_config=analysis.model_config,
        mixed_precision=analysis.accelerator.mixed_precision,
        parameters=sum(parameter.numel() for parameter in analysis.model.parameters()),
        summary=summary,
        sections=sections,
        pictures=pictures,
    )
    replace_file(folder / "report.html", page.encode())
    count, correct = summary["count"], summary["count"] - summary["misclassified_count"]
    low, high = summary["accuracy_interval_95"]
    print(f"test accuracy {correct}/{count} ({correct / count:.2%}; 95 % interval {low:.2%}-{high:.2%})")
    if analysis.run.note:
        print(analysis.run.note)
    if analysis.config.track and "wandb" in analysis.run.config.trackers:
        track_analysis(analysis.run, summary, pictures, sections, class_names, page)
    print(f"report: {folder / 'report.html'}")
    return summary


if __name__ == "__main__":
    run_script(main, CONFIG)
