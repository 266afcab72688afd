"""What an analysis works with."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.preprocessing import to_input
from data.splits import Split, stratified_split
from models.saved import ModelConfig
from utils.analysis.cam.maps import Cams
from utils.config import AnalyzeConfig
from utils.runs.saved_run import SavedRun


@dataclass(frozen=True)
class Analysis:
    """A run, its model and its images.

    Attributes:
        model: computes in float32, neither compiled nor wrapped, in eval mode and on the device.
        test: the test images, or the photos to predict instead; photos have no labels.
        train_images: the training images, including those held out for validation, if a section needs them.
        other: with `compare`, the run that this one is compared with: the same test images, no CAMs, no sections and no
            `other` of its own.
        sections: names of the sections of the report, in page order.
        folder: where the results go.
    """

    config: AnalyzeConfig
    accelerator: Accelerator
    run: SavedRun
    model: nn.Module
    model_config: ModelConfig
    cams: Cams
    test: Split
    train_images: Split | None
    other: "Analysis | None"
    sections: tuple[str, ...]
    folder: Path

    @property
    def train(self) -> Split:
        """The training images, including those held out for validation."""
        assert self.train_images is not None, "a section that uses training images must say so in NEEDS"
        return self.train_images

    @cached_property
    def held_out(self) -> np.ndarray:
        """Positions in `train` of the images that training held out for validation, int64."""
        if not self.run.validation_fraction:
            return np.empty(0, np.int64)
        return stratified_split(self.train.labels, self.run.validation_fraction, self.run.config.seed)[1]

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the model's inputs, per channel, on the device."""
        device = self.accelerator.device
        return torch.tensor(self.model_config.mean, device=device), torch.tensor(self.model_config.std, device=device)

    def inputs_of(self, images: np.ndarray) -> Tensor:
        """Images, uint8 (N, H, W, 3), as inputs of the model: float32 (N, 3, h, w) on its device."""
        size = self.model_config.input_size
        return to_input(torch.from_numpy(images), *self.statistics, channels_last=False, size=size)
