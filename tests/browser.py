"""A real browser for the tests of the report.

    python tests/browser.py runs/resnet18/analysis/report.html docs/results/report.png

takes the picture of a report that the README shows: its head, the confusions and the first mistakes.
"""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

WIDTH = 1200  # pixels of the picture


def find_chromium() -> str | None:
    """The system's Chromium or Chrome, or the one that `playwright install chromium` brought."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Without its sandbox, which root may not have; it opens nothing but our own page."""
    chromium = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def take_picture(report: Path, target: Path) -> None:
    """Writes a PNG of the parts of a report that show best what it is."""
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, reduced_motion="reduce")
        page.goto(report.resolve().as_uri())
        page.evaluate("Promise.all(sheets)")
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        parts = [
            (0, _edge(page, "nav", "bottom")),
            (_edge(page, "#classes h2 >> nth=1", "top") - 12, _edge(page, "#cell .tile", "bottom") + 4),
            (_edge(page, "#gallery h2", "top") - 12, _edge(page, "#mistakes .tile", "bottom") + 4),
        ]
    picture = Image.new("RGB", (WIDTH, sum(bottom - top for top, bottom in parts)))
    height = 0
    for top, bottom in parts:
        picture.paste(whole.crop((0, top, WIDTH, bottom)), (0, height))
        height += bottom - top
    picture.save(target, optimize=True)


def _edge(page: Page, selector: str, side: str) -> int:
    """Where the first such element begins or ends, in pixels from the top of the page."""
    edge = page.locator(selector).first.evaluate("(element, side) => element.getBoundingClientRect()[side]", side)
    return round(edge + page.evaluate("scrollY"))


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]), Path(sys.argv[2]))
