"""Processes that do not find each other say where they looked, how many came and what to check."""

import socket

import pytest

from tests.processes import join, run, start, tiny_config, train_script


def alone(rank: int, port: int) -> dict[str, str]:
    """One of two processes on two machines."""
    here = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}
    return {name: str(value) for name, value in {**here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items()}


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("rank", "words"),
    [(0, "only 1 of 2 processes came to 127.0.0.1:{} (MASTER_ADDR, MASTER_PORT) within 2 s; check that every machine"),
     (1, "rank 1 did not reach 127.0.0.1:{} (MASTER_ADDR, MASTER_PORT) within 2 s: [Errno 111] Connection refused; ")],
)  # fmt: skip
def test_a_peer_that_never_starts_is_told_in_one_line(tmp_path, port, rank, words):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert run(train_script, tiny_config(folder, peer_timeout=2), alone(rank, port), log=log) == [1]
    (line,) = log.read_text().splitlines()
    assert line.startswith("error: " + words.format(port))
    assert not folder.exists()


def test_a_port_that_another_program_has_is_named(tmp_path):
    log = tmp_path / "log"
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(train_script, tiny_config(tmp_path / "run", peer_timeout=2), alone(0, port), log=log) == [1]
    (line,) = log.read_text().splitlines()
    assert line.startswith(f"error: rank 0 cannot listen at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT): ")


def test_a_peer_that_starts_later_is_waited_for(tmp_path, port):
    folder, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(folder, max_steps=2)
    first = start(train_script, config, alone(1, port), log=log)  # the host of the meeting comes last
    second = start(train_script, config, alone(0, port), log=log)
    assert join(first + second) == [0, 0], log.read_text()
