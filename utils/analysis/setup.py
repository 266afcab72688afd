"""What an analysis works with; whatever the user may have got wrong is found here, before the work."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.datasets import Split
from utils.analysis.gradcam import Cams, choose_cams
from utils.analysis.saved_run import SavedRun, open_run
from utils.checkpoint import ModelConfig, load_model
from utils.config import AnalyzeConfig, QuickSection, SlowSection

QUICK_SECTIONS = get_args(QuickSection)
SLOW_SECTIONS = get_args(SlowSection)


@dataclass(frozen=True)
class Analysis:
    """Everything that an analysis works with.

    Attributes:
        model: computes in float32, is neither compiled nor wrapped, in eval mode and on the device.
        other: the run that this one is compared with.
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
    other: "Analysis | None"
    sections: tuple[str, ...]
    folder: Path

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the model's inputs, per channel, on the device."""
        device = self.accelerator.device
        return torch.tensor(self.model_config.mean, device=device), torch.tensor(self.model_config.std, device=device)


def set_up(config: AnalyzeConfig, accelerator: Accelerator) -> Analysis:
    """The model and its test images. Raises UserError."""
    run = open_run(Path(config.run))
    model, model_config = load_model(run.model_folder)
    cams = choose_cams(model, model_config.input_size, config.cam_method, config.cam_layer)
    test = run.split("test", model_config, config.data_dir)
    other = None
    folder = Path(config.output_dir) if config.output_dir else run.path / "analysis"
    folder.mkdir(parents=True, exist_ok=True)
    return Analysis(
        config,
        accelerator,
        run,
        model.to(accelerator.device),
        model_config,
        cams,
        test,
        other,
        choose_sections(config),
        folder,
    )


def choose_sections(config: AnalyzeConfig) -> tuple[str, ...]:
    """Those of `only`, else the quick ones, with `full` the slow ones too; `compare` where a run is named for it."""
    *first, last = QUICK_SECTIONS  # the layers of the model come last
    offered = [*first, *SLOW_SECTIONS, last]
    asked = config.only or (offered if config.full else QUICK_SECTIONS)
    return tuple(name for name in [*offered, "compare"] if name in asked or (name == "compare" and config.compare))
