"""One compilation, whichever way it is asked for; what cannot be compiled is refused before any work."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from tests.conftest import ROOT
from tests.processes import run, tiny_config, train_script
from utils.system.compilation import check_compiler, compilation, compiled_as, say_uncompiled
from utils.system.errors import UserError

LAUNCHER = {  # what `accelerate launch` always sets
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}


def variables(**values: str) -> dict[str, str]:
    return {f"ACCELERATE_DYNAMO_{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("option", "launch", "expected"),
    [
        (False, {}, None),
        (True, {}, "inductor"),
        (False, LAUNCHER, None),
        (True, LAUNCHER, "inductor"),
        (False, LAUNCHER | variables(BACKEND="INDUCTOR"), "inductor"),
        (True, LAUNCHER | variables(BACKEND="AOT_EAGER"), "aot_eager"),
        (True, LAUNCHER | variables(MODE="max-autotune"), "inductor (max-autotune)"),
        (False, variables(BACKEND="eager", USE_FULLGRAPH="true"), "eager (fullgraph)"),
        (True, variables(USE_DYNAMIC="1", USE_REGIONAL_COMPILATION="yes"), "inductor (dynamic, regional)"),
    ],
)
def test_option_and_launch_are_one_wish(option, launch, expected):
    assert compiled_as(compilation(option, launch)) == expected


def test_what_the_launcher_sets_unasked_changes_nothing():
    plain, launched = compilation(True, {}), compilation(True, LAUNCHER)
    assert plain == launched
    assert launched.to_kwargs() == {"backend": "inductor"}  # as torch.compile(model) alone


@pytest.mark.parametrize(
    ("option", "launch", "words"),
    [
        (False, variables(BACKEND="nonsense"), "BACKEND: 'nonsense' is not allowed; choose from no, eager, aot_eager"),
        (False, variables(BACKEND="inducter"), "did you mean inductor?"),
        (False, variables(BACKEND="FX2TRT"), "BACKEND: 'fx2trt' is not allowed"),
        (True, variables(MODE="nonsense"), "MODE: 'nonsense' is not allowed; choose from default"),
        (False, variables(MODE="max-autotune"), "MODE: nothing is compiled; add --compile true"),
        (True, variables(BACKEND="eager", MODE="max-autotune"), "MODE: max-autotune is a mode of inductor"),
        (True, variables(USE_FULLGRAPH="maybe"), "USE_FULLGRAPH='maybe' is not allowed; it must be true or false"),
        (False, variables(USE_DYNAMIC="true"), "USE_DYNAMIC: nothing is compiled"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(option, launch, words):
    with pytest.raises(UserError, match=r"^ACCELERATE_DYNAMO_") as refused:
        compilation(option, launch)
    assert words in str(refused.value)


@pytest.mark.slow
def test_launch_and_option_together_compile_once_and_the_weights_keep_their_names(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, max_steps=3, compile=True, ema_decay=0.9, validation_fraction=0.2)
    environment = LAUNCHER | variables(BACKEND="AOT_EAGER")
    assert run(train_script, config, environment, log=log) == [0], log.read_text()
    assert json.loads((folder / "environment.json").read_text())["compile"] == "aot_eager"
    for path in [folder / "model/model.safetensors", *folder.glob("checkpoints/*/*.safetensors")]:
        with safe_open(path, "numpy") as tensors:
            assert not [name for name in tensors.keys() if "_orig_mod" in name]  # noqa: SIM118 -- it is no dict
    assert json.loads((folder / "summary.json").read_text())["test_count"] == 360


def test_a_backend_whose_library_is_missing_is_refused_with_its_own_words():
    with pytest.raises(UserError, match=r"^compile: tvm does not work here \(.*; fix that or train without"):
        check_compiler(compilation(False, variables(BACKEND="tvm")), torch.device("cpu"))


def test_a_model_of_several_processes_is_not_compiled_whole(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    environment = variables(BACKEND="eager", USE_FULLGRAPH="true")
    assert run(train_script, tiny_config(folder), environment, world_size=2, log=log) == [2, 2]
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: ACCELERATE_DYNAMO_USE_FULLGRAPH: torch cannot compile a model of several processes")
    assert not folder.exists()


@pytest.mark.slow
def test_a_machine_without_a_compiler_says_so_before_anything_is_made(tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(
        [
            sys.executable,
            "train_accelerate.py",
            "--compile",
            "true",
            "--dataset",
            "digits",
            "--output_dir",
            str(folder),
        ],
        cwd=ROOT,
        env={**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: compile: inductor needs a C++ compiler on a CPU, and no-such-compiler is missing; ")
    assert not folder.exists()


SAID = "note: ACCELERATE_DYNAMO_BACKEND=inductor: an analysis compiles nothing\n"


@pytest.mark.parametrize(("backend", "line"), [("NO", ""), ("INDUCTOR", SAID)])
def test_an_analysis_says_that_it_compiles_nothing(monkeypatch, capsys, backend, line):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", backend)
    say_uncompiled(SimpleNamespace(is_main_process=True))
    assert capsys.readouterr().err == line
