"""What differs between two runs, and what each difference by itself would have cost."""

from __future__ import annotations

import msgspec

from dpaudit.gate.causes import Difference
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.baseline import Baseline


class Cost(msgspec.Struct, frozen=True):
    """A difference, and the epsilon (at most) of the first run had this alone changed.

    ``epsilon`` is None where no single change can be priced.
    """

    difference: Difference
    epsilon: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs, and every difference between them; what raises epsilon comes first."""

    before: Baseline
    after: Baseline
    costs: tuple[Cost, ...]
    schema_version: str = SCHEMA_VERSION
