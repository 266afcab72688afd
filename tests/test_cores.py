"""How many cores a process takes for its own: not those of others, and not more than its container is given."""

import os
import subprocess
import sys

import psutil
import pytest

from tests.conftest import ROOT
from tests.test_decoded import in_own_mounts
from utils.system.errors import UserError
from utils.system.threads import VARIABLES, choose_threads

EVERY_CORE = "import os; os.sched_setaffinity(0, range(os.cpu_count())); "  # whatever pytest itself is bound to
CORES = "from utils.system.threads import available_cores; print(available_cores(), len(os.sched_getaffinity(0)))"

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or os.cpu_count() < 2, reason="needs Linux and two cores"
)


LAUNCHED = {"ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_USE_CPU": "False"}  # by accelerate launch


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 4),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "2,1"}, 2),
        ({"OMP_NUM_THREADS": "0"}, 4),
        ({"OMP_NUM_THREADS": ""}, 4),
        ({"MKL_NUM_THREADS": "2", "OMP_NUM_THREADS": "3"}, 2),
        (LAUNCHED | {"OMP_NUM_THREADS": "1"}, 4),  # the launcher's own, or a person's: nothing tells
        (LAUNCHED | {"OMP_NUM_THREADS": "2"}, 2),
        (LAUNCHED | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, 1),  # torchrun with one process sets nothing
    ],
)
def test_a_process_takes_as_many_threads_as_a_person_asks_for(environ, expected):
    assert choose_threads(environ, cores=4, processes=1) == (expected, "")


def test_the_launchers_own_number_of_threads_is_none_that_a_person_asked_for(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    on_cpu = LAUNCHED | {"ACCELERATE_USE_CPU": "True"}
    for environ, processes, expected in [
        (on_cpu | {"OMP_NUM_THREADS": "8"}, 1, 16),
        (on_cpu | {"OMP_NUM_THREADS": "4"}, 2, 8),
        (on_cpu | {"OMP_NUM_THREADS": "1"}, 1, 1),  # which the launcher would not have chosen
        ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}, 2, 8),
        ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "2"}, 2, 2),
    ]:
        assert choose_threads(environ, 16, processes) == (expected, "")


def test_more_threads_than_the_share_are_cut_in_a_line():
    ask = {"OMP_NUM_THREADS": "4"}
    assert choose_threads(ask, 1, 1) == (1, "OMP_NUM_THREADS: 4 threads are too many for 1 core; using 1")
    assert choose_threads(ask, 6, 2) == (
        3,
        "OMP_NUM_THREADS: 4 threads are too many for 6 cores for 2 processes; using 3",
    )
    assert choose_threads(ask, 4, 1, workers=2)[0] == 2
    assert choose_threads({}, 2, 1, workers=8) == (1, "")


def test_what_is_no_number_of_threads_is_refused():
    for value in ("many", "-1", "1.5", "\u00b2"):
        with pytest.raises(UserError, match=r"OMP_NUM_THREADS: .* must be a whole number"):
            choose_threads({"OMP_NUM_THREADS": value}, 2, 1)


@pytest.mark.parametrize(("variables", "threads"), [({}, "2"), ({"OMP_NUM_THREADS": "1"}, "1")])
def test_torch_gets_the_threads_that_a_person_asks_for(variables, threads):
    code = f"{EVERY_CORE}os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2]); import torch; "
    code += "from utils.system.runtime import use_cores; use_cores(); print(torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{threads}\n", done.stderr


def test_cores_are_those_that_the_process_is_bound_to():
    bound = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {CORES}"
    done = subprocess.run([sys.executable, "-c", bound], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1 1\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cores_are_no_more_than_the_quota(files, cores):
    """The files of control groups, version 2 and 1, as a container sees them."""
    written = "".join(f"echo {content} > /sys/fs/cgroup/{name}; " for name, content in files.items())
    prepared = "mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/cpu; " + written
    done = in_own_mounts(f"{prepared} {sys.executable} -c '{EVERY_CORE}{CORES}'")
    found, bound = done.stdout.split()
    assert done.stderr == ""
    assert int(found) == (int(bound) if cores is None else cores)
