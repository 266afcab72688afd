"""Means are exact over images, scores agree with references, metrics.jsonl survives what a crash leaves."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import accuracy_score, log_loss, recall_score

from utils.evaluation.scores import score
from utils.runs.metrics_file import MetricsFile
from utils.training.meters import Clock, RunningMean


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def predictions(count: int, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, classes, generator=generator) * 3, torch.randint(classes, (count,), generator=generator)


# -- running means ----------------------------------------------------------------------------------------------------


def test_mean_is_over_images_not_over_batches(accelerator):
    """Batches of 100, 100 and 3: a mean of batch means would weigh each of the last three images 33-fold."""
    logits, labels = predictions(203)
    running = RunningMean(torch.device("cpu"))
    for part in (slice(0, 100), slice(100, 200), slice(200, 203)):
        loss = torch.nn.functional.cross_entropy(logits[part], labels[part], reduction="sum")
        running.add(loss, (logits[part].argmax(1) == labels[part]).sum(), len(labels[part]))
    loss, accuracy, count = running.mean(accelerator)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert count == 203


def test_sums_stay_exact_over_millions_of_images(accelerator):
    running = RunningMean(torch.device("cpu"))
    running.add(torch.tensor(0.0), torch.tensor(0.0), 2**24)  # where float32 would stop to count
    for _ in range(100):
        running.add(torch.tensor(0.1), torch.tensor(1.0), 1)
    loss, accuracy, count = running.mean(accelerator)
    assert count == 2**24 + 100
    assert accuracy == 100 / count
    assert loss == pytest.approx(10 / count, rel=1e-6)


def test_mean_of_nothing_is_zero(accelerator):
    assert RunningMean(torch.device("cpu")).mean(accelerator) == (0.0, 0.0, 0)


def test_no_gradient_is_kept(accelerator):
    loss = torch.ones(3, requires_grad=True).sum()
    running = RunningMean(torch.device("cpu"))
    running.add(loss, torch.tensor(1), 3)
    assert not running.sums.requires_grad


# -- the clock of training --------------------------------------------------------------------------------------------


def test_clock_counts_training_alone_and_a_lap_all_images_since_the_last(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("utils.training.meters.time.perf_counter", lambda: now[0])
    clock = Clock()
    clock.restore(100.0)  # of the launches before
    now[0] = 7.0  # set-up
    with clock.running():
        now[0] += 2
        clock.count(60)
        with clock.paused():
            now[0] += 50
        now[0] += 1
        assert clock.lap() == 60 / 3
        now[0] += 4
        clock.count(20)
        clock.begin_lap()  # after a rollback
        now[0] += 2
        clock.count(10)
        assert clock.lap() == 10 / 2
    now[0] += 30  # evaluation
    assert clock.seconds == 109.0
    with clock.running():
        now[0] += 1
        clock.count(5)
        assert clock.lap() == 5.0
    assert clock.seconds == 110.0


def test_reset_and_merge(accelerator):
    window, epoch = RunningMean(torch.device("cpu")), RunningMean(torch.device("cpu"))
    window.add(torch.tensor(6.0), torch.tensor(1), 2)
    epoch.merge(window)
    window.reset()
    assert window.mean(accelerator) == (0.0, 0.0, 0)
    window.add(torch.tensor(3.0), torch.tensor(1), 1)
    epoch.merge(window)
    assert epoch.mean(accelerator) == (3.0, 2 / 3, 3)


def test_state_goes_through_json_and_back(accelerator):
    running = RunningMean(torch.device("cpu"))
    running.add(torch.tensor(0.1), torch.tensor(3), 7)
    restored = RunningMean(torch.device("cpu"))
    restored.restore(json.loads(json.dumps(running.state(accelerator))), 0, 1)
    assert torch.equal(restored.sums, running.sums)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_sums_survive_another_number_of_processes(world_size):
    rows = [[1.5, 2.0, 3.0], [0.25, 1.0, 2.0], [4.0, 0.0, 5.0]]
    means = [RunningMean(torch.device("cpu")) for _ in range(world_size)]
    for rank, mean in enumerate(means):
        mean.restore(rows, rank, world_size)
    assert sum(mean.sums for mean in means).tolist() == [5.75, 3.0, 10.0]
    if world_size == 3:
        assert [mean.sums.tolist() for mean in means] == rows


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 17, 1000])
def test_scores_are_those_of_scikit_learn(count):
    logits, labels = predictions(count)
    scores = score(logits, labels)
    shares = torch.softmax(logits.double(), 1).numpy()
    assert scores.loss == pytest.approx(log_loss(labels, shares, labels=range(5)), rel=1e-12)
    assert scores.accuracy == accuracy_score(labels, logits.argmax(1))
    assert scores.correct == accuracy_score(labels, logits.argmax(1), normalize=False)
    assert scores.count == count
    expected = recall_score(labels, logits.argmax(1), average=None, labels=range(5), zero_division=0)
    np.testing.assert_allclose(scores.per_class_accuracy, expected)


def test_per_class_accuracy_is_over_all_images_of_the_class():
    logits = torch.eye(3)[[0, 0, 1, 1, 1, 0]]
    scores = score(logits, torch.tensor([0, 0, 1, 1, 1, 1]))
    assert scores.per_class_accuracy == [1.0, 0.75, 0.0]
    assert (scores.correct, scores.accuracy) == (5, 5 / 6)


def test_loss_of_confident_mistakes_stays_finite():
    assert score(torch.tensor([[200.0, -200.0]]), torch.tensor([1])).loss == 400.0


# -- metrics.jsonl ----------------------------------------------------------------------------------------------------


def line(step: int) -> dict:
    return {"step": step, "epoch": 1, "split": "train", "loss": 1 / step, "accuracy": 0.5, "lr": 0.1}


def test_rows_come_back_as_they_went_in(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert (list(metrics.rows()), metrics.size()) == ([], 0)
    rows = [line(step) for step in range(1, 4)]
    for row in rows:
        metrics.append(row)
    assert list(metrics.rows()) == rows
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3
    assert metrics.size() == (tmp_path / "metrics.jsonl").stat().st_size


@pytest.mark.parametrize("bytes_written", [1, 5, 20])
def test_line_that_a_crash_left_unfinished_is_skipped_and_then_cut_off(tmp_path, bytes_written):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append(line(1))
    known = metrics.size()
    with open(metrics.path, "a") as file:
        file.write(json.dumps(line(2))[:bytes_written])
    assert list(metrics.rows()) == [line(1)]
    metrics.truncate(known)
    metrics.append(line(2))
    assert [row["step"] for row in metrics.rows()] == [1, 2]


def test_resume_cuts_off_what_its_checkpoint_does_not_know(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append(line(1))
    known = metrics.size()
    for step in (2, 3):
        metrics.append(line(step))
    metrics.truncate(known)
    assert list(metrics.rows()) == [line(1)]


def test_file_that_was_lost_or_shortened_is_not_padded(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.truncate(1000)
    metrics.append({"step": 7})
    assert metrics.path.read_bytes() == b'{"step": 7}\n'
    metrics.truncate(1000)
    assert metrics.path.read_bytes() == b'{"step": 7}\n'
