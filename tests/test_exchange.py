"""What ranks tell each other arrives as it was sent: real gloo processes, and one process without a group."""

import re
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.conftest import ROOT
from tests.processes import run
from utils.system import exchange
from utils.system.errors import EnvironmentFault, UserError, raise_on_all_ranks
from utils.system.exchange import broadcast_bytes, broadcast_files, gather_texts
from utils.system.runtime import create_accelerator

FILES = {"empty": b"", "model.safetensors": bytes(range(256)) * 41, "été.json": b"{}"}


def check_exchange() -> None:
    exchange.CHUNK = 1000  # several a file, and a shorter last one
    accelerator = create_accelerator()
    first, ranks = accelerator.is_main_process, range(accelerator.num_processes)
    assert broadcast_bytes(accelerator, b"" if first else b"ignored") == b""
    assert broadcast_bytes(accelerator, bytes(1000) if first else b"") == bytes(1000)
    assert broadcast_files(accelerator, FILES if first else {}) == FILES
    assert broadcast_files(accelerator, {}) == {}
    assert gather_texts(accelerator, "") == ["" for _ in ranks]
    assert gather_texts(accelerator, "é" * accelerator.process_index) == ["é" * rank for rank in ranks]


def fail_on_last_rank(accelerator: Accelerator, error: Exception) -> None:
    with raise_on_all_ranks(accelerator):
        if accelerator.process_index == accelerator.num_processes - 1:
            raise error


def check_errors(folder: Path) -> None:
    """What the last rank raises is raised on every rank, and is silent on the others."""
    accelerator = create_accelerator()
    place, ranks = accelerator.process_index, accelerator.num_processes
    for error, kind in ((UserError("lr: ü\nis"), UserError), (OSError(28, "full"), (EnvironmentFault, OSError))):
        with pytest.raises(kind) as raised:
            fail_on_last_rank(accelerator, error)
        assert getattr(raised.value, "silent", False) is (place != ranks - 1)
        if ranks > 1:
            assert str(raised.value) == ("lr: ü is" if kind is UserError else "[Errno 28] full")
    with raise_on_all_ranks(accelerator):
        pass
    (folder / str(place)).touch()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_bytes_and_texts_arrive_as_they_were_sent(tmp_path, world_size):
    log = tmp_path / "log"
    assert run(check_exchange, world_size=world_size, log=log) == [0] * world_size, log.read_text()


@pytest.mark.parametrize("world_size", [1, 3])
def test_an_error_of_one_rank_is_raised_on_all(tmp_path, world_size):
    log = tmp_path / "log"
    assert run(check_errors, tmp_path, world_size=world_size, log=log) == [0] * world_size, log.read_text()
    assert len(list(tmp_path.glob("[0-9]"))) == world_size


def test_nothing_is_pickled_between_ranks():
    for package in ("models", "utils/runs", "utils/system", "utils/tracking", "utils/evaluation", "utils/training"):
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search("(gather|broadcast)_object", path.read_text()), path
