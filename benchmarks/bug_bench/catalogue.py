"""All entries of the bench."""

from __future__ import annotations

import from_source
import of_accountants
import of_flower
import of_jax
import of_opacus
import of_small_trainers
from faults import Fault

MODULES = (of_opacus, of_small_trainers, of_jax, of_flower, of_accountants, from_source)


def entries() -> tuple[Fault, ...]:
    """Return all entries, in the order of the table."""
    return tuple(fault for module in MODULES for fault in module.FAULTS)


def entry(name: str) -> Fault:
    """Return the entry of a name."""
    return next(fault for fault in entries() if fault.name == name)
