"""What an entry of the bench is, and what its audit gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

EXECUTED, FROM_SOURCE = "executed", "from the source"
NOISE_MULTIPLIER, DELTA = 4.0, 1e-5
"""One step without sampling at this noise claims an epsilon below 1, which few runs refute."""


@dataclass(frozen=True)
class Fault:
    """A fault of a published package.

    Attributes:
        name: Its name in the table, unique.
        packages: Pinned requirements that are installed to execute it, the faulty one first.
        what: What goes wrong, in one sentence.
        source: Where it is reported or documented, as an address or a place in the package.
        audit: Executes the package and returns what was measured; None for a fault that is
            described from the source alone.
        shown_by: Part of the name of the test that must fail for the fault to be detected by
            conformance; empty for accountants.
        why_not: Why it is not executed, or not detected.
    """

    name: str
    packages: tuple[str, ...]
    what: str
    source: str
    audit: Callable[[], Measured] | None = None
    shown_by: str = ""
    why_not: str = ""

    @property
    def evidence(self) -> str:
        """Whether the pinned package is executed."""
        return FROM_SOURCE if self.audit is None else EXECUTED


@dataclass(frozen=True)
class Measured:
    """The outcome of an audit.

    Attributes:
        claimed: The epsilon that the package, or its user, claims.
        delta: The delta of the claim.
        verdict: The verdict of the conformance tests, or how the claim was compared.
        failed: The findings that failed, each with what was observed.
        lower: The best lower bound on epsilon.
        kind: The kind of this bound.
        observed: What else was measured, by name.
    """

    claimed: float
    delta: float
    verdict: str
    failed: tuple[str, ...] = ()
    lower: float | None = None
    kind: str = ""
    observed: dict[str, Any] = field(default_factory=dict)
