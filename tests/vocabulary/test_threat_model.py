"""The threat model of secure aggregation: whom it protects against, and what it assumes."""

from __future__ import annotations

import msgspec
import pytest

from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import (
    LARGEST_CLIP_LEVELS,
    OBSERVERS,
    FederationHeader,
    SecureAggregationSettings,
    ThreatModel,
)


def test_numbers_follow_from_the_settings() -> None:
    model = ThreatModel.of(SecureAggregationSettings(dropouts=3, colluders=2), 10)
    assert (model.threshold, model.dropouts, model.honest_shares) == (7, 3, 5)


def test_protection_against_participants_needs_a_colluder() -> None:
    """A participant knows its own noise, so it is one."""
    assert "other participants" not in ThreatModel(4, 3, 0).protects_against
    assert ThreatModel(4, 3, 1).protects_against == OBSERVERS


def test_assumptions_state_the_model() -> None:
    text = "; ".join(ThreatModel(10, 7, 2).assumptions)
    for part in (
        "semi-honest",
        "reports different dropouts to different participants is outside of the model",
        "at most 2 of 10",
        "more than 3 dropouts",
        "5 honest survivors",
        "counts as zero",
    ):
        assert part in text
    assert "one process" not in text
    assert "at most 2 of 10" in ThreatModel(10, 7, 2).summary
    assert "most 3 lost" in ThreatModel(10, 7, 2).summary
    assert "different dropouts" in ThreatModel(10, 7, 2).summary
    assert ThreatModel(10, 7, 2, one_process=True).summary.endswith("ran in one process.")
    assert "one process" in ThreatModel(10, 7, 2, one_process=True).assumptions[-1]


@pytest.mark.parametrize(
    ("threshold", "colluders", "safe"), [(6, 0, True), (5, 0, False), (7, 3, True), (6, 2, False)]
)
def test_a_server_with_two_views_is_stopped_by_a_high_threshold(
    threshold: int, colluders: int, safe: bool
) -> None:
    """It needs t shares of each of two secrets; each honest participant gives one share.

    So it gets 10 + colluders shares at most, colluders giving both, and needs 2 t.
    """
    text = " ".join(ThreatModel(10, threshold, colluders).assumptions)
    assert ("cannot unmask a single update" in text) is safe
    assert ("such a server can unmask single updates" in text) is not safe


@pytest.mark.parametrize(
    ("participants", "threshold", "colluders"), [(4, 0, 0), (4, 5, 0), (4, 3, 3), (4, 3, -1)]
)
def test_a_model_without_an_honest_survivor_is_refused(
    participants: int, threshold: int, colluders: int
) -> None:
    with pytest.raises(InvalidArgument):
        ThreatModel(participants, threshold, colluders)


@pytest.mark.parametrize(
    "changes",
    [
        {"dropouts": -1},
        {"colluders": -1},
        {"noise": "gaussian"},
        {"modulus_bits": 63},
        {"modulus_bits": 7},
        {"clip_levels": 0},
        {"clip_levels": LARGEST_CLIP_LEVELS + 1},
        {"rounding_failure": 0.0},
        {"rounding_failure": 1.0},
        {"rounding_failure": float("nan")},
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        SecureAggregationSettings(**changes)  # type: ignore[arg-type]


def test_the_header_of_a_ledger_keeps_the_model() -> None:
    model = ThreatModel(10, 7, 2, one_process=True)
    header = FederationHeader("dp-fedavg", 10, model.protects_against, threat_model=model)
    assert msgspec.json.decode(msgspec.json.encode(header), type=FederationHeader) == header
