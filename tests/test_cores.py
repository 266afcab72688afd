"""How many cores a process takes for its own: not those of others, and not more than its container is given."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.test_decoded import in_own_mounts

EVERY_CORE = "import os; os.sched_setaffinity(0, range(os.cpu_count())); "  # whatever pytest itself is bound to
CORES = "from utils.launcher import available_cores; print(available_cores(), len(os.sched_getaffinity(0)))"

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or os.cpu_count() < 2, reason="needs Linux and two cores"
)


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
