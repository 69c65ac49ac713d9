"""Memory that a step frees is there for the next one, without new pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from dpaudit.trainer.engine.freed_memory import keep_freed_memory

keep_freed_memory()

def new_pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(2**21) for _ in range(5)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new_pages(), new_pages()
print(new_pages())
"""

GLIBC = platform.libc_ver()[0] == "glibc" and not any(n.startswith("MALLOC_") for n in os.environ)


@pytest.mark.needs("torch")
@pytest.mark.skipif(not GLIBC, reason="about the allocator of GNU/Linux, as it is by default")
def test_blocks_of_a_step_are_not_mapped_again() -> None:
    pages = int(subprocess.check_output([sys.executable, "-c", SCRIPT]))
    assert pages < 64  # 8,000 without the call
