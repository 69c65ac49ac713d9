"""Every bug planted in federated training is detected by the right check, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from dpaudit.attacks.conformance.clipping import check_replay
from dpaudit.attacks.conformance.federated import (
    check_client,
    check_masked_uploads,
    check_server,
)
from dpaudit.attacks.conformance.federated.clients import (
    TrainerOfClient,
    check_noise_of_clients,
    check_uploads,
)
from dpaudit.attacks.conformance.federated.malformed_updates import check_malformed_updates
from dpaudit.attacks.conformance.federated.planted_updates import check_planted_updates
from dpaudit.attacks.conformance.federated.server_noise import (
    check_server_noise,
    record_server_noise,
)
from dpaudit.attacks.conformance.federated.servers import check_draws
from dpaudit.attacks.conformance.noise_distribution import check_noise
from dpaudit.attacks.conformance.noise_only_runs import NoiseOnlyMode, run_without_records
from dpaudit.attacks.conformance.probes import make_probes
from dpaudit.trainer.federated.aggregation import AdaptiveClipping, ParticipantClipping
from dpaudit.trainer.federated.conformance_secure_sums import ObservedSecureSums
from dpaudit.trainer.federated.conformance_servers import AggregationServerFactory
from dpaudit.trainer.federated.secure_aggregation.server import Server
from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.errors import ReplayedRound
from dpaudit.vocabulary.verdict import Outcome
from tests.planted_bugs import federated_patches as bugs
from tests.planted_bugs.federated_bench import (
    CLIENT_EFFORT,
    LOCAL_STEPS,
    RECORDS,
    ROUNDS,
    SERVER_EFFORT,
    client_factory,
    server_factory,
)
from tests.planted_bugs.patches import Patch, every_finite_record_whole, factors_by, scales_noise


@dataclass(frozen=True)
class Planted:
    """A bug, the finding that must detect it, and words of the reason."""

    patch: Patch
    check: str
    name: str
    word: str


SERVER_BUGS = {
    "server without clipping": Planted(
        bugs.without_clipping, "replay", "planted updates", "are not clipped"
    ),
    "server clips each parameter": Planted(
        bugs.clips_each_parameter, "replay", "planted updates", "clipped separately"
    ),
    "server noise divided twice": Planted(
        bugs.adds_noise(bugs.divided_twice), "noise", "scale", "the noise as a whole has 0.2"
    ),
    "server noise in the first round only": Planted(
        bugs.adds_noise(bugs.in_the_first_round), "noise", "scale of each round", "at round 1 has"
    ),
    "server noise of the first round": Planted(
        bugs.adds_noise(bugs.of_the_first_round), "correlation", "rounds", "noise is reused"
    ),
    "server divides by the replies": Planted(
        bugs.aggregates_by(bugs.over_the_replies), "replay", "absent participants", "multiplied by"
    ),
    "server accepts NaN": Planted(
        bugs.accepts_nan, "replay", "malformed updates", "a NaN: it moves the noisy sum by"
    ),
    "server draws too many": Planted(
        bugs.draws_twice_as_many, "sampler", "rate", "times the claimed"
    ),
}

CLIENT_BUGS = {
    "client without clipping": Planted(
        factors_by(every_finite_record_whole), "replay", "ordinary", "clipped"
    ),
    "equal noise seeds on two clients": Planted(
        bugs.pairs_share_a_key, "correlation", "clients", "noise is reused"
    ),
    "weights by secret record counts": Planted(
        bugs.trains_by(bugs.scaled_by_the_records), "replay", "uploads", f"it is {RECORDS} times"
    ),
    "client noise in the first round only": Planted(
        scales_noise(lambda context, norm: float(context.step < LOCAL_STEPS)),
        "noise", "scale of each step", f"at step {LOCAL_STEPS} has 0 times",
    ),
    "client takes one step without noise": Planted(
        bugs.trains_by(bugs.with_one_step_without_noise), "replay", "uploads", "of their norm"
    ),
}  # fmt: skip


def server_findings(seed: int) -> Sequence[ConformanceFinding]:
    factory = server_factory()
    return check_server(factory, factory.claim(12), effort=SERVER_EFFORT, seed=seed).findings


def client_findings(seed: int) -> Sequence[ConformanceFinding]:
    factory = client_factory()
    result = check_client(
        factory, factory.claim(), records=factory.records(RECORDS), effort=CLIENT_EFFORT, seed=seed
    )
    return result.findings


def findings_of(bug: Planted, seed: int) -> Sequence[ConformanceFinding]:
    """Run the one check that must detect a bug; ``test_..._under_five_seeds`` runs all."""
    server = server_factory()
    claim = server.claim(12)
    match bug.check, bug.name:
        case "replay", "uploads":
            client = client_factory()
            return check_uploads(client, client.records(RECORDS), seed)
        case "correlation", "clients":
            client = client_factory()
            return [check_noise_of_clients(client, client.records(RECORDS), seed)]
        case ("replay", "ordinary") | ("noise", "scale of each step"):
            return _of_local_steps(bug, seed)
        case "noise" | "correlation", _:
            return check_server_noise(
                record_server_noise(server, claim, SERVER_EFFORT, seed), claim
            )
        case "replay", "malformed updates":
            return check_malformed_updates(server, claim, seed)
        case "sampler", _:
            return check_draws(server, claim, SERVER_EFFORT, seed)
        case _:
            return check_planted_updates(server, claim, seed)


def _of_local_steps(bug: Planted, seed: int) -> Sequence[ConformanceFinding]:
    client = client_factory()
    trainer, claim = TrainerOfClient(client), client.claim()
    records = client.records(RECORDS)
    if bug.check == "replay":
        probes = make_probes(records, None)[:1]
        return check_replay(trainer, claim, records, probes, CLIENT_EFFORT, seed)
    mode = NoiseOnlyMode("on an empty data set")
    return check_noise(run_without_records(trainer, claim, mode, CLIENT_EFFORT, seed), claim)


def require_detected(bug: Planted, findings: Sequence[ConformanceFinding]) -> None:
    found = [one for one in findings if (one.check, one.name) == (bug.check, bug.name)]
    assert [one.outcome for one in found] == [Outcome.FAIL], findings
    assert bug.word in found[0].why


@pytest.mark.parametrize("name", SERVER_BUGS)
def test_bug_of_the_server_is_detected(name: str) -> None:
    bug = SERVER_BUGS[name]
    with bug.patch():
        require_detected(bug, findings_of(bug, seed=1))


@pytest.mark.parametrize("name", CLIENT_BUGS)
def test_bug_of_a_client_is_detected(name: str) -> None:
    bug = CLIENT_BUGS[name]
    with bug.patch():
        require_detected(bug, findings_of(bug, seed=1))


def test_masks_reused_across_rounds_are_detected() -> None:
    with bugs.masks_without_the_round():
        findings = check_masked_uploads(ObservedSecureSums, words=64)
    reuse = next(one for one in findings if one.name == "reuse")
    assert reuse.outcome is Outcome.FAIL
    assert "a mask is reused" in reuse.why
    assert next(one for one in findings if one.name == "sum").outcome is Outcome.PASS


def test_clean_server_passes() -> None:
    found = server_findings(seed=1)
    assert {one.outcome for one in found} == {Outcome.PASS}, found


def test_server_refuses_keys_of_an_earlier_round() -> None:
    honest = patch.object(Server, "receive_keys", bugs.honest_receive)
    with bugs.masks_without_the_round(), honest, pytest.raises(ReplayedRound):
        check_masked_uploads(ObservedSecureSums, words=16)


@pytest.mark.slow
def test_clean_server_with_adaptive_clipping_passes() -> None:
    settings = ParticipantClipping(0.5, 1.5, 0.5, 8, AdaptiveClipping(count_noise=2.0))
    factory = AggregationServerFactory(settings, server_factory().reference)
    result = check_server(factory, factory.claim(12), effort=SERVER_EFFORT, seed=1)
    assert result.verdict is Outcome.PASS, result.findings


def test_clean_client_passes() -> None:
    found = client_findings(seed=1)
    assert {one.outcome for one in found} == {Outcome.PASS}, found


def test_clean_masks_pass() -> None:
    found = check_masked_uploads(ObservedSecureSums)
    assert {one.outcome for one in found} == {Outcome.PASS}, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_clean_server_passes_under_many_seeds(seed: int) -> None:
    found = server_findings(seed)
    assert {one.outcome for one in found} == {Outcome.PASS}, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_clean_client_passes_under_many_seeds(seed: int) -> None:
    found = client_findings(seed)
    assert {one.outcome for one in found} == {Outcome.PASS}, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
@pytest.mark.parametrize("name", SERVER_BUGS | CLIENT_BUGS)
def test_bug_is_detected_under_five_seeds(name: str, seed: int) -> None:
    bug = (SERVER_BUGS | CLIENT_BUGS)[name]
    with bug.patch():
        findings = (server_findings if name in SERVER_BUGS else client_findings)(seed)
    require_detected(bug, findings)


def test_a_claim_covers_all_local_steps() -> None:
    assert client_factory().claim().steps == ROUNDS * LOCAL_STEPS
