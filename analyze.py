"""Shows what a trained model learned and where it is wrong, from the saved run alone.

    python analyze.py runs/resnet18                                     # figures, report.html and more in RUN/analysis/
    python analyze.py runs/resnet18 --images 50 --cam_method EigenCAM
    python analyze.py runs/resnet18 --predict photo.png holiday/        # class probabilities and CAM of pictures
    python analyze.py runs/resnet18 --compare runs/other                # fixed, broken and shared mistakes
    accelerate launch analyze.py runs/resnet18                          # inference on all devices

RUN is a run directory, one of its checkpoints, or a folder with config.json and model.safetensors; where the run of a
model is not beside it, --dataset and --data_dir name the images.
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

import numpy as np
import torch

from data.preprocessing import to_input
from models.summary import describe_model
from utils.analysis import (
    calibration,
    classes,
    compare,
    curves,
    embedding,
    gradcam,
    label_issues,
    misclassified,
    neighbours,
    picture_results,
    robustness,
)
from utils.analysis.cam.maps import class_maps
from utils.analysis.inference import predict_split, predict_test
from utils.analysis.inputs import SectionInputs, find_inputs
from utils.analysis.misclassified import find_mistakes
from utils.analysis.predictions import Predictions
from utils.analysis.report import render_report
from utils.analysis.scores import headline
from utils.analysis.section import Section
from utils.analysis.setup import Analysis, set_up
from utils.analysis.tracking import track_analysis
from utils.runs.saved_run import trained_precision
from utils.system.compilation import say_uncompiled
from utils.system.errors import raise_on_all_ranks, run_script
from utils.system.files import lock_folder, replace_file, to_json
from utils.system.runtime import create_accelerator
from utils.tracking.tracker import Page


def main(config: AnalyzeConfig) -> dict:
    """Analyses the run, or predicts pictures with it.

    Returns the content of summary.json, or the probabilities of each picture (on the main process, elsewhere nothing).
    """
    accelerator = create_accelerator(default_precision=trained_precision(Path(config.run)))
    say_uncompiled(accelerator)
    with contextlib.ExitStack() as held:
        with raise_on_all_ranks(accelerator):
            analysis = set_up(config, accelerator)
            if accelerator.is_main_process:
                held.enter_context(lock_folder(analysis.folder))
        predictions = predict_split(analysis, analysis.test, "predicting") if config.predict else predict_test(analysis)
        inputs = find_inputs(analysis, predictions)
        results = {}
        with raise_on_all_ranks(accelerator):
            if accelerator.is_main_process and config.predict:
                results = describe_pictures(analysis, predictions)
            elif accelerator.is_main_process:
                results = write_results(analysis, predictions, inputs)
    accelerator.end_training()
    return results


def look(analysis: Analysis, predictions: Predictions, inputs: SectionInputs) -> list[Section]:
    """What each section that was asked for has found."""
    run, test, names = analysis.run, analysis.test, analysis.model_config.class_names
    size = analysis.model_config.input_size
    builders = {
        "curves": lambda: curves.section(run),
        "classes": lambda: classes.section(predictions, test, names),
        "gallery": lambda: misclassified.section(predictions, test, names, analysis.config.images),
        "gradcam": lambda: explain(analysis, predictions),
        "calibration": lambda: calibration.section(predictions, inputs.validation),
        "label_issues": lambda: label_issues.section(predictions, test, names),
        "neighbours": lambda: neighbours.section(
            predictions, inputs.neighbours, test, analysis.train, names, analysis.config.images
        ),
        "embedding": lambda: embedding.section(predictions, inputs.embedding, test, names),
        "robustness": lambda: robustness.section(inputs.probe, test),
        "compare": lambda: compare.section(run, predictions, analysis.other.run, inputs.compared, test, names),
        "model": lambda: Section("model", texts={"model_summary": describe_model(analysis.model, size)}),
    }
    return [builders[name]() for name in analysis.sections]


def explain(analysis: Analysis, predictions: Predictions) -> Section:
    """What speaks for the predicted and for the true class in the first mistakes."""
    mistakes = find_mistakes(predictions.probabilities, predictions.labels)
    shown = mistakes[: analysis.config.images]
    config = analysis.model_config
    size = config.image_size
    images = np.array([analysis.test.images[mistake.index] for mistake in shown], np.uint8).reshape(-1, size, size, 3)
    inputs = as_inputs(analysis, images)
    return gradcam.section(analysis.model, analysis.cams, shown, len(mistakes), images, inputs, config.class_names)


def describe_pictures(analysis: Analysis, predictions: Predictions) -> dict:
    """What the model says of the user's pictures, and what speaks for that."""
    pictures, cam = analysis.test, analysis.cams.chosen[0]
    inputs = as_inputs(analysis, pictures.images[:])
    maps = class_maps(analysis.model, cam, inputs, predictions.classes.tolist())
    return picture_results.write_results(
        analysis.folder, analysis.run, analysis.model_config, pictures, predictions.probabilities, cam, maps
    )


def as_inputs(analysis: Analysis, images: np.ndarray) -> torch.Tensor:
    """Images, uint8 (N, H, W, 3), as the model wants them: float32 (N, 3, h, w) on its device."""
    size = analysis.model_config.input_size
    return to_input(torch.from_numpy(images), *analysis.statistics, channels_last=False, size=size)


def write_results(analysis: Analysis, predictions: Predictions, inputs: SectionInputs) -> dict:
    """Writes every file of the analysis, tells the trackers, and returns the summary."""
    folder, class_names = analysis.folder, analysis.model_config.class_names
    summary = headline(predictions, class_names)
    sections = look(analysis, predictions, inputs)
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
    if analysis.config.track:
        report = Page(page, folder / "report.html")
        track_analysis(analysis.run, summary, sections, pictures, predictions, class_names, report)
    print(f"report: {folder / 'report.html'}")
    return summary


if __name__ == "__main__":
    run_script(main, CONFIG)
