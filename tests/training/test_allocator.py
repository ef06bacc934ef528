"""Does a process keep the memory that it frees?"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from ldm.training.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    blocks = [torch.ones(2_000_000) for _ in range(8)]  # 8 MB each: 2,000 pages
for _ in range(4):
    step()
before = faults()
step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_step_finds_its_memory_where_the_last_one_left_it() -> None:
    # glibc's own thresholds move with what was freed before; these give back every large block
    gives_back = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    counts = {}
    for mode in ("keep", "default"):  # in processes of their own: nothing undoes it
        command = [sys.executable, "-c", SCRIPT, mode]
        env = os.environ | gives_back
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        counts[mode] = int(done.stdout)
    assert counts["keep"] < 100  # of 16,000 pages
    assert counts["default"] > 10 * max(counts["keep"], 100)
