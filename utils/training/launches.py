"""The launches that trained a run: precision, device and the like, as its checkpoints and summary.json list them.

A launch is what environment.json says of it under the names COMPARED; in a history, `step` is where it began.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.system.reading import is_count, is_text

COMPARED = ("device", "device_name", "world_size", "mixed_precision", "compile", "muon_arithmetic")
# The value in versions that did not note it. A name that is missing here too is unknown, and not compared.
BEFORE_NOTED: dict[str, Any] = {"muon_arithmetic": "5 iterations, bf16 products (torch.optim.Muon)"}
MOST_LAUNCHES, LONGEST_VALUE = 20, 200

Launch = dict[str, Any]


def launch_of(environment: Mapping[str, Any]) -> Launch:
    """The part of environment.json that is compared."""
    return {name: environment[name] for name in COMPARED if name in environment}


def with_launch(history: Sequence[Launch], step: int, launch: Launch) -> list[Launch]:
    """The history of a run that `launch` resumes at `step`. A launch that equals the one before is not noted; of more
    than MOST_LAUNCHES, the first and the latest remain.

    A checkpoint of a version without a history begins with a launch of which only the step, 0, is known.
    """
    if not history and step > 0:
        history = [{"step": 0}]
    before = [entry for entry in history if entry["step"] < step]  # the others trained no step of what is resumed
    if not before or before[-1] != {"step": before[-1]["step"], **launch}:
        before.append({"step": step, **launch})
    return [*before[:1], *before[1:][-(MOST_LAUNCHES - 1) :]]


def difference(history: Sequence[Launch], launch: Launch) -> str:
    """What differs from the launch that the run began with, in one line; empty if nothing does, or nothing is known."""
    began = {**BEFORE_NOTED, **(history[0] if history else {})}
    names = [name for name in launch if name in began and launch[name] != began[name]]
    if "device" in names and "device_name" in names:
        names.remove("device_name")

    def listed(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {'none' if values[name] is None else values[name]}" for name in names)

    if not names:
        return ""
    return (
        f"this run began with {listed(began)} and resumes with {listed(launch)}; from here on its steps compute "
        "differently, and summary.json will list both launches"
    )


def is_history(value: Any) -> bool:
    """Whether a value of a JSON file is a history of launches."""
    return (
        isinstance(value, list)
        and len(value) <= MOST_LAUNCHES
        and all(isinstance(entry, dict) and is_count(entry.get("step")) and _is_launch(entry) for entry in value)
    )


def _is_launch(entry: Launch) -> bool:
    return entry.keys() <= {"step", *COMPARED} and all(
        value is None or is_count(value) or (is_text(value) and len(value) <= LONGEST_VALUE) for value in entry.values()
    )
