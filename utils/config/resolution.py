"""Image sizes, and progressive resolution: early epochs on smaller images (Page 2018; Howard's fast.ai entry to
DAWNBench).

A size is a number of pixels or HEIGHTxWIDTH. A plan such as `16@0.3,24@0.6,32` trains on 16 pixels for the first 30 %
of the steps, on 24 until 60 %, then on 32. The size is a function of the step, so there is nothing to resume. Images
are scaled by adaptive average pooling (data.preprocessing.to_input).
"""

import itertools
import re
from typing import NamedTuple

from utils.system.errors import UserError

Size = tuple[int, int]  # height and width in pixels
SMALLEST, LARGEST = 8, 4096  # pixels of a side
SIZE = r"\s*(\d{1,5})(?:x(\d{1,5}))?\s*"
ALLOWED = "it must be increasing sizes, each but the last with the fraction of steps at which it ends: 16@0.3,24@0.6,32"


class Phase(NamedTuple):
    """Steps from `first_step` on, on images of `size`."""

    size: Size
    first_step: int


def parse_size(value: int | str) -> Size:
    """A number of pixels, or HEIGHTxWIDTH. Raises UserError naming what is allowed for `image_size`."""
    found = re.fullmatch(SIZE, str(value))
    size = _size(found) if found else (0, 0)
    if not all(SMALLEST <= side <= LARGEST for side in size):
        raise UserError(
            f"image_size: {value if isinstance(value, int) else repr(value)} is not allowed; it must be a whole number "
            f"at least {SMALLEST} and at most {LARGEST}, or two of them as HEIGHTxWIDTH, such as 224x160"
        )
    return size


def plain_size(size: Size) -> int | list[int]:
    """A size as files have it: a number if both sides are equal, else height and width."""
    return size[0] if size[0] == size[1] else list(size)


def shown_size(size: Size) -> str:
    """A size as options and messages have it: 224, or 224x160 for height and width."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _size(found: re.Match) -> Size:
    height = int(found.group(1))
    return height, int(found.group(2) or height)


def parse_resolution(plan: str) -> list[tuple[Size, float]]:
    """The sizes of a plan and the fraction of all steps at which each ends. Raises UserError naming what is allowed."""
    found = [re.fullmatch(SIZE + r"(?:@\s*(\d*\.?\d+)\s*)?", part) for part in plan.split(",")]
    entries = [entry for entry in found if entry]
    if len(entries) < len(found) or any(entry.group(3) is None for entry in entries[:-1]):
        raise UserError(f"resolution: {plan!r} is not allowed; {ALLOWED}")
    sizes = [_size(entry) for entry in entries]
    ends = [float(entry.group(3)) if entry.group(3) else 1.0 for entry in entries]
    heights, widths = zip(*sizes, strict=True)
    growing = all(a < b for values in (heights, widths, [0.0, *ends]) for a, b in itertools.pairwise(values))
    if entries[-1].group(3) or not growing or min(sizes[0]) < SMALLEST or ends[-1] > 1:
        raise UserError(f"resolution: {plan!r} is not allowed; {ALLOWED}, of at least {SMALLEST} pixels")
    return list(zip(sizes, ends, strict=True))


def resolution_phases(plan: str | None, image_size: Size, total_steps: int) -> list[Phase]:
    """The phases of a training, one without a plan. Raises UserError if the plan ends at another size."""
    if plan is None:
        return [Phase(image_size, 0)]
    entries = parse_resolution(plan)
    if entries[-1][0] != image_size:
        raise UserError(f"resolution: {plan!r} is not allowed; it must end at the image size, {shown_size(image_size)}")
    starts = [0, *(round(end * total_steps) for _, end in entries[:-1])]
    return [Phase(size, start) for (size, _), start in zip(entries, starts, strict=True)]


def phase_at(phases: list[Phase], step: int) -> Phase:
    """The phase of the update that follows `step` updates."""
    return [phase for phase in phases if phase.first_step <= max(0, step)][-1]
