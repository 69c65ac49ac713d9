"""The server's release: sensitivity, noise, accounting and refusals."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpaudit.accountants import pld
from dpaudit.trainer.federated.aggregation import (
    AdaptiveClipping,
    AggregateResult,
    ParticipantAggregation,
    ParticipantClipping,
    grid_spacing,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import ForkedSession, InvalidArgument, NoiseReused
from dpaudit.vocabulary.ledger import UPDATE_SUM, UPDATE_SUM_AND_COUNT
from dpaudit.vocabulary.mechanism import Composed, Gaussian, PoissonSampled, Release, Repeated

REFERENCE = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}
DIMENSION = 17
EVERYONE = range(8)
SETTINGS = ParticipantClipping(0.5, 1.25, participation_rate=1.0, participants=8)
ADAPTIVE = replace(SETTINGS, adaptive=AdaptiveClipping(count_noise=2.0))
RARE = 1e-7  # probability with which a statistical test may fail


def update_of(seed: int, norm: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    values = {name: random.normal(size=part.shape) for name, part in REFERENCE.items()}
    whole = math.sqrt(sum(float((part**2).sum()) for part in values.values()))
    return {name: (part * norm / whole).astype(np.float32) for name, part in values.items()}


UPDATES = {number: update_of(number, 0.2 * (number + 1)) for number in EVERYONE}


def server(
    clipping: ParticipantClipping = SETTINGS,
    *,
    seed: int = 3,
    record: Callable[[str, Release, int], None] = lambda what, release, number: None,
    first_round: int = 0,
    reference: Mapping[str, np.ndarray] = REFERENCE,
) -> ParticipantAggregation:
    stream = Keystream.seeded(seed)
    return ParticipantAggregation(clipping, reference, stream, record, first_round=first_round)


def distance(one: AggregateResult, other: AggregateResult) -> float:
    """Return the L2 distance of two released sums."""
    return math.sqrt(
        sum(float(((one.noisy_sum[n] - other.noisy_sum[n]) ** 2).sum()) for n in REFERENCE)
    )


# Sensitivity.


@pytest.mark.parametrize("times", [0.0, 0.999, 1.0, 1.001, 100.0, 1e30])
def test_a_planted_update_moves_the_sum_by_at_most_the_clip_norm(times: float) -> None:
    without = server().aggregate(0, UPDATES, EVERYONE)
    planted = {**UPDATES, 8: update_of(99, times * 0.5)}
    # A ninth participant, with the same noise.
    found = server().aggregate(0, planted, range(9))
    assert 8 in found.accepted
    assert distance(found, without) <= 0.5
    assert distance(found, without) == pytest.approx(min(times, 1.0) * 0.5, rel=1e-5, abs=1e-9)


def test_the_sum_does_not_depend_on_the_order_of_updates() -> None:
    one = server().aggregate(0, UPDATES, EVERYONE)
    other = server().aggregate(0, dict(reversed(UPDATES.items())), list(reversed(EVERYONE)))
    for name in REFERENCE:
        np.testing.assert_array_equal(one.noisy_sum[name], other.noisy_sum[name])
    assert one.accepted == other.accepted == tuple(EVERYONE)


def test_a_lost_update_makes_the_sum_smaller_and_leaves_noise_and_denominator() -> None:
    whole = server().aggregate(0, UPDATES, EVERYONE)
    some = {number: UPDATES[number] for number in EVERYONE if number != 2}
    less = server().aggregate(0, some, EVERYONE)
    nothing = server().aggregate(0, {}, EVERYONE)
    for name in REFERENCE:
        # Updates 0 and 1 are within the clip norm 0.5, number 2 is not.
        moved = whole.noisy_sum[name] - less.noisy_sum[name]
        np.testing.assert_allclose(moved, UPDATES[2][name] * (0.5 / 0.6), atol=1e-7)
        np.testing.assert_allclose(less.average[name], less.noisy_sum[name] / 8, rtol=1e-6)
        assert np.abs(nothing.noisy_sum[name]).max() > 0
    assert whole.deviation == less.deviation == nothing.deviation == 0.5 * 1.25


def test_the_denominator_is_the_public_number_expected_to_join() -> None:
    quarter = replace(SETTINGS, participation_rate=0.25, noise_multiplier=1e-9)
    found = server(quarter).aggregate(0, {0: UPDATES[0]}, [0])
    np.testing.assert_allclose(found.average["w"], UPDATES[0]["w"] / 2, atol=1e-6)


# Noise.


def test_noise_has_the_recorded_deviation_and_is_added_once() -> None:
    large = {"w": np.zeros(40_000, np.float32)}
    found = server(reference=large).aggregate(0, {}, []).noisy_sum["w"]
    ratio = float((found**2).sum()) / (0.5 * 1.25) ** 2
    assert stats.chi2.ppf(RARE, 40_000) < ratio < stats.chi2.isf(RARE, 40_000)
    assert stats.kstest(found / (0.5 * 1.25), "norm").pvalue > RARE


def test_the_released_sum_lies_on_the_grid() -> None:
    found = server().aggregate(0, UPDATES, EVERYONE)
    grid = grid_spacing(SETTINGS)
    assert math.frexp(grid)[0] == 0.5
    for part in found.noisy_sum.values():
        np.testing.assert_array_equal(part / grid, np.round(part / grid))


def test_rounds_have_independent_noise() -> None:
    one = server()
    first, second = (one.aggregate(number, {}, []).noisy_sum["w"] for number in (0, 1))
    assert (first != second).all()
    assert (server(seed=4).aggregate(0, {}, []).noisy_sum["w"] != first).all()


def test_the_release_is_recorded_before_any_noise_is_drawn() -> None:
    order: list[str] = []

    class Watched(Keystream):
        def reader(
            self, purpose: Purpose, step: int, start: int = 0, *, length: int = 0
        ) -> Callable[[bytearray | memoryview], None]:
            order.append(purpose.name)
            return super().reader(purpose, step, start, length=length)

        def bits(self, purpose: Purpose, step: int, count: int) -> bytearray:
            order.append(purpose.name)
            return super().bits(purpose, step, count)

    stream = Watched(Keystream.seeded(0).key, Keystream.seeded(0).randomness)
    ParticipantAggregation(
        ADAPTIVE, REFERENCE, stream, lambda *what: order.append("recorded")
    ).aggregate(0, UPDATES, EVERYONE)
    assert [*dict.fromkeys(order)] == ["recorded", "UPDATE_NOISE", "CLIPPED_COUNT_NOISE"]


def test_a_round_whose_record_failed_can_be_repeated_and_one_that_was_recorded_cannot() -> None:
    failures = iter([OSError("disk full")])

    def record(what: str, release: Release, number: int) -> None:
        for error in failures:
            raise error

    one = server(record=record)
    with pytest.raises(OSError, match="disk full"):
        one.aggregate(0, UPDATES, EVERYONE)
    one.aggregate(0, UPDATES, EVERYONE)
    with pytest.raises(NoiseReused, match="round 0 was aggregated before"):
        one.aggregate(0, UPDATES, EVERYONE)
    one.aggregate(5, UPDATES, EVERYONE)
    with pytest.raises(NoiseReused):
        one.aggregate(4, UPDATES, EVERYONE)
    with pytest.raises(NoiseReused):
        server(first_round=3).aggregate(2, UPDATES, EVERYONE)


def test_a_copy_of_a_server_is_refused() -> None:
    with pytest.raises(ForkedSession):
        copy.deepcopy(server())


# Refusals.


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({**UPDATES[3], "b": np.full(5, np.nan, np.float32)}, "b holds NaN or infinity"),
        ({**UPDATES[3], "b": np.zeros(6, np.float32)}, "b has shape (6,), not (5,)"),
        ({**UPDATES[3], "b": np.zeros(5)}, "b has type float64, not float32"),
        ({"w": UPDATES[3]["w"]}, "it lacks b (1 names in all)"),
    ],
)
def test_bad_updates_are_left_out_by_name_and_the_round_ends(
    bad: dict[str, np.ndarray], reason: str
) -> None:
    without = {number: one for number, one in UPDATES.items() if number != 3}
    found = server().aggregate(0, {**UPDATES, 3: bad}, EVERYONE)
    assert found.rejected == {3: reason}
    assert found.accepted == tuple(without)
    assert distance(found, server().aggregate(0, without, EVERYONE)) == 0


def test_an_update_of_a_participant_that_was_not_drawn_is_left_out() -> None:
    found = server().aggregate(0, UPDATES, [0, 1])
    assert found.accepted == (0, 1)
    assert set(found.rejected.values()) == {"it was not drawn for this round"}


# Participants.


def test_participants_join_by_independent_coins_of_the_rate() -> None:
    many = replace(SETTINGS, participants=2000, participation_rate=0.1)
    one, other = server(many), server(many, seed=4)
    counts = [len(one.draw_participants(number)) for number in range(50)]
    assert stats.binomtest(sum(counts), 100_000, 0.1).pvalue > RARE
    assert np.var(counts) > 0
    assert not np.array_equal(one.draw_participants(0), other.draw_participants(0))
    np.testing.assert_array_equal(one.draw_participants(3), one.draw_participants(3))


def test_everyone_joins_at_rate_one() -> None:
    np.testing.assert_array_equal(server().draw_participants(0), np.arange(8))


# Accounting.


def test_the_recorded_release_is_that_of_the_settings() -> None:
    recorded: list[tuple[str, Release, int]] = []
    sampled = replace(SETTINGS, participation_rate=0.5)
    one = server(sampled, record=lambda *line: recorded.append(line))
    for number in range(3):
        one.aggregate(number, {}, [])
    release = PoissonSampled(Gaussian(1.25), 0.5)
    assert recorded == [(UPDATE_SUM, release, number) for number in range(3)]
    whole = Composed(tuple(line[1] for line in recorded))
    epsilon = pld.profile(whole).epsilon(delta=1e-5)
    expected = pld.profile(Repeated(release, 3)).epsilon(delta=1e-5)
    assert epsilon.upper == pytest.approx(expected.upper, rel=1e-6)


@given(st.floats(0.01, 50), st.floats(0.5000001, 100))
@settings(max_examples=300, deadline=None)
def test_sum_and_count_together_have_the_noise_multiplier_of_the_record(
    noise_multiplier: float, times: float
) -> None:
    """In units of its noise, one participant moves both releases by at most 1 / z."""
    count_noise = noise_multiplier * times
    adaptive = ParticipantClipping(
        1.0, noise_multiplier, 1.0, 1, AdaptiveClipping(count_noise=count_noise)
    )
    moved = math.hypot(1 / adaptive.sum_multiplier, 0.5 / count_noise)
    assert moved <= 1 / noise_multiplier * (1 + 1e-15)
    assert moved == pytest.approx(1 / noise_multiplier, rel=1e-9)


def test_adaptive_clipping_records_one_joint_release_and_adds_the_larger_noise() -> None:
    recorded: list[tuple[str, Release, int]] = []
    large = {"w": np.zeros(40_000, np.float32)}
    one = server(ADAPTIVE, record=lambda *line: recorded.append(line), reference=large)
    found = one.aggregate(0, {}, [])
    assert recorded == [(UPDATE_SUM_AND_COUNT, Gaussian(1.25), 0)]
    # 1 / z_sum^2 = 1 / 1.25^2 - 1 / (2 * 2)^2
    z_sum = (1.25**-2 - 4.0**-2) ** -0.5
    assert found.deviation == pytest.approx(0.5 * z_sum, rel=1e-12)
    ratio = float((found.noisy_sum["w"] ** 2).sum()) / (0.5 * z_sum) ** 2
    assert stats.chi2.ppf(RARE, 40_000) < ratio < stats.chi2.isf(RARE, 40_000)


def test_the_count_gets_the_noise_that_was_set() -> None:
    shares = []
    one = server(replace(ADAPTIVE, adaptive=AdaptiveClipping(2.0, learning_rate=1e-9)))
    for number in range(2000):
        result = one.aggregate(number, {}, [])
        assert result.noisy_share is not None
        shares.append((result.noisy_share - 0.5) * 8)  # noise in participants
    ratio = float(np.square(shares).sum()) / 2.0**2
    assert stats.chi2.ppf(RARE, 2000) < ratio < stats.chi2.isf(RARE, 2000)


def test_the_share_counts_updates_within_the_clip_norm() -> None:
    quiet = AdaptiveClipping(count_noise=1e-3, target=0.5, learning_rate=0.3)
    one = server(replace(SETTINGS, noise_multiplier=1e-3, adaptive=quiet))
    found = one.aggregate(0, UPDATES, EVERYONE)  # norms 0.2, 0.4, ..., 1.6: two within 0.5
    assert found.noisy_share is not None
    assert found.noisy_share == pytest.approx(2 / 8, abs=1e-2)
    expected = 0.5 * math.exp(-0.3 * (found.noisy_share - 0.5))
    assert found.next_clip_norm == one.settings.clip_norm == pytest.approx(expected)


def test_the_clip_norm_converges_to_the_quantile() -> None:
    quiet = AdaptiveClipping(count_noise=1e-3, target=0.75, learning_rate=0.2)
    one = server(replace(SETTINGS, noise_multiplier=1e-3, adaptive=quiet))
    for number in range(60):
        one.aggregate(number, UPDATES, EVERYONE)
    assert 1.1 < one.settings.clip_norm < 1.5  # six of eight norms are at most 1.2


def test_a_large_draw_moves_the_clip_norm_by_a_bounded_factor() -> None:
    wild = AdaptiveClipping(count_noise=1e6, learning_rate=1.0)
    one = server(replace(SETTINGS, adaptive=wild))
    found = one.aggregate(0, UPDATES, EVERYONE)
    assert abs(math.log(found.next_clip_norm / 0.5)) <= 2 + 1e-12


# Settings.


@pytest.mark.parametrize(
    "change",
    [
        {"clip_norm": 0.0},
        {"clip_norm": 1e300},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"participation_rate": 1.5},
        {"participants": 0},
        {"participants": 2**20 + 1},
        {"adaptive": AdaptiveClipping(count_noise=0.625)},  # half of the noise multiplier
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


def test_a_clip_norm_too_small_for_a_grid_is_refused_before_the_record() -> None:
    recorded: list[object] = []
    one = server(replace(SETTINGS, clip_norm=1e-305), record=lambda *line: recorded.append(line))
    with pytest.raises(InvalidArgument, match="grid of floats"):
        one.aggregate(0, UPDATES, EVERYONE)
    assert not recorded


def test_the_server_needs_no_torch() -> None:
    code = (
        "import sys; import dpaudit.trainer.federated.aggregation as one; "
        "sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
