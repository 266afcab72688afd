"""Promises 5 and 7 against strangers: every file of a run directory, made to do harm, ends in one line.

No code runs, nothing outside of the run is written or changed, nothing else of the run changes, memory stays bounded.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import socket
import sqlite3
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save
from safetensors.torch import load_file, save_file

import analyze
import train_accelerate
from models.saved import ModelConfig
from models.weights import find_weights
from tests.processes import run as run_processes
from tests.processes import tiny_config, train_script
from tests.test_checkpoint_files import Payload
from utils.analysis import sections
from utils.analysis.cache import Form, cache_file
from utils.analysis.cache import read as read_cache
from utils.analysis.inference import predict_test
from utils.analysis.sections import robustness
from utils.analysis.setup import set_up
from utils.config import AnalyzeConfig
from utils.release.classifier import ImageClassifier
from utils.release.export import FILES as PROGRAMS
from utils.runs.checkpoint import MANIFEST
from utils.runs.metrics_file import MetricsFile
from utils.runs.saved_run import open_run, trained_precision
from utils.system.errors import UserError, run_script
from utils.system.runtime import create_accelerator
from utils.tracking.tracker import Identity
from utils.tracking.trackers import Trackers, tracked_as
from utils.training.progress import TrainState
from utils.training.snapshot import STATE_FORMS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

TRACKERS = [name for name in ("wandb", "tensorboard", "trackio") if find_spec(name)]
OPTIONS = {
    "validation_fraction": 0.2, "ema_decay": 0.9, "lookahead_steps": 2, "optimizer": "adamw", "lr": "auto",
    "overfit_batches": 3, "epochs": 1, "checkpoint_every_steps": 2, "batch_size": 16, "warmup_fraction": 0.1,
}  # fmt: skip
# Mappings without the keys that are looked for.
HARMLESS = {("environment.json", name) for name in ("half deep", "another version", "no version")}
CACHED = ("predictions", "validation", "neighbours", "embedding", "robustness")
TENSORS = ("model", "optimizer", "best", "unaveraged", "lookahead")

# Every kind of file in a run directory, and how what is read of it is attacked. Every one is also replaced by links and
# pipes. A new kind fails test_the_list_of_files_is_complete until it is here.
FILES = {
    ".lock": None,
    "config.yaml": "options",
    "environment.json": "json",
    "metrics.jsonl": "lines",
    "summary.json": "json",
    "lr_finder.csv": None,
    "lr_finder.png": "picture",
    "augmentations.png": "picture",
    "model/config.json": "json",
    "model/model.safetensors": "tensors",
    "model/README.md": None,
    "model/curves.png": None,
    **{f"model/{name}": None for name in PROGRAMS.values()},
    f"checkpoints/step-*/{MANIFEST}": "json",
    "checkpoints/step-*/trainer.json": "json",
    "checkpoints/step-*/config.json": "json",
    **{f"checkpoints/step-*/{name}.safetensors": "tensors" for name in TENSORS},
    **{f"analysis/cache/{name}.safetensors": "cached" for name in CACHED},
    "analysis/predictions.npz": "compared",
    "analysis/summary.json": None,
    "analysis/.lock": None,
    **{f"analysis/*{suffix}": None for suffix in (".png", ".svg", ".csv", ".txt", ".html")},
    **{f"{name}/**": "tracker" for name in TRACKERS},
}


def kind_of(path: Path) -> str:
    """The kind of a file, by its path in the run directory."""
    first, *rest = path.parts
    if first in TRACKERS:
        return f"{first}/**"
    if first == "analysis" and len(rest) == 1 and path.suffix not in (".json", ".npz", ""):
        return f"analysis/*{path.suffix}"
    if first == "checkpoints":
        rest[0] = "step-*"
    return "/".join([first, *rest])


def files_of(run: Path) -> list[Path]:
    return [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]


def path_of(run: Path, kind: str) -> Path:
    """The last file of a kind: of checkpoints, of the newest."""
    return run / [path for path in files_of(run) if kind_of(path) == kind][-1]


# -- one run that has everything --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """A finished run with every file that training and analysis write, and its options."""
    run = tmp_path_factory.mktemp("complete") / "run"
    config = tiny_config(run, trackers=TRACKERS or ["none"], **OPTIONS)
    assert run_processes(train_script, config, {"WANDB_MODE": "offline", "WANDB_API_KEY": ""}) == [0]
    for name in PROGRAMS.values():  # nothing opens them
        (run / "model" / name).write_bytes(b"a program")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness, "IMAGES", 20)
        find_everything(AnalyzeConfig(run=str(run), full=True))
    analyze.main(AnalyzeConfig(run=str(run), only=["curves", "classes", "model"], track=False))
    return run


def find_everything(config: AnalyzeConfig) -> tuple:
    """What analyze.py finds out before it draws, and what it draws it from."""
    analysis = set_up(config, create_accelerator())
    predictions = predict_test(analysis)
    return analysis, predictions, sections.find(analysis, predictions)


opened: list[tuple[str, int]] | None = None


def note_opened(event: str, arguments: tuple) -> None:
    """Notes path and inode of every file that is opened to be read."""
    if opened is None or event != "open" or not isinstance(arguments[0], str) or arguments[1] not in ("r", "rb"):
        return
    with suppress(OSError):
        opened.append((os.path.realpath(arguments[0]), os.stat(arguments[0]).st_ino))


sys.addaudithook(note_opened)


def resume(run: Path, **changes) -> None:
    options = {**OPTIONS, **changes}
    train_accelerate.main(tiny_config(run, **options))


@pytest.fixture(scope="module")
def read(complete, tmp_path_factory) -> set[str]:
    """The kinds of files that a resume, an analysis with everything, and the loading of the model read."""
    global opened
    folder = tmp_path_factory.mktemp("read").resolve()
    run, other = (Path(shutil.copytree(complete, folder / name, symlinks=True)) for name in ("run", "other"))
    before = {(str(run / path), (run / path).stat().st_ino): kind_of(path) for path in files_of(run)}
    opened = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(robustness, "IMAGES", 20)
            sections.build(*find_everything(AnalyzeConfig(run=str(run), full=True, compare=str(other))))
        resume(run)
        ImageClassifier.from_pretrained(run / "model")
        return {before[file] for file in opened if file in before}  # what was written since has another inode
    finally:
        opened = None


def test_the_list_of_files_is_complete(complete, read):
    assert {kind_of(path) for path in files_of(complete)} == FILES.keys()
    assert {kind for kind, attacks in FILES.items() if attacks not in (None, "tracker")} <= read
    assert not {kind for kind in read if FILES[kind] is None}


# -- what must hold after every attack --------------------------------------------------------------------------------


@dataclasses.dataclass
class Attacked:
    """A copy of the run, and beside it what is none of its business.

    `trace` is made by the malicious pickles, if ever they are loaded.
    """

    run: Path
    outside: Path
    trace: Path

    def state(self) -> dict[str, object]:
        """Everything in both folders, but the lock: what it is, its content by size and time of change."""
        found = {}
        for path in sorted([*self.run.rglob("*"), *self.outside.rglob("*"), self.outside]):
            status = path.lstat()
            if path.name != ".lock" and not path.is_dir():
                found[str(path)] = status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode
            elif path.is_relative_to(self.outside):
                found[str(path)] = status.st_mtime_ns
        return found


@pytest.fixture
def attacked(complete, read, tmp_path) -> Iterator[Attacked]:
    """Hard links instead of a copy: nothing may be written to them."""
    run, outside, trace = tmp_path / "run", tmp_path / "outside", tmp_path / "trace"
    shutil.copytree(complete, run, copy_function=os.link, symlinks=True)
    put(run / ".lock", b"")
    (outside / "inner").mkdir(parents=True)
    (outside / "secret.txt").write_text("secret")
    yield Attacked(run, outside, trace)
    assert not trace.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "outside", "results"}


def put(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Takes a file away and puts something else in its place."""
    path.unlink(missing_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)


def seal(folder: Path) -> None:
    """Makes the manifest of a checkpoint fit its files; of a file too large to be read, its size."""
    files = {}
    for path in folder.iterdir():
        if path.is_file() and path.name != MANIFEST:
            size = path.stat().st_size
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if size < 2**30 else "0" * 64
            files[path.name] = {"size": size, "sha256": digest}
    put(folder / MANIFEST, json.dumps({"format_version": 2, "step": 3, "files": files}).encode())


@contextmanager
def bounded(growth: int = 400 * 2**20) -> Iterator[None]:
    """Fails where more memory is used, and has allocations of more than 4 GiB fail."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return

    def value(name: str) -> int:
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1])

    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (value("VmSize") + 4 * 2**30, limits[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = value("VmRSS")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert value("VmHWM") - before < growth


def refused(capsys, attacked: Attacked, main: Callable, config) -> str:
    """The one line with which a script ends."""
    before = attacked.state()
    with bounded(), pytest.raises(SystemExit) as end:
        run_script(main, config)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    assert len(lines[0]) < 5000
    assert attacked.state() == before
    return lines[0]


def resume_refused(capsys, attacked: Attacked, **changes) -> str:
    return refused(capsys, attacked, train_accelerate.main, tiny_config(attacked.run, **{**OPTIONS, **changes}))


def analysis_refused(capsys, attacked: Attacked, **options) -> str:
    options = {"run": str(attacked.run), **options}
    return refused(capsys, attacked, analyze.main, AnalyzeConfig(**options))


def model_refused(attacked: Attacked) -> str:
    """The line of a program that loads the model."""
    before = attacked.state()
    with bounded(), pytest.raises(UserError) as error:
        ImageClassifier.from_pretrained(attacked.run / "model")
    assert attacked.state() == before
    return str(error.value)


# -- links and pipes --------------------------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:  # its own path may be too long for a socket
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def special_files(outside: Path) -> dict[str, Callable[[Path], None]]:
    return {
        "a link to a file outside": lambda path: path.symlink_to(outside / "secret.txt"),
        "a link to nothing outside": lambda path: path.symlink_to(outside / "new.txt"),
        "a link upwards": lambda path: path.symlink_to(os.path.relpath(outside / "secret.txt", path.parent)),
        "a link to everything": lambda path: path.symlink_to("/"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a pipe": os.mkfifo,
        "a socket": make_socket,
    }


def every_way(capsys, attacked: Attacked, path: Path, ways: Sequence[Callable[[Path], None]]) -> None:
    for make in ways:
        put(path, make)
        assert path.name in analysis_refused(capsys, attacked)
        assert path.name in resume_refused(capsys, attacked)


@pytest.mark.parametrize("place", range(len(FILES)), ids=list(FILES))
def test_a_link_out_of_the_run_or_a_pipe_is_refused_before_anything_is_opened(capsys, attacked, place):
    """Each way in place of several kinds of files, since all of them are found alike; see the next one."""
    ways = list(special_files(attacked.outside).values())
    every_way(capsys, attacked, path_of(attacked.run, list(FILES)[place]), [ways[place % len(ways)]])


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "config.yaml", "model/model.safetensors", ".config.yaml.tmp"]
)
def test_no_kind_of_link_or_special_file_is_opened_or_written_through(capsys, attacked, name):
    every_way(capsys, attacked, attacked.run / name, list(special_files(attacked.outside).values()))


def test_what_a_tracker_links_to_itself_is_allowed_and_the_rest_beside_it_is_not(capsys, attacked):
    logs = attacked.run / "wandb/offline-run-1-x/logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "debug-core.log").symlink_to(attacked.outside / "secret.txt")  # W&B's own, which nothing opens
    assert trained_precision(attacked.run) == "no"
    open_run(attacked.run)
    for name in ("debug.log", "debug-core.log.wandb"):
        put(logs / name, lambda path: path.symlink_to(attacked.outside / "secret.txt"))
        assert name in analysis_refused(capsys, attacked)
        (logs / name).unlink()


@pytest.mark.parametrize("name", ["analysis/.report.html.tmp", "analysis/compared", "model/new", ".metrics.jsonl.tmp"])
def test_what_would_be_written_through_a_link_is_not(capsys, attacked, name):
    every_way(capsys, attacked, attacked.run / name, list(special_files(attacked.outside).values())[:2])


@pytest.mark.parametrize("name", ["checkpoints", "model", "analysis", "checkpoints/step-*", "tensorboard", "wandb"])
def test_a_folder_that_is_a_link_to_elsewhere_is_refused(capsys, attacked, tmp_path, name):
    place = next(iter(sorted(attacked.run.glob(name), reverse=True)), attacked.run / name)
    target = attacked.outside / "inner"
    if place.exists():
        target = attacked.outside / "moved"
        place.rename(target)
    place.symlink_to(target)
    assert "outside of" in analysis_refused(capsys, attacked)
    assert "outside of" in resume_refused(capsys, attacked)
    if name.startswith("checkpoints/"):  # named itself, the folder would get an analysis/ outside
        assert "outside of" in analysis_refused(capsys, attacked, run=str(place))


def test_the_other_run_of_a_comparison_and_the_one_of_a_checkpoint_are_looked_through_too(capsys, attacked, complete):
    put(attacked.run / "lr_finder.png", lambda path: path.symlink_to("/etc/hostname"))
    other = Attacked(complete, attacked.outside, attacked.trace)
    assert "compare: " in analysis_refused(capsys, other, compare=str(attacked.run), output_dir=str(attacked.outside))
    fork = Attacked(attacked.run.with_name("results"), attacked.outside, attacked.trace)
    checkpoint = path_of(attacked.run, f"checkpoints/step-*/{MANIFEST}").parent
    assert "resume: " in resume_refused(capsys, fork, resume=str(checkpoint))
    assert not fork.run.exists()


def test_the_model_alone_is_not_read_through_links_but_from_the_cache_of_the_hub(attacked, tmp_path):
    path = attacked.run / "model/model.safetensors"
    path.rename(attacked.outside / "weights")
    for make in (lambda path: path.symlink_to(attacked.outside / "weights"), os.mkfifo):
        put(path, make)
        assert "model.safetensors" in model_refused(attacked)
    cache = tmp_path / "results" / "models--someone--something"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    os.link(attacked.outside / "weights", cache / "blobs" / "weights")
    os.link(attacked.run / "model/config.json", cache / "blobs" / "config")
    for name, blob in {"config.json": "config", "model.safetensors": "weights"}.items():
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert ImageClassifier.from_pretrained(snapshot).model_config.image_size == 16


# -- content ----------------------------------------------------------------------------------------------------------


def sparse(path: Path) -> None:
    """A file of a terabyte that takes no room."""
    path.touch()
    os.truncate(path, 2**40)


def torch_zip(trace: Path) -> bytes:
    content = io.BytesIO()
    torch.save({"weights": Payload(trace)}, content)
    return content.getvalue()


def anything(trace: Path) -> dict[str, bytes | Callable[[Path], None]]:
    """What no file of a run directory is."""
    return {
        "a pickle": pickle.dumps(Payload(trace)),
        "a file of torch.save": torch_zip(trace),
        "empty": b"",
        "garbage": bytes(range(256)) * 20,
        "a terabyte": sparse,
    }


def texts(trace: Path) -> dict[str, bytes | Callable[[Path], None]]:
    """What is no JSON of this suite."""
    return anything(trace) | {
        "deep lists": b"[" * 200_000,
        "deep mappings": b'{"a":' * 200_000,
        "half deep": b'{"files":' + b"[" * 600 + b"]" * 600 + b"}",
        "a number of many digits": b'{"format_version": ' + b"9" * 100_000 + b"}",
        "another version": b'{"format_version": 4}',
        "no version": b'{"format_version": NaN}',
        "a list": b"[1, 2]",
        "a text": b'"\\ud800\\u001b[31m"',
        "nothing": b"null",
    }


def header(content: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensors(trace: Path) -> dict[str, bytes | Callable[[Path], None]]:
    """What is no safetensors file, or none of this model."""
    return anything(trace) | {
        "a header of an exabyte": header({}, length=2**60),
        "a header of the whole file": header({}, bytes(100), length=2**24 + 1),
        "a tensor of a terabyte": header({"fc.bias": tensor([2**38], 0, 2**40)}),
        "more numbers than a number counts": header({"fc.bias": tensor([2**40, 2**40], 0, 4)}, bytes(4)),
        "overlapping": header({"fc.bias": tensor([1], 0, 4), "fc.weight": tensor([1], 0, 4)}, bytes(4)),
        "backwards": header({"fc.bias": tensor([1], 4, 0)}, bytes(4)),
        "a deep header": header(b'{"a":' * 100_000),
        "no tensor": header({}),
        "a name of a megabyte": header({"\x1b[31m" + "x" * 2**20: tensor([1], 0, 4)}, bytes(4)),
        "an odd kind of number": header({"fc.bias": tensor([8], 0, 4, "F4")}, bytes(4)),
    }


def options(trace: Path) -> dict[str, bytes | Callable[[Path], None]]:
    """What is no file of options."""
    touch = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trace}']]"
    names = "abcdefghij"
    laughs = "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(names))
    merged = "".join(
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in itertools.pairwise(names)
    )
    return anything(trace) | {
        "a tag": f"run_name: {touch}\n".encode(),
        "a billion laughs": f"a: &a [x]\n{laughs}run_name: *j\n".encode(),
        "a billion merges": f"a: &a {{lr: 1}}\n{merged}".encode(),
        "deep": b"lr: " + b"[" * 50_000,
        "deep lines": "\n".join(" " * depth + "a:" for depth in range(400)).encode(),
        "many options": "".join(f"option{number}: 1\n" for number in range(5000)).encode(),
        "a number of many digits": b"epochs: 0x" + b"f" * 50_000,
        "half a character": b'run_name: "\\ud800"\n',
    }


@pytest.mark.parametrize("kind", [kind for kind, family in FILES.items() if family in ("json", "tensors", "options")])
def test_whatever_a_file_holds_it_is_refused_in_one_line(capsys, attacked, kind):
    """With the hashes of the manifest made to match."""
    path = path_of(attacked.run, kind)
    attacks = {"json": texts, "tensors": tensors, "options": options}[FILES[kind]](attacked.trace)
    if path.stem in ("best", "unaveraged", "lookahead"):  # read as model.safetensors is
        attacks = {name: attacks[name] for name in ("a pickle", "a terabyte", "a header of an exabyte", "no tensor")}
    for name, content in attacks.items():
        if (path.stem, name) == ("optimizer", "no tensor"):  # as before the first step
            continue
        put(path, content)
        if kind.startswith("checkpoints/"):
            if path.name != MANIFEST:
                seal(path.parent)
            line = resume_refused(capsys, attacked, resume=str(path.parent))
            assert path.stem in line or f"{path.parent} needs 1,0" in line, name
        elif kind.startswith("model/"):
            assert path.name in model_refused(attacked), name
            assert path.name in analysis_refused(capsys, attacked), name
        elif (kind, name) in HARMLESS:
            assert trained_precision(attacked.run) is None
        else:
            assert path.name in analysis_refused(capsys, attacked) or kind == "config.yaml", name


# -- values -----------------------------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**17,
    "x",
    "../../x",
    [],
    [[1, 2]],
    {},
    [["a"] * 3],
    [[[]]],
]


def changed(path: Path, *keys: str, value: object) -> bytes:
    """A JSON file with another value somewhere."""
    content = json.loads(path.read_bytes())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return json.dumps(content).encode()


def pipelines(trace: Path) -> dict[str, bytes | Callable[[Path], None]]:
    """What is no pipeline of albumentations, or one that would run code or take all memory."""
    touch = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trace}']]"

    def one(name: str, more: str = "p: 1.0") -> bytes:
        return f"transform: {{__class_fullname__: {name}, {more}}}".encode()

    return options(trace) | {
        "code for a transform": f"transform: {touch}".encode(),
        "code for a value": one("Blur", f"p: {touch}"),
        "100 MB": lambda path: (path.touch(), os.truncate(path, 100 * 10**6)),
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "a function": one("os.system", "command: 'touch x'"),
        "an attribute": one("__class__"),
        "a module of its own": one("data.augment.augmentation.SingleImage", "augment: print"),
        "Lambda": one("Lambda", "image: os.system"),
        "a font": one("TextImage", "font_path: /etc/passwd"),
        "an image to read": one("FDA", "reference_images: [/etc/passwd]"),
        "a wrong value": one("RandomCrop", "height: [1, {a: b}], width: 8"),
        "a terabyte of pixels": one("Resize", "height: 1000000, width: 1000000"),
        "another size": one("Resize", "height: 8, width: 8"),
    }


def test_whatever_a_pipeline_holds_it_is_refused_in_one_line(capsys, attacked):
    path, folder = attacked.outside / "pipeline.yaml", attacked.run.parent / "results"
    unused = {"crop_padding": 4, "cutout": 8, "horizontal_flip": "alternating"}  # the defaults, without a warning
    config = tiny_config(folder, **{**OPTIONS, **unused, "image_size": 16}, augment_file=str(path))
    for content in pipelines(attacked.trace).values():
        put(path, content)
        line = refused(capsys, attacked, train_accelerate.main, config)
        assert line.startswith("error: augment_file: ")
        assert str(path) in line
        assert not folder.exists()
        if path.is_dir():
            path.rmdir()


def test_every_value_of_a_training_state_has_a_form():
    assert STATE_FORMS.keys() == {field.name for field in dataclasses.fields(TrainState)}
    assert all(STATE_FORMS[name](value) for name, value in dataclasses.asdict(TrainState()).items())


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainState)])
def test_a_training_state_that_no_training_writes_is_refused(capsys, attacked, name):
    path = path_of(attacked.run, "checkpoints/step-*/trainer.json")
    original = path.read_bytes()
    wrong = [value for value in VALUES if not STATE_FORMS[name](value)]
    assert len(wrong) >= len(VALUES) - 5
    for value in (wrong[0], wrong[-1]):
        put(path, original)
        put(path, changed(path, "state", name, value=value))
        seal(path.parent)
        assert name in resume_refused(capsys, attacked), value


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("state", "step"), 10**17), (("state", "step"), 2), (("state", "epoch"), 2), (("state", "evaluated_step"), 9),
        (("state",), [1]), (("state", "new"), 1), (("options",), "lr"), (("options", "lr"), [[[["x"]]]]),
        (("options", "model"), "x" * 10**6), (("train_count",), "many"), (("train_count",), 5), (("scaler",), [1]),
        (("format_version",), "2"), (("format_version",), 4), (("format_version",), 0),
    ],
    ids=str,
)  # fmt: skip
def test_a_trainer_json_that_does_not_fit_is_refused(capsys, attacked, keys, value):
    path = path_of(attacked.run, "checkpoints/step-*/trainer.json")
    if keys == ("state", "step") and value == 2:  # before what was evaluated
        assert json.loads(path.read_bytes())["state"]["evaluated_step"] == 3
    put(path, changed(path, *keys, value=value))
    seal(path.parent)
    resume_refused(capsys, attacked)


def with_changes(path: Path, **changes: torch.Tensor | None) -> Callable[[Path], None]:
    """The tensors of a file, some of them others; None: without it."""
    held = {**load_file(path), **changes}
    return lambda path: save_file({name: tensor for name, tensor in held.items() if tensor is not None}, path)


def test_weights_and_optimizer_state_of_another_form_are_refused(capsys, attacked):
    for name in TENSORS:
        path = path_of(attacked.run, f"checkpoints/step-*/{name}.safetensors")
        content = path.read_bytes()
        key = "fc.weight/exp_avg" if name == "optimizer" else "fc.weight"
        held = load_file(path)[key]
        attacks = [{key: held.int()}, {"fc.other": held}]
        if name in ("model", "optimizer"):
            attacks += [{key: held[:, :-1].contiguous()}, {key: None}, {key: held.to(torch.complex64)}]
        if name == "optimizer":
            attacks += [{key: torch.zeros(())}]
            step = key.replace("exp_avg", "step")
            attacks += [{step: torch.tensor(value)} for value in (-1.0, float("nan"), 3)]
            attacks += [{step: None}, {"fc.weight/momentum_buffer": held}, {step: torch.ones(1)}]
        for changes in attacks:
            put(path, content)
            put(path, with_changes(path, **changes))
            seal(path.parent)
            assert "fc." in resume_refused(capsys, attacked), changes
        put(path, content)
        seal(path.parent)


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"norm": "batch", "width": 10**9}}, {"arguments": {"norm": "batch", "width": 10**17}},
        {"arguments": {"norm": "batch", "width": -1}}, {"arguments": {"norm": "batch", "width": True}},
        {"arguments": {"norm": ["batch"], "width": 16}}, {"arguments": {"width": 16, "pretrained": True}},
        {"architecture": "speednet", "arguments": {"norm": "batch", "width": 10**6}},
        {"architecture": "x" * 10**6}, {"architecture": "../resnet18"},
        {"architecture": "timm:../../x", "arguments": {}},
        {"architecture": "timm:resnet18", "arguments": {"pretrained": 1}},
        {"architecture": "timm:resnet18", "arguments": {"checkpoint_path": "/etc/passwd"}},
        {"architecture": "timm:vit_tiny_patch16_224", "arguments": {"img_size": 10**9}},
        {"class_names": [str(number) for number in range(10**6)]}, {"class_names": ["a"] * 10},
        {"class_names": ["\ud800"]}, {"image_size": 10**9}, {"resolution": 10**9},
        {"image_size": [10**9, 16]}, {"fit": ["pad"]}, {"crop_pct": float("nan")}, {"interpolation": ["bilinear"]},
        {"mean": [10**17, "x", 1]},
        {"std": [float("nan")] * 3}, {"tta": ["flip"]}, {"format_version": 0}, {"format_version": 4},
    ],
    ids=lambda changes: str(changes)[:60],
)  # fmt: skip
def test_a_model_that_does_not_fit_its_weights_is_refused_before_it_is_built(capsys, attacked, changes):
    path = attacked.run / "model/config.json"
    put(path, json.dumps(json.loads(path.read_bytes()) | changes).encode())
    model_refused(attacked)
    analysis_refused(capsys, attacked)


@pytest.mark.parametrize("sizes", [{"image_size": 4096}, {"resolution": 128}, {"resolution": 4096}], ids=str)
def test_images_that_there_is_no_memory_for_are_refused(capsys, attacked, sizes, monkeypatch):
    """For a single one, or for a batch of them."""
    monkeypatch.setattr("utils.system.memory.free_memory", lambda device=None: 2**30)
    path = attacked.run / "model/config.json"
    put(path, json.dumps(json.loads(path.read_bytes()) | sizes).encode())
    assert "GiB of memory" in analysis_refused(capsys, attacked)


@pytest.mark.parametrize("name", ["train_seconds", "epochs", "steps", "images_per_second"])
def test_a_summary_of_other_than_numbers_is_refused(capsys, attacked, name):
    path = attacked.run / "summary.json"
    original = path.read_bytes()
    for value in (None, "x", -1, float("nan"), [1], {}):
        put(path, original)
        put(path, changed(path, name, value=value))
        assert f"summary.json: {name} is " in analysis_refused(capsys, attacked)


def test_the_environment_names_no_path_and_no_precision_of_its_own(attacked):
    path = attacked.run / "environment.json"
    for value in ("../../outside/x", "a/b", "a\nb", "\x1b[31m", "x" * 10**6, ["x"], 3, "", ".."):
        assert tracked_as({"run_id": value, "wandb_project": value, "wandb_entity": value}) == {}
        put(path, changed(path, "mixed_precision", value=value))
        assert trained_precision(attacked.run) is None
    known = json.loads(path.read_bytes())
    assert tracked_as(known)["run_id"] == known["run_id"]


# -- what is not refused but ignored, or made again ------------------------------------------------------------------


def arrays(trace: Path, held: dict[str, np.ndarray], metadata: dict) -> dict[str, bytes | Callable[[Path], None]]:
    """What are no cached arrays, or others than these."""
    name, first = next(iter(held.items()))

    def claim(shape: list[int], length: int, dtype: str = "F32", data: bytes = bytes(4)) -> bytes:
        return header({"__metadata__": metadata, name: tensor(shape, 0, length, dtype)}, data)

    def saved(changes: dict[str, np.ndarray], metadata: dict | None = metadata) -> bytes:
        return save({**held, **changes}, metadata)

    return tensors(trace) | {
        "another fingerprint": saved({}, {"fingerprint": "{}"}),
        "no fingerprint": saved({}, None),
        "a long fingerprint": saved({}, {"fingerprint": "[" * 2**20}),
        "no text": header({"__metadata__": {"fingerprint": 1}}),
        "larger than the file": claim([2**36], 2**38),
        "absurd": claim([2**40, 2**20], 4),
        **{f"of {dtype}": claim([2], 4, dtype) for dtype in ("BF16", "F8_E4M3", "C64", "O")},
        "one is missing": save({key: array for key, array in held.items() if key != name} or {"x": first}, metadata),
        "one more": saved({"more": first}),
        "another shape": saved({name: first[1:]}),
        "another kind": saved({name: first.astype(np.uint8)}),
        "out of range": saved({name: np.full_like(first, np.nan if first.dtype.kind == "f" else -1)}),
    }


@pytest.mark.parametrize("name", CACHED)
def test_cached_arrays_that_do_not_fit_are_ignored(attacked, name):
    path = cache_file(attacked.run / "analysis", name)
    held = load_arrays(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    fingerprint = json.loads(metadata["fingerprint"])
    forms = {
        key: Form(array.dtype.kind, array.shape, below=int(array.max(initial=0)) + 1) for key, array in held.items()
    }
    assert read_cache(attacked.run / "analysis", name, fingerprint, forms).keys() == held.keys()
    for attack, content in arrays(attacked.trace, held, metadata).items():
        if (name, attack) == ("robustness", "out of range"):  # there is nothing but true and false
            continue
        put(path, content)
        with bounded(growth=2**27):
            assert read_cache(attacked.run / "analysis", name, fingerprint, forms) is None, attack


def test_cached_predictions_that_do_not_fit_are_computed_again(attacked):
    path = cache_file(attacked.run / "analysis", "predictions")
    expected = load_arrays(path)
    with safe_open(path, framework="np") as file:
        content = save({**expected, "features": expected["features"][:, :3].copy()}, file.metadata())
    put(path, content)
    made = predict_test(set_up(AnalyzeConfig(run=str(attacked.run)), create_accelerator()))
    np.testing.assert_array_equal(made.logits, expected["logits"])
    np.testing.assert_array_equal(made.features, expected["features"])


def test_whatever_predictions_npz_holds_it_is_replaced_unread(attacked):
    path = attacked.run / "analysis/predictions.npz"
    expected = path.read_bytes()
    analysis = set_up(AnalyzeConfig(run=str(attacked.run)), create_accelerator())
    for content in (*anything(attacked.trace).values(), bytes(len(expected))):
        put(path, content)
        with bounded(growth=2**27):
            predict_test(analysis)
        assert path.read_bytes() == expected


@pytest.mark.parametrize("value", [float("nan"), 1e38])
def test_weights_that_give_no_finite_logits_end_in_one_line(capsys, attacked, value):
    path = attacked.run / "model/model.safetensors"
    put(path, with_changes(path, **{"conv1.weight": torch.full_like(load_file(path)["conv1.weight"], value)}))
    results = attacked.run.with_name("results")  # made before the predictions
    options = {"run": str(attacked.run), "output_dir": str(results), "track": False}
    with bounded(), pytest.raises(SystemExit) as end:
        run_script(analyze.main, AnalyzeConfig(**options))
    assert end.value.code == 2
    assert "not finite" in capsys.readouterr().err


def test_lines_of_metrics_that_are_none_are_passed_over(capsys, attacked):
    path = attacked.run / "metrics.jsonl"
    count = len(list(MetricsFile(path).rows()))
    line = path.read_bytes().splitlines()[0]
    for name, content in texts(attacked.trace).items():
        if callable(content):
            continue
        put(path, content + b"\n" + line + b"\n" + b"x" * 2**21)
        with bounded():
            assert len(list(MetricsFile(path).rows())) <= 1, name
    put(path, sparse)
    assert count > 1
    assert "metrics.jsonl" in analysis_refused(capsys, attacked)
    assert "metrics.jsonl" in resume_refused(capsys, attacked)


@pytest.mark.parametrize("name", ["lr_finder.png", "augmentations.png"])
def test_a_figure_of_the_training_that_is_no_png_is_ignored(attacked, name):
    path = attacked.run / name
    run = open_run(attacked.run)
    assert run.figure(name) == path.read_bytes()
    wide = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 50_000, 50_000, 8, 2, 0, 0, 0, 0)
    for content in [*anything(attacked.trace).values(), wide, b"<svg onload='alert(1)'>"]:
        put(path, content)
        with bounded():
            assert run.figure(name) is None


@pytest.mark.parametrize("name", TRACKERS)
def test_what_a_tracker_kept_costs_a_warning_at_most(capsys, attacked, name, monkeypatch):
    """Its files are read to find what it was told; after that it goes on."""
    for variable, value in {"WANDB_MODE": "offline", "WANDB_API_KEY": "", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("TRACKIO_DIR", str(attacked.run / "trackio"))
    before = attacked.state()
    told = {(1, "train"), (2, "train")}
    suffix = {"wandb": ".wandb", "tensorboard": "", "trackio": ".db"}[name]
    places = [path for path in (attacked.run / name).rglob(f"*{suffix}") if path.is_file()]
    assert places
    attacks = {"wandb": [sparse, bytes(range(256))], "trackio": [triggers]}.get(
        name, [*anything(attacked.trace).values()]
    )
    for content in attacks:
        for path in places:
            put(path, content)
        trackers = Trackers([name], Identity(attacked.run, "abc123", "image-classification", "run"))
        trackers.each(lambda tracker: tracker.recall(told))
        trackers.close(finished=False)
        lines = capsys.readouterr().err.splitlines()
        assert len([line for line in lines if line.startswith("warning: ")]) <= 1
        if content in (sparse, triggers):
            assert any(name in line for line in lines if line.startswith("warning: "))
    after = attacked.state()
    outside = [key for key in before if key.startswith(str(attacked.outside))]
    assert {key: after[key] for key in outside} == {key: before[key] for key in outside}


def triggers(path: Path) -> None:
    """A database that writes when it is written to, without end."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, step INTEGER)")
        database.execute(
            "CREATE TRIGGER forever AFTER INSERT ON metrics BEGIN INSERT INTO metrics (step) WITH RECURSIVE "
            "n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n; END"
        )
        database.commit()


def test_a_model_config_of_a_run_is_read_back_as_it_is(attacked):
    """That the checks let through what training writes."""
    config = ImageClassifier.from_pretrained(attacked.run / "model").model_config
    assert isinstance(config, ModelConfig)
    assert config.to_bytes() == (attacked.run / "model/config.json").read_bytes()


# -- start weights ----------------------------------------------------------------------------------------------------


def inflated(path: Path) -> None:
    """A file of torch.save, of which a part says that it takes a TiB once it is inflated."""
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(2**20))
        archive.infolist()[-1].file_size = 2**40


START_WEIGHTS: dict[str, Callable[[Path, Path], None]] = {
    "executes .pth": lambda path, trace: torch.save({"state_dict": Payload(trace)}, path),
    "executes by a bare pickle .pth": lambda path, trace: path.write_bytes(pickle.dumps(Payload(trace))),
    "executes .bin": lambda path, trace: torch.save(Payload(trace), path, _use_new_zipfile_serialization=False),
    "a whole model .pth": lambda path, trace: torch.save(torch.nn.Linear(1, 1), path),
    "a pickle that says .safetensors": lambda path, trace: torch.save({"a": torch.zeros(1)}, path),
    "nothing .safetensors": lambda path, trace: path.write_bytes(b""),
    "nothing .pth": lambda path, trace: path.write_bytes(b""),
    "a header of 16 EiB .safetensors": lambda path, trace: path.write_bytes(b"\xff" * 8 + b"{}"),
    "a header that is none .safetensors": lambda path, trace: path.write_bytes(header({})[:8] + b"[["),
    "a tensor beyond the end .safetensors": lambda path, trace: path.write_bytes(
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    ),
    "an expanded tensor .pth": lambda path, trace: torch.save({"conv1.weight": torch.zeros(1).expand(2**40)}, path),
    "a sparse tensor .pth": lambda path, trace: torch.save({"a": torch.zeros(2, 2).to_sparse()}, path),
    "inflated .pth": lambda path, trace: inflated(path),
    "names that are numbers .pth": lambda path, trace: torch.save({1: torch.zeros(1)}, path),
    "a name of a megabyte .pth": lambda path, trace: torch.save({"x" * 10**6: torch.zeros(1)}, path),
    "control characters .pth": lambda path, trace: torch.save({"\x1b[31m\n": torch.zeros(1)}, path),
    "no tensors .pth": lambda path, trace: torch.save({"model": {}}, path),
    "a number .pth": lambda path, trace: torch.save(3, path),
    "a hole of 1 TiB .pth": lambda path, trace: (path.touch(), os.truncate(path, 2**40)),
}


@pytest.mark.parametrize("name", START_WEIGHTS)
def test_whatever_start_weights_hold_they_are_refused_in_one_line_and_not_executed(tmp_path, capsys, name):
    path, trace = tmp_path / f"weights.{name.rpartition('.')[2]}", tmp_path / "trace"
    START_WEIGHTS[name](path, trace)
    config = tiny_config(tmp_path / "run", init_from=str(path), model="resnet18")
    with bounded(), pytest.raises(SystemExit) as end:
        run_script(train_accelerate.main, config)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 5000
    assert not trace.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_of_start_weights_is_not_read_through_links_and_pipes(digits_run, tmp_path, file):
    """Of a stranger's archive: a link out of it, a pipe."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    for number, make in enumerate(special_files(tmp_path / "outside").values()):
        folder = Path(shutil.copytree(digits_run / "model", tmp_path / str(number)))
        put(folder / file, make)
        with bounded(), pytest.raises(UserError) as error:
            find_weights(str(folder))
        assert file in str(error.value)


def test_a_file_of_start_weights_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights.pth' is not allowed; there is no such file"):
        find_weights(str(tmp_path / "weights.pth"), "resnet18")
