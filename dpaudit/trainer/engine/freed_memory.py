"""Freed memory that stays with the process, so that each step need not ask for it again."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

KEPT_BYTES = 64 * 2**20
"""Freed memory at the end of the heap that the process keeps."""

LARGEST_BLOCK_BYTES = 32 * 2**20
"""The largest value that glibc accepts: each larger block is mapped and returned apart."""

# From malloc.h, where they are part of the interface.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

SETTINGS = frozenset(
    f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")
)
"""Variables of the environment that set these limits."""


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MiB of freed memory; called once per process.

    A step frees the output gradients of all layers at its end. The library of GNU/Linux returns
    what is free beyond twice the largest block that it once mapped apart, and the next step pays
    for every page again: a tenth of the time of plain training for a small GPT-2. The limits are
    set by name, since a block that is allocated and freed to raise them does so only where the
    heap has no room for it. Other libraries, and limits that the user sets by the environment
    (MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES), are not changed.
    """
    if platform.libc_ver()[0] != "glibc" or limits_are_set_by_the_user():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def limits_are_set_by_the_user() -> bool:
    """Whether the environment sets limits of the allocator."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name in os.environ for name in SETTINGS)
