"""Memory that a step frees is there for the next one, without new pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys
import torch
from dpaudit.trainer.engine.freed_memory import keep_freed_memory

largest_mib, small_mib, called = map(int, sys.argv[1:])
torch.empty(largest_mib * 2**20, dtype=torch.uint8)
small = [torch.empty(100_000, dtype=torch.uint8) for _ in range(10 * small_mib)]
del small
if called:
    keep_freed_memory()

def new_pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(2**21) for _ in range(5)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(new_pages() for _ in range(10)))
"""

GLIBC = platform.libc_ver()[0] == "glibc"


def without_malloc_limits() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }


def pages_of_a_step(
    largest_mib: int, small_mib: int, called: bool, environment: dict[str, str] | None = None
) -> int:
    """New pages of a step that frees 40 MiB, once the heap has settled: the fewest of ten."""
    history = [str(int(number)) for number in (largest_mib, small_mib, called)]
    return int(
        subprocess.check_output(
            [sys.executable, "-c", SCRIPT, *history],
            env=without_malloc_limits() | (environment or {}),
        )
    )


@pytest.mark.needs("torch")
@pytest.mark.skipif(not GLIBC, reason="about the allocator of GNU/Linux")
# After the second, the heap has room for a block of 31 MiB and keeps at most 40 MiB.
@pytest.mark.parametrize(("largest_mib", "small_mib"), [(1, 1), (20, 40)])
def test_blocks_of_a_step_are_not_mapped_again(largest_mib: int, small_mib: int) -> None:
    assert pages_of_a_step(largest_mib, small_mib, called=True) < 64


@pytest.mark.needs("torch")
@pytest.mark.skipif(not GLIBC, reason="about the allocator of GNU/Linux")
def test_limits_of_the_user_are_kept() -> None:
    limit = {"MALLOC_TRIM_THRESHOLD_": str(2**20)}
    assert pages_of_a_step(1, 1, called=False) > 4096  # so the tests above can fail
    assert pages_of_a_step(1, 1, called=True, environment=limit) > 4096
