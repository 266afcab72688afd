"""Progressive resolution: early epochs on smaller images (Page 2018; Howard's fast.ai entry to DAWNBench).

A plan such as `16@0.3,24@0.6,32` trains on 16 pixels for the first 30 % of the steps, on 24 until 60 %, then on 32. The
size is a function of the step, so there is nothing to resume. Images are scaled by adaptive average pooling
(data.preprocessing.to_input).
"""

import itertools
import re
from typing import NamedTuple

from utils.system.errors import UserError

SMALLEST = 8  # pixels
ALLOWED = "it must be increasing sizes, each but the last with the fraction of steps at which it ends: 16@0.3,24@0.6,32"


class Phase(NamedTuple):
    """Steps from `first_step` on, on images of `size` pixels."""

    size: int
    first_step: int


def parse_resolution(plan: str) -> list[tuple[int, float]]:
    """The sizes of a plan and the fraction of all steps at which each ends. Raises UserError naming what is allowed."""
    found = [re.fullmatch(r"\s*(\d{1,5})\s*(?:@\s*(\d*\.?\d+)\s*)?", part) for part in plan.split(",")]
    entries = [entry for entry in found if entry]
    if len(entries) < len(found) or any(entry.group(2) is None for entry in entries[:-1]):
        raise UserError(f"resolution: {plan!r} is not allowed; {ALLOWED}")
    sizes = [int(entry.group(1)) for entry in entries]
    ends = [float(entry.group(2)) if entry.group(2) else 1.0 for entry in entries]
    growing = all(a < b for values in (sizes, [0.0, *ends]) for a, b in itertools.pairwise(values))
    if entries[-1].group(2) or not growing or sizes[0] < SMALLEST or ends[-1] > 1:
        raise UserError(f"resolution: {plan!r} is not allowed; {ALLOWED}, of at least {SMALLEST} pixels")
    return list(zip(sizes, ends, strict=True))


def resolution_phases(plan: str | None, image_size: int, total_steps: int) -> list[Phase]:
    """The phases of a training, one without a plan. Raises UserError if the plan ends at another size."""
    if plan is None:
        return [Phase(image_size, 0)]
    entries = parse_resolution(plan)
    if entries[-1][0] != image_size:
        raise UserError(f"resolution: {plan!r} is not allowed; it must end at the image size, {image_size}")
    starts = [0, *(round(end * total_steps) for _, end in entries[:-1])]
    return [Phase(size, start) for (size, _), start in zip(entries, starts, strict=True)]


def phase_at(phases: list[Phase], step: int) -> Phase:
    """The phase of the update that follows `step` updates."""
    return [phase for phase in phases if phase.first_step <= max(0, step)][-1]
