"""report.html: one file that opens from a disk or a mail attachment, without network."""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.analysis.atlas import Atlas
from utils.analysis.section import Section
from utils.config import TrainConfig
from utils.runs.saved_run import SavedRun
from utils.system.duration import duration

MOST_BYTES = 7_800_000  # of figures and pictures; with script and style the page stays under 8 MB, as mail wants it
LABELS = {  # of the sections in the navigation
    "curves": "Training",
    "classes": "Classes",
    "gallery": "Mistakes",
    "gradcam": "GradCAM",
    "calibration": "Calibration",
    "label_issues": "Label issues",
    "neighbours": "Neighbours",
    "embedding": "Embedding",
    "robustness": "Robustness",
    "model": "Model",
    "compare": "Comparison",
}

MAIN_OPTIONS = ("epochs", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "label_smoothing", "seed")


def render_report(run: SavedRun, sections: Sequence[Section], **values: Any) -> str:
    """The page of an analysis."""
    return render("page.html.jinja", run=run, sections=sections, recipe=recipe(run.options), **values)


def render(template: str, **values: Any) -> str:
    """A page from report/<template>. Whatever comes from a run is escaped: a class name may hold HTML."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    templates.filters |= {"picture": picture_uri, "duration": duration}
    templates.globals |= {"atlas": Atlas(), "most_bytes": MOST_BYTES, "labels": LABELS}
    return templates.get_template(template).render(**values)


def recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a training that say most, and whatever else may change its result and is not the default."""
    defaults = dataclasses.asdict(TrainConfig())
    groups = {spec.name: spec.metadata["group"] for spec in dataclasses.fields(TrainConfig)}
    return {
        name: value
        for name, value in options.items()
        if name in MAIN_OPTIONS or (value != defaults[name] and groups[name] not in ("hardware", "run", "tracking"))
    }


def picture_uri(picture: np.ndarray | Path) -> str:
    """A picture (uint8, H x W x 3) or a PNG file as the source of an <img>."""
    if isinstance(picture, Path):
        content = picture.read_bytes()
    else:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        content = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode()
