"""The parameter groups of a run in words: for --print_groups, environment.json and the report."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from models import create_model, model_arguments
from utils.config import TrainConfig
from utils.system.errors import raise_on_all_ranks
from utils.system.runtime import create_accelerator
from utils.training.groups import head_parameters
from utils.training.loading import load_once_per_machine
from utils.training.optimizers import create_optimizer
from utils.training.plan import Plan
from utils.training.start import new_start

MOST_NAMES = 3  # of the modules in a group

Table = list[tuple[str, ...]]


def print_groups(config: TrainConfig) -> None:
    """Prints the groups that a new run with these options would train, without making the run. Raises UserError."""
    accelerator = create_accelerator(peer_timeout=config.peer_timeout)
    start = new_start(config, accelerator)
    config = start.config
    data = load_once_per_machine(config, accelerator, start.statistics)
    with raise_on_all_ranks(accelerator):
        with torch.device("meta"):
            model = create_model(config.model, len(data.class_names), **model_arguments(config, data.geometry.size))
        lines = group_lines(config, model, Plan(config, len(data.train), data.geometry.size).peak_factor)
        accelerator.print("\n".join(lines))
    accelerator.end_training()


def describe_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What environment.json says of each group: name, lr relative to `lr`, weight decay, tensors and parameters."""
    return [
        {
            "name": _name(group),
            "lr_factor": group["lr_factor"],
            "weight_decay": group["weight_decay"],
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
        }
        for group in optimizer.param_groups
    ]


def group_lines(config: TrainConfig, model: nn.Module, peak_factor: float = 1.0) -> list[str]:
    """A table of the groups, from the input of the model to its head, and what its columns mean.

    Args:
        peak_factor: share of `lr` that the schedule reaches.
    """
    optimizer = create_optimizer(config, model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    head = set(head_parameters(model)) if config.freeze_epochs else set()
    unit = "lr factor" if config.lr == "auto" else "lr"
    rows: Table = [("group", "what", "tensors", "parameters", unit, "weight decay", "from epoch")]
    for group, found in zip(optimizer.param_groups, describe_groups(optimizer), strict=True):
        lr = found["lr_factor"] * (1 if config.lr == "auto" else peak_factor * config.lr)
        first = 1 if head.issuperset(group["params"]) else config.freeze_epochs + 1
        what = compact([names[parameter] for parameter in group["params"]])
        counts = f"{found['tensors']}", f"{found['parameters']:,}"
        rows.append((found["name"], what, *counts, f"{lr:.3g}", f"{found['weight_decay']:.3g}", f"{first}"))
    trained = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    total = sum(parameter.numel() for parameter in model.parameters())
    lines = aligned(rows)
    lines.append(f"{len(rows) - 1} groups, {trained:,} of {total:,} parameters are trained")
    return lines


def _name(group: dict[str, Any]) -> str:
    return group["name"] + (", muon" if group.get("muon") else "")


def compact(names: list[str]) -> str:
    """Parameters by the modules that hold all of them: "blocks.1.0, bn1" for those in blocks.1.0 and in bn1."""
    stems: dict[str, list[list[str]]] = {}
    for name in names:
        stems.setdefault(name.split(".")[0], []).append(name.split("."))
    found = []
    for members in stems.values():
        shared = members[0]
        for member in members[1:]:
            length = next((n for n, (a, b) in enumerate(zip(shared, member, strict=False)) if a != b), len(shared))
            shared = shared[:length]
        found.append(".".join(shared))
    return ", ".join(found if len(found) <= MOST_NAMES else [*found[: MOST_NAMES - 1], "...", found[-1]])


def aligned(rows: Table) -> list[str]:
    """Rows as lines whose columns are aligned: the first two at the left, numbers at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for row in rows
        for cells in [list(zip(row, widths, strict=True))]
    ]
