"""A machine within this one, for tests: mounts, a network and a host name that only the processes in it see."""

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

KINDS = ("mnt", "net", "uts")


class Namespaces:
    """Linux namespaces, which end with their last process. Use as a context manager; skips where they are not allowed.

    `processes.start(*namespaces.within(function), ...)` starts a process in them.
    """

    def __enter__(self) -> "Namespaces":
        live = "mount -t tmpfs none /mnt && echo && exec sleep 600"
        command = ["unshare", "--mount", "--net", "--uts", "sh", "-c", live]
        try:
            self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            pytest.skip("namespaces need Linux")
        if not self._holder.stdout.readline():
            self.__exit__()
            pytest.skip("namespaces with mounts of their own need root")
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.communicate()

    def run(self, *command: str | Path) -> None:
        """Runs a command in them."""
        enter = ["nsenter", "--target", str(self._holder.pid), "--mount", "--net", "--uts"]
        subprocess.run([*enter, *map(str, command)], check=True, capture_output=True)

    def mount(self, folder: Path, size: str) -> Path:
        """A disk in memory at `folder`, made where it is missing. Returns the folder as it is seen from outside."""
        folder.mkdir(parents=True, exist_ok=True)
        self.run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder)
        return Path(f"/proc/{self._holder.pid}/root{folder}")

    def within(self, function: Callable[..., Any]) -> tuple[Callable[..., Any], int, Callable[..., Any]]:
        """What to call in a new process, and its first arguments, to run `function` there."""
        return _enter, self._holder.pid, function


def _enter(holder: int, function: Callable[..., Any], *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in KINDS:
        with open(f"/proc/{holder}/ns/{kind}") as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"cannot enter the {kind} namespace")
    os.chdir(ROOT)  # entering other mounts leads to their root
    function(*arguments)
