"""The tests of a server pass a server that conforms, and detect each fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pytest

from dpaudit.attacks.conformance.federated import check_server
from dpaudit.attacks.conformance.federated.malformed_updates import check_malformed_updates
from dpaudit.attacks.conformance.federated.planted_updates import check_planted_updates
from dpaudit.attacks.conformance.federated.server_noise import (
    check_global_generators,
    check_restart,
    check_server_noise,
    record_server_noise,
)
from dpaudit.attacks.conformance.federated.server_protocol import Update
from dpaudit.attacks.conformance.federated.servers import check_draws
from dpaudit.attacks.conformance.statistical_tests import (
    LEVEL_PER_FINDING,
    STATISTICAL_FINDINGS,
    Effort,
)
from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.federated.faulty_servers import FAULTS, Fault
from tests.attacks.conformance.federated.reference_server import (
    CLAIM,
    NOISE_MULTIPLIER,
    ReferenceServer,
)

EFFORT = Effort(noise_samples=40_000, sampler_steps=240)


def finding(findings: Sequence[ConformanceFinding], check: str, name: str) -> ConformanceFinding:
    return next(one for one in findings if (one.check, one.name) == (check, name))


def run_check(fault: Fault) -> list[ConformanceFinding]:
    """Run the one check of ``check_server`` that must detect a fault."""
    match fault.check, fault.name:
        case "noise", _:
            return check_server_noise(record_server_noise(fault.server, CLAIM, EFFORT, 1), CLAIM)
        case "correlation", "global generators":
            return check_global_generators(fault.server, CLAIM, 1)
        case ("correlation", "resume") | ("provenance", _):
            return check_restart(fault.server, CLAIM, 1)
        case "correlation", _:
            return check_server_noise(record_server_noise(fault.server, CLAIM, EFFORT, 1), CLAIM)
        case "replay", ("malformed updates" | "zero updates"):
            return check_malformed_updates(fault.server, CLAIM, 1)
        case "sampler", _:
            return check_draws(fault.server, CLAIM, EFFORT, 1)
        case _:
            return check_planted_updates(fault.server, CLAIM, 1)


@pytest.mark.parametrize("seed", range(2))
def test_conforming_server_passes(seed: int) -> None:
    result = check_server(ReferenceServer, CLAIM, effort=EFFORT, seed=seed)
    assert result.verdict is Outcome.PASS, result.findings


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_fault_fails_the_whole_check(name: str) -> None:
    result = check_server(FAULTS[name].server, CLAIM, effort=EFFORT, seed=2)
    assert result.verdict is Outcome.FAIL


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 40))
def test_conforming_server_passes_under_many_seeds(seed: int) -> None:
    result = check_server(ReferenceServer, CLAIM, effort=EFFORT, seed=seed)
    assert result.verdict is Outcome.PASS, result.violations


def test_statistical_findings_share_the_level() -> None:
    result = check_server(ReferenceServer, CLAIM, effort=EFFORT)
    tested = [one for one in result.findings if one.p_value is not None]
    assert len(tested) <= STATISTICAL_FINDINGS
    assert {one.level for one in tested} == {LEVEL_PER_FINDING}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_detected(name: str) -> None:
    fault = FAULTS[name]
    found = finding(run_check(fault), fault.check, fault.name)
    assert found.outcome is Outcome.FAIL
    assert fault.word in found.why


def test_claim_of_more_noise_fails() -> None:
    claim = msgspec.structs.replace(CLAIM, noise_multiplier=1.05 * NOISE_MULTIPLIER)
    result = check_server(ReferenceServer, claim, effort=EFFORT)
    assert finding(result.findings, "noise", "scale").outcome is Outcome.FAIL


class WithoutDraw:
    """A server whose drawing of participants cannot be observed."""

    def __init__(self, seed: int) -> None:
        self._server = ReferenceServer(seed)
        self.participants, self.reference = self._server.participants, self._server.reference

    def aggregate(self, updates: Mapping[int, Update], expected: Sequence[int]) -> Update | None:
        return self._server.aggregate(updates, expected)


def test_unknown_drawing_is_inconclusive() -> None:
    result = check_server(WithoutDraw, CLAIM, effort=EFFORT)
    assert result.verdict is Outcome.INCONCLUSIVE
    assert finding(result.findings, "sampler", "inclusion").outcome is Outcome.INCONCLUSIVE


def test_unknown_drawing_passes_without_amplification() -> None:
    claim = msgspec.structs.replace(CLAIM, sampling_rate=1.0)
    result = check_server(WithoutDraw, claim, effort=EFFORT)
    assert result.verdict is Outcome.PASS, result.findings


class Shrinks(ReferenceServer):
    """A server that scales every update down: clipping is never reached."""

    def factor(self, vector: np.ndarray) -> float:
        return 0.5 * super().factor(vector)


def test_clipping_that_is_not_reached_is_inconclusive() -> None:
    result = check_server(Shrinks, CLAIM, effort=EFFORT)
    found = finding(result.findings, "replay", "planted updates")
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "clipping was not tested" in found.why


class Unseeded(ReferenceServer):
    def noise_key(self) -> Sequence[int]:
        return [int(one) for one in np.random.SeedSequence().generate_state(4)]


def test_server_without_a_seed_is_inconclusive() -> None:
    result = check_server(Unseeded, CLAIM, effort=EFFORT)
    found = finding(result.findings, "replay", "reproducible")
    assert found.outcome is Outcome.INCONCLUSIVE
    assert not [one for one in result.violations if one.check == "replay"]


class NeedsThreeReplies(ReferenceServer):
    def aggregate(self, updates: Mapping[int, Update], expected: Sequence[int]) -> Update | None:
        found = super().aggregate(updates, expected)
        return found if len(updates) >= 3 else None


def test_rounds_without_a_release_need_no_noise() -> None:
    result = check_server(NeedsThreeReplies, CLAIM, effort=EFFORT)
    assert not result.violations
    found = finding(result.findings, "noise", "scale by number of replies")
    assert "nothing was released where all replies but one are lost" in found.tested


def test_replace_one_claim_does_not_compare_absent_participants() -> None:
    claim = msgspec.structs.replace(CLAIM, adjacency=Adjacency.REPLACE_ONE)
    result = check_server(ReferenceServer, claim, effort=EFFORT)
    assert "absent participants" not in [one.name for one in result.findings]
    assert result.verdict is Outcome.PASS, result.findings


class OtherShape(ReferenceServer):
    def split(self, vector: np.ndarray) -> Update:
        return {"weight": vector[:60], "bias": vector[60:]}


def test_release_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="weight"):
        check_server(OtherShape, CLAIM, effort=EFFORT)


class OneParticipant(ReferenceServer):
    participants = 1


def test_one_participant_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="participants"):
        check_server(OneParticipant, CLAIM, effort=EFFORT)
