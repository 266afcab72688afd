"""README and docs say what is there."""

import dataclasses
import re
import shlex
from pathlib import Path

from benchmarks.publish import RESULTS, pages, read_results
from tests import option_tables
from tests.conftest import ROOT
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.parser import read_config

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
RECIPES = [*(ROOT / "recipes").glob("*.yaml")]
EXTENDING = [*(ROOT / "docs" / "extending").glob("*.md")]  # what they add is tried in test_extending.py
SCRIPTS = {"train_accelerate": TrainConfig, "analyze": AnalyzeConfig}


def test_readme_names_every_option_and_no_other_in_the_groups_of_help():
    table = (ROOT / "README.md").read_text().split("## Options")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    training = {
        name: row.split("|")[1].strip()
        for row in rows
        if "analyze.py" not in row
        for name in re.findall(r"`(\w+)`", row)
    }
    analysis = {name for row in rows if "analyze.py" in row for name in re.findall(r"`(\w+)`", row)}
    assert training == {field.name: field.metadata["group"] for field in dataclasses.fields(TrainConfig)}
    assert analysis == {field.name for field in dataclasses.fields(AnalyzeConfig)} - {"run"}


def test_the_tables_of_options_are_what_the_declarations_say():
    """python -m tests.option_tables writes them anew."""
    assert option_tables.README.read_text() == option_tables.readme(option_tables.README.read_text())
    assert option_tables.GUIDE.read_text() == option_tables.guide()


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_and_files_named_in_the_documents_exist():
    for page in PAGES:
        text = page.read_text()
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for link, heading in re.findall(r"(?:\]\(|src=\")([^)#:\"]*)(?:#([^)\"]+))?[)\"]", prose):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            assert not heading or heading in headings(target), f"{page.name}: {link}#{heading}"
        for name in re.findall(r"`((?:utils|data|models|tests|benchmarks|recipes|accelerate_configs)/[\w./]+)`", text):
            path = ROOT / name
            known = path.exists() or path.with_suffix(".py").exists() or page in EXTENDING
            assert known, f"{page.name}: {name}"


def test_every_command_in_the_documents_is_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = 0
    for page in [page for page in [*PAGES, *RECIPES] if page not in EXTENDING]:
        for script, rest in re.findall(
            r"\b(train_accelerate|analyze)\.py ([^`\n]*)", page.read_text().replace("\\\n", " ")
        ):
            words = shlex.split(rest, comments=True)
            if "--help" not in words:
                read_config(SCRIPTS[script], words)
                found += 1
    assert found > 10


def test_models_folder_has_resnet_without_bottleneck():
    assert not re.search(r"class\s+Bottleneck", (ROOT / "models" / "resnet.py").read_text())


def test_the_tables_of_results_are_what_the_published_files_say():
    for page, text in pages(read_results(RESULTS)).items():
        assert page.read_text() == text, page
