"""The Colab notebook: only calls the scripts, is committed without outputs, and runs from end to end."""

import ast
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parse(source: str) -> ast.Module:
    """The cell's Python: shell lines (!) and magics (%) are not."""
    return ast.parse("\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("!", "%"))))


def assigned_names(source: str) -> set[str]:
    return {target.id for node in ast.walk(parse(source)) if isinstance(node, ast.Assign) for target in node.targets}


def test_notebook_defines_no_function_and_no_class(notebook):
    for cell in code_cells(notebook):
        assert "%%" not in cell.source  # a cell magic would hide its lines from this test
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(parse(cell.source)) if isinstance(node, definitions)]
        assert not [line for line in cell.source.splitlines() if line.lstrip(" !%").startswith(("def ", "class "))]


def test_notebook_is_committed_without_outputs(notebook):
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_every_shell_command_that_can_fail_stops_the_notebook(notebook):
    """A failed `!` line raises nothing by itself."""
    for cell in code_cells(notebook):
        lines = cell.source.splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith("!"):
                assert following.startswith("assert not _exit_code")


@pytest.mark.slow
@pytest.mark.timeout(620)
def test_notebook_runs_from_end_to_end(notebook, tmp_path, monkeypatch):
    """As on Colab, but on the digits, from a clone of this checkout (what is committed), on the CPU."""
    parameters = {
        "REPOSITORY": ROOT.as_uri(),
        "FOLDER": str(tmp_path / "clone"),
        "RECIPE": "recipes/digits.yaml",
        "OUTPUT": "runs/tiny",
        "ACCELERATE": "--num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no",
        "OPTIONS": "--find_lr --width 16 --image_size 16 --batch_size 16 --max_steps 5 --trackers none",
        "WANDB_LOGIN": False,
    }
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert assigned_names(cell.source) == set(parameters)
    imports = [line for line in cell.source.splitlines() if line.startswith("from ")]
    cell.source = "\n".join(imports + [f"{name} = {value!r}" for name, value in parameters.items()])

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [output.data for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 5  # curves, learning rate, range test, mistakes, GradCAM
    table = next(data["text/markdown"] for data in shown if "text/markdown" in data)
    assert table.startswith("| | accuracy | images |")
    assert len(table.splitlines()) == 2 + 10
