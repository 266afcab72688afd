"""Options: precedence, and mistakes that end in one line which names the option, the value and what is allowed."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.config import AnalyzeConfig, TrainConfig
from utils.config.files import load_config, write_config
from utils.config.parser import parse_config, read_config
from utils.config.train import OPTIMIZERS
from utils.system.errors import UserError, run_script

ROOT = Path(__file__).parents[1]
NUMERIC = [
    (spec, bound, side)
    for kind in (TrainConfig, AnalyzeConfig)
    for spec in dataclasses.fields(kind)
    for side in ("low", "high")
    if (bound := spec.metadata[side]) is not None
]


def parse(*argv: str) -> TrainConfig:
    return read_config(TrainConfig, argv)


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "options.yaml"
    path.write_text(text)
    return str(path)


def mistake(capsys, *argv: str) -> str:
    """The one line on stderr of a start that must end with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        parse_config(TrainConfig, argv)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err.removeprefix("error: ").strip()


# -- precedence -------------------------------------------------------------------------------------------------------


def test_defaults_hold_where_nothing_is_said():
    assert parse() == TrainConfig()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_has_defaults_of_its_own(tmp_path, name):
    own = OPTIMIZERS[name]._asdict()
    config = parse("--optimizer", name)
    assert {option: getattr(config, option) for option in own} == own
    write_config(config, tmp_path / "config.yaml")
    assert load_config(TrainConfig, tmp_path / "config.yaml") == config
    assert parse("--optimizer", name, "--lr", "auto", "--weight_decay", "0") == dataclasses.replace(
        config, lr="auto", weight_decay=0.0
    )


def test_yaml_wins_over_defaults(tmp_path):
    config = parse("--config", yaml_file(tmp_path, "epochs: 5\nlr: 1e-3\nmodel: resnet34\n"))
    assert config == TrainConfig(epochs=5, lr=0.001, model="resnet34")


@pytest.mark.parametrize("equals_sign", [False, True])
@pytest.mark.parametrize("config_first", [False, True])
def test_command_line_wins_over_yaml_wherever_it_stands(tmp_path, config_first, equals_sign):
    path = yaml_file(tmp_path, "epochs: 5\nseed: 7\nfind_lr: true\n")
    file = [f"--config={path}"] if equals_sign else ["--config", path]
    rest = ["--epochs", "9", "--find_lr", "false"]
    config = parse(*(file + rest if config_first else rest + file))
    assert (config.epochs, config.seed, config.find_lr) == (9, 7, False)


def test_command_line_can_put_back_a_default(tmp_path):
    path = yaml_file(tmp_path, "trackers: [none]\nmicro_batch_size: 4\n")
    config = parse("--trackers", "wandb", "--micro_batch_size", "null", "--config", path)
    assert (config.trackers, config.micro_batch_size) == (["wandb"], None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--find_lr"], True),
        (["--find_lr", "true"], True),
        (["--find_lr", "false"], False),
        (["--find_lr=true"], True),
        (["--find_lr", "--epochs", "3"], True),
    ],
)
def test_a_switch_is_bare_or_takes_true_or_false(words, expected):
    assert parse(*words).find_lr is expected


@pytest.mark.parametrize(
    "text", ["wandb,tensorboard", "[wandb, tensorboard]", "[wandb,tensorboard]", "wandb tensorboard"]
)
def test_several_trackers_on_the_command_line(text):
    assert parse("--trackers", text).trackers == ["wandb", "tensorboard"]


@pytest.mark.parametrize("text", ["[wandb, tensorboard]", "wandb,tensorboard", "\n- wandb\n- tensorboard"])
def test_several_trackers_in_yaml(tmp_path, text):
    path = yaml_file(tmp_path, f"trackers: {text}\n")
    assert parse("--config", path).trackers == ["wandb", "tensorboard"]


@pytest.mark.parametrize("text", ["none", "[none]"])
def test_no_tracker_is_none(tmp_path, text):
    assert parse("--trackers", text).trackers == ["none"]
    assert parse("--config", yaml_file(tmp_path, f"trackers: {text}\n")).trackers == ["none"]


def test_analysis_takes_the_run_as_its_argument():
    config = read_config(AnalyzeConfig, ["runs/digits", "--images", "12"])
    assert config == AnalyzeConfig(run="runs/digits", images=12)


# -- the file config.yaml ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["true", "5", "1e3", "-2E+5", "a: b", "é ü", "[x]", "2024-01-01", "{a: 1}", "yes", "'q'", "a\nb", "null", "#1",
     "~x"],
)  # fmt: skip
def test_written_config_repeats_the_run(tmp_path, name):
    config = TrainConfig(
        dataset="digits", lr="auto", run_name=name,
        project_name=name, output_dir=name, trackers=["wandb", "tensorboard"],
        micro_batch_size=3, weight_decay=1e-5, find_lr=True, grad_clip_norm=None, num_workers=0,
    )  # fmt: skip
    write_config(config, tmp_path / "config.yaml")
    assert load_config(TrainConfig, tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (TrainConfig, ["--lr", "1e-5", "--run_name", "1e3", "--trackers", "wandb,tensorboard", "--find_lr"]),
        (TrainConfig, ["--config", "recipes/digits.yaml", "--epochs", "7"]),
        (AnalyzeConfig, ["runs/a b", "--only", "curves,gallery", "--images", "12"]),
        (AnalyzeConfig, ["runs/a b", "--predict", "a,b.png", "c.png"]),
    ],
)
def test_printed_config_is_read_back(tmp_path, capsys, monkeypatch, kind, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        parse_config(kind, [*words, "--print_config"])
    assert stop.value.code == 0
    run = words[:1] if kind is AnalyzeConfig else []
    again = read_config(kind, [*run, "--config", yaml_file(tmp_path, capsys.readouterr().out)])
    assert again == read_config(kind, words)


def test_config_with_a_mistake_is_not_printed(capsys):
    assert mistake(capsys, "--print_config", "--epochs", "0").startswith("epochs: 0 is not allowed")


def test_missing_yaml_names_the_path(tmp_path, capsys):
    line = mistake(capsys, "--config", str(tmp_path / "no.yaml"))
    assert line.startswith("config: ")
    assert str(tmp_path / "no.yaml") in line


def test_folder_as_yaml_names_the_path(tmp_path, capsys):
    assert str(tmp_path) in mistake(capsys, "--config", str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"epochs: [1,\n", b"epochs: 3\n  lr: 1\n", b"\xff\xfe\x00\x01", b"a: 'b\n", b"\tx: 1\n"]
)
def test_garbled_yaml_names_the_path(tmp_path, capsys, content):
    path = tmp_path / "garbled.yaml"
    path.write_bytes(content)
    line = mistake(capsys, "--config", str(path))
    assert line.startswith("config: ")
    assert str(path) in line


@pytest.mark.parametrize("content", ["", "# only a comment\n", "just text\n", "- a\n- b\n", "3\n"])
def test_yaml_without_options_is_refused(tmp_path, capsys, content):
    path = yaml_file(tmp_path, content)
    assert f"config: {path} contains no options" in mistake(capsys, "--config", path)


@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system"])
def test_yaml_with_python_objects_executes_nothing(tmp_path, capsys, tag):
    trace = tmp_path / "executed"
    path = yaml_file(tmp_path, f"epochs: !!python/{tag} ['touch {trace}']\n")
    assert f"config: {path}" in mistake(capsys, "--config", path)
    assert not trace.exists()


def test_yaml_cannot_pull_in_another_file(tmp_path, capsys):
    (tmp_path / "other.yaml").write_text("epochs: 3\n")
    path = yaml_file(tmp_path, f"config: {tmp_path / 'other.yaml'}\n")
    assert "config: unknown option" in mistake(capsys, "--config", path)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_unknown_option_suggests_the_nearest(capsys):
    assert mistake(capsys, "--epohcs", "3") == "epohcs: unknown option; did you mean epochs?"
    assert "did you mean" not in mistake(capsys, "--zzz", "3")


def test_mistyped_value_suggests_the_nearest(capsys):
    assert mistake(capsys, "--optimizer", "sdg").startswith("optimizer: 'sdg' is not allowed; did you mean sgd?")
    assert "did you mean onecycle? it must be one of onecycle, cosine" in mistake(capsys, "--schedule", "OneCycle")
    assert "did you mean" not in mistake(capsys, "--optimizer", "zzz")


def test_mistyped_list_entry_suggests_the_nearest():
    with pytest.raises(UserError, match=r"^only: 'curve' is not allowed; did you mean curves\?"):
        read_config(AnalyzeConfig, ["runs/x", "--only", "gallery,curve"])


@pytest.mark.parametrize("typed", ["recipes/digit.yaml", "digits.yaml", "digits", "recipe/digits.yaml"])
def test_mistyped_recipe_suggests_the_nearest(capsys, monkeypatch, typed):
    monkeypatch.chdir(ROOT)
    line = mistake(capsys, "--config", typed)
    assert line == f"config: {typed} is missing; did you mean recipes/digits.yaml? it must be a YAML file"


def test_mistyped_recipe_suggests_its_neighbours(capsys, tmp_path):
    yaml_file(tmp_path, "epochs: 3\n")
    assert f"did you mean {tmp_path}/options.yaml?" in mistake(capsys, "--config", f"{tmp_path}/option.yaml")


def test_help_with_a_recipe_shows_the_recipes_header(capsys):
    with pytest.raises(SystemExit):
        read_config(TrainConfig, ["--help", "--config", str(ROOT / "recipes/digits.yaml")])
    shown = capsys.readouterr().out
    assert "scikit-learn's handwritten digits" in shown
    assert "recipes/digits.yaml:" in shown
    assert "output_dir: runs/digits" not in shown


def test_unknown_yaml_key_suggests_the_nearest(tmp_path, capsys):
    path = yaml_file(tmp_path, "batchsize: 3\n")
    assert mistake(capsys, "--config", path) == f"batchsize: unknown option; did you mean batch_size? (in {path})"


def test_abbreviated_option_is_unknown(capsys):
    assert "epoch: unknown option" in mistake(capsys, "--epoch", "3")


def test_precision_and_processes_are_no_options_of_ours(capsys):
    for name in ("mixed_precision", "num_processes", "device"):
        assert f"{name}: unknown option" in mistake(capsys, f"--{name}", "x")


def test_extra_argument_is_refused(capsys):
    assert mistake(capsys, "extra").startswith("extra: unexpected argument")
    assert "300: unexpected argument" in mistake(capsys, "--epochs", "3", "300")


def test_missing_value_says_what_is_allowed(capsys):
    assert mistake(capsys, "--epochs") == "epochs: the value is missing; it must be a whole number at least 1"
    assert "config: the value is missing" in mistake(capsys, "--config")


@pytest.mark.parametrize(
    ("option", "value", "shown", "allowed"),
    [
        ("epochs", "x", "'x'", "a whole number at least 1"),
        ("epochs", "2.5", "'2.5'", "a whole number"),
        ("epochs", "null", "'null'", "a whole number"),
        ("lr", "fast", "'fast'", "a number greater than 0 or auto"),
        ("find_lr", "maybe", "'maybe'", "true or false"),
        ("dataset", "mnist", "'mnist'", "cifar10, cifar100, digits, imagefolder"),
        ("schedule", "polynomial", "'polynomial'", "onecycle, cosine, linear, step, constant"),
        ("trackers", "wandb,mlflow", "'mlflow'", "wandb, tensorboard, trackio, none"),
        ("trackers", "", "[]", "each tracker once, or none"),
        ("trackers", "wandb,wandb", "['wandb', 'wandb']", "each tracker once"),
        ("trackers", "none,wandb", "none,wandb", "none cannot be combined with others"),
        ("cutout", "40", "40", "at most image_size (32)"),
    ],
)
def test_wrong_value_names_option_value_and_what_is_allowed(capsys, option, value, shown, allowed):
    line = mistake(capsys, f"--{option}", value)
    assert line.startswith(f"{option}: {shown} is not allowed; ")
    assert allowed in line


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("epochs: true", "a whole number"),
        ("epochs: null", "a whole number"),
        ("lr: true", "a number greater than 0 or auto"),
        ("find_lr: 1", "true or false"),
        ("model: {a: b}", "text"),
        ("batch_size: [1, 2]", "a whole number"),
        ("trackers:", "wandb, tensorboard, trackio, none"),
        ("trackers: 5", "wandb, tensorboard, trackio, none"),
    ],
)
def test_wrong_type_in_yaml_names_option_and_what_is_allowed(tmp_path, capsys, line, allowed):
    message = mistake(capsys, "--config", yaml_file(tmp_path, line + "\n"))
    assert message.startswith(line.split(":")[0] + ": ")
    assert f"it must be {allowed}" in message or f"one of {allowed}" in message


@pytest.mark.parametrize(("spec", "bound", "side"), NUMERIC, ids=[f"{spec.name}-{side}" for spec, _, side in NUMERIC])
def test_every_number_is_refused_just_out_of_its_range(spec, bound, side):
    whole = str(spec.type).startswith("int") or spec.type is int
    outward = -1 if side == "low" else 1
    step = 1 if whole else 1e-9
    outside = bound if side == "low" and spec.metadata["open"] else bound + outward * step
    kind = TrainConfig if spec in dataclasses.fields(TrainConfig) else AnalyzeConfig
    with pytest.raises(
        UserError, match=rf"^{spec.name}: .* is not allowed; it must be .*(at least|greater than|at most)"
    ):
        kind(**{spec.name: outside})
    inside = bound - outward * step if side == "low" and spec.metadata["open"] else bound
    smallest = {"dataset": "digits", "image_size": 8, "cutout": 0}
    others = {"image_size": {"cutout": 0}, "cache_side": smallest}.get(spec.name, {})
    expected = [inside] if spec.type == list[float] else inside
    assert getattr(kind(**{spec.name: inside}, **others), spec.name) == expected


def test_every_number_has_a_range():
    for kind in (TrainConfig, AnalyzeConfig):
        for spec in dataclasses.fields(kind):
            if re.search(r"\b(int|float)\b", str(spec.type)):
                assert spec.metadata["low"] is not None, f"{spec.name} may be negative"


@pytest.mark.parametrize("value", ["nan", ".nan", "inf", ".inf", "-inf", "-.inf"])
@pytest.mark.parametrize("option", ["lr", "weight_decay", "grad_clip_norm", "momentum"])
def test_numbers_are_finite(capsys, option, value):
    assert mistake(capsys, f"--{option}={value}").startswith(f"{option}: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_from_a_notebook_are_finite(value):
    with pytest.raises(UserError, match=r"weight_decay: .* finite"):
        TrainConfig(weight_decay=value)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": "3"}, {"epochs": None}, {"epochs": 2.0}, {"epochs": True}, {"lr": "fast"}, {"lr": True}, {"compile": 1},
     {"trackers": "wandb"}, {"trackers": []}, {"model": None}, {"dataset": "mnist"}, {"seed": 2**32}],
)  # fmt: skip
def test_a_config_built_in_a_notebook_is_held_to_the_same(wrong):
    with pytest.raises(UserError, match=rf"^{next(iter(wrong))}: .* not allowed"):
        TrainConfig(**wrong)


def test_images_in_the_gallery_are_at_least_ten(capsys):
    with pytest.raises(UserError, match=r"images: 9 is not allowed; it must be at least 10"):
        read_config(AnalyzeConfig, ["runs/x", "--images", "9"])


# -- start-up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--epohcs=3", 2)])
def test_help_and_mistakes_are_answered_before_the_libraries_are_loaded(argument, code):
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "train_accelerate.py", argument], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == code
    imported = {line.split("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "utils.config.train" in imported
    assert not imported & {"torch", "accelerate", "torchvision", "albumentations", "sklearn", "PIL", "numpy"}


@pytest.mark.parametrize("kind", [TrainConfig, AnalyzeConfig])
def test_help_shows_every_option_with_its_range_and_default(capsys, kind):
    with pytest.raises(SystemExit) as stop:
        parse_config(kind, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for spec in dataclasses.fields(kind):
        assert f"--{spec.name} " in text or spec.name == "run"
    for default in (spec.default for spec in dataclasses.fields(kind) if spec.default not in (None, "")):
        assert isinstance(default, (bool, dataclasses._MISSING_TYPE)) or f"default: {default})" in text
    assert "Literal" not in text
    assert "None" not in text


def test_help_shows_range_default_and_what_unset_means(capsys):
    with pytest.raises(SystemExit):
        parse_config(TrainConfig, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "over all processes and accumulation (at least 1; default: 512; with init_from 32)" in text
    assert "unset: on a GPU as large as fits, on a CPU all at once (at least 1)" in text
    assert "--nesterov [true|false] Nesterov momentum of sgd; muon always has it (default: true)" in text


def test_secret_of_the_environment_is_refused_as_an_option_and_not_shown(monkeypatch, capsys):
    secret = "hf_notToBeWrittenAnywhere"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("KEY_PATH", "/home/somebody")  # no secret: where one lies
    assert TrainConfig(data_dir="/home/somebody/data").data_dir == "/home/somebody/data"
    for option in (f"--run_name=my {secret}", f"--run_tags=a,{secret}", f"--{secret}=1", f"--epochs={secret}"):
        with pytest.raises(SystemExit) as end:
            parse_config(TrainConfig, [option])
        line = capsys.readouterr().err
        assert (end.value.code, line.count("\n")) == (2, 1)
        assert secret not in line
        assert "HF_TOKEN" in line


def test_secrets_are_hidden_in_errors_and_their_tracebacks(monkeypatch, capsys):
    monkeypatch.setenv("SOME_PASSWORD", "correct horse battery")

    def fail(_):
        raise UserError("the server says: correct horse battery is wrong")

    for debug in (False, True):
        with pytest.raises(SystemExit):
            run_script(fail, TrainConfig(debug=debug))
        printed = capsys.readouterr().err
        assert ("Traceback" in printed) is debug
        assert "error: the server says: <SOME_PASSWORD> is wrong" in printed
        assert "horse" not in printed
