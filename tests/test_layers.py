"""The layout of docs/architecture.md is that of the code: a package imports only from those below it in its list."""

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.conftest import ROOT

# From the top down: both scripts, then packages.
LAYOUT = (ROOT / "docs" / "architecture.md").read_text().split("\n## Layout\n")[1].split("\n## ")[0]
LAYERS = re.findall(r"^\| `([\w/.]+)` \|", LAYOUT, re.MULTILINE)
PACKAGES = ("models", "data", "utils")
SOURCES = [path for script in LAYERS[:2] for path in [ROOT / script]]
SOURCES += [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path) -> str:
    """A file's name as a module, such as utils.runs.checkpoint; a package's own is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def imports(path) -> set[str]:
    """The modules of this project that a file imports anywhere, for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports from a folder instead of a package"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & MODULES.keys()


def layer(module: str) -> int:
    """The place of a module in LAYERS, counted from the top."""
    path = module.replace(".", "/")
    return next(place for place, name in enumerate(LAYERS) if f"{path}/".startswith(name.replace(".py", "/")))


def test_the_list_has_every_package_and_no_other():
    folders = {f"{path.relative_to(ROOT)}/" for path in (ROOT / "utils").iterdir() if path.name != "__pycache__"}
    assert LAYERS[:2] == ["train_accelerate.py", "analyze.py"]
    assert sorted(LAYERS[2:]) == sorted(
        {"models/", "data/"} | {name for name in folders if name != "utils/__init__.py/"}
    )
    assert all((ROOT / name).exists() for name in LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_down(module):
    if module == "utils":
        assert not imports(MODULES[module])
        return
    above = [name for name in imports(MODULES[module]) if name != "utils" and layer(name) < layer(module)]
    assert not above, f"{module} imports {above}, which stand above it in docs/architecture.md"


def test_there_is_no_circle():
    """Of files; a package's own file counts too."""
    try:
        list(TopologicalSorter({name: imports(path) - {name} for name, path in MODULES.items()}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_training_and_analysis_do_not_know_each_other():
    def reached(module: str, seen: set[str]) -> set[str]:
        for name in imports(MODULES[module]) - seen:
            seen.add(name)
            reached(name, seen)
        return seen

    assert not [name for name in reached("train_accelerate", set()) if name.startswith("utils.analysis")]
    assert not [name for name in reached("analyze", set()) if name.startswith("utils.training")]
