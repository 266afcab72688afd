"""Shows what a trained model learned and where it is wrong, from the saved run alone.

    python analyze.py runs/resnet18                                     # figures, report.html and more in RUN/analysis/
    python analyze.py runs/resnet18 --images 50 --cam_method EigenCAM
    accelerate launch analyze.py runs/resnet18                          # inference on all devices

RUN is a run directory, its model/ folder, or one of its checkpoints.
"""

from utils.config import AnalyzeConfig, parse_config

if __name__ == "__main__":  # --help and mistaken options are answered before the libraries are loaded
    CONFIG = parse_config(AnalyzeConfig, description=__doc__)

import copy
import dataclasses
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.datasets import Split
from data.loaders import EvaluationLoader, to_input
from utils.analysis import figures
from utils.analysis.calibration import Reliability, reliability
from utils.analysis.curves import epoch_curves, learning_rates
from utils.analysis.gradcam import CamLayer, choose_layer, choose_method, class_maps, overlay
from utils.analysis.misclassified import Example, Mistake, find_mistakes
from utils.analysis.model_summary import describe_model
from utils.analysis.report import render_report
from utils.analysis.saved_run import SavedRun, open_run, trained_precision
from utils.analysis.scores import accuracy_interval, confusion_matrix, most_confused, per_class_scores, write_per_class
from utils.analysis.tracking import track_analysis
from utils.checkpoint import ModelConfig, load_model
from utils.errors import run_script, together
from utils.evaluation import predict
from utils.files import replace_file, to_json
from utils.metrics import score
from utils.runtime import create_accelerator


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that an analysis works with. `model` computes in float32 and is neither compiled nor wrapped."""

    config: AnalyzeConfig
    accelerator: Accelerator
    run: SavedRun
    model: nn.Module
    model_config: ModelConfig
    cam_method: type
    cam_layer: CamLayer
    test: Split
    folder: Path


def main(config: AnalyzeConfig) -> dict:
    """Analyses the run; returns the content of analysis/summary.json (on the main process, elsewhere nothing)."""
    accelerator = create_accelerator(default_precision=trained_precision(Path(config.run)))
    with together(accelerator):
        analysis = set_up(config, accelerator)
    logits = predict_test(analysis)
    summary = {}
    with together(accelerator):
        if accelerator.is_main_process:
            summary = write_results(analysis, logits)
    accelerator.end_training()
    return summary


def set_up(config: AnalyzeConfig, accelerator: Accelerator) -> Analysis:
    """The model and its test images; whatever the user may have got wrong is found here, before the work."""
    run = open_run(Path(config.run))
    model, model_config = load_model(run.model_folder)
    method = choose_method(config.cam_method)
    layer = choose_layer(model, model_config.input_size, config.cam_layer)
    test = run.test_split(model_config, config.data_dir)
    folder = Path(config.output_dir) if config.output_dir else run.path / "analysis"
    folder.mkdir(parents=True, exist_ok=True)
    return Analysis(config, accelerator, run, model.to(accelerator.device), model_config, method, layer, test, folder)


def predict_test(analysis: Analysis) -> Tensor:
    """Logits of the test images, float32 (images, classes) on the CPU, as training computed them."""
    accelerator, channels_last = analysis.accelerator, analysis.run.config.channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = accelerator.prepare_model(copy.deepcopy(analysis.model).to(memory_format=layout), evaluation_mode=True)
    loader = EvaluationLoader(
        analysis.test,
        accelerator.process_index,
        accelerator.num_processes,
        num_workers=analysis.config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    resolution, tta = analysis.model_config.resolution, analysis.model_config.tta
    return predict(accelerator, model, loader, *statistics(analysis), channels_last, resolution, tta, "predicting")


def write_results(analysis: Analysis, logits: Tensor) -> dict:
    """Writes every file of the analysis, tells W&B, and returns the summary."""
    labels, class_names, folder = analysis.test.labels, analysis.model_config.class_names, analysis.folder
    scores = score(logits, torch.from_numpy(labels))
    probabilities = logits.double().softmax(1).numpy()
    mistakes = find_mistakes(probabilities, labels)
    matrix = confusion_matrix(labels, probabilities.argmax(1), len(class_names))
    calibration = reliability(probabilities, labels)
    summary = {
        "accuracy": scores.accuracy,
        "accuracy_interval_95": list(accuracy_interval(scores.correct, scores.count)),
        "count": scores.count,
        "loss": scores.loss,
        "expected_calibration_error": calibration.expected_calibration_error,
        "per_class": per_class_scores(labels, probabilities.argmax(1), class_names),
        "most_confused": most_confused(matrix, class_names),
        "misclassified_count": len(mistakes),
        "cam_layer": analysis.cam_layer.name,
        "cam_layer_size": list(analysis.cam_layer.size),
        "cam_method": analysis.config.cam_method,
    }
    np.savez_compressed(
        folder / "predictions.npz", logits=logits.numpy(), labels=labels, indices=np.arange(len(labels))
    )
    write_per_class(summary["per_class"], folder / "per_class.csv")
    replace_file(folder / "summary.json", to_json(summary))

    examples = explain(analysis, mistakes[: analysis.config.images])
    pictures = draw(analysis, matrix, calibration, examples, len(mistakes))
    model_summary = describe_model(analysis.model, analysis.model_config.input_size)
    (folder / "model_summary.txt").write_text(model_summary + "\n")
    page = render_report(
        run=analysis.run,
        model_config=analysis.model_config,
        mixed_precision=analysis.accelerator.mixed_precision,
        parameters=sum(parameter.numel() for parameter in analysis.model.parameters()),
        summary=summary,
        correct=scores.correct,
        last={split: points[-1] for split, points in epoch_curves(analysis.run.rows).items()},
        pictures=pictures,
        gallery_title=figures.gallery_title(len(examples), len(mistakes)),
        examples=examples,
        model_summary=model_summary,
    )
    replace_file(folder / "report.html", page.encode())
    low, high = summary["accuracy_interval_95"]
    print(f"test accuracy {scores.correct}/{scores.count} ({scores.accuracy:.2%}; 95 % interval {low:.2%}-{high:.2%})")
    if analysis.run.note:
        print(analysis.run.note)
    if analysis.config.track and "wandb" in analysis.run.config.trackers:
        track_analysis(analysis.run, summary, pictures, examples, class_names, page)
    print(f"report: {folder / 'report.html'}")
    return summary


def explain(analysis: Analysis, mistakes: list[Mistake]) -> list[Example]:
    """The mistakes with their pictures, and what speaks for the predicted and for the true class in each."""
    if not mistakes:
        return []
    images = np.stack([analysis.test.images[mistake.index] for mistake in mistakes])
    size = analysis.model_config.input_size
    inputs = to_input(torch.from_numpy(images), *statistics(analysis), channels_last=False, size=size)
    predicted, true = (
        class_maps(analysis.model, analysis.cam_layer, analysis.cam_method, inputs, classes)
        for classes in ([mistake.predicted for mistake in mistakes], [mistake.true for mistake in mistakes])
    )
    return [
        Example(mistake, image, overlay(image, predicted_map), overlay(image, true_map))
        for mistake, image, predicted_map, true_map in zip(mistakes, images, predicted, true, strict=True)
    ]


def draw(
    analysis: Analysis, matrix: np.ndarray, calibration: Reliability, examples: list[Example], mistakes: int
) -> dict[str, Path]:
    """Writes the figures; returns their paths, and that of the learning-rate range test where there was one."""
    class_names = analysis.model_config.class_names
    drawn = {
        "curves": figures.curves_figure(epoch_curves(analysis.run.rows)),
        "lr": figures.learning_rate_figure(*learning_rates(analysis.run.rows)),
        "confusion_matrix": figures.confusion_matrix_figure(matrix, class_names),
        "calibration": figures.calibration_figure(calibration),
        "misclassified": figures.misclassified_figure(examples, mistakes, class_names),
        "gradcam": figures.gradcam_figure(examples, class_names, analysis.config.cam_method, analysis.cam_layer),
    }
    pictures = {name: analysis.folder / f"{name}.png" for name in drawn}
    for name, figure in drawn.items():
        figure.savefig(pictures[name])
    range_test = analysis.run.directory / "lr_finder.png"
    return {**pictures, "lr_finder": range_test} if range_test.exists() else pictures


def statistics(analysis: Analysis) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the model's inputs, on the device."""
    config, device = analysis.model_config, analysis.accelerator.device
    return torch.tensor(config.mean, device=device), torch.tensor(config.std, device=device)


if __name__ == "__main__":
    run_script(main, CONFIG)
