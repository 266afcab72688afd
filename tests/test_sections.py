"""What the sections of the report say of themselves is what the options offer."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.analysis import sections
from utils.analysis.sections import LABELS, MODULES, choose_sections, needs
from utils.config import AnalyzeConfig
from utils.config.analyze import SECTIONS

SLOW = tuple(name for name, module in MODULES.items() if module.COST == "slow")
QUICK = tuple(name for name in MODULES if name not in (*SLOW, "compare"))


def chosen(**options) -> tuple[str, ...]:
    return choose_sections(AnalyzeConfig(run="x", **options))


def test_the_help_of_full_names_the_slow_sections():
    done = subprocess.run(
        [sys.executable, "analyze.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = " ".join(done.stdout.split())
    assert re.search(r"--full.*? minutes: ([\w, ]+?) (?:\(|--)", words)[1].split(", ") == list(SLOW)


@pytest.mark.parametrize("name", MODULES)
def test_a_section_says_its_label_cost_and_needs_and_has_a_template(name):
    module = MODULES[name]
    assert module.LABEL and list(LABELS.values()).count(module.LABEL) == 1  # noqa: PT018
    assert module.COST in ("quick", "slow")
    assert set(module.NEEDS) <= {"training images", "validation images", "another run"}
    assert (Path(sections.__file__).parent / f"{name}.html.jinja").exists()


def test_a_report_has_the_quick_sections_and_those_that_are_asked_for_in_the_order_of_the_page():
    assert chosen() == QUICK
    assert chosen(full=True) == SECTIONS
    assert chosen(only=["robustness", "curves"]) == ("curves", "robustness")
    assert chosen(only=["curves"], compare="y") == ("curves", "compare")
    assert chosen(full=True, compare="y") == (*SECTIONS[:-1], "compare", SECTIONS[-1])
    assert chosen(predict=["photo.png"]) == ()


def test_only_what_the_sections_need_is_loaded():
    assert needs(("curves", "classes")) == set()
    assert needs(("neighbours", "calibration")) == {"training images", "validation images"}
