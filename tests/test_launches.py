"""A run remembers by which launches it was trained, and says what differs when it is resumed."""

import json
import re
from pathlib import Path

import torch

from tests.processes import run, tiny_config, train_script
from tests.saved_runs import change, reseal
from utils.runs.checkpoint import list_checkpoints
from utils.system.reading import MOST_SHOWN
from utils.training.muon import muon_arithmetic
from utils.training.progress import COMPARED, MOST_LAUNCHES, difference, is_history, launch_of, with_launch

GPU = {"device": "cuda", "device_name": "T4", "world_size": 1, "mixed_precision": "bf16", "compile": None}
CPU = {"device": "cpu", "device_name": "Xeon", "world_size": 1, "mixed_precision": "no", "compile": None}
EAGER = {"ACCELERATE_DYNAMO_BACKEND": "eager"}


def test_a_launch_is_noted_where_it_begins_and_differs():
    history = with_launch([], 0, GPU)
    assert history == [{"step": 0, **GPU}]
    assert with_launch(history, 46, GPU) == history
    history = with_launch(history, 46, CPU)
    assert history == [{"step": 0, **GPU}, {"step": 46, **CPU}]
    assert with_launch(history, 46, CPU) == history
    assert with_launch(history, 46, GPU) == history[:1]  # of the launch before, no step is left
    assert with_launch(history, 69, GPU) == [*history, {"step": 69, **GPU}]
    assert is_history(history)


def test_a_history_stays_small_and_keeps_its_beginning():
    history = []
    for step in range(1, 100):
        history = with_launch(history, step, CPU | {"world_size": step})
    assert len(history) == MOST_LAUNCHES
    assert history[0] == {"step": 0}  # a checkpoint that knew of no launch
    assert history[-1]["step"] == 99
    assert is_history(history)


def test_what_differs_from_the_beginning_is_told_in_one_line_and_what_is_unknown_is_not():
    began = with_launch([], 0, GPU)
    assert difference(began, GPU) == difference([], CPU) == difference([{"step": 0}], CPU) == ""
    line = difference(began, CPU | {"compile": "inductor"})
    assert "began with device cuda, mixed_precision bf16, compile none and resumes with device cpu, " in line
    assert "mixed_precision no, compile inductor" in line
    assert "T4" not in line
    assert "T4" in difference(began, GPU | {"device_name": "L4"})
    assert "new" not in difference(began, GPU | {"new": 1})


def test_only_what_is_compared_is_noted():
    assert launch_of({**GPU, "threads": 2, "versions": {}}) == GPU
    assert GPU.keys() <= set(COMPARED)


def test_the_change_of_muons_arithmetic_is_told_of_a_run_that_did_not_note_it():
    muon = GPU | {"muon_arithmetic": muon_arithmetic(torch.device("cpu"))}
    for history in ([], [{"step": 0}], with_launch([], 0, GPU)):
        assert "torch.optim.Muon" in difference(history, muon)
        assert "3 iterations, fp32 Gram matrix" in difference(history, muon)
    assert difference(with_launch([], 0, muon), muon) == ""


def launches(folder: Path) -> list[dict]:
    return json.loads((folder / "summary.json").read_text())["launches"]


def test_a_resume_with_another_compiler_says_so_and_the_summary_lists_both(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert run(train_script, tiny_config(folder, max_steps=4), log=log) == [0]
    assert "warning" not in log.read_text()
    assert run(train_script, tiny_config(folder, max_steps=8), EAGER, log=log) == [0]
    (line,) = re.findall("^warning: .*", log.read_text(), re.M)
    assert "began with compile none and resumes with compile eager" in line
    assert [(entry["step"], entry["compile"]) for entry in launches(folder)] == [(0, None), (4, "eager")]
    assert run(train_script, tiny_config(folder, max_steps=12), EAGER) == [0]  # as the launch before
    assert len(launches(folder)) == 2


def test_a_checkpoint_of_an_older_version_resumes_without_a_word_on_what_it_does_not_know(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert run(train_script, tiny_config(folder, max_steps=4)) == [0]
    newest = list_checkpoints(folder / "checkpoints")[-1]
    state = json.loads((newest / "trainer.json").read_text())["state"]
    del state["launches"]
    change(newest / "trainer.json", state=state)
    reseal(newest)
    assert run(train_script, tiny_config(folder, max_steps=8), EAGER, log=log) == [0]
    assert "warning" not in log.read_text()
    first, second = launches(folder)
    assert first == {"step": 0}
    assert (second["step"], second["compile"]) == (4, "eager")


def test_a_history_from_a_stranger_is_bounded():
    wrong = [None, {}, [1], [{}], [{"step": -1}], [{"step": 0, "device": ["cpu"]}], [{"step": 0, "other": 1}]]
    wrong += [[{"step": 0, "device": "c" * 10 * MOST_SHOWN}], [{"step": 0}] * (MOST_LAUNCHES + 1)]
    assert not any(map(is_history, wrong))
