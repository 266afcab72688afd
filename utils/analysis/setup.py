"""What an analysis works with; whatever the user may have got wrong is found here, before the work."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.loaders import EVALUATION_BATCH
from data.splits import Split, stratified_split
from models.saved import ModelConfig
from utils.analysis.gradcam import Cams, choose_cams
from utils.analysis.pictures import read_pictures
from utils.config import AnalyzeConfig
from utils.config.analyze import SECTIONS
from utils.runs.saved_run import SavedRun, open_run, some
from utils.system.errors import UserError
from utils.system.files import check_writable
from utils.system.memory import check_memory, forward_memory

SLOW_SECTIONS = ("neighbours", "embedding", "robustness")
QUICK_SECTIONS = tuple(name for name in SECTIONS if name not in SLOW_SECTIONS)


@dataclass(frozen=True)
class Analysis:
    """Everything that an analysis works with.

    Attributes:
        model: computes in float32, is neither compiled nor wrapped, in eval mode and on the device.
        train: the training images with those that training held out, where a section needs them.
        other: the run that this one is compared with, with the same test images; it has no CAMs, no sections and no
            other of its own.
        test: the test images, or the pictures that are to be predicted instead; these have no labels.
        sections: the names of those that are asked for, in the order of the page.
        folder: where the results go.
    """

    config: AnalyzeConfig
    accelerator: Accelerator
    run: SavedRun
    model: nn.Module
    model_config: ModelConfig
    cams: Cams
    test: Split
    train: Split | None
    other: "Analysis | None"
    sections: tuple[str, ...]
    folder: Path

    @cached_property
    def held_out(self) -> np.ndarray:
        """Positions in `train` of the images that training did not see but kept for validation."""
        if not self.run.validation_fraction:
            return np.empty(0, np.int64)
        return stratified_split(self.train.labels, self.run.validation_fraction, self.run.config.seed)[1]

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the model's inputs, per channel, on the device."""
        device = self.accelerator.device
        return torch.tensor(self.model_config.mean, device=device), torch.tensor(self.model_config.std, device=device)


def set_up(config: AnalyzeConfig, accelerator: Accelerator) -> Analysis:
    """The model and its test images, and those of the run that it is compared with. Raises UserError."""
    run, model, model_config = open_model(config, Path(config.run), "run")
    check_memory(forward_memory(model_config.without_weights(), model_config.input_size, gradients=True), str(run.path))
    cams = choose_cams(
        model,
        model_config.input_size,
        config.cam_method,
        config.cam_layer,
        config.aug_smooth,
        config.eigen_smooth,
    )
    folder = Path(config.output_dir or run.path / "analysis" / ("predict" if config.predict else ""))
    if accelerator.is_main_process:
        check_writable(folder)
    if config.predict:
        test = read_pictures(config.predict, model_config.image_size, folder)
    else:
        test = run.split("test", model_config)
    _check_forward(model_config, min(len(test), EVALUATION_BATCH), accelerator)
    sections = choose_sections(config)
    analysis = Analysis(
        config,
        accelerator,
        run,
        model.to(accelerator.device),
        model_config,
        cams,
        test,
        run.split("train", model_config) if needs_training_images(sections, run) else None,
        None,
        sections,
        folder,
    )
    if config.compare and not config.predict:
        analysis = dataclasses.replace(analysis, other=_set_up_other(analysis))
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    return analysis


def open_model(config: AnalyzeConfig, path: Path, option: str) -> tuple[SavedRun, nn.Module, ModelConfig]:
    """A run and its model; the next one where training goes on and deletes the checkpoint that was found.

    Raises UserError.

    Args:
        option: the one that names `path`, for errors.
    """
    run = open_run(path, option, config.dataset, config.data_dir)
    while True:
        try:
            return run, *run.load_model()
        except UserError:
            found = run.model_folder
            run = open_run(path, option, config.dataset, config.data_dir)
            if run.model_folder == found:
                raise


def _check_forward(config: ModelConfig, images: int, accelerator: Accelerator) -> None:
    """Raises UserError where so many images at a time need more memory than is free."""
    maps = forward_memory(config.without_weights(), config.input_size, images)
    if accelerator.mixed_precision != "no":
        maps //= 2
    pixels = 4 * 3 * images * config.image_size**2  # as float32
    check_memory(maps + pixels, f"a batch of {images} images of {config.image_size} pixels", accelerator.device)


def _set_up_other(analysis: Analysis) -> Analysis:
    """The run to compare with. Raises UserError where it was not tested on the same images and classes."""
    config, mine = analysis.config, analysis.run
    path = Path(config.compare)
    run, model, model_config = open_model(config, path, "compare")
    if run.dataset is None:  # a model without its run is asked about the images of this one
        run = dataclasses.replace(run, dataset=mine.dataset, data_dir=mine.data_dir)
    ours = analysis.model_config
    if model_config.class_names != ours.class_names:
        raise UserError(
            f"compare: {path} is not allowed; its classes ({some(model_config.class_names)}) are not those of "
            f"{mine.path} ({some(ours.class_names)})"
        )
    if model_config.image_size != ours.image_size:
        raise UserError(
            f"compare: {path} is not allowed; it is for images of {model_config.image_size} pixels, {mine.path} for "
            f"images of {ours.image_size}"
        )
    test = analysis.test
    if (run.dataset, run.data_dir) != (mine.dataset, mine.data_dir):
        test = run.split("test", model_config)
        if test.digest() != analysis.test.digest():
            raise UserError(
                f"compare: {path} is not allowed; it was tested on other images than {mine.path}; name images for both "
                "with --dataset and --data_dir"
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


def choose_sections(config: AnalyzeConfig) -> tuple[str, ...]:
    """Those of `only`, else the quick ones, with `full` the slow ones too; `compare` where a run is named for it.

    None where pictures are predicted instead.
    """
    if config.predict:
        return ()
    *first, last = QUICK_SECTIONS  # the layers of the model come last
    asked = config.only or QUICK_SECTIONS + (SLOW_SECTIONS if config.full else ())
    compared = ("compare",) if config.compare else ()
    return tuple(name for name in (*first, *SLOW_SECTIONS, *compared, last) if name in (*asked, *compared))


def needs_training_images(sections: Collection[str], run: SavedRun) -> bool:
    """Whether a section looks at training images, or at those that training held out."""
    return "neighbours" in sections or ("calibration" in sections and run.validation_fraction > 0)
