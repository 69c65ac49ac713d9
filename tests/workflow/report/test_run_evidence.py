"""Evidence that a report is written from."""

from __future__ import annotations

import pytest

from dpaudit.vocabulary.ledger import (
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    ReleaseEntry,
    Sampling,
)
from dpaudit.vocabulary.mechanism import Gaussian
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.workflow.report.run_evidence import ends_of_steps

HEADER = LedgerHeader(
    adjacency=Adjacency.ADD_OR_REMOVE_ONE,
    sampling=Sampling.POISSON,
    randomness=Randomness.SEEDED,
    schedule_fixed_in_advance=True,
    clip_norm=1.0,
    versions={},
    run="test",
)


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        ([], []),
        ([None], []),
        ([0, 1, 2], [1, 2, 3]),
        ([0, 0, 1, 1], [2, 4]),
        ([None, 0, None, 1], [2, 4]),
        ([0, 1, 1, 2, None], [1, 3, 4]),
    ],
)
def test_releases_of_one_step_are_one_step_of_a_curve(
    steps: list[int | None], ends: list[int]
) -> None:
    lines = tuple(ReleaseEntry("sum", Gaussian(1.0), step) for step in steps)
    assert ends_of_steps(PrivacyLedger(HEADER, lines, head="0" * 64)) == ends
