"""Saved runs for tests: changed, and refused."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from data.splits import Split
from models.saved import ModelConfig
from utils.analysis import sections
from utils.analysis.predictions import Predictions
from utils.analysis.section import Section
from utils.analysis.views import Views
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.options import Config
from utils.runs.checkpoint import MANIFEST
from utils.system.errors import run_script


def change(path: Path, **values) -> None:
    """Replaces values in a YAML or JSON file."""
    content = yaml.safe_load(path.read_text()) | values
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))


def reseal(checkpoint: Path) -> None:
    """Makes the manifest of a changed checkpoint fit its files."""
    contents = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != MANIFEST}
    files = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    change(checkpoint / MANIFEST, files=files)


def training_refusal(capsys, config: TrainConfig) -> str:
    """The one line with which train_accelerate.py ends."""
    import train_accelerate

    return _refusal(capsys, train_accelerate.main, config)


def refusal(capsys, **options) -> str:
    """The one line with which analyze.py ends."""
    import analyze

    return _refusal(capsys, analyze.main, AnalyzeConfig(**options))


def _refusal(capsys, main: Callable[[Any], Any], config: Config) -> str:
    with pytest.raises(SystemExit) as end:
        run_script(main, config)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def sections_of(
    names: Sequence[str], predictions: Predictions, test: Split, model_config: ModelConfig
) -> dict[str, Section]:
    """Sections of the report that are built from predictions of a test set alone, without a run."""
    found = SimpleNamespace(
        sections=names,
        test=test,
        model_config=model_config,
        config=SimpleNamespace(images=10),
        shown=lambda split: Views(split.images),
    )
    return sections.build(found, predictions, {})
