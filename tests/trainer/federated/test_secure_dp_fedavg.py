"""DP-FedAvg over secure aggregation: the same average as in the clear, recorded first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit.accountants import pld
from dpaudit.runs.file_io import read_json
from dpaudit.trainer.federated import secure_dp_fedavg
from dpaudit.trainer.federated.aggregation import AdaptiveClipping, ParticipantClipping
from dpaudit.trainer.federated.federation_run import prepare_federation, train_federation
from dpaudit.trainer.federated.secure_aggregation.messages import Phase
from dpaudit.trainer.federated.secure_aggregation.protocol import Drop, nobody_drops
from dpaudit.trainer.federated.secure_dp_fedavg import SecureParticipantAggregation
from dpaudit.trainer.federated.strategy import RoundResult
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import InvalidArgument, NoiseReused, TooFewParticipants
from dpaudit.vocabulary.federation import (
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
    SecureAggregationSettings,
    ThreatModel,
)
from dpaudit.vocabulary.ledger import UPDATE_SUM, WRAP_AROUND, ReleaseEntry
from dpaudit.vocabulary.mechanism import DistributedDiscreteGaussian, Release
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit
from dpaudit.vocabulary.settings import DataSettings, ModelSettings

REFERENCE = {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
COUNT = 5
Updates = dict[int, dict[str, NDArray[np.float32]]]


def updates(size: float = 0.1) -> Updates:
    generator = np.random.default_rng(0)
    return {
        number: {
            name: (size * generator.standard_normal(part.shape)).astype(np.float32)
            for name, part in REFERENCE.items()
        }
        for number in range(COUNT)
    }


class Recorded(list[tuple[str, Release, int]]):
    """The releases that a server recorded."""

    def __call__(self, what: str, release: Release, number: int) -> None:
        self.append((what, release, number))


def server(
    recorded: Recorded,
    *,
    noise_multiplier: float = 1e-4,
    secure: SecureAggregationSettings | None = None,
    drop: Drop = nobody_drops,
    first_round: int = 0,
) -> SecureParticipantAggregation:
    return SecureParticipantAggregation(
        ParticipantClipping(1.0, noise_multiplier, participation_rate=1.0, participants=COUNT),
        secure or SecureAggregationSettings(dropouts=2, colluders=1),
        REFERENCE,
        Keystream.seeded(0),
        {number: Keystream.seeded(1 + number) for number in range(COUNT)},
        recorded,
        first_round=first_round,
        drop=drop,
    )


def mean_of(given: Mapping[int, Mapping[str, NDArray[np.float32]]], name: str) -> np.ndarray:
    return sum(one[name].astype(np.float64) for one in given.values()) / COUNT


def test_the_average_is_that_of_the_clipped_updates() -> None:
    given = updates()
    result = server(Recorded()).aggregate(0, given, range(COUNT))
    assert (result.accepted, result.rejected) == (tuple(range(COUNT)), {})
    for name in REFERENCE:
        # Five roundings by one step of 2^-16, and noise of 1e-4 sqrt(5/2), all over 5.
        np.testing.assert_allclose(result.average[name], mean_of(given, name), atol=3e-4)
        assert result.average[name].dtype == np.float32


def test_a_large_update_moves_the_sum_by_the_clip_norm() -> None:
    given = updates(0.0)
    given[3] = {name: np.full(part.shape, 1e6, np.float32) for name, part in REFERENCE.items()}
    result = server(Recorded()).aggregate(0, given, range(COUNT))
    squares = sum(float((part**2).sum()) for part in result.noisy_sum.values())
    assert squares == pytest.approx(1.0, abs=5e-3)


def test_releases_are_recorded_before_any_noise_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded()

    def failing(*_: object) -> None:
        assert [what for what, _, _ in recorded] == [UPDATE_SUM, WRAP_AROUND]
        raise KeyboardInterrupt

    monkeypatch.setattr(secure_dp_fedavg.NoisySum, "contribution", failing)
    with pytest.raises(KeyboardInterrupt):
        server(recorded).aggregate(4, updates(), range(COUNT))
    assert {number for _, _, number in recorded} == {4}
    assert isinstance(recorded[0][1], DistributedDiscreteGaussian)
    assert recorded[0][1].shares == COUNT - 2 - 1


def test_a_lost_participant_gives_a_smaller_sum_over_the_same_denominator() -> None:
    def drop(phase: Phase, number: int) -> bool:
        return (phase, number) in {(Phase.MASKED_INPUT, 1), (Phase.UNMASKING, 4)}

    given = updates()
    result = server(Recorded(), drop=drop).aggregate(0, given, range(COUNT))
    assert result.accepted == (0, 2, 3, 4)
    assert result.rejected == {1: "lost in the phase 'masked input' of secure aggregation"}
    kept = {number: one for number, one in given.items() if number != 1}
    np.testing.assert_allclose(result.average["bias"], mean_of(kept, "bias"), atol=3e-4)


def test_invalid_updates_are_left_out_by_name() -> None:
    given: dict[int, dict[str, NDArray[np.float32]]] = updates()
    given[0]["bias"] = np.array([np.nan, 0], np.float32)
    given[1]["bias"] = np.zeros(3, np.float32)
    result = server(Recorded()).aggregate(0, given, range(COUNT))
    assert result.accepted == (2, 3, 4)
    assert "NaN" in result.rejected[0]
    assert "shape" in result.rejected[1]


def test_an_update_of_nobody_who_was_drawn_is_left_out() -> None:
    result = server(Recorded()).aggregate(0, updates(), [0, 1, 2])
    assert (result.accepted, set(result.rejected)) == ((0, 1, 2), {3, 4})


def test_too_few_updates_release_nothing() -> None:
    recorded = Recorded()
    few = {number: one for number, one in updates().items() if number < 2}
    together = server(recorded)
    with pytest.raises(TooFewParticipants):
        together.aggregate(0, few, range(COUNT))
    assert recorded == []
    together.aggregate(0, updates(), range(COUNT))


def test_too_few_survivors_of_the_protocol_are_an_error_and_stay_recorded() -> None:
    recorded = Recorded()
    together = server(recorded, drop=lambda phase, number: number < 3)
    with pytest.raises(TooFewParticipants):
        together.aggregate(0, updates(), range(COUNT))
    assert len(recorded) == 2
    with pytest.raises(NoiseReused):
        together.aggregate(0, updates(), range(COUNT))


def test_a_repeated_round_is_refused() -> None:
    together = server(Recorded(), first_round=2)
    for number in (0, 1):
        with pytest.raises(NoiseReused):
            together.aggregate(number, updates(), range(COUNT))
    together.aggregate(2, updates(), range(COUNT))
    with pytest.raises(NoiseReused):
        together.aggregate(2, updates(), range(COUNT))


def test_noise_of_two_rounds_differs() -> None:
    together = server(Recorded(), noise_multiplier=1.0)
    sums = [together.aggregate(number, updates(), range(COUNT)).noisy_sum for number in (0, 1)]
    assert not np.array_equal(sums[0]["weight"], sums[1]["weight"])


def test_adaptive_clipping_is_refused() -> None:
    settings = ParticipantClipping(1.0, 1.0, 1.0, COUNT, AdaptiveClipping(count_noise=5.0))
    with pytest.raises(InvalidArgument, match="adaptive_clipping"):
        SecureParticipantAggregation(
            settings,
            SecureAggregationSettings(),
            REFERENCE,
            Keystream.seeded(0),
            {},
            Recorded(),
        )


# The embedded engine.


def config(
    *,
    secure: SecureAggregationSettings | None = None,
    strategy: str = "dp-fedavg",
    **privacy: float,
) -> FederatedConfig:
    given = {"delta": 1e-5, "noise_multiplier": 2.0, "clip_norm": 0.5, "seed": 1, **privacy}
    return FederatedConfig(
        DataSettings("digits"),
        FederationSettings(strategy, participants=4, rounds=2),
        FederatedPrivacy(**given),  # type: ignore[arg-type]
        LocalTraining(local_steps=2),
        secure_aggregation=secure or SecureAggregationSettings(dropouts=1, colluders=1),
        model=ModelSettings("linear"),
    )


def ignore(result: RoundResult, federation: object) -> None:
    del result, federation


def test_a_run_records_its_releases_and_its_threat_model(tmp_path: Path) -> None:
    run = train_federation(prepare_federation(config()), tmp_path / "run", ignore)
    ledger = run.read_ledger()
    federation = ledger.header.federation
    assert federation is not None
    assert federation.threat_model == ThreatModel(4, 3, 1, one_process=True)
    assert federation.protects_against == federation.threat_model.protects_against
    assert ledger.header.unit is Unit.PARTICIPANT
    releases = [line for line in ledger.lines if isinstance(line, ReleaseEntry)]
    assert [(one.what, one.step) for one in releases] == [
        (UPDATE_SUM, 0),
        (WRAP_AROUND, 0),
        (UPDATE_SUM, 1),
        (WRAP_AROUND, 1),
    ]
    for own in ledger.participants.values():
        assert own.releases == ledger.releases
    claim = read_json(run.claim, Claim)
    # Who takes part is public: the update of one participant counts as zero.
    assert claim.adjacency is Adjacency.ZERO_OUT
    assert "who joins a round" in claim.assumed_public
    expected = pld.profile(ledger.mechanism, adjacency=Adjacency.ZERO_OUT)
    assert claim.epsilon.upper == pytest.approx(expected.epsilon(delta=1e-5).upper)
    assert claim.federation == federation


def test_the_run_stops_before_its_budget_is_exceeded(tmp_path: Path) -> None:
    results = []
    run = train_federation(
        prepare_federation(config(max_epsilon=2.2)),
        tmp_path / "run",
        lambda result, federation: results.append(result),
    )
    assert [result.ended for result in results] == [False, True]
    assert read_json(run.claim, Claim).epsilon.upper <= 2.2


def test_a_round_below_the_threshold_releases_nothing_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregate = SecureParticipantAggregation.aggregate

    def losing(self: object, number: int, updates: Updates, expected: list[int]) -> object:
        kept = {one: update for one, update in updates.items() if number or one < 2}
        return aggregate(self, number, kept, expected)  # type: ignore[arg-type]

    monkeypatch.setattr(SecureParticipantAggregation, "aggregate", losing)
    results: list[RoundResult] = []
    run = train_federation(
        prepare_federation(config()), tmp_path / "run", lambda one, _: results.append(one)
    )
    assert [result.joined for result in results] == [(), (0, 1, 2, 3)]
    assert "at least 3" in results[0].rejected[0]
    assert {one.step for one in run.read_ledger().releases} == {1}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"adaptive_clipping": True}, "adaptive_clipping"),
        ({"participation_rate": 0.5}, "participation_rate"),
        ({"secure": SecureAggregationSettings(dropouts=4)}, "dropouts"),
        ({"secure": SecureAggregationSettings(dropouts=2, colluders=2)}, "colluders"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        prepare_federation(config(**changes))  # type: ignore[arg-type]


def test_other_strategies_refuse_secure_aggregation() -> None:
    with pytest.raises(InvalidArgument, match="strategy"):
        config(strategy="fedavg")


def test_settings_have_a_round_trip() -> None:
    given = config()
    assert msgspec.json.decode(msgspec.json.encode(given), type=FederatedConfig) == given
