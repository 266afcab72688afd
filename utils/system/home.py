"""A writable place for the caches of libraries if the user has no home, as in many containers.

Imports nothing heavy: scripts call it first, since some libraries look for their folders when they are imported.
"""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

# Variables that name a library's folder, and its default below the home.
FOLDERS = {
    "HF_HOME": ".cache/huggingface",
    "MPLCONFIGDIR": ".config/matplotlib",
    "TORCH_HOME": ".cache/torch",
    "WANDB_CACHE_DIR": ".cache",
    "WANDB_CONFIG_DIR": ".config/wandb",
}
WORTH_READING = {"HF_HOME", "TORCH_HOME", "WANDB_CONFIG_DIR"}  # downloads, logins: used even if not writable


def provide_home() -> None:
    """Points libraries to a folder of the user's below the system's temporary one if the home is not writable.

    Not in the run directory: that may come from a stranger, and git executes what the .gitconfig in a home says.
    Variables that are set stay, except a HOME that is unreadable or not a folder.
    """
    if os.name == "nt":
        return
    home = Path(os.environ.get("HOME") or _home_of_user())
    readable = home.is_absolute() and os.path.isdir(home) and os.access(home, os.R_OK | os.X_OK)
    with contextlib.suppress(OSError):  # no temporary folder either: the libraries report it
        if not readable:
            home = _own_folder()
        os.environ["HOME"] = str(home)
        for name, below in FOLDERS.items():
            usable = name in WORTH_READING and os.path.isdir(home / below)
            if name not in os.environ and not usable and not _can_write(home / below):
                os.environ[name] = str(_own_folder() / below)


def _home_of_user() -> str:
    """From the system's list of users; a relative path if the user is not in it."""
    os.environ.pop("HOME", None)
    return os.path.expanduser("~")


def _can_write(folder: Path) -> bool:
    """Whether a folder is writable, or can be made."""
    existing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)


def _own_folder() -> Path:
    """A folder that no other user can write to, the same at every start if the name is free."""
    folder = Path(tempfile.gettempdir()) / f"home-of-user-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp())  # another user has taken the name
