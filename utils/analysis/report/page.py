"""report.html: one file, which opens from a disk or a mail attachment without network."""

import base64
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.analysis.report.atlas import Atlas
from utils.analysis.section import Section
from utils.analysis.sections import LABELS
from utils.config import TrainConfig
from utils.runs.saved_run import SavedRun
from utils.system.duration import duration

MOST_BYTES = 7_800_000  # of figures and images; with script and style the page stays under 8 MB, for mail
TEMPLATES = (Path(__file__).parent, Path(__file__).parents[1] / "sections")
MAIN_OPTIONS = ("epochs", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "label_smoothing", "seed")


def render_report(run: SavedRun, sections: Mapping[str, Section], **values: Any) -> str:
    """The page of an analysis, with its sections by name.

    Args:
        values: for page.html.jinja and the sections' templates: `model_config`, `mixed_precision`, `parameters`,
            `summary`, and `figures` (PNG files by name).
    """
    return render("page.html.jinja", run=run, sections=sections, recipe=recipe(run.options), **values)


def render(template: str, **values: Any) -> str:
    """A page from a template. Whatever comes from a run is escaped: a class name may hold HTML."""
    loader = FileSystemLoader(TEMPLATES)
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    templates.filters |= {"data_uri": data_uri, "duration": duration, "pixels": "{0[0]}×{0[1]}".format}
    templates.globals |= {"atlas": Atlas(), "most_bytes": MOST_BYTES, "labels": LABELS}
    return templates.get_template(template).render(**values)


def recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """The main options of a training, and whatever else may change its result and is not the default."""
    defaults = dataclasses.asdict(TrainConfig())
    groups = {spec.name: spec.metadata["group"] for spec in dataclasses.fields(TrainConfig)}
    return {
        name: value
        for name, value in options.items()
        if name in MAIN_OPTIONS or (value != defaults[name] and groups[name] not in ("hardware", "run", "tracking"))
    }


def data_uri(image: np.ndarray | Path | bytes) -> str:
    """An image (uint8, H x W x 3), a PNG file or its content as the source of an <img>."""
    if isinstance(image, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        image = buffer.getvalue()
    content = image.read_bytes() if isinstance(image, Path) else image
    return "data:image/png;base64," + base64.b64encode(content).decode()
