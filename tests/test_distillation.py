"""A student sees what its teacher sees, learns the loss of the paper, and is the same run everywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from data.preprocessing import to_input
from data.sources import load_split
from models.saved import load_model
from tests.processes import run as run_processes
from tests.processes import tiny_config, train_script
from tests.saved_runs import change, training_refusal
from tests.test_resume import outcome
from utils.config import TrainConfig
from utils.config.consistency import without_effect
from utils.system.files import digest
from utils.training.distillation import Teacher

SIDE = 16
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]  # of the teacher's classes
STUDENT = {"norm": "group", "epochs": 2, "batch_size": 200, "lr": 0.05, "warmup_fraction": 0.0, "optimizer": "sgd"}


class Data:
    """What a teacher is told of its student's data."""

    class_names = tuple(str(digit) for digit in range(10))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def teacher_folder(digits_run, tmp_path_factory) -> Path:
    """A model folder with classes in another order, other statistics and larger images."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    shutil.copytree(digits_run / "model", folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights |= {name: weights[name][ORDER].contiguous() for name in ("fc.weight", "fc.bias")}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    names = json.loads((folder / "config.json").read_text())["class_names"]
    change(folder / "config.json", class_names=[names[index] for index in ORDER], mean=[0.1, 0.2, 0.3],
           std=[0.5, 0.6, 0.7], resolution=24)  # fmt: skip
    return folder


def taught(folder: Path, alpha: float = 0.5, temperature: float = 2.0, data: Any = Data) -> Teacher:
    model, config = load_model(folder)
    return Teacher(model, config, data, alpha, temperature)


# -- what the teacher sees --------------------------------------------------------------------------------------------


def test_the_teacher_gets_the_same_images_in_its_own_normalisation_size_and_order_of_classes(teacher_folder):
    images = torch.from_numpy(load_split("digits", "", "test", SIDE)[0].images[:8])
    given = to_input(images, torch.tensor(Data.mean), torch.tensor(Data.std))
    model, config = load_model(teacher_folder)
    own = to_input(images, torch.tensor(config.mean), torch.tensor(config.std))
    own = F.interpolate(own, (24, 24), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = model(own)[:, [config.class_names.index(name) for name in Data.class_names]]
    torch.testing.assert_close(taught(teacher_folder)(given), expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_with_the_statistics_of_the_student_gets_its_inputs_to_the_bit(digits_run):
    model, config = load_model(digits_run / "model")
    inputs = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(taught(digits_run / "model", data=config)(inputs), model(inputs))


# -- the loss ---------------------------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Gives the same logits to whatever it is asked."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits


def answering(logits: torch.Tensor, alpha: float, temperature: float, folder: Path) -> Teacher:
    teacher = taught(folder, alpha, temperature, load_model(folder)[1])
    teacher.model = Answers(logits)
    return teacher


def test_the_loss_and_its_gradient_are_those_of_the_paper(digits_run):
    """d/dz of T^2 KL(p || q) is T (q - p), q and p softened (Hinton et al. 2015, section 2)."""
    random = torch.Generator().manual_seed(0)
    theirs, mine = (torch.randn(6, 10, generator=random, dtype=torch.float64) for _ in range(2))
    mine.requires_grad_()
    inputs, labels = torch.zeros(6, 3, SIDE, SIDE), torch.arange(6)
    hard = F.cross_entropy(mine, labels, reduction="sum", label_smoothing=0.1)
    loss = answering(theirs, 0.3, 4.0, digits_run / "model").distil(hard, mine, inputs)
    soft = F.kl_div(F.log_softmax(mine / 4, 1), F.softmax(theirs / 4, 1), reduction="sum")
    torch.testing.assert_close(loss, 0.7 * hard + 0.3 * 16 * soft)
    (gradient,) = torch.autograd.grad(loss, mine, retain_graph=True)
    (of_labels,) = torch.autograd.grad(hard, mine)
    pulled = 4 * (F.softmax(mine / 4, 1) - F.softmax(theirs / 4, 1))
    torch.testing.assert_close(gradient, 0.7 * of_labels + 0.3 * pulled.detach())


def test_a_student_that_answers_like_its_teacher_learns_nothing_from_it(digits_run):
    logits = torch.randn(6, 10, requires_grad=True)
    teacher = answering(logits.detach().clone(), 1.0, 2.0, digits_run / "model")
    loss = teacher.distil(torch.tensor(5.0), logits, torch.zeros(6, 3, SIDE, SIDE))
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


# -- a run ------------------------------------------------------------------------------------------------------------


def student(folder: Path, teacher: Path | str | None, **changes: Any) -> TrainConfig:
    return tiny_config(folder, **{**STUDENT, "teacher": teacher and str(teacher), **changes})


def train_in_float64(config: TrainConfig) -> None:
    """As in test_same_run, with a teacher in float64 too."""
    from models import create_model, saved
    from utils.training import build

    def create(*arguments: Any, **named: Any) -> nn.Module:
        model = create_model(*arguments, **named).double()
        model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        return model

    build.create_model = saved.create_model = create
    train_script(config)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(digits_run, tmp_path_factory) -> Path:
    """A student whose training was not stopped."""
    folder = tmp_path_factory.mktemp("students") / "unbroken"
    log = folder.with_name("log")
    assert run_processes(train_script, student(folder, digits_run), log=log) == [0], log.read_text()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "mixed"), [(2, {"mixup": 0.4, "cutmix": 1.0, "resolution": "8@0.5,16"}), (3, {})]
)
def test_the_same_losses_on_any_number_of_processes_in_any_pieces(teacher_folder, tmp_path, world_size, mixed):
    one, several = tmp_path / "one", tmp_path / "several"
    mixed = {**mixed, "distill_alpha": 0.7, "epochs": 1}
    assert run_processes(train_in_float64, student(one, teacher_folder, **mixed)) == [0]
    config = student(several, teacher_folder, **mixed, micro_batch_size=30)
    assert run_processes(train_in_float64, config, world_size=world_size) == [0] * world_size
    assert len(losses(one)) == 9
    np.testing.assert_allclose(losses(several), losses(one), rtol=1e-10)


@pytest.mark.slow
def test_a_stopped_student_ends_with_the_same_weights(digits_run, unbroken, tmp_path):
    moved = shutil.copytree(digits_run, tmp_path / "moved")
    assert run_processes(train_script, student(tmp_path / "run", digits_run, max_steps=5)) == [0]
    assert run_processes(train_script, student(tmp_path / "run", moved)) == [0]
    ours, theirs = outcome(tmp_path / "run"), outcome(unbroken)
    assert (ours["exported"], ours["tensors"]) == (theirs["exported"], theirs["tensors"])


def test_the_teacher_is_recorded_and_never_trained_saved_or_exported(digits_run, unbroken):
    parts = [(digits_run / "model" / name).read_bytes() for name in ("config.json", "model.safetensors")]
    checkpoint = max((unbroken / "checkpoints").glob("step-*"))
    for path in (unbroken / "environment.json", checkpoint / "trainer.json"):
        assert json.loads(path.read_text())["teacher_sha256"] == digest(parts)
    assert yaml.safe_load((unbroken / "config.yaml").read_text())["teacher"] == str(digits_run)
    names = load_model(unbroken / "model")[0].state_dict().keys()
    assert safetensors.torch.load_file(checkpoint / "model.safetensors").keys() == names
    trained = {name.rpartition("/")[0] for name in safetensors.torch.load_file(checkpoint / "optimizer.safetensors")}
    assert trained == names
    assert not list(checkpoint.glob("*teacher*"))
    assert unbroken.with_name("log").read_text().count(f"teacher: {digits_run} (resnet18)\n") == 1


def test_a_student_of_the_teacher_alone_agrees_with_it_without_a_label(digits_run, tmp_path):
    """With alpha 1 no label is read: the teacher here calls every digit by another name."""
    folder = shutil.copytree(digits_run / "model", tmp_path / "teacher")
    names = json.loads((folder / "config.json").read_text())["class_names"]
    change(folder / "config.json", class_names=[*names[1:], names[0]])
    config = student(tmp_path / "run", folder, distill_alpha=1.0, batch_size=64, epochs=3, norm="batch", lr=0.1)
    assert run_processes(train_script, config) == [0]
    images = torch.from_numpy(load_split("digits", "", "test", SIDE)[0].images[:])
    answers = []
    for place in (folder, tmp_path / "run/model"):
        model, saved = load_model(place)
        with torch.no_grad():
            indices = model(to_input(images, torch.tensor(saved.mean), torch.tensor(saved.std))).argmax(1)
        answers.append(np.array(saved.class_names)[indices])
    assert (answers[0] == answers[1]).mean() > 0.8
    assert json.loads((tmp_path / "run/summary.json").read_text())["test_accuracy"] < 0.2


def test_scaled_images_are_said(teacher_folder, tmp_path):
    log = tmp_path / "log"
    config = student(tmp_path / "run", teacher_folder, max_steps=1, resolution="8@0.5,16")
    assert run_processes(train_script, config, log=log) == [0], log.read_text()
    line = f"teacher: {teacher_folder} (resnet18, for which images of 8, 16 pixels are scaled to 24)"
    assert line in log.read_text()


# -- what is refused --------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_changed_or_missing_teacher_ends_a_resume_in_one_line(capsys, digits_run, unbroken, teacher_folder, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    before = files_of(folder)
    line = training_refusal(capsys, student(folder, teacher_folder))
    assert f"teacher: {teacher_folder} (SHA-256 " in line
    assert f"differs from that of {folder / 'checkpoints'}" in line
    assert "teacher: null (no teacher) differs" in training_refusal(capsys, student(folder, None))
    line = training_refusal(capsys, student(folder, digits_run.with_name("gone")))
    assert line.startswith(f"error: teacher: {digits_run.with_name('gone')} is not a folder")
    assert "distill_alpha: 0.25 differs from 0.5" in training_refusal(
        capsys, student(folder, digits_run, distill_alpha=0.25)
    )
    assert files_of(folder) == before


def test_a_run_without_a_teacher_does_not_get_one_later(capsys, digits_run, run):
    config = TrainConfig(**{**yaml.safe_load((run / "config.yaml").read_text()), "output_dir": str(run)})
    config.teacher = str(digits_run)
    assert "differs from that of" in training_refusal(capsys, config)


def test_a_teacher_with_other_classes_is_refused_with_their_names(capsys, digits_run, tmp_path):
    folder = shutil.copytree(digits_run / "model", tmp_path / "teacher")
    change(folder / "config.json", class_names=[f"letter {index}" for index in range(10)])
    line = training_refusal(capsys, student(tmp_path / "run", folder))
    assert "its classes (letter 0, letter 1, letter 2, letter 3, letter 4 and 5 more) differ from those of the " in line
    assert not (tmp_path / "run").exists()


def test_weights_without_class_names_are_refused(capsys, digits_run, tmp_path):
    folder = shutil.copytree(digits_run / "model", tmp_path / "timm")
    (folder / "config.json").write_text('{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {}}')
    for source in (folder, "pretrained"):
        line = training_refusal(capsys, student(tmp_path / "run", source))
        assert line.startswith(f"error: teacher: {source} is not allowed; it does not name its classes")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_teacher_is_refused_before_anything_is_written(capsys, digits_run, tmp_path, name):
    folder = shutil.copytree(digits_run / "model", tmp_path / "teacher")
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    assert str(folder / name) in training_refusal(capsys, student(tmp_path / "run", folder))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_can_teach(digits_run, tmp_path):
    checkpoint, log = max((digits_run / "checkpoints").glob("step-*")), tmp_path / "log"
    assert run_processes(train_script, student(tmp_path / "run", checkpoint, max_steps=1), log=log) == [0]
    assert f"This is checkpoint {checkpoint.name}, not the finished model." in log.read_text()


def test_a_teacher_without_a_part_in_the_loss_is_named_and_not_read(tmp_path):
    gone = tmp_path / "gone"
    config = student(tmp_path / "run", gone, distill_alpha=0.0)
    assert "teacher with distill_alpha 0" in without_effect(config)
    assert run_processes(train_script, student(tmp_path / "run", gone, distill_alpha=0.0, max_steps=1)) == [0]
    assert "distill_alpha without teacher" in without_effect(student(tmp_path, None, distill_alpha=0.7))
    assert "teacher" not in without_effect(student(tmp_path, gone))
