"""Weights on the Hugging Face Hub, by way of the cache of huggingface_hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from models.origin import is_license
from utils.config.defaults import HUB
from utils.system.errors import EnvironmentFault, UserError, one_line
from utils.system.reading import parse_yaml, read_file

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that a repository has
CARD = "README.md"
ANSWER_SECONDS = 30.0
REVISION = re.compile(r"(?!.*\.\.)[\w.][\w./-]{0,99}", re.ASCII)  # a branch, a tag or a commit


def fetch(repository: str, revision: str | None, needed: Sequence[str], option: str) -> Path:
    """The folder of the cache with the needed files of a repository, its weights and its card, if it has one.

    What is in the cache is used without asking the Hub: a start then needs no network, and all processes of a machine
    use what the first has downloaded. The folder is named after the commit.

    Args:
        revision: branch, tag or commit; None: main.
        option: that names the repository, for errors.

    Raises UserError for a repository, revision or file that does not exist, EnvironmentFault if the files are not in
    the cache and cannot be downloaded.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
        valid = repository.count("/") == 1 and (revision is None or REVISION.fullmatch(revision))
    except HFValidationError:
        valid = False
    if not valid:
        name = f"{HUB}{repository}" + (f"@{revision}" if revision is not None else "")
        raise UserError(f"{option}: {name!r} is not allowed; it must be hf-hub:USER/NAME or hf-hub:USER/NAME@REVISION")
    return _cached(repository, revision, needed) or _download(repository, revision, needed, option)


def card_license(folder: Path) -> str | None:
    """The licence that a model card names in its metadata; None if there is none."""
    try:
        found = re.match(r"---\r?\n(.*?)\n---", read_file(folder / CARD).decode(), re.DOTALL)
        values = parse_yaml(found[1]) if found else None
    except (OSError, UserError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    name = values.get("license_name") if values.get("license") == "other" else values.get("license")
    return name if is_license(name) else None


def _cached(repository: str, revision: str | None, needed: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    def folder(name: str) -> Path | None:
        path = try_to_load_from_cache(repository, name, revision=revision)
        return Path(path).parent if isinstance(path, str) else None

    found = next(filter(None, map(folder, WEIGHT_FILES)), None)
    return found if all(folder(name) for name in needed) else None


def _download(repository: str, revision: str | None, needed: Sequence[str], option: str) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    shown = repository + (f"@{revision}" if revision else "")
    try:
        # Asked first, since hf_hub_download would try for half a minute, with a warning each time.
        info = HfApi().model_info(repository, revision=revision, timeout=ANSWER_SECONDS)
        names = {file.rfilename for file in info.siblings or ()}
        weights = next((name for name in WEIGHT_FILES if name in names), None)
        if missing := [name for name in needed if name not in names] or ([] if weights else [WEIGHT_FILES[0]]):
            raise UserError(f"{option}: {shown} on the Hugging Face Hub has no {missing[0]}")
        for name in (*needed, *({CARD} & names), str(weights)):
            path = hf_hub_download(repository, name, revision=revision)
        return Path(path).parent
    except UserError:
        raise
    except GatedRepoError as error:
        raise UserError(
            f"{option}: {repository} on the Hugging Face Hub is gated; ask for access on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{option}: the Hugging Face Hub has no {repository}, or it is private; `hf auth login` if it is yours"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{option}: {repository} on the Hugging Face Hub has no revision {revision}") from error
    except Exception as error:  # of the network, the disk, or whatever library the client uses
        command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise EnvironmentFault(
            f"{option}: {' and '.join((*needed, WEIGHT_FILES[0]))} of {shown} cannot be downloaded "
            f"({one_line(error)[:200] or type(error).__name__}) and are not in the cache, {constants.HF_HUB_CACHE}; "
            f"where there is a network, this puts them there: {command}"
        ) from error
