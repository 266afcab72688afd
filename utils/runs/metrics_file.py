"""metrics.jsonl: appended line by line, and read as a file that may come from a stranger."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.system.errors import one_line
from utils.system.files import naming
from utils.system.memory import check_memory
from utils.system.reading import check_size
from utils.tracking.tracker import SPLITS

LARGEST_COUNT = 10**15  # of steps, epochs or images
LONGEST_LINE = 64 * 1024  # bytes of metrics.jsonl
MEMORY_PER_BYTE = 20  # of metrics.jsonl, once its lines are parsed


class MetricsFile:
    """metrics.jsonl: one JSON object a line, append-only; only a resume cuts off what its checkpoint does not know.

    Lines that a full or lost disk does not take wait in memory until it does.
    """

    def __init__(self, path: Path):
        self.path = path
        self._waiting = b""

    def append(self, row: dict[str, Any]) -> None:
        """The first line that has to wait costs a warning."""
        first = not self._waiting
        self._waiting += json.dumps(row).encode() + b"\n"
        try:
            self._write_waiting(sync=False)
        except OSError as error:
            if first:
                reason = one_line(error)
                print(f"warning: metrics.jsonl cannot be written ({reason}); its lines wait in memory", file=sys.stderr)

    def size(self) -> int:
        """Bytes of the file once all lines are on disk. Raises OSError if the disk does not take them."""
        return self._write_waiting(sync=True)

    def _write_waiting(self, sync: bool) -> int:
        """The size of the file with all lines, after a sync to disk if asked."""
        with naming(self.path), open(self.path, "ab", buffering=0) as file:
            while self._waiting:  # a disk that fills up takes a part of a line, and the rest later
                self._waiting = self._waiting[file.write(self._waiting) :]
            if sync:
                os.fsync(file.fileno())
            return file.tell()

    def take(self, origin: Path, size: int) -> None:
        """Starts from the first `size` bytes of another run's file."""
        check_memory(MEMORY_PER_BYTE * size, str(origin))
        with open(origin, "rb") as source:
            self.path.write_bytes(source.read(size))

    def truncate(self, size: int) -> None:
        """Cuts the file to `size` bytes; a shorter one is left unchanged."""
        with open(self.path, "ab") as file:
            file.truncate(min(size, file.tell()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows. Skips what a crash left unfinished, and what this suite does not write."""
        if not self.path.exists():
            return
        check_memory(MEMORY_PER_BYTE * check_size(self.path, most=None), str(self.path))
        with open(self.path, "rb") as file:
            while line := file.readline(LONGEST_LINE):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if _is_row(row):
                    yield row


def _is_row(row: Any) -> bool:
    """Whether a line has a split, the numbers that every line has, and otherwise only numbers, all in range."""
    if not isinstance(row, dict) or row.get("split") not in SPLITS:
        return False
    numbers = {name: value for name, value in row.items() if name != "split"}
    if not all(type(value) in (int, float) and 0 <= value <= 1e30 for value in numbers.values()):
        return False
    trained, counts = row["split"] == "train", [numbers.get("step"), numbers.get("epoch"), numbers.get("images", 1)]
    needed = {"loss", "accuracy"} | ({"lr"} if trained else set())
    if counts[:2] == [0, 0] and not trained:  # start weights, before the first step
        counts = counts[2:]
    return (
        all(type(count) is int and 1 <= count <= LARGEST_COUNT for count in counts)
        and needed <= numbers.keys()
        and numbers["accuracy"] <= 1
    )
