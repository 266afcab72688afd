"""The Colab notebook: only calls the scripts, is committed without outputs, and runs from end to end."""

import ast
import os
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from sklearn.datasets import load_digits

from tests.timm_folder import LITE0, timm_folder

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


@pytest.fixture
def on_colab(tmp_path, monkeypatch) -> Path:
    """The kernel's environment, with a stand-in for Colab's own package; returns where it mounts the Drive."""
    package = tmp_path / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").write_text(
        "from pathlib import Path\n\n\ndef mount(path):\n    Path(path, 'MyDrive').mkdir(parents=True, exist_ok=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")  # nothing is asked for over the network
    return tmp_path / "drive"


def zip_photos(place: Path) -> None:
    """A zip as people have it: photos of two classes, here digits, in a folder of its own."""
    digits = load_digits()
    root = place.with_suffix("") / "my photos"
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        for label in (0, 1):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for number in numbers:
                pixels = (digits.images[digits.target == label][number] * 15).astype(np.uint8)
                Image.fromarray(pixels).resize((32, 32)).save(folder / f"{number}.jpg")
    shutil.make_archive(str(place.with_suffix("")), "zip", place.with_suffix(""))
    shutil.rmtree(place.with_suffix(""))


def execute(notebook: nbformat.NotebookNode, folder: Path, drive: Path, max_steps: int, cells: int | None = None):
    """Runs the notebook, or its first cells, in a kernel of its own: the digits, from a clone of what is committed, and
    photos from a zip, with the weights of lite0 if they are here, else with small ones."""
    weights = LITE0 if LITE0.is_dir() else timm_folder(folder / "weights" / "test_efficientnet", "test_efficientnet")
    photos = {
        "PHOTOS": "DRIVE / 'MyDrive/photos.zip'",
        "MODEL": f"'timm:{weights.name}'",
        "INIT_FROM": repr(str(weights)),
        "PHOTO_RUN": "DRIVE / 'MyDrive/all runs/photos'",
        "PHOTO_OPTIONS": "'--image_size 64 --epochs 1 --batch_size 8 --trackers none'",
    }
    digits = {
        "REPOSITORY": repr(ROOT.as_uri()),
        "FOLDER": f"Path({str(folder / 'clone')!r})",
        "DRIVE": f"Path({str(drive)!r})",
        "OUTPUT_DIR": "DRIVE / 'MyDrive/all runs/tiny'",
        "RECIPE": "'recipes/digits.yaml'",
        "EPOCHS": "1",
        "OPTIONS": f"'--find_lr --width 16 --image_size 8 --batch_size 16 --max_steps {max_steps} --trackers none'",
        "PRECISION": "'no'",
        "WANDB_LOGIN": "False",
    }
    notebook = nbformat.from_dict(notebook)
    notebook.cells = notebook.cells[:cells]
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for cell, parameters in zip(tagged, (digits, photos), strict=False):  # of the first cells, the digits' alone
        assert assigned_names(cell.source) == set(parameters)
        imports = [line for line in cell.source.splitlines() if line.startswith("from ")]
        cell.source = "\n".join(imports + [f"{name} = {value}" for name, value in parameters.items()])
    NotebookClient(notebook, timeout=880, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in code_cells(notebook) for output in cell.outputs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_notebook_runs_from_end_to_end_and_goes_on_after_a_disconnect(notebook, tmp_path, on_colab):
    zip_photos(on_colab / "MyDrive" / "photos.zip")
    training = next(place for place, cell in enumerate(notebook.cells) if "accelerate launch" in cell.source)
    begun = execute(notebook, tmp_path, on_colab, max_steps=3, cells=training + 1)
    assert "3 steps" in printed(begun)
    shutil.rmtree(tmp_path / "clone")  # the machine is gone, the Drive is not

    notebook = execute(notebook, tmp_path, on_colab, max_steps=5)
    text = printed(notebook)
    run = on_colab / "MyDrive/all runs/tiny"
    assert f"resumed from {run}/checkpoints/step-000003 (step 3)" in text
    assert "5 steps" in text
    assert "Linear" in text  # the model summary
    shown = [output.data for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    # Curves, learning rate, range test, mistakes, GradCAM; of the photos a preview, mistakes and GradCAM.
    assert sum("image/png" in data for data in shown) == 5 + 3
    assert "probe      test loss" in text
    assert (on_colab / "MyDrive/all runs/photos/model/model.safetensors").is_file()
    table = next(data["text/markdown"] for data in shown if "text/markdown" in data)
    assert table.startswith("| | accuracy | images |")
    assert len(table.splitlines()) == 2 + 10
    [html] = [data["text/html"] for data in shown if "text/html" in data]
    assert_report_can_be_read(html)


def assert_report_can_be_read(html: str) -> None:
    """In a real browser: the page inside the cell's output answers, and following its links does not leave it."""
    pytest.importorskip("playwright.sync_api")
    from tests.browser import find_chromium, open_browser

    if not find_chromium():
        return
    with open_browser() as browser:
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_content(html)
        report = page.frame_locator("iframe")
        mistakes = report.locator("#mistakes .tile")
        mistakes.first.wait_for()
        for link in report.locator("nav a").all():
            link.click()
        assert mistakes.count() > 0
        [frame] = page.main_frame.child_frames
        assert frame.url.startswith("about:srcdoc")
        assert errors == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("DRIVE / 'MyDrive/results/mine'", "runs/mine"), ("Path('runs/other')", "runs/other")],
)
def test_anywhere_but_on_colab_the_run_lies_in_runs(notebook, wanted, found):
    cell = next(cell for cell in code_cells(notebook) if "google.colab" in cell.source)
    names = {"Path": Path, "DRIVE": Path("/content/drive")}
    names["OUTPUT_DIR"] = eval(wanted, names)
    exec(cell.source, names)
    assert names["OUTPUT_DIR"] == Path(found)


def test_on_colab_a_run_outside_the_drive_asks_for_no_drive(notebook, tmp_path, on_colab, monkeypatch):
    cell = next(cell for cell in code_cells(notebook) if "google.colab" in cell.source)
    names = {"Path": Path, "DRIVE": on_colab, "OUTPUT_DIR": Path("runs/other")}
    monkeypatch.syspath_prepend(tmp_path / "packages")
    exec(cell.source, names)
    assert names["OUTPUT_DIR"] == Path("runs/other")
    assert not on_colab.exists()
