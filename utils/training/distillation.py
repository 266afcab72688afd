"""Distillation (Hinton et al. 2015, arXiv:1503.02531): a student learns from the answers of a trained model too."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from data.splits import Dataset
from models.saved import CONFIG, WEIGHTS, ModelConfig, model_from_files
from models.weights import find_weights
from utils.config import TrainConfig
from utils.config.defaults import HUB, PRETRAINED
from utils.config.resolution import resolution_phases, shown_size
from utils.runs.saved_run import open_run
from utils.system.errors import UserError, raise_on_all_ranks
from utils.system.exchange import broadcast_files
from utils.system.reading import parse_json, read_file, some


class Teacher:
    """A trained model that answers the inputs of its student; it is never trained itself.

    Its answer to an image depends on that image alone, so that the loss is the same however a batch is divided.

    Args:
        model: in eval mode, on the device; computes in the precision of the launch.
        config: of that model.
        data: of the student.
        alpha: share of the teacher's targets in the loss.
        temperature: of both sides.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, data: Dataset, alpha: float, temperature: float):
        self.model, self.alpha, self.temperature = model, alpha, temperature
        self._size = config.input_size
        device = next(model.parameters()).device
        self._order = torch.tensor([config.class_names.index(name) for name in data.class_names], device=device)
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (data.mean, data.std, config.mean, config.std)
        )
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits, float32 (N, classes), in the order of the student's classes.

        Args:
            inputs: of the student, normalised by its mean and std, (N, 3, H, W). The teacher gets them normalised by
                its own and, if its images have another size, scaled to that, bilinearly with antialiasing.
        """
        inputs = inputs * self._scale + self._shift
        if inputs.shape[2:] != self._size:
            inputs = F.interpolate(inputs, self._size, mode="bilinear", antialias=True)
        return self.model(inputs)[:, self._order]

    def distil(self, loss: Tensor, logits: Tensor, inputs: Tensor) -> Tensor:
        """(1 - alpha) loss + alpha T^2 KL(teacher || student), both softened by the temperature T; summed over images.

        The factor T^2 keeps the gradient of the soft targets at the size of that of the labels, whatever T is.

        Args:
            loss: of the labels, summed over images, ().
            logits: of the student, (N, classes).
            inputs: that it gave them for, (N, 3, H, W).
        """
        teacher = F.log_softmax(self(inputs) / self.temperature, dim=1)
        student = F.log_softmax(logits / self.temperature, dim=1)
        divergence = (teacher.exp() * (teacher - student)).sum()
        return (1 - self.alpha) * loss + self.alpha * self.temperature**2 * divergence


def read_teacher_once(config: TrainConfig, accelerator: Accelerator) -> dict[str, bytes]:
    """config.json and model.safetensors of `teacher` on every rank; empty if there is none. The main process alone
    reads them, and downloads them if they are on the Hub.

    Raises UserError on all ranks for a teacher that is missing, damaged, or does not name its classes.
    """
    if not config.is_distilled:
        return {}
    files: dict[str, bytes] = {}
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            files = _read(config.teacher or "")
    return broadcast_files(accelerator, files)


def _read(source: str) -> dict[str, bytes]:
    run = open_run(_folder(source), "teacher")
    files = run.files or {name: read_file(run.model_folder / name, None) for name in (CONFIG, WEIGHTS)}
    if "format_version" not in parse_json(files[CONFIG], run.model_folder / CONFIG):
        raise _without_classes(source)
    if run.recorded and run.note:
        print(f"teacher: {source}: {run.note}")
    return {name: files[name] for name in (CONFIG, WEIGHTS)}


def _folder(source: str) -> Path:
    """The folder that a teacher is in, on this machine."""
    if source == PRETRAINED:
        raise _without_classes(source)
    if not (source.startswith(HUB) or os.path.isfile(source)):
        return Path(source)
    weights = find_weights(source, option="teacher").path
    if weights.name != WEIGHTS:
        raise _without_classes(source)
    return weights.parent


def _without_classes(source: str) -> UserError:
    return UserError(
        f"teacher: {source} is not allowed; it does not name its classes, so its head has others than the data set; "
        "name a run, checkpoint or model folder of this suite that was trained on the same classes"
    )


def create_teacher(
    config: TrainConfig, files: Mapping[str, bytes], data: Dataset, accelerator: Accelerator
) -> Teacher | None:
    """The teacher in the files of read_teacher_once, on the device; None without files. Says what it is.

    Raises UserError if it has other classes than the data set, in whatever order.
    """
    if not files:
        return None
    source = Path(config.teacher or "")
    model, saved = model_from_files(files, source)
    if set(saved.class_names) != set(data.class_names):
        raise UserError(
            f"teacher: {source} is not allowed; its classes ({some(saved.class_names)}) differ from those of the data "
            f"set ({some(data.class_names)})"
        )
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.requires_grad_(False).to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
    accelerator.prepare_model(model, evaluation_mode=True)  # for the precision of its forward
    sizes = {phase.size for phase in resolution_phases(config.resolution, data.geometry.size, 1)}
    others = [shown_size(size) for size in sorted(sizes) if size != saved.input_size]
    scaled = f", for which images of {', '.join(others)} pixels are scaled to {shown_size(saved.input_size)}"
    accelerator.print(f"teacher: {source} ({saved.architecture}{scaled if others else ''})")
    return Teacher(model, saved, data, config.distill_alpha, config.distill_temperature)
