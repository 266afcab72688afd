"""Saved runs for tests: changed, and refused."""

import json
from pathlib import Path

import pytest
import yaml

from utils.config import AnalyzeConfig
from utils.errors import run_script


def change(path: Path, **values) -> None:
    """Replaces values in a YAML or JSON file."""
    content = yaml.safe_load(path.read_text()) | values
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))


def refusal(capsys, **options) -> str:
    """The one line with which analyze.py ends."""
    import analyze

    with pytest.raises(SystemExit) as end:
        run_script(analyze.main, AnalyzeConfig(**options))
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]
