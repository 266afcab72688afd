"""The app of docs/guide/space.md answers as the model does."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.saved import ModelConfig, export_model
from tests.conftest import ROOT
from utils.release.classifier import ImageClassifier
from utils.release.export import export_programs

pytestmark = pytest.mark.slow


def test_the_app_of_the_guide_answers_as_the_model_does(tmp_path):
    for package in ("gradio", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from gradio_client import Client, handle_file

    torch.manual_seed(0)
    config = ModelConfig("resnet18", {"width": 16}, ("ant", "bee"), 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    export_model(tmp_path, config, config.create_model().state_dict())
    export_programs(tmp_path, ["onnx"], torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    page = (ROOT / "docs" / "guide" / "space.md").read_text()
    (app,) = re.findall(r"```python\n(import json\n.*?)```", page, re.DOTALL)
    (tmp_path / "app.py").write_text(app)
    pixels = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    photo.getexif()[0x0112] = 6  # to be turned by 90 degrees
    photo.save(tmp_path / "photo.png", exif=photo.getexif())

    with open(tmp_path / "printed", "wb") as printed:
        server = subprocess.Popen(
            [sys.executable, "-u", "app.py"],
            cwd=tmp_path,
            env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
    try:
        client = Client(address_of(server, tmp_path / "printed"), verbose=False)
        answer = client.predict(handle_file(tmp_path / "photo.png"), api_name="/classify")
    finally:
        server.terminate()
        server.wait(30)
    expected = ImageClassifier.from_pretrained(tmp_path).predict(tmp_path / "photo.png")
    assert answer["label"] == next(iter(expected))
    found = {row["label"]: row["confidence"] for row in answer["confidences"]}
    assert found == pytest.approx(expected, abs=1e-4)


def address_of(server: subprocess.Popen, printed: Path) -> str:
    """That the app prints once it listens."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        if address := re.search(r"http://[\w.:]+", printed.read_text()):
            return address[0]
        time.sleep(0.1)
    raise AssertionError(printed.read_text())
