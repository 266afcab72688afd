"""Learning-rate schedules: pure functions of the optimizer step, with no state to restore."""

import math

from utils.system.errors import UserError

SCHEDULES = ("onecycle", "cosine", "linear", "step", "constant")
SHORT = 10  # steps: a shorter run would skip a onecycle peak that lies between two of them


def learning_rate_factor(schedule: str, step: int, total_steps: int, warmup_fraction: float = 0.0) -> float:
    """The share of the peak learning rate for the update after `step` finished ones (0 <= step < total_steps).

    - onecycle: cosine from 1/25 up to 1, then cosine down to 1/250,000 (Smith and Topin 2017, arXiv:1708.07120, with
      torch's OneCycleLR constants). From 10 steps on it equals torch's; in fewer the peak moves to the nearest step,
      since torch's lies between two of them or before the first.
    - cosine, linear: down to 0 at the end of training, which is after the last update, after a linear warm-up.
    - step: a tenth at one half and again at three quarters of the run, after a linear warm-up.
    - constant: 1, after a linear warm-up.

    The linear warm-up ends before the last step, whatever its share. Raises UserError for another schedule.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule: {schedule!r} is not allowed; choose from {', '.join(SCHEDULES)}")
    if schedule == "onecycle":
        return _onecycle(step, total_steps, warmup_fraction)
    warmup = min(warmup_fraction * total_steps, total_steps - 1)
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    progress = (step - warmup) / (total_steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "step":
        return 0.1 ** ((step >= total_steps / 2) + (step >= 3 * total_steps / 4))
    return 1.0


def _onecycle(
    step: int, total_steps: int, warmup_fraction: float, start: float = 1 / 25, end: float = 1 / 250_000
) -> float:
    peak = warmup_fraction * total_steps - 1
    if total_steps < SHORT:
        peak = max(0, round(peak))
    if step <= peak:
        return _cosine_between(start, 1.0, step / peak if peak > 0 else 1.0)
    return _cosine_between(1.0, end, (step - peak) / max(1e-9, total_steps - 1 - peak))


def _cosine_between(first: float, last: float, progress: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * min(1.0, progress)))
