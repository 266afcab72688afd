"""A checkpoint is whole or not there, data and never code; a damaged one is named and skipped."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import create_model
from models.saved import FORMAT_VERSION, ModelConfig, export_model, load_model, read_model_config
from utils.runs.checkpoint import (
    MANIFEST,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from utils.system.errors import UserError

ROOT = Path(__file__).parents[1]
FILES = {"trainer.json": b'{"step": 1}', "model.safetensors": bytes(range(256)) * 8, "empty.bin": b""}


def write(root: Path, *steps: int, keep: int = 10) -> list[Path]:
    root.parent.mkdir(exist_ok=True)
    return [write_checkpoint(root, step, {**FILES, "step": str(step).encode()}, keep) for step in steps]


def steps(root: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(root)]


def strays(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.startswith("step-")]


# -- writing ----------------------------------------------------------------------------------------------------------


def test_checkpoint_comes_back_as_it_was_written(tmp_path):
    (folder,) = write(tmp_path / "run" / "checkpoints", 123)
    assert folder.name == "step-000123"
    assert read_checkpoint(folder, FILES) == FILES
    assert read_checkpoint(folder, ["trainer.json", "best.safetensors"]) == {"trainer.json": FILES["trainer.json"]}
    assert strays(folder.parent) == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    for step in range(1, 6):
        write(tmp_path, step, keep=keep)
        assert steps(tmp_path) == list(range(max(1, step - keep + 1), step + 1))


def test_order_is_by_step_not_by_name(tmp_path):
    write(tmp_path, 999_999, 1_000_000, 50)
    assert steps(tmp_path) == [50, 999_999, 1_000_000]
    assert newest_checkpoint(tmp_path)[0].name == "step-1000000"


def test_other_folders_are_no_checkpoints(tmp_path):
    write(tmp_path, 5)
    for name in ("step-abc", "step-²", "other", "step-"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000009").write_text("a file")
    assert steps(tmp_path) == [5]


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_same_step_is_replaced(tmp_path):
    write_checkpoint(tmp_path, 5, {"a": b"old"}, 1)
    folder = write_checkpoint(tmp_path, 5, {"a": b"new"}, 1)
    assert read_checkpoint(folder, ["a"]) == {"a": b"new"}
    assert steps(tmp_path) == [5]
    assert strays(tmp_path) == []


def test_crash_while_the_same_step_is_replaced_loses_nothing(tmp_path):
    """Between the two renames neither has the name; the old one comes back."""
    (folder,) = write(tmp_path, 5)
    folder.rename(tmp_path / ".step-000005.old")
    assert newest_checkpoint(tmp_path) == (folder, {})
    folder.rename(tmp_path / ".step-000005.old")
    write(tmp_path, 6)
    assert steps(tmp_path) == [5, 6]
    assert strays(tmp_path) == []


def test_what_a_killed_run_left_half_written_is_no_checkpoint_and_is_cleared_away(tmp_path):
    write(tmp_path, 5)
    half = tmp_path / ".step-000009.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path)[0].name == "step-000005"
    write(tmp_path, 6)
    assert strays(tmp_path) == []


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoint_of_a_later_step_does_not_push_out_the_new_one(tmp_path, keep):
    write(tmp_path, 100, 200)
    (tmp_path / "step-000200" / "model.safetensors").write_bytes(b"torn")
    write(tmp_path, 110, keep=keep)
    assert newest_checkpoint(tmp_path)[0].name == "step-000110"
    assert (tmp_path / "step-000100").exists() is (keep == 2)


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from utils.runs.checkpoint import write_checkpoint
from utils.system.files import replace_file
root = Path(sys.argv[1])
for attempt in (lambda: write_checkpoint(root, int(sys.argv[2]), {"small": b"x", "large": bytes(200_000)}, 1),
                lambda: replace_file(root / "file", bytes(200_000))):
    try:
        attempt()
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("step", [2, 3])
def test_disk_that_fills_up_leaves_the_older_ones_and_no_half_file(tmp_path, step):
    """A real write error: the process may write files of at most 100 kB. Step 2 replaces, step 3 is new."""
    write(tmp_path, 1, 2)
    (tmp_path / "file").write_bytes(b"before")
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(step)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == ["OSError", "OSError"], run.stderr
    assert steps(tmp_path) == [1, 2]
    assert newest_checkpoint(tmp_path)[0].name == "step-000002"
    assert read_checkpoint(tmp_path / "step-000002", ["step"]) == {"step": b"2"}
    assert strays(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


def test_folder_that_cannot_be_written_is_an_oserror(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="checkpoints"):
        write(tmp_path / "checkpoints", 1)


# -- damage -----------------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def cut_to_nothing(folder: Path) -> None:
    (folder / "trainer.json").write_bytes(b"")


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[1000] ^= 4
    (folder / "model.safetensors").write_bytes(content)


def remove_a_file(folder: Path) -> None:
    (folder / "empty.bin").unlink()


def remove_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def overwrite_manifest(content: bytes):
    def change(folder: Path) -> None:
        (folder / MANIFEST).write_bytes(content)

    return change


def tear_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:100])


GARBLED = [b"", b"\0" * 200, b"\xff\xfe", b"null", b"[]", b"3", b"{}", b'{"files": []}', b'{"files": {}}',
           b'{"files": {"trainer.json": 3}}', b'{"files": {"trainer.json": {"size": 11}}}', b"[" * 100_000]  # fmt: skip
DAMAGES = [truncate, cut_to_nothing, flip_a_bit, remove_a_file, remove_the_manifest, tear_the_manifest]


@pytest.mark.parametrize(
    "spoil",
    [*DAMAGES, *map(overwrite_manifest, GARBLED)],
    ids=[f.__name__ for f in DAMAGES] + [str(c[:20]) for c in GARBLED],
)
def test_damaged_checkpoint_is_named_in_a_warning_and_the_one_before_is_taken(tmp_path, capsys, spoil):
    older, newer = write(tmp_path, 1, 2)
    spoil(newer)
    assert newest_checkpoint(tmp_path, ["step"]) == (older, {"step": b"1"})
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: checkpoint {newer} is damaged (")
    assert warning.count("\n") == 1
    with pytest.raises(UserError, match=f"resume: {newer} is not a valid checkpoint"):
        read_checkpoint(newer, FILES)


def test_every_checkpoint_damaged_is_none(tmp_path, capsys):
    for folder in write(tmp_path, 1, 2):
        truncate(folder)
    assert newest_checkpoint(tmp_path) is None
    assert capsys.readouterr().err.count("warning: ") == 2


@pytest.mark.parametrize("name", ["../../secret", "../secret", "sub/secret", "..", ".", ""])
def test_manifest_cannot_name_files_outside_its_folder(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    (folder,) = write(tmp_path / "run", 1)
    (folder / "sub").mkdir()
    (folder / "sub" / "secret").write_bytes(b"secret")
    names = [name, str(tmp_path / "secret")]
    manifest = json.loads((folder / MANIFEST).read_text())
    for outside in names:
        entry = {"size": 6, "sha256": "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"}
        changed = {**manifest, "files": {**manifest["files"], outside: entry}}
        (folder / MANIFEST).write_text(json.dumps(changed))
        assert newest_checkpoint(tmp_path / "run") is None
        with pytest.raises(UserError, match="not a valid checkpoint"):
            read_checkpoint(folder, [outside])


def test_file_that_the_manifest_does_not_list_is_not_read(tmp_path):
    (folder,) = write(tmp_path, 1)
    (folder / "best.safetensors").write_bytes(b"from elsewhere")
    assert read_checkpoint(folder, ["best.safetensors"]) == {}


# -- the exported model -----------------------------------------------------------------------------------------------


def exported(folder: Path, norm: str = "batch") -> tuple[torch.nn.Module, ModelConfig]:
    torch.manual_seed(0)
    model = create_model("resnet18", 3, norm=norm, width=16)
    model(torch.randn(4, 3, 16, 16))  # so that batch statistics are not those of a fresh model
    arguments = {"norm": norm, "width": 16}
    config = ModelConfig("resnet18", arguments, ("cat", "dog", "été 犬"), 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    export_model(folder, config, model.state_dict())
    return model.eval(), config


@pytest.fixture(scope="module")
def one_export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    exported(folder)
    return folder


@pytest.fixture
def model_folder(tmp_path, one_export) -> Path:
    """A folder of its own with an exported model."""
    return Path(shutil.copytree(one_export, tmp_path / "model"))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_exported_model_predicts_the_same_and_knows_its_preprocessing(tmp_path, norm):
    model, config = exported(tmp_path / "model", norm)
    loaded, loaded_config = load_model(tmp_path / "model")
    assert loaded_config == config
    assert not loaded.training
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_lists_of_the_json_are_tuples_again(model_folder):
    assert isinstance(json.loads((model_folder / "config.json").read_text())["mean"], list)
    config = read_model_config(model_folder)
    assert [type(value) for value in (config.class_names, config.mean, config.std)] == [tuple] * 3


def test_channels_last_weights_are_exported(tmp_path):
    model, config = exported(tmp_path)
    export_model(tmp_path, config, model.to(memory_format=torch.channels_last).state_dict())
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)


def test_export_is_replaced_in_one_step(model_folder):
    """Who reads while a new model is exported reads the old one to its end: the name moves to a new file."""
    model, config = load_model(model_folder)
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    with open(model_folder / "model.safetensors", "rb") as reader:
        before = reader.read()
        export_model(model_folder, config, weights)
        reader.seek(0)
        assert reader.read() == before
    assert torch.equal(load_model(model_folder)[0].fc.bias, weights["fc.bias"])
    assert not [path for path in model_folder.iterdir() if path.name.startswith(".")]


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_newer_format_is_refused(model_folder):
    change_config(model_folder, format_version=FORMAT_VERSION + 1)
    with pytest.raises(UserError, match=r"config\.json: format version \d+ is newer than this program's"):
        load_model(model_folder)


@pytest.mark.parametrize(
    "changes",
    [{"architecture": "vgg16"}, {"architecture": ["resnet18"]}, {"arguments": {"depth": 3}}, {"arguments": "norm"},
     {"arguments": {"num_classes": 3}}, {"arguments": {"name": "x"}}, {"class_names": "abc"}, {"class_names": []},
     {"class_names": [1, 2, 3]}, {"mean": [0.5]}, {"mean": "abc"}, {"std": [0, 1, 1]}, {"std": [1, 1, None]},
     {"mean": [float("nan")] * 3}, {"image_size": "32"}, {"image_size": 0}, {"format_version": "1"}, {"extra": 1},
     {"class_names": ["cat", "dog"]}, {"arguments": {"norm": "batch", "width": 32}}],
    ids=str,
)  # fmt: skip
def test_model_config_that_does_not_fit_is_one_line(model_folder, changes):
    change_config(model_folder, **changes)
    with pytest.raises(UserError) as refused:
        load_model(model_folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000])
def test_garbled_model_config_names_the_file(model_folder, content):
    (model_folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(model_folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_of_a_model_is_named(model_folder, name):
    (model_folder / name).unlink()
    with pytest.raises(UserError, match=f"{model_folder / name} is missing"):
        load_model(model_folder)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickled_weights_are_refused_and_nothing_is_executed(model_folder):
    trace = model_folder / "executed"
    for content in (pickle.dumps(Payload(trace)), b"", b"\0" * 100, b"\xff" * 100):
        (model_folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file"):
            load_model(model_folder)
    torch.save({"weights": Payload(trace)}, model_folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file"):
        load_model(model_folder)
    assert not trace.exists()


@pytest.mark.parametrize("length", [1, 7, 8, 100, -1])
def test_truncated_weights_are_refused(model_folder, length):
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file"):
        load_model(model_folder)
