"""Lower bounds against literature values, their own laws, and repeated honest runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpaudit.attacks import bounds
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument


def p_value_by_sums(epsilon: float, m: int, r: int, v: int, delta: float) -> float:
    """Theorem 5.2 of Steinke et al. 2023, term by term."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    pmf = stats.binom(r, q).pmf
    beyond = sum(pmf(k) for k in range(v, r + 1))
    most = max((sum(pmf(k) for k in range(v - i, v)) / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, beyond + 2 * m * delta * most)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "expected"),
    [
        (1000, 100, 95, 1e-5, 2.1651758),
        (1000, 1000, 750, 0.0, 0.97666696),
        (1000, 1000, 750, 1e-5, 0.97636747),
        (200, 50, 50, 1e-3, 2.09721127),
        (1000, 500, 450, 1e-5, 1.94601194),
    ],
)
def test_one_run_agrees_with_independent_implementations(
    m: int, r: int, v: int, delta: float, expected: float
) -> None:
    bound = bounds.one_run(canaries=m, guesses=r, correct=v, delta=delta, confidence=0.95)
    assert bound.epsilon == pytest.approx(expected, abs=1e-6)
    assert bound.kind is BoundKind.CERTIFIED


@given(st.floats(0, 6), st.integers(1, 40), st.data(), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_the_p_value_is_the_theorems_sum(
    epsilon: float, r: int, data: st.DataObject, delta: float
) -> None:
    v = data.draw(st.integers(0, r))
    got = bounds.one_run_p_value(epsilon=epsilon, canaries=80, guesses=r, correct=v, delta=delta)
    assert got == pytest.approx(p_value_by_sums(epsilon, 80, r, v, delta), rel=1e-9, abs=1e-12)


@given(st.integers(2, 300), st.data(), st.floats(0.5, 0.999))
def test_more_right_guesses_never_lower_the_bound(
    r: int, data: st.DataObject, confidence: float
) -> None:
    v = data.draw(st.integers(1, r))
    one, other = (
        bounds.one_run(
            canaries=400, guesses=r, correct=correct, delta=0.0, confidence=confidence
        ).epsilon
        for correct in (v - 1, v)
    )
    assert one <= other


def test_the_ceiling_of_one_run_is_the_logit_of_alpha_to_the_one_over_r() -> None:
    bound = bounds.one_run(canaries=100, guesses=100, correct=100, delta=0.0, confidence=0.95)
    accuracy = 0.05 ** (1 / 100)
    assert bound.epsilon == pytest.approx(math.log(accuracy / (1 - accuracy)), abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 4.0])
def test_one_run_on_randomized_response_misses_at_most_at_the_nominal_rate(
    epsilon: float,
) -> None:
    rng = np.random.default_rng(17)
    truth = 1 / (1 + math.exp(-epsilon))
    correct = rng.binomial(400, truth, size=2000)
    found = {
        int(v): bounds.one_run(
            canaries=400, guesses=400, correct=int(v), delta=0.0, confidence=0.95
        ).epsilon
        for v in np.unique(correct)
    }
    misses = np.mean([found[int(v)] > epsilon for v in correct])
    assert misses <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("distance", [0.0, 0.2, 0.7])
def test_total_variation_misses_at_most_at_the_nominal_rate(distance: float) -> None:
    rng = np.random.default_rng(18)
    correct = rng.binomial(300, (1 + distance) / 2, size=4000)
    lower = np.array(
        [bounds.total_variation(canaries=300, correct=int(v), confidence=0.95) for v in correct]
    )
    misses = np.mean(lower > distance)
    assert misses <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0.5, 0.999))
def test_clopper_pearson_is_that_of_scipy(k: int, n: int, confidence: float) -> None:
    k = min(k, n)
    got = bounds.clopper_pearson_interval(successes=k, trials=n, confidence=confidence)
    interval = stats.binomtest(k, n).proportion_ci(confidence, "exact")
    assert (got.lower, got.upper) == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"guesses": 200}, "guesses"),
        ({"correct": 60}, "correct"),
        ({"correct": -1}, "correct"),
        ({"canaries": 0}, "canaries"),
        ({"delta": math.nan}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": math.nan}, "confidence"),
    ],
)
def test_impossible_counts_are_refused_by_name(changes: dict[str, float], named: str) -> None:
    arguments = {"canaries": 100, "guesses": 50, "correct": 40, "delta": 0.0, "confidence": 0.95}
    with pytest.raises(InvalidArgument, match=named):
        bounds.one_run(**{**arguments, **changes})
