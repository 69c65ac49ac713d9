"""DP-FedAvg over secure aggregation: the same average as in the clear, recorded first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from dpaudit.accountants import pld
from dpaudit.runs.file_io import read_json
from dpaudit.trainer.federated import secure_dp_fedavg
from dpaudit.trainer.federated.aggregation import (
    AdaptiveClipping,
    ParticipantAggregation,
    ParticipantClipping,
)
from dpaudit.trainer.federated.federation_run import (
    prepare_federation,
    prepare_federation_resume,
    resume_federation,
    train_federation,
)
from dpaudit.trainer.federated.secure_aggregation.messages import Phase
from dpaudit.trainer.federated.secure_aggregation.protocol import Drop, nobody_drops
from dpaudit.trainer.federated.secure_dp_fedavg import SecureParticipantAggregation
from dpaudit.trainer.federated.secure_plan import (
    count_coordinates,
    planned_secure_mechanism,
    with_calibrated_secure_noise,
)
from dpaudit.trainer.federated.strategy import RoundResult
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import InvalidArgument, NoiseReused, TooFewParticipants
from dpaudit.vocabulary.federation import (
    NOISE_SHARES,
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
    SecureAggregationSettings,
    ThreatModel,
)
from dpaudit.vocabulary.ledger import (
    UPDATE_SUM,
    UPDATE_SUM_AND_COUNT,
    WRAP_AROUND,
    ReleaseEntry,
    Sampling,
)
from dpaudit.vocabulary.mechanism import (
    DistributedDiscreteGaussian,
    Gaussian,
    PoissonSampled,
    Release,
    Repeated,
)
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
    settings: ParticipantClipping | None = None,
    secure: SecureAggregationSettings | None = None,
    drop: Drop = nobody_drops,
    first_round: int = 0,
) -> SecureParticipantAggregation:
    return SecureParticipantAggregation(
        settings
        or ParticipantClipping(1.0, noise_multiplier, participation_rate=1.0, participants=COUNT),
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


# Adaptive clipping and participation.


def adaptive_settings(
    noise_multiplier: float = 1e-4, count_noise: float = 1e-3
) -> ParticipantClipping:
    adaptive = AdaptiveClipping(count_noise=count_noise)
    return ParticipantClipping(1.0, noise_multiplier, 1.0, COUNT, adaptive)


def test_adaptive_clipping_moves_the_clip_norm_as_a_server_in_the_clear_does() -> None:
    given = updates(0.3)  # norms around 0.85
    given[2] = {name: np.full(part.shape, 9, np.float32) for name, part in REFERENCE.items()}
    recorded = Recorded()
    secure = server(recorded, settings=adaptive_settings())
    clear = ParticipantAggregation(
        adaptive_settings(), REFERENCE, Keystream.seeded(0), lambda *release: None
    )
    for number in range(3):
        found = secure.aggregate(number, given, range(COUNT))
        expected = clear.aggregate(number, given, range(COUNT))
        assert found.noisy_share == pytest.approx(expected.noisy_share, abs=0.01)
        assert found.next_clip_norm == pytest.approx(expected.next_clip_norm, rel=0.01)
        assert found.next_clip_norm == secure.settings.clip_norm != found.clip_norm
        for name in REFERENCE:
            np.testing.assert_allclose(found.average[name], expected.average[name], atol=3e-3)
    assert [what for what, _, _ in recorded] == [UPDATE_SUM_AND_COUNT, WRAP_AROUND] * 3
    assert len({release for _, release, _ in recorded}) == 2  # equal in all rounds


def test_a_count_costs_no_more_than_the_noise_multiplier_says() -> None:
    recorded = Recorded()
    together = server(recorded, settings=adaptive_settings(2.0, 5.0))
    together.aggregate(0, updates(), range(COUNT))
    (_, release, _), _ = recorded
    epsilon = pld.profile(release, adjacency=Adjacency.ZERO_OUT).epsilon(delta=1e-5)
    whole = pld.profile(Gaussian(2.0), adjacency=Adjacency.ZERO_OUT).epsilon(delta=1e-5)
    alone = pld.profile(Gaussian(together.settings.sum_multiplier), adjacency=Adjacency.ZERO_OUT)
    # Rounding to 2^16 steps adds little, and the count is paid for.
    assert whole.lower <= epsilon.upper <= 1.001 * whole.upper
    assert epsilon.lower > 1.01 * alone.epsilon(delta=1e-5).upper


def test_as_many_participants_are_drawn_in_every_round() -> None:
    settings = ParticipantClipping(1.0, 1e-4, participation_rate=0.6, participants=COUNT)
    together = server(Recorded(), settings=settings)
    rounds = 1000
    drawn = [tuple(map(int, together.draw_participants(number))) for number in range(rounds)]
    assert {len(one) for one in drawn} == {3}
    assert len(set(drawn)) == math.comb(COUNT, 3)
    for number in range(COUNT):  # six standard errors
        share = sum(number in one for one in drawn) / rounds
        assert abs(share - 0.6) < 6 * math.sqrt(0.24 / rounds)


def test_the_sum_of_the_drawn_is_divided_by_their_number() -> None:
    settings = ParticipantClipping(1.0, 1e-4, participation_rate=0.6, participants=COUNT)
    recorded = Recorded()
    together = server(recorded, settings=settings)
    drawn = [int(one) for one in together.draw_participants(0)]
    given = {number: one for number, one in updates().items() if number in drawn}
    result = together.aggregate(0, given, drawn)
    expected = sum(one["bias"].astype(np.float64) for one in given.values()) / 3
    np.testing.assert_allclose(result.average["bias"], expected, atol=6e-4)
    # Who joins is public, so the release is that of a round that everybody joins.
    everyone = Recorded()
    server(everyone).aggregate(0, updates(), range(COUNT))
    assert recorded == everyone


def test_participation_below_the_threshold_is_refused() -> None:
    settings = ParticipantClipping(1.0, 1.0, participation_rate=0.4, participants=COUNT)
    with pytest.raises(InvalidArgument, match=r"participation_rate must be at least 0\.6"):
        server(Recorded(), settings=settings)


# The embedded engine.


def config(
    *,
    secure: SecureAggregationSettings | None = None,
    strategy: str = "dp-fedavg",
    participants: int = 4,
    **privacy: float,
) -> FederatedConfig:
    given = {"delta": 1e-5, "noise_multiplier": 2.0, "clip_norm": 0.5, "seed": 1, **privacy}
    return FederatedConfig(
        DataSettings("digits"),
        FederationSettings(strategy, participants, rounds=2),
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


def test_a_run_with_adaptive_clipping_claims_the_whole_noise(tmp_path: Path) -> None:
    settings = config(adaptive_clipping=True, quantile_noise=3.0)
    results: list[RoundResult] = []
    run = train_federation(
        prepare_federation(settings), tmp_path / "run", lambda one, _: results.append(one)
    )
    ledger = run.read_finished()
    assert [one.what for one in ledger.releases] == [UPDATE_SUM_AND_COUNT, WRAP_AROUND] * 2
    claim = read_json(run.claim, Claim)
    gaussian = pld.profile(Repeated(Gaussian(2.0), 2), adjacency=Adjacency.ZERO_OUT)
    least = gaussian.epsilon(delta=1e-5)
    assert least.lower <= claim.epsilon.upper <= 1.001 * least.upper


def test_a_resumed_run_continues_with_its_clip_norm(tmp_path: Path) -> None:
    settings = config(adaptive_clipping=True, quantile_noise=3.0)
    whole = prepare_federation(settings)
    train_federation(whole, tmp_path / "whole", ignore)

    def interrupt(result: RoundResult, federation: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "part"
    every = replace(settings, speed=replace(settings.speed, checkpoint_every=1))
    with pytest.raises(KeyboardInterrupt):
        train_federation(prepare_federation(every), out, interrupt)
    prepared = prepare_federation_resume(out)
    resume_federation(prepared, out, ignore)
    for one, other in zip(whole.model.parameters(), prepared.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_participation_is_accounted_for_without_amplification(tmp_path: Path) -> None:
    secure = SecureAggregationSettings(dropouts=3, colluders=1)
    settings = config(participants=6, secure=secure, participation_rate=0.5)
    results: list[RoundResult] = []
    run = train_federation(
        prepare_federation(settings), tmp_path / "run", lambda one, _: results.append(one)
    )
    assert [len(one.joined) for one in results] == [3, 3]
    claim = read_json(run.claim, Claim)
    assert claim.sampling is Sampling.FIXED_SIZE
    mechanism = planned_secure_mechanism(replace_rate(settings, 1.0), count_coordinates(settings))
    everyone = pld.profile(mechanism, adjacency=Adjacency.ZERO_OUT).epsilon(delta=1e-5)
    assert claim.epsilon.upper == pytest.approx(everyone.upper, rel=1e-9)
    # A claim of amplification would be several times smaller.
    sampled = Repeated(PoissonSampled(Gaussian(2.0), 0.5), 2)
    assert claim.epsilon.lower > 1.5 * pld.profile(sampled).epsilon(delta=1e-5).upper
    federation = claim.federation
    assert federation is not None
    assert federation.threat_model is not None
    assert any("amplifies nothing" in one for one in federation.threat_model.assumptions)


def replace_rate(settings: FederatedConfig, rate: float) -> FederatedConfig:
    return replace(settings, privacy=replace(settings.privacy, participation_rate=rate))


# Noise by a target.


@pytest.mark.parametrize("changes", [{}, {"adaptive_clipping": True}])
@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_calibrated_noise_meets_the_target_and_no_less_does(
    noise: str, changes: dict[str, Any]
) -> None:
    secure = SecureAggregationSettings(dropouts=1, colluders=1, noise=noise, clip_levels=2**10)
    found = with_calibrated_secure_noise(config(secure=secure, **changes), 3.0)
    dimension = count_coordinates(found)
    assert dimension == 650  # of 64 pixels and 10 classes

    def epsilon(settings: FederatedConfig) -> float:
        mechanism = planned_secure_mechanism(settings, dimension)
        return pld.profile(mechanism, adjacency=Adjacency.ZERO_OUT).epsilon(delta=1e-5).upper

    assert epsilon(found) <= 3.0
    less = 0.999 * found.privacy.noise_multiplier
    assert epsilon(replace(found, privacy=replace(found.privacy, noise_multiplier=less))) > 3.0


def test_a_run_of_calibrated_noise_claims_its_target(tmp_path: Path) -> None:
    found = with_calibrated_secure_noise(config(), 3.0)
    run = train_federation(prepare_federation(found), tmp_path / "run", ignore)
    assert 2.99 < read_json(run.claim, Claim).epsilon.upper <= 3.0


def test_a_target_whose_noise_wraps_around_is_refused() -> None:
    secure = SecureAggregationSettings(modulus_bits=19)
    with pytest.raises(InvalidArgument, match=r"target_epsilon.*modulus_bits"):
        with_calibrated_secure_noise(config(secure=secure), 0.1)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"adaptive_clipping": True, "quantile_noise": 0.9}, "quantile_noise"),
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
