"""report.html: one file that opens from a disk or a mail attachment, without network."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.analysis.atlas import Atlas


def render_report(**values: Any) -> str:
    """The page, from report/page.html.jinja. Whatever comes from a run is escaped: a class name may hold HTML."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["picture"] = picture_uri
    templates.globals["atlas"] = Atlas()
    return templates.get_template("page.html.jinja").render(**values)


def picture_uri(picture: np.ndarray | Path) -> str:
    """A picture (uint8, H x W x 3) or a PNG file as the source of an <img>."""
    if isinstance(picture, Path):
        content = picture.read_bytes()
    else:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        content = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode()
