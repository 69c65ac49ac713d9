"""Freed memory that stays with the process, so that each step need not ask for it again."""

from __future__ import annotations

from functools import cache

import torch

BLOCK_BYTES = 31 * 2**20
"""Just below the 32 MB above which glibc maps each block apart, whatever was freed before."""


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 62 MB of freed memory; called once per process.

    A step frees the output gradients of all layers at its end. The library of GNU/Linux returns
    what is free beyond twice the largest block that was ever freed, and the next step pays for
    every page again: a tenth of the time of plain training for a small GPT-2. One block that is
    never touched, so that it takes no memory, raises this limit. Other libraries are not changed.
    """
    torch.empty(BLOCK_BYTES, dtype=torch.uint8)
