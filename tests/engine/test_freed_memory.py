"""What a training step frees stays with the process for the next one."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource, sys
import numpy as np
from autopeft.engine.worker import keep_freed_memory

def step():
    return [np.ones(2**21) for _ in range(4)]  # 16 MB each

if sys.argv[1] == "kept":
    keep_freed_memory()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(way: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, way],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc's allocator")
def test_memory_is_not_handed_back_between_steps() -> None:
    without = page_faults("as it is")
    if not without:
        pytest.skip("the system does not count page faults, or keeps freed memory by itself")
    assert page_faults("kept") < without / 10
