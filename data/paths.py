"""Many paths in two arrays."""

import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Paths(Sequence[str]):
    """A sequence of paths that loader workers share.

    Reading a string of a list writes its reference count, so in the course of an epoch every worker would get a copy of
    the list and its strings, page by page.
    """

    def __init__(self, paths: Iterable[str | os.PathLike]):
        names = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._names = np.frombuffer(b"".join(names), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index % len(self)], self._ends[index % len(self) + 1]
        return os.fsdecode(self._names[start:end].tobytes())

    def subset(self, indices: Iterable[int]) -> "Paths":
        """The paths at these positions."""
        return Paths(self[index] for index in indices)


def shared(paths: Sequence[str | os.PathLike]) -> Paths:
    """The paths as Paths, if they are not already."""
    return paths if isinstance(paths, Paths) else Paths(paths)
