"""Selective SGD: selection against a slow oracle, counters, bounds, turn orders."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dpaudit.trainer.federated import dssgd
from dpaudit.trainer.federated.dssgd import (
    Action,
    ParameterServer,
    SparseVectorScales,
    Upload,
    apply_upload,
    bound_entries,
    download,
    laplace_draws,
    largest_positions,
    select_above,
    select_largest,
    select_upload,
    sparse_vector_upload,
    turn_events,
    upload_size,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import ORDERS, SelectiveSettings

finite = st.floats(-4, 4, width=32)
vectors = st.lists(finite, min_size=1, max_size=40).map(lambda v: np.array(v, dtype=np.float32))
fractions = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**30)


# A slow oracle: the published pseudocode, one coordinate at a time, on the same random words.


def sparse_vector_one_by_one(
    change: NDArray[np.float32],
    given_settings: SelectiveSettings,
    scales: SparseVectorScales,
    stream: Keystream,
    turn: int,
) -> list[tuple[int, float]]:
    gamma, tau = given_settings.gradient_bound, given_settings.threshold

    def bounded(x: float) -> float:
        return max(-gamma, min(gamma, x))

    def laplace(purpose: Purpose) -> list[float]:
        count = len(change) if purpose is Purpose.ENTRY_NOISE else scales.entries
        return [float(x) for x in laplace_draws(stream.words(purpose, turn, count))]

    words = stream.words(Purpose.SELECTION_ORDER, turn, len(change))
    order = sorted(range(len(change)), key=lambda j: (int(words[j]), j))
    of_entries = laplace(Purpose.ENTRY_NOISE)
    of_thresholds, of_values = laplace(Purpose.THRESHOLD_NOISE), laplace(Purpose.VALUE_NOISE)
    uploaded: list[tuple[int, float]] = []
    for examined, j in enumerate(order):
        if len(uploaded) == scales.entries:
            break
        r_tau = scales.threshold * of_thresholds[len(uploaded)]
        r_w = scales.entry * of_entries[examined]
        if abs(bounded(float(change[j]))) + r_w >= tau + r_tau:
            noise = scales.value * of_values[len(uploaded)]
            uploaded.append((j, bounded(float(change[j]) + noise)))
    return uploaded


@given(vectors, fractions, st.floats(0.01, 100.0), st.sampled_from([0.25, 0.5, 1.0]), seeds)
@settings(max_examples=200)
def test_sparse_vector_selection_equals_the_pseudocode(
    change: NDArray[np.float32], fraction: float, epsilon: float, gamma: float, seed: int
) -> None:
    given_settings = SelectiveSettings(
        upload_fraction=fraction,
        gradient_bound=gamma,
        threshold=0.125,
        selection="threshold",
        epsilon_per_epoch=epsilon,
    )
    scales = SparseVectorScales.of(given_settings, len(change))
    assert scales is not None
    stream = Keystream.seeded(seed)
    found = sparse_vector_upload(change, given_settings, scales, stream, 3)
    expected = sparse_vector_one_by_one(change, given_settings, scales, stream, 3)
    assert found.positions.tolist() == [j for j, _ in expected]
    np.testing.assert_allclose(found.values, [v for _, v in expected], rtol=1e-6, atol=1e-7)
    assert select_upload(change, given_settings, stream, 3).positions.tolist() == [
        j for j, _ in expected
    ]


def test_long_streams_equal_the_pseudocode_across_chunks() -> None:
    change = np.linspace(-1, 1, 5000, dtype=np.float32)
    given_settings = SelectiveSettings(
        gradient_bound=1.0, threshold=0.9, selection="threshold", epsilon_per_epoch=1.0
    )
    scales = SparseVectorScales(4000.0, entries=9, sensitivity=1.0)
    stream = Keystream.seeded(5)
    found = sparse_vector_upload(change, given_settings, scales, stream, 0)
    expected = sparse_vector_one_by_one(change, given_settings, scales, stream, 0)
    assert found.positions.tolist() == [j for j, _ in expected]
    assert len(expected) == 9


# Server.


@given(vectors, st.data())
def test_largest_positions_equal_a_sort(values: NDArray[np.float32], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    by_sort = sorted(range(len(values)), key=lambda j: (-values[j], j))[:count]
    assert largest_positions(values, count).tolist() == sorted(by_sort)


def test_nan_and_impossible_counts_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="NaN"):
        largest_positions(np.array([1.0, math.nan]), 1)
    with pytest.raises(InvalidArgument, match="at most the number of values"):
        largest_positions(np.array([1.0]), 2)


@given(st.lists(vectors.filter(lambda v: len(v) > 2), min_size=1, max_size=8), st.floats(0.1, 1.0))
def test_counters_are_the_decayed_sum_of_uploads(
    changes: list[NDArray[np.float32]], decay: float
) -> None:
    size = min(map(len, changes))
    server = ParameterServer.start(np.zeros(size, dtype=np.float32))
    history = []
    for change in changes:
        positions = np.flatnonzero(change[:size] > 0).astype(np.int64)
        history.append(positions)
        server = apply_upload(server, Upload(positions, change[positions]), decay)
    expected = np.zeros(size)
    for age, positions in enumerate(reversed(history)):
        expected[positions] += decay**age
    np.testing.assert_allclose(server.counters, expected, rtol=1e-12)


@given(vectors, fractions)
def test_download_replaces_the_coordinates_of_highest_counter_alone(
    counters: NDArray[np.float32], fraction: float
) -> None:
    size = len(counters)
    server = ParameterServer(np.ones(size, dtype=np.float32), counters.astype(np.float64))
    fresh = download(server, np.zeros(size, dtype=np.float32), fraction)
    count = upload_size(fraction, size)
    assert int(fresh.sum()) == count
    if 0 < count < size:
        assert counters[fresh == 1].min() >= counters[fresh == 0].max()


@given(st.integers(1, 10**6), fractions)
def test_an_upload_is_never_larger_than_its_fraction(dimension: int, fraction: float) -> None:
    count = upload_size(fraction, dimension)
    assert count == 1 or count <= fraction * dimension


def test_invalid_uploads_are_refused() -> None:
    server = ParameterServer.start(np.zeros(3, dtype=np.float32))
    one = np.ones(1, dtype=np.float32)
    with pytest.raises(InvalidArgument, match="finite"):
        apply_upload(server, Upload(np.array([0]), one * np.nan), 0.5)
    with pytest.raises(InvalidArgument, match="from 0 to 2"):
        apply_upload(server, Upload(np.array([3]), one), 0.5)
    with pytest.raises(InvalidArgument, match="from 0 to 2"):
        apply_upload(server, Upload(np.array([-1]), one), 0.5)
    with pytest.raises(InvalidArgument, match="twice"):
        Upload(np.array([1, 1]), np.ones(2, dtype=np.float32))
    with pytest.raises(InvalidArgument, match="one per position"):
        Upload(np.array([1]), np.ones(2, dtype=np.float32))


# Selection and bound.


@given(vectors, fractions, st.sampled_from(["largest", "threshold"]), seeds)
def test_an_upload_is_bounded_small_and_of_real_changes(
    change: NDArray[np.float32], fraction: float, selection: str, seed: int
) -> None:
    given_settings = SelectiveSettings(
        upload_fraction=fraction, gradient_bound=0.1, threshold=0.5, selection=selection
    )
    upload = select_upload(change, given_settings, Keystream.seeded(seed), turn=1)
    assert len(upload.positions) <= upload_size(fraction, len(change))
    assert (np.abs(upload.values.astype(np.float64)) <= 0.1).all()
    chosen = change[upload.positions]
    assert (np.sign(chosen) == np.sign(upload.values)).all()
    small = np.abs(chosen) <= 0.1
    np.testing.assert_array_equal(upload.values[small], chosen[small])
    if selection == "largest" and len(upload.positions):
        left = np.delete(np.abs(change), upload.positions)
        assert not len(left) or np.abs(chosen).min() >= left.max()
    if selection == "threshold":
        assert (np.abs(chosen) > 0.5).all()


def test_every_coordinate_above_the_threshold_is_equally_likely() -> None:
    change = np.array([1.0, -1.0, 0.0, 2.0, -2.0], dtype=np.float32)
    stream, turns = Keystream.seeded(1), 4000
    counts = np.zeros(5)
    for turn in range(turns):
        counts[select_above(change, 1, 0.5, stream, turn)] += 1
    assert counts[2] == 0
    assert stats.chisquare(np.delete(counts, 2)).pvalue > 1e-6


def test_unchanged_coordinates_are_not_uploaded() -> None:
    assert select_largest(np.array([0.0, 0.0, 1.0], dtype=np.float32), 3).tolist() == [2]


@given(vectors, st.floats(1e-6, 2.0))
def test_the_bound_holds_in_float64(values: NDArray[np.float32], gamma: float) -> None:
    found = bound_entries(values, gamma).astype(np.float64)
    assert (np.abs(found) <= gamma).all()
    inside = np.abs(values.astype(np.float64)) <= gamma * (1 - 2**-22)
    np.testing.assert_array_equal(found[inside], values[inside].astype(np.float64))


def test_changes_that_are_not_finite_are_refused() -> None:
    for value in (np.nan, np.inf):
        change = np.array([1.0, value], dtype=np.float32)
        with pytest.raises(InvalidArgument, match="learning rate"):
            select_upload(change, SelectiveSettings(), Keystream.seeded(0), 0)
    with pytest.raises(InvalidArgument, match="bounded"):
        bound_entries(np.array([np.nan]), 1.0)


# Noise.


def test_laplace_draws_have_their_law() -> None:
    draws = laplace_draws(Keystream.seeded(2).words(Purpose.ENTRY_NOISE, 0, 200_000))
    assert stats.kstest(draws, stats.laplace.cdf).pvalue > 1e-6
    extremes = laplace_draws(np.array([0, 1, 2**64 - 2, 2**64 - 1], dtype=np.uint64))
    assert np.isfinite(extremes).all()
    assert extremes[0] == -extremes[1] == pytest.approx(64 * math.log(2), rel=1e-12)
    assert extremes[2] == 0 == extremes[3]


@given(st.floats(0.01, 1e6), st.integers(1, 10**6), st.floats(1e-6, 10.0))
def test_the_scales_spend_the_published_budget(
    epsilon: float, entries: int, sensitivity: float
) -> None:
    scales = SparseVectorScales(epsilon, entries, sensitivity)
    answer = sensitivity / scales.threshold + 2 * sensitivity / scales.entry
    value = sensitivity / scales.value
    assert entries * answer == pytest.approx(8 / 9 * epsilon)
    assert entries * value == pytest.approx(1 / 9 * epsilon)


def test_the_sensitivity_is_twice_the_bound() -> None:
    given_settings = SelectiveSettings(
        gradient_bound=0.25, epsilon_per_epoch=2.0, selection="threshold"
    )
    scales = SparseVectorScales.of(given_settings, 100)
    assert scales is not None
    assert (scales.sensitivity, scales.entries, scales.epsilon) == (0.5, 10, 2.0)
    assert SparseVectorScales.of(SelectiveSettings(), 100) is None


def test_noise_with_the_largest_entries_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="selection"):
        SparseVectorScales.of(SelectiveSettings(epsilon_per_epoch=1.0, selection="largest"), 10)


# Turn orders.


@given(st.sampled_from(ORDERS), st.integers(1, 30), seeds, st.integers(0, 100))
def test_every_participant_downloads_once_and_uploads_later(
    order: str, participants: int, seed: int, number: int
) -> None:
    events = turn_events(order, participants, Keystream.seeded(seed), number)
    for participant in range(participants):
        own = [event.action for event in events if event.participant == participant]
        assert own == [Action.DOWNLOAD, Action.UPLOAD]
    assert events == turn_events(order, participants, Keystream.seeded(seed), number)


def test_asynchronous_participants_train_on_stale_downloads() -> None:
    events = turn_events("asynchronous", 20, Keystream.seeded(0), 0)
    actions = [event.action for event in events]
    assert actions != [Action.DOWNLOAD, Action.UPLOAD] * 20
    one = turn_events("random", 20, Keystream.seeded(0), 0)
    assert [event.action for event in one] == [Action.DOWNLOAD, Action.UPLOAD] * 20
    assert [event.participant for event in one] != [j for j in range(20) for _ in range(2)]
    other = turn_events("random", 20, Keystream.seeded(0), 1)
    assert one != other


def test_unknown_orders_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="round-robin"):
        turn_events("alphabetical", 3, Keystream.seeded(0), 0)


# The claimed epsilon of the sparse vector technique, on a tiny instance.

TRIALS, WORST_ERROR, CLAIMED = 3_000, 1e-7, 3.0


def _outcomes(change: NDArray[np.float32], first_turn: int) -> NDArray[np.int64]:
    """Run the implementation ``TRIALS`` times; return a code of what was uploaded."""
    scales = SparseVectorScales.of(TINY, len(change))
    assert scales is not None
    stream, codes = Keystream.seeded(11), np.zeros(TRIALS, dtype=np.int64)
    for turn in range(TRIALS):
        upload = sparse_vector_upload(change, TINY, scales, stream, first_turn + turn)
        for position, value in zip(upload.positions, upload.values, strict=True):
            level = int(value > 0) + int(value >= 0.4999)
            codes[turn] = codes[turn] * 8 + 1 + 3 * int(position) + level
    return codes


def epsilon_lower_bound(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Lower bound of the privacy loss of any outcome; wrong with probability WORST_ERROR."""
    codes = range(64)  # fixed in advance: no upload, or one of two positions at three levels
    error, worst = WORST_ERROR / (4 * len(codes)), 0.0
    for code in codes:
        for first, second in ((one, other), (other, one)):
            hits, misses = int((first == code).sum()), int((second == code).sum())
            low = stats.beta.ppf(error, hits, TRIALS - hits + 1) if hits else 0.0
            high = stats.beta.ppf(1 - error, misses + 1, TRIALS - misses)
            if low > 0:
                worst = max(worst, math.log(low / high))
    return worst


TINY = SelectiveSettings(
    upload_fraction=0.5,
    gradient_bound=0.5,
    threshold=0.25,
    selection="threshold",
    epsilon_per_epoch=CLAIMED,
)
NEIGHBORS = (
    (np.array([0.5, 0.5], dtype=np.float32), np.array([-0.5, -0.5], dtype=np.float32)),
    (np.array([0.5, 0.0], dtype=np.float32), np.array([-0.5, 0.5], dtype=np.float32)),
    (np.array([0.0, 0.0], dtype=np.float32), np.array([0.5, 0.5], dtype=np.float32)),
)
"""Within the assumption: no coordinate differs by more than 2 gamma = 1."""


def contradicted() -> bool:
    """Return whether a pair's lower bound of epsilon is above the claim; false in 3e-7 of cases."""
    return any(
        epsilon_lower_bound(_outcomes(one, 0), _outcomes(other, TRIALS)) > CLAIMED
        for one, other in NEIGHBORS
    )


def test_no_outcome_contradicts_the_claimed_epsilon() -> None:
    assert not contradicted()


# Planted bugs: each makes a check of this file fail.


def _scaled(factor: float, *names: str) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        for name in names:
            scale = getattr(SparseVectorScales, name).fget
            patch.setattr(
                SparseVectorScales, name, property(lambda self, s=scale: s(self) * factor)
            )

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(_scaled(1 / 20, "value"), id="value noise too small"),
        pytest.param(_scaled(1 / 12, "threshold", "entry", "value"), id="every scale too small"),
    ],
)
def test_monte_carlo_detects_too_little_noise(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert contradicted()


def check_budget() -> None:
    scales = SparseVectorScales(epsilon=9.0, entries=4, sensitivity=0.5)
    answer = 0.5 / scales.threshold + 2 * 0.5 / scales.entry
    assert 4 * (answer + 0.5 / scales.value) == pytest.approx(9.0, rel=1e-12)


def check_decay() -> None:
    server = ParameterServer.start(np.zeros(2, dtype=np.float32))
    for position in (0, 1):
        upload = Upload(np.array([position]), np.ones(1, dtype=np.float32))
        server = dssgd.apply_upload(server, upload, 0.5)
    assert server.counters.tolist() == [0.5, 1.0]
    assert dssgd.download(server, np.zeros(2, dtype=np.float32), 0.5).tolist() == [0.0, 1.0]


def check_bound() -> None:
    for selection in ("largest", "threshold"):
        given_settings = SelectiveSettings(
            upload_fraction=1.0, gradient_bound=0.1, selection=selection
        )
        change = np.array([-3.0, 0.05, 3.0], dtype=np.float32)
        upload = dssgd.select_upload(change, given_settings, Keystream.seeded(0), 0)
        assert np.abs(upload.values.astype(np.float64)).max() <= 0.1


def check_answers() -> None:
    """Each answer ends one threshold; no query is used twice."""
    queries, thresholds = np.array([0.0, 2.0, 1.0, 3.0, 1.0]), np.array([1.0, 2.5, 0.5])
    assert dssgd._answers(queries, thresholds).tolist() == [1, 3, 4]


CHECKS = (check_budget, check_decay, check_bound, check_answers)


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_pass_without_a_bug(check: Callable[[], None]) -> None:
    check()


def _one_threshold(queries: NDArray[np.float64], thresholds: NDArray[np.float64]) -> object:
    """The bug of several published variants: the first threshold's noise is used for all."""
    return np.flatnonzero(queries >= thresholds[0])[: len(thresholds)]


BUGS = {
    "value noise halved": (check_budget, _scaled(0.5, "value")),
    "entry noise halved": (check_budget, _scaled(0.5, "entry")),
    "threshold noise halved": (check_budget, _scaled(0.5, "threshold")),
    "counters not decayed": (
        check_decay,
        lambda patch: patch.setattr(
            dssgd, "apply_upload", lambda server, upload, decay: apply_upload(server, upload, 1.0)
        ),
    ),
    "counters decayed after the upload": (
        check_decay,
        lambda patch: patch.setattr(
            dssgd,
            "apply_upload",
            lambda server, upload, decay: ParameterServer(
                apply_upload(server, upload, 1.0).parameters,
                apply_upload(server, upload, 1.0).counters * decay,
            ),
        ),
    ),
    "entries above gamma": (
        check_bound,
        lambda patch: patch.setattr(dssgd, "bound_entries", lambda values, bound: values),
    ),
    "threshold noise drawn once": (
        check_answers,
        lambda patch: patch.setattr(dssgd, "_answers", _one_threshold),
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, plant = BUGS[name]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
