"""Garbage collection during an audit, which makes hundreds of short-lived trainers.

Libraries collect all garbage when a training loop starts: Accelerate does, so that the Trainer of
Hugging Face does, too. A full collection visits all objects of the process, most of which belong to
imported libraries. Such a collection is most of the time of a start.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exempt_existing_objects() -> Iterator[None]:
    """Exempt the objects that exist now from garbage collection inside a ``with`` block.

    Objects that are made inside of the block are collected as usual, and all objects after it.
    Nothing changes if the process has exempted objects already, since these cannot be told apart.

    Yields:
        Nothing.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
