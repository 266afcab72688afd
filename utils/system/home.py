"""A home for what libraries write on the side, where the user has none: in a container, often, with a user of no name.

Imports nothing heavy: it is for the first lines of a script, since some libraries look for their folders when imported.
"""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

# Variables that name a library's folder, and the one below the home that it takes without.
FOLDERS = {
    "HF_HOME": ".cache/huggingface",
    "MPLCONFIGDIR": ".config/matplotlib",
    "TORCH_HOME": ".cache/torch",
    "WANDB_CACHE_DIR": ".cache",
    "WANDB_CONFIG_DIR": ".config/wandb",
}
WORTH_READING = {"HF_HOME", "TORCH_HOME", "WANDB_CONFIG_DIR"}  # downloads, logins: also where nothing can be written


def provide_home() -> None:
    """Gives libraries a folder of the user's own below the system's temporary one, for lack of a home to write to.

    It is not in the run directory: that may come from a stranger, and git runs what the .gitconfig in a home says.
    Variables that are set stay; only a HOME that cannot be read, or is no folder, is replaced.
    """
    if os.name == "nt":
        return
    home = Path(os.environ.get("HOME") or _home_of_user())
    readable = home.is_absolute() and os.path.isdir(home) and os.access(home, os.R_OK | os.X_OK)
    with contextlib.suppress(OSError):  # no temporary folder either: the libraries will say so
        if not readable:
            home = _own_folder()
        os.environ["HOME"] = str(home)
        for name, below in FOLDERS.items():
            kept = name in WORTH_READING and os.path.isdir(home / below)
            if name not in os.environ and not kept and not _can_write(home / below):
                os.environ[name] = str(_own_folder() / below)


def _home_of_user() -> str:
    """As the system's list of users has it; a relative path where it does not know the user."""
    os.environ.pop("HOME", None)
    return os.path.expanduser("~")


def _can_write(folder: Path) -> bool:
    """Whether a folder can be written to, or made."""
    existing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)


def _own_folder() -> Path:
    """A folder that no other user can write to, the same at every start."""
    folder = Path(tempfile.gettempdir()) / f"home-of-user-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp())  # somebody else has taken the name
