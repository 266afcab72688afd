"""Loads what an analysis works with; whatever the user may have got wrong is found here, before the work begins."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from data.loaders import EVALUATION_BATCH
from data.preprocessing import Geometry
from models.saved import ModelConfig
from utils.analysis.cam.maps import Cams, choose_cams, try_enlarged
from utils.analysis.photos import read_photos
from utils.analysis.section import Analysis
from utils.analysis.sections import choose_sections, needs
from utils.config import AnalyzeConfig
from utils.config.resolution import shown_size
from utils.runs.saved_run import SavedRun, open_run, some
from utils.system.errors import UserError
from utils.system.files import check_writable
from utils.system.memory import check_memory, forward_memory

TRIED = 64  # images that are enlarged to see whether the model still gives the same answers


def set_up(config: AnalyzeConfig, accelerator: Accelerator) -> Analysis:
    """The run, its model and the images that the sections need, and the run to compare with. Raises UserError."""
    run, model, model_config = open_model(config, Path(config.run), "run")
    check_memory(forward_memory(model_config.without_weights(), model_config.input_size, gradients=True), str(run.path))
    cams = choose_cams(
        model, model_config.input_size, config.cam_method, config.cam_layer, config.aug_smooth, config.eigen_smooth
    )
    folder = Path(config.output_dir or run.path / "analysis" / ("predict" if config.predict else ""))
    if accelerator.is_main_process:
        check_writable(folder)
    if config.predict:
        test = read_photos(config.predict, model_config.geometry, folder)
    else:
        test = run.split("test", model_config)
    _check_forward(model_config, min(len(test), EVALUATION_BATCH), accelerator)
    sections = choose_sections(config)
    needed = needs(sections)
    holds_out = run.validation_fraction > 0
    reads_train = "training images" in needed or (holds_out and "validation images" in needed)
    train = run.split("train", model_config) if reads_train else None
    model = model.to(accelerator.device)
    analysis = Analysis(config, accelerator, run, model, model_config, cams, test, train, None, sections, folder)
    if "gradcam" in sections or config.predict:
        analysis = _with_tried_view(analysis)
    if "another run" in needed:
        analysis = dataclasses.replace(analysis, other=_set_up_other(analysis, Path(config.compare or "")))
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    return analysis


def _with_tried_view(analysis: Analysis) -> Analysis:
    """Images are enlarged for the maps only if the model gives most of them the same class as before."""
    view, config = analysis.cams.chosen[0].view, analysis.config
    if view is None:
        return analysis
    count = min(len(analysis.test), TRIED)
    images = analysis.test.images.decode(np.linspace(0, len(analysis.test) - 1, count).astype(int))
    tried, cams = try_enlarged(analysis.model, view, analysis.inputs_of(images)), analysis.cams
    if not tried.is_used:
        names = config.cam_method, config.cam_layer, config.aug_smooth, config.eigen_smooth
        cams = choose_cams(analysis.model, analysis.model_config.input_size, *names, enlarge=False)
    return dataclasses.replace(analysis, cams=dataclasses.replace(cams, enlargement=tried))


def open_model(config: AnalyzeConfig, path: Path, option: str) -> tuple[SavedRun, nn.Module, ModelConfig]:
    """A run and its model. Raises UserError; `option` is the one that names `path`."""
    run = open_run(path, option, config.dataset, config.data_dir)
    return run, *run.load_model()


def _check_forward(config: ModelConfig, images: int, accelerator: Accelerator) -> None:
    """Raises UserError if so many images at a time need more memory than is free."""
    maps = forward_memory(config.without_weights(), config.input_size, images)
    if accelerator.mixed_precision != "no":
        maps //= 2
    size = config.geometry.size
    pixels = 4 * 3 * images * math.prod(size)  # as float32
    check_memory(maps + pixels, f"a batch of {images} images of {shown_size(size)} pixels", accelerator.device)


def _set_up_other(analysis: Analysis, path: Path) -> Analysis:
    """The run to compare with. Raises UserError unless it has the same test images and classes."""
    config, mine = analysis.config, analysis.run
    run, model, model_config = open_model(config, path, "compare")
    if run.dataset is None:  # a model without its run is tested on the images of this one
        run = dataclasses.replace(run, dataset=mine.dataset, data_dir=mine.data_dir)
    ours = analysis.model_config
    if model_config.class_names != ours.class_names:
        raise UserError(
            f"compare: {path} is not allowed; its classes ({some(model_config.class_names)}) differ from "
            f"those of {mine.path} ({some(ours.class_names)})"
        )
    if model_config.geometry.size != ours.geometry.size:
        raise UserError(
            f"compare: {path} is not allowed; its model takes images of {shown_size(model_config.geometry.size)} "
            f"pixels, that of {mine.path} images of {shown_size(ours.geometry.size)}"
        )
    if model_config.geometry != ours.geometry:
        raise UserError(
            f"compare: {path} is not allowed; its images are fitted by {_described(model_config.geometry)}, those of "
            f"{mine.path} by {_described(ours.geometry)}"
        )
    test = analysis.test
    if (run.dataset, run.data_dir) != (mine.dataset, mine.data_dir):
        test = run.split("test", model_config)
        if test.digest() != analysis.test.digest():
            raise UserError(
                f"compare: {path} is not allowed; it has other images in its test set than {mine.path}; name "
                "images for both with --dataset and --data_dir"
            )
    return dataclasses.replace(
        analysis,
        run=run,
        model=model.to(analysis.accelerator.device),
        model_config=model_config,
        cams=Cams(),
        test=test,
        sections=(),
        folder=analysis.folder / "compared",
    )


def _described(geometry: Geometry) -> str:
    words = f"fit {geometry.fit}, crop_pct {geometry.crop_pct:g}, interpolation {geometry.interpolation}"
    return f"{words}, fill {geometry.fill}" if geometry.fit == "pad" else words
