"""Whatever an option, a recipe, an image folder, a line of metrics or a name holds: it is taken as it says, or refused
in one line. The examples are drawn by hypothesis, the same ones at every call."""

import csv
import dataclasses
import html
import inspect
import io
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from PIL import Image

from data.augment import saved_pipeline
from data.images import InMemory
from data.sources import load_dataset
from data.splits import Split
from models.saved import ModelConfig
from tests.saved_runs import sections_of
from utils.analysis.comparison import history
from utils.analysis.predictions import Predictions
from utils.analysis.report.page import render_report
from utils.analysis.scores import headline
from utils.analysis.section import write_table
from utils.analysis.sections.curves import learning_rates, lr_figure
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.files import to_yaml, write_config
from utils.config.options import LARGEST, check_type, options_of
from utils.config.parser import read_config
from utils.plots.curves import curves_figure, epoch_curves
from utils.plots.figures import message_figure, shown_name
from utils.runs.metrics_file import MetricsFile
from utils.runs.saved_run import SavedRun
from utils.system.errors import SuiteError, one_line
from utils.system.markdown import as_text
from utils.tracking.tensorboard_tracker import _markdown
from utils.tracking.tracker import Table


def examples(count: int) -> settings:
    """The same examples at every call, and none kept."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


KINDS = st.sampled_from([TrainConfig, AnalyzeConfig])
MARKUP = [
    "<b>",
    "</script>",
    "<!--",
    "-->",
    '"',
    "'",
    "&lt;",
    "{{ 7 }}",
    "{% raw %}",
    "$x$",
    "\\",
    "=1+1",
    "|",
    "`",
    "[a](b)",
]
SIGNS = ["null", "~", "#", ": ", "- ", "%s", "e\u0301", "\u72ac", "\u202e", "\u2028", "\x1b[0m", "\r\n", "\t", "_", "@"]
FRAGMENTS = st.sampled_from(MARKUP + SIGNS)
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(max_size=5)), max_size=6).map("".join)
NAMES = TEXTS.map(lambda text: "".join(letter for letter in text if letter.isprintable())).filter(str.strip)
ODD = [10**400, -(10**400), math.nan, math.inf, -0.0, "auto", "none", "3", "1e-3", "true", "digits"]
NUMBERS = st.one_of(st.integers(), st.integers(-3, 300), st.floats(), st.floats(0, 1))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.sampled_from(ODD))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=5
)


def attempt(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, str]:
    """What a call gives, or the line with which it refuses."""
    try:
        return call(*arguments, **options), ""
    except SuiteError as error:
        line = one_line(error)
    assert 0 < len(line) < 2000
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    return None, line


def in_range(config: Any) -> bool:
    """Whether every value is of its option's type and in its range."""
    for spec in dataclasses.fields(config):
        value, low, high = getattr(config, spec.name), spec.metadata["low"], spec.metadata["high"]
        if attempt(check_type, spec, value)[1]:
            return False
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            above = low is None or (value > low if spec.metadata["open"] else value >= low)
            if not (math.isfinite(value) and above and value <= (LARGEST if high is None else high)):
                return False
    return True


# -- options ----------------------------------------------------------------------------------------------------------


@examples(150)
@given(data=st.data(), kind=KINDS)
def test_any_value_from_python_is_taken_or_refused_and_what_is_taken_is_read_back(data, kind, tmp_path_factory):
    spec = data.draw(st.sampled_from(dataclasses.fields(kind)))
    config, line = attempt(kind, **{spec.name: data.draw(VALUES)})
    if config is None:
        assert line.startswith(f"{spec.name}: ") or "image_size" in line
        return
    assert in_range(config)
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    write_config(config, path)
    run = ["--", config.run] if kind is AnalyzeConfig else []
    assert read_config(kind, ["--config", str(path), *run]) == config


@examples(200)
@given(data=st.data(), kind=KINDS, text=st.one_of(TEXTS, SCALARS.map(str)))
def test_any_word_on_the_command_line_is_taken_or_refused(data, kind, text):
    name = data.draw(st.sampled_from([spec.name for spec in dataclasses.fields(kind) if spec.name != "run"]))
    run = ["x"] if kind is AnalyzeConfig else []
    config, _ = attempt(read_config, kind, [*run, f"--{name}={text}"])
    if config is not None:
        assert in_range(config)
        value = getattr(config, name)
        assert value == text or not isinstance(value, str) or options_of(kind)[name].metadata["path"]


@examples(100)
@given(words=st.lists(st.one_of(TEXTS, TEXTS.map(lambda text: f"--{text}")), min_size=1, max_size=3))
def test_any_words_are_taken_or_refused(words):
    config, _ = attempt(read_config, TrainConfig, words)
    assert config is None or in_range(config)


# -- recipes ----------------------------------------------------------------------------------------------------------

OPTIONS = st.sampled_from([spec.name for spec in dataclasses.fields(TrainConfig)])
TAGS = st.sampled_from(["!!bool", "!!int", "!!float", "!!timestamp", "!!binary", "!!set", "&a *a", "<<"])
DOCUMENTS = st.one_of(
    st.dictionaries(OPTIONS, VALUES, max_size=3).map(lambda options: yaml.safe_dump(options).encode()),
    st.lists(st.tuples(OPTIONS, TEXTS), max_size=3).map(
        lambda pairs: "".join(f"{name}: {text}\n" for name, text in pairs).encode()
    ),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.builds("{}: {} {}\n".format, OPTIONS, TAGS, TEXTS).map(str.encode),
    st.binary(max_size=40),
)


@examples(200)
@given(document=DOCUMENTS)
def test_any_recipe_is_read_or_refused(document, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_bytes(document)
    config, _ = attempt(read_config, TrainConfig, ["--config", str(path)])
    assert config is None or in_range(config)


# -- pipelines of augmentations ---------------------------------------------------------------------------------------

ARGUMENTS = {
    name: [parameter for parameter in inspect.signature(kind).parameters if parameter != "transforms"]
    for name, kind in saved_pipeline._kinds().items()
}
SOME_VALUES = st.one_of(VALUES, st.sampled_from([0, 1, 2, 0.5, [0, 1], [0.1, 0.5], [1, 0], {"x": [0, 1]}, [[0, 1]]]))
NODES = st.sampled_from(sorted(ARGUMENTS)).flatmap(
    lambda name: st.dictionaries(st.sampled_from([*ARGUMENTS[name], "more"]), SOME_VALUES, max_size=4).map(
        lambda arguments: {"__class_fullname__": name, **arguments}
    )
)
PIPELINES = st.recursive(
    NODES,
    lambda inner: st.tuples(NODES, st.lists(inner, max_size=3)).map(lambda pair: {**pair[0], "transforms": pair[1]}),
    max_leaves=4,
)


@examples(300)
@given(document=st.one_of(DOCUMENTS, PIPELINES.map(lambda node: json.dumps({"transform": node}).encode())))
def test_any_pipeline_is_read_or_refused(document):
    for name in ("pipeline.yaml", "pipeline.json"):
        pipeline, line = attempt(saved_pipeline.parse_pipeline, document, name)
        assert pipeline is not None or line.startswith(f"augment_file: {name}: ")


@examples(50)
@given(name=TEXTS.filter(str.strip).filter(lambda text: "\0" not in text), tags=st.lists(NAMES, max_size=3))
def test_any_text_comes_back_from_a_recipe_as_it_was(name, tags, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "texts.yaml"
    options = {"run_name": name, "run_group": name, "run_tags": tags}
    path.write_text(to_yaml(options), encoding="utf-8")
    config = read_config(TrainConfig, ["--config", str(path)])
    assert {key: getattr(config, key) for key in options} == options


# -- image folders ----------------------------------------------------------------------------------------------------


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((9, 5), 80).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


IMAGES = [encoded("PNG"), encoded("PNG", "RGBA"), encoded("JPEG"), encoded("WEBP"), encoded("GIF"), encoded("BMP", "1")]
WHOLE = st.sampled_from(IMAGES)
DAMAGED = st.builds(
    lambda image, at, bytes_, end: (image[:at] + bytes_ + image[at + len(bytes_) :])[:end],
    WHOLE, st.integers(0, 300), st.binary(max_size=4), st.integers(0, 2000),
)  # fmt: skip
FILES = st.dictionaries(
    st.tuples(
        st.sampled_from(["train", "train", "test", "val", "other"]),
        st.sampled_from(["cat", "dog", ".hidden", "=<b>$", "deep/deeper"]),
        st.sampled_from(["1.png", "2.JPG", "3.webp", ".4.png", "notes.txt", "5.jpeg/x.png"]),
    ).map("/".join),
    st.one_of(WHOLE, WHOLE, WHOLE, DAMAGED, st.binary(max_size=20)),
    max_size=12,
)
PAIR = {f"{split}/{name}/0.png": IMAGES[0] for split in ("train", "test") for name in ("cat", "dog")}


@examples(80)
@given(files=FILES, paired=st.booleans(), fraction=st.sampled_from([0.0, 0.0, 0.5]))
def test_any_image_folder_is_loaded_consistently_or_refused(files, paired, fraction):
    with tempfile.TemporaryDirectory() as folder:
        for name, data in {**(PAIR if paired else {}), **files}.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        data, line = attempt(load_dataset, "imagefolder", folder, 8, fraction)
        if data is None:
            assert line.startswith(("data_dir: ", "validation_fraction: "))
            return
        for split in filter(None, (data.train, data.validation, data.test)):
            images = split.images[:]
            assert (images.shape, images.dtype) == ((len(split), 8, 8, 3), np.uint8)
            assert (split.labels.dtype, len(split.paths)) == (np.int64, len(split))
            names = [data.class_names[label] for label in split.labels]
            assert [Path(path).parent.name for path in split.paths] == names
        assert set(data.train.labels) == set(data.test.labels) == set(range(len(data.class_names)))
        assert all(math.isfinite(value) and value > 0 for value in data.std)


# -- metrics ----------------------------------------------------------------------------------------------------------

ROWS = st.fixed_dictionaries(
    {
        "step": st.integers(1, 10**15),
        "epoch": st.integers(1, 50),
        "split": st.sampled_from(["train", "validation", "test"]),
        "loss": st.floats(0, 1e30),
        "accuracy": st.floats(0, 1),
        "lr": st.floats(0, 1e9),
    },
    optional={
        "images": st.integers(1, 10**9),
        "images_per_second": st.floats(0, 1e9),
        "resolution": st.integers(8, 64),
    },
)
KEYS = st.sampled_from(["step", "epoch", "split", "loss", "accuracy", "images", "images_per_second", "lr", "more"])
SPOILED = st.builds(lambda row, key, value: {**row, key: value}, ROWS, KEYS, VALUES)
LINES = st.lists(
    st.one_of(
        ROWS.map(lambda row: (json.dumps(row).encode(), row)),
        SPOILED.map(lambda row: (json.dumps(row).encode(), None)),
        VALUES.map(lambda value: (json.dumps(value).encode(), None)),
        st.binary(max_size=20).map(lambda data: (data.replace(b"\n", b""), None)),
        st.just((b"[" * 100_000, None)),
    ),
    max_size=8,
)


@examples(100)
@given(lines=LINES)
def test_any_metrics_are_read_and_right_rows_survive(lines, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in lines))
    rows = list(MetricsFile(path).rows())
    places = iter(rows)
    assert all(row in places for _, row in lines if row is not None)  # in their order
    found = epoch_curves(rows)
    assert all(math.isfinite(value) for points in found.values() for point in points for value in point)
    learning_rates(rows)
    history(rows)


@examples(4)
@given(rows=st.lists(ROWS, min_size=1, max_size=8))
def test_any_curves_are_drawn(rows):
    curves_figure(epoch_curves(rows)).draw_without_rendering()
    steps, rates = learning_rates([row for row in rows if row["split"] == "train"])
    lr_figure(steps, rates).draw_without_rendering()


# -- names ------------------------------------------------------------------------------------------------------------

THREE = st.lists(NAMES, min_size=3, max_size=3, unique=True)


class Structure(HTMLParser):
    """Tags with the names of their attributes, and the words between them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: Counter = Counter()
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag, tuple(name for name, _ in attrs)] += 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.tags["comment", (data,)] += 1


def report(names: list[str], run_name: str) -> str:
    """The page of nine images, of which six are mistakes."""
    labels = np.repeat(np.arange(3), 3)
    logits = 3 * np.eye(3, dtype=np.float32)[np.tile(np.arange(3), 3)]
    predictions = Predictions(logits, np.zeros((9, 2), np.float16), labels)
    test = Split(
        InMemory(np.zeros((9, 8, 8, 3), np.uint8)), labels, [f"{name}.png" for name in names for _ in range(3)]
    )
    config = TrainConfig(run_name=run_name, trackers=["none"])
    place = Path("runs/x")
    run = SavedRun(place, place, place, "", True, config, {}, {}, [], "imagefolder", None)
    model_config = ModelConfig("resnet18", {}, tuple(names), 8, (0.5,) * 3, (0.5,) * 3)
    sections = sections_of(("classes", "gallery", "label_issues"), predictions, test, model_config)
    summary = headline(predictions, tuple(names))
    for section in sections.values():
        summary |= section.summary
    return render_report(
        run=run, model_config=model_config, mixed_precision="no", parameters=1, summary=summary, sections=sections,
        figures={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> Counter:
    return Structure(report(["a", "b", "c"], "d")).tags


@examples(6)
@given(names=THREE, run_name=NAMES)
def test_no_name_adds_a_tag_or_an_attribute_to_the_report(names, run_name, plain):
    page = Structure(report(names, run_name))
    assert page.tags == plain
    words = "".join(page.words)
    assert all(name in words for name in [*names, run_name])
    data = next(word for word in page.words if word.startswith('{"classes":'))
    assert json.loads(data)["classes"] == names


@examples(100)
@given(names=st.lists(TEXTS, min_size=1, max_size=4))
def test_every_name_is_read_back_from_a_table(names, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    write_table(path, [{"class": name, "again": name} for name in names])
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"class": name, "again": name} for name in names]


@examples(100)
@given(names=THREE)
def test_every_name_is_plain_text_in_markdown(names):
    for name in names:
        assert html.unescape(as_text(name)) == " ".join(name.split())
    _, _, *rows = _markdown(Table(["class", "count"], [[name, 3] for name in names])).splitlines()
    assert [row.count("|") for row in rows] == [3] * 3
    assert not any(set(row) & set("<>[]()*`$\\") for row in rows)


@examples(60)
@given(name=TEXTS)
def test_every_name_is_drawn_and_none_is_a_formula(name):
    shown = shown_name(name)
    assert not is_math_text(shown)
    assert len(shown.replace("\\$", "$")) <= 18
    message_figure(f"{shown} and {shown}").draw_without_rendering()
