"""The plan of an audit: the family that its conditional bounds invert tests over."""

from __future__ import annotations

import pytest

from dpaudit.workflow.audit.audit_plan import claimed_family


def test_audits_of_equal_steps_share_what_was_computed() -> None:
    steps = [(0.1, 2.0)] * 3 + [(1.0, 1.5)]
    assert claimed_family(steps, 1e-5) is claimed_family(list(steps), 1e-5)


@pytest.mark.parametrize(
    ("steps", "delta"),
    [([(0.1, 2.0)] * 4, 1e-5), ([(0.1, 1.9)] * 3, 1e-5), ([(0.1, 2.0)] * 3, 1e-6)],
)
def test_other_steps_or_another_delta_have_a_family_of_their_own(
    steps: list[tuple[float, float]], delta: float
) -> None:
    known = claimed_family([(0.1, 2.0)] * 3, 1e-5)
    other = claimed_family(steps, delta)
    assert other is not known
    assert other.epsilon(1.0) != known.epsilon(1.0)
