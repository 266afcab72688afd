"""What a run starts from: weights of others, with all that is known of them. Nothing of them is ever executed."""

import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from models.adapt import Loaded, load_start
from models.hub import WEIGHT_FILES, card_license, fetch
from models.origin import Origin, own_facts, timm_facts
from models.saved import CONFIG, WEIGHTS, parse_model_config
from models.timm_models import PREFIX, timm_name
from models.weight_files import PICKLES, SAFETENSORS, parse_tensors, read_metadata
from utils.config.defaults import HUB, PRETRAINED
from utils.system.errors import UserError, did_you_mean
from utils.system.files import digest
from utils.system.manifest import MANIFEST, Damaged, read_verified
from utils.system.reading import check_files, check_folder, check_size, parse_json, read_file

__all__ = ["Loaded", "Origin", "find_weights", "load_start", "read_tensors"]

SOURCES = (
    "pretrained, hf-hub:USER/NAME[@REVISION], or the path of a run, a checkpoint, a model folder, a timm folder, or a "
    f"file ({', '.join((SAFETENSORS, *PICKLES))})"
)


def find_weights(source: str, model: str = "auto", option: str = "init_from") -> Origin:
    """The weights that `source` names, downloaded if they must be. Call it on one process per machine first.

    Args:
        model: the option; "auto" if the weights are to name it.
        option: that names the source, for errors.

    Raises UserError for what the user can mend, EnvironmentFault if the network is needed and missing.
    """
    path = Path(source)
    if source == PRETRAINED:
        found = _pretrained(model, option)
    elif source.startswith(HUB):
        repository, _, revision = source.removeprefix(HUB).partition("@")
        folder = fetch(repository, revision if "@" in source else None, [CONFIG], option)
        found = _of_hub(_folder(source, folder, option), repository, folder)
    elif os.path.isdir(path):  # unlike path.is_dir(), false for names that are too long
        found = _folder(source, path, option)
    elif os.path.isfile(path):
        found = _file(source, path, model, option)
    else:
        hint = f"did you mean {HUB}{source}? " if source.count("/") == 1 else did_you_mean(source, [PRETRAINED])
        raise UserError(
            f"{option}: {source!r} is not allowed; there is no such file or folder; {hint}it must be {SOURCES}"
        )
    if model != "auto" and found.model != model:
        raise UserError(
            f"{option}: {source} has weights of {found.model}, not of {model}; leave --model out, or name other weights"
        )
    return found


def read_tensors(origin: Origin) -> dict[str, Tensor]:
    """The tensors of weights by name, on the CPU. Raises UserError naming the file if it is invalid or has changed."""
    content = read_file(origin.path, None)
    if digest([content]) != origin.sha256:
        raise UserError(f"{origin.path} has changed since this start began; start again")
    return parse_tensors(content, origin.path)[0]


def _pretrained(model: str, option: str) -> Origin:
    """timm's own weights of an architecture, by its default tag."""
    if model == "auto":
        raise UserError(f"{option}: pretrained needs --model timm:NAME, whose weights timm has")
    if not model.startswith(PREFIX):
        resnet = model.startswith("resnet")
        why = (
            "torchvision's weights do not fit its ResNets for small images" if resnet else "it has no published weights"
        )
        raise UserError(
            f"{option}: pretrained is not allowed with {model} ({why}); take --model timm:NAME, such as timm:resnet18"
        )
    import timm

    name = timm_name(model)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        known = sorted({tagged.partition(".")[0] for tagged in timm.list_pretrained()})
        raise UserError(
            f"{option}: timm has no weights of {name}; {did_you_mean(name, known)}timm.list_pretrained() lists all"
        )
    if not cfg.hf_hub_id:
        raise UserError(f"{option}: timm has these weights outside of the Hub; download {cfg.url}, and name the file")
    facts = timm_facts({"architecture": name, "pretrained_cfg": cfg.to_dict()}, f"timm's {name}")
    folder = fetch(cfg.hf_hub_id, None, [], option)
    return _of_hub(_origin(PRETRAINED, _weights_in(folder, option), facts), cfg.hf_hub_id, folder)


def _of_hub(origin: Origin, repository: str, folder: Path) -> Origin:
    """With what the Hub says: the commit, and the licence of the card."""
    return dataclasses.replace(
        origin, repository=repository, revision=folder.name, license=card_license(folder) or origin.license
    )


def _folder(source: str, folder: Path, option: str) -> Origin:
    """A run, a checkpoint, a model folder or a timm folder."""
    for name in ("config.yaml", MANIFEST):
        if os.path.lexists(folder / name):
            check_folder(folder, option)
    if (folder / "config.yaml").is_file():
        return _folder(source, _model_of_run(folder, option), option)
    check_files(folder, [CONFIG, *WEIGHT_FILES], option)
    if (folder / MANIFEST).is_file():
        try:
            read_verified(folder, ())
        except Damaged as error:
            raise UserError(f"{option}: {folder} is not a valid checkpoint ({error})") from error
    if not (folder / CONFIG).is_file():
        raise UserError(f"{option}: {folder} has no {CONFIG}; name a file of weights in it, with --model")
    return _origin(source, _weights_in(folder, option), _facts(folder))


def _model_of_run(run: Path, option: str) -> Path:
    """The exported model of a run: the best, if there was a validation split, else the last."""
    if (run / "model" / WEIGHTS).is_file():
        return run / "model"
    checkpoints = sorted((run / "checkpoints").glob("step-*"), key=lambda path: (len(path.name), path.name))
    such_as = f", or name a checkpoint, such as {checkpoints[-1]}" if checkpoints else ""
    raise UserError(f"{option}: {run} is a run without a finished model; finish it{such_as}")


def _weights_in(folder: Path, option: str) -> Path:
    for name in WEIGHT_FILES:
        if os.path.lexists(folder / name):
            return folder / name
    raise UserError(f"{option}: {folder} has no {WEIGHTS}")


def _facts(folder: Path) -> dict[str, Any]:
    """What config.json says: this suite's, which has a format version, or timm's."""
    path = folder / CONFIG
    content = read_file(path)
    values = parse_json(content, path)
    if "format_version" in values:
        return own_facts(parse_model_config(content, path))
    return timm_facts(values, path)


def _file(source: str, path: Path, model: str, option: str) -> Origin:
    """A file of tensors, whose architecture its config.json names, its metadata, or the option `model`."""
    if path.suffix not in (SAFETENSORS, *PICKLES):
        raise UserError(
            f"{option}: {source} is not allowed; a file of weights ends in {', '.join((SAFETENSORS, *PICKLES))}"
        )
    if path.name in WEIGHT_FILES and (path.parent / CONFIG).is_file():
        return _origin(source, path, _facts(path.parent))
    named = read_metadata(path).get("architecture") if path.suffix == SAFETENSORS else None
    if isinstance(named, str):
        return _origin(source, path, _facts_of_timm(named, path))
    if model == "auto":
        raise UserError(f"{option}: {source} does not say of which architecture it is; name it with --model")
    facts = _facts_of_timm(model.removeprefix(PREFIX), path) if model.startswith(PREFIX) else {"model": model}
    return _origin(source, path, facts)


def _facts_of_timm(name: str, path: Path) -> dict[str, Any]:
    """The preprocessing that timm has for an architecture, for weights that say nothing of theirs; no licence."""
    import timm

    timm_name(PREFIX + name)
    cfg = timm.get_pretrained_cfg(name)
    return timm_facts({"architecture": name, "pretrained_cfg": cfg.to_dict() if cfg else {}}, path) | {"license": None}


def _origin(source: str, path: Path, facts: dict[str, Any]) -> Origin:
    check_size(path, None)
    part = None
    if path.suffix in PICKLES:
        content = read_file(path, None)
        part, sha256 = parse_tensors(content, path)[1], digest([content])
    else:
        sha256 = digest(_blocks(path))
    return Origin(source, path, sha256, part, **facts)


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(partial(file.read, 2**20), b"")
