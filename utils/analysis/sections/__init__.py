"""The sections of the report: a module and a template of the same name each, listed in utils/config/analyze.py.

A module says:

    LABEL    its name in the navigation of the page
    COST     "quick": in every report; "slow": takes minutes, in the report with --full
    NEEDS    what it uses besides the model and the test images, loaded and checked before the work begins:
             "training images", "validation images" (if training held some out), "another run" (it is then in the report
             if and only if --compare names one)

and has one or two functions:

    find(analysis, predictions)              if all processes must work together, as for further predictions: called on
                                             all of them; on the main process, what it returns is `found` below
    section(analysis, predictions[, found])  called on the main process; returns the Section to write and to show, or
                                             None if there is nothing to say of this run

`predictions` are those of the test set. A template is given `section` (the Section), `summary` (all of summary.json),
`figures` (PNG files by name), `class_names`, and what else report/page.py lists.
"""

from importlib import import_module
from typing import Any

from utils.analysis.predictions import Predictions
from utils.analysis.section import Analysis, Section
from utils.config import AnalyzeConfig
from utils.config.analyze import SECTIONS

NAMES = (*SECTIONS[:-1], "compare", SECTIONS[-1])  # --compare alone brings it, so that --only does not offer it
MODULES = {name: import_module(f"{__name__}.{name}") for name in NAMES}
LABELS: dict[str, str] = {name: module.LABEL for name, module in MODULES.items()}


def choose_sections(config: AnalyzeConfig) -> tuple[str, ...]:
    """Names in page order: those of `only`, or else the quick ones and, with `full`, the slow ones."""
    return tuple(name for name in MODULES if _is_chosen(name, config))


def _is_chosen(name: str, config: AnalyzeConfig) -> bool:
    module = MODULES[name]
    if config.predict:  # which writes no report
        return False
    if "another run" in module.NEEDS:
        return bool(config.compare)
    return name in config.only if config.only else module.COST == "quick" or config.full


def needs(sections: tuple[str, ...]) -> set[str]:
    """What these sections use besides the model and the test images."""
    return {need for name in sections for need in MODULES[name].NEEDS}


def find(analysis: Analysis, predictions: Predictions) -> dict[str, tuple[Any, ...]]:
    """What the sections' `find` return, by name of the section. Call on all processes."""
    hooks = {name: MODULES[name].find for name in analysis.sections if hasattr(MODULES[name], "find")}
    return {name: (hook(analysis, predictions),) for name, hook in hooks.items()}


def build(analysis: Analysis, predictions: Predictions, found: dict[str, tuple[Any, ...]]) -> dict[str, Section]:
    """The sections by name, in page order. Call on the main process."""
    built = {name: MODULES[name].section(analysis, predictions, *found.get(name, ())) for name in analysis.sections}
    return {name: section for name, section in built.items() if section is not None}
