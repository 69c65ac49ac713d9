"""Shuffled reports: enumerated clones, every data set of a few participants, and planted errors."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import mpmath
import msgspec
import numpy as np
import pytest
from scipy import stats

from dpaudit.accountants import naive, pld, rdp, shuffling, zcdp
from dpaudit.accountants.pld.laws import shuffled_reports
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    Mechanism,
    PureDP,
    RandomizedResponse,
    Repeated,
    Shuffled,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

REPLACE = Adjacency.REPLACE_ONE
EPSILONS = (0.0, 0.01, 0.1, 0.4, 1.0)


def delta(mechanism: Mechanism, epsilon: float) -> Bound:
    return pld.profile(mechanism, adjacency=REPLACE).delta(epsilon=epsilon)


def enumerated_clones(local: float, n: int, rate: float, epsilon: float) -> float:
    """delta of (A + D, C + 1 - A - D) with C ~ Bin(n-1, 2 rate), A ~ Bin(C, 1/2): a plain sum."""
    p, total = 1 / (1 + math.exp(-local)), 0.0
    for c in range(n):
        coins = [math.comb(c, a) / 2**c for a in range(c + 1)]
        with_head = [*coins, 0.0], [0.0, *coins]
        inner = 0.0
        for tail, head in zip(*with_head, strict=True):
            inner += max(0.0, p * head + (1 - p) * tail - math.exp(epsilon) * (
                (1 - p) * head + p * tail
            ))  # fmt: skip
        total += math.comb(n - 1, c) * (2 * rate) ** c * (1 - 2 * rate) ** (n - 1 - c) * inner
    return total


@pytest.mark.parametrize("local", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_upper_end_is_the_enumerated_mixture_of_clones(local: float, n: int) -> None:
    for epsilon in EPSILONS:
        if epsilon >= local:
            continue
        truth = enumerated_clones(local, n, math.exp(-local) / 2, epsilon)
        upper = delta(Shuffled(PureDP(local), n), epsilon).upper
        assert truth * (1 - 1e-12) <= upper <= truth * (1 + 1e-7) + 1e-13


@pytest.mark.parametrize(
    ("n", "local"), [(3000, 1.0), pytest.param(20_000, 2.0, marks=pytest.mark.slow)]
)
def test_spreading_many_atoms_keeps_the_upper_end_close(n: int, local: float) -> None:
    rate, p = math.exp(-local) / 2, 1 / (1 + math.exp(-local))
    c = np.arange(n)
    weight = stats.binom.pmf(c, n - 1, 2 * rate)
    c, weight = c[weight > 1e-14], weight[weight > 1e-14]
    mechanism = Shuffled(PureDP(local), n)
    for epsilon in (0.0, 0.05, 0.1):
        # P > e^epsilon Q where x/(c+1) > t; a sum of two binomial tails.
        a = math.exp(-local)
        t = (math.exp(epsilon) - a) / ((1 - a) * (1 + math.exp(epsilon)))
        least = np.floor(t * (c + 1)) + 1
        low, high = stats.binom.sf(least - 2, c, 0.5), stats.binom.sf(least - 1, c, 0.5)
        inner = p * low + (1 - p) * high - math.exp(epsilon) * ((1 - p) * low + p * high)
        truth = float(weight @ np.maximum(inner, 0))
        upper = delta(mechanism, epsilon).upper
        assert truth * (1 - 1e-9) <= upper <= truth * 1.005


def reports(values: tuple[int, ...], truth: float, categories: int) -> Counter[tuple[int, ...]]:
    """The law of the histogram of shuffled reports, by every string of reports."""
    other = (1 - truth) / (categories - 1)
    law: Counter[tuple[int, ...]] = Counter()
    for sent in itertools.product(range(categories), repeat=len(values)):
        chance = math.prod(
            truth if one == value else other for one, value in zip(sent, values, strict=True)
        )
        law[tuple(sorted(sent))] += chance
    return law


@pytest.mark.parametrize(
    ("truth", "categories", "n"), [(0.75, 2, 5), (0.9, 2, 3), (0.5, 3, 4), (0.8, 3, 4), (0.6, 4, 3)]
)
def test_interval_holds_the_worst_of_all_data_sets(truth: float, categories: int, n: int) -> None:
    mechanism = Shuffled(RandomizedResponse(truth, categories), n)
    laws = {
        values: reports(values, truth, categories)
        for values in itertools.product(range(categories), repeat=n)
    }
    for epsilon in (0.0, 0.2, 0.7):
        worst = max(
            sum(max(0.0, p - math.exp(epsilon) * laws[first][key]) for key, p in law.items())
            for values, law in laws.items()
            for first in [(one, *values[1:]) for one in range(categories)]
        )
        found = delta(mechanism, epsilon)
        assert found.lower <= worst * (1 + 1e-9)
        assert worst <= found.upper * (1 + 1e-12)
        general = delta(
            Shuffled(PureDP(math.log(truth * (categories - 1) / (1 - truth))), n), epsilon
        )
        assert found.upper <= general.upper * (1 + 1e-7)  # more is known of the local mechanism


def test_lower_end_is_attained_by_counting_rare_reports() -> None:
    n, truth = 50, 0.8
    others = stats.binom.pmf(np.arange(n), n - 1, 1 - truth)
    p = truth * np.append(0.0, others) + (1 - truth) * np.append(others, 0.0)
    q = (1 - truth) * np.append(0.0, others) + truth * np.append(others, 0.0)
    for epsilon in (0.0, 0.1, 0.5):
        attained = float(np.maximum(p - math.exp(epsilon) * q, 0).sum())
        lower = delta(Shuffled(RandomizedResponse(truth), n), epsilon).lower
        assert attained * (1 - 1e-7) <= lower <= attained * (1 + 1e-12)


PLANTED = {
    "clones too frequent": {"rate": 1.2},
    "report too rare": {"weight": 0.9},
    "loss too small": {"loss": 0.9},
}


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_fall_below_the_enumerated_mixture(
    error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = shuffling.clones_of
    wrong = lambda mechanism: replace(  # noqa: E731
        right(mechanism),
        **{name: getattr(right(mechanism), name) * by for name, by in PLANTED[error].items()},
    )
    monkeypatch.setattr(shuffled_reports, "clones_of", wrong)
    shuffled_reports._pair_above.cache_clear()
    try:
        upper = delta(Shuffled(PureDP(1.0), 30), 0.1).upper
    finally:
        shuffled_reports._pair_above.cache_clear()
    assert upper < 0.99 * enumerated_clones(1.0, 30, math.exp(-1) / 2, 0.1)


@pytest.mark.parametrize("n", [1000, pytest.param(10**6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("local", [0.5, 2.0])
def test_closed_form_is_above_the_clones_and_below_the_local_epsilon(n: int, local: float) -> None:
    closed = shuffling.closed_form_epsilon(local, n, delta=1e-6)
    mechanism = Shuffled(PureDP(local), n)
    assert pld.profile(mechanism, adjacency=REPLACE).epsilon(delta=1e-6).upper <= closed <= local
    basic = naive.profile(mechanism, adjacency=REPLACE).basic(delta=1e-6).upper
    assert basic == pytest.approx(closed, rel=1e-11)


def test_closed_form_is_the_published_formula() -> None:
    e, n, d = 4.0, 10**5, 1e-6
    grown = 8 * math.sqrt(math.e**e * math.log(4 / d)) / math.sqrt(n) + 8 * math.e**e / n
    ratio = (1 - math.e**-e) / (1 + math.e ** -(e + math.log(1 + grown)))
    expected = math.log(1 + ratio * grown)
    quoted = math.log(1 + (math.e**e - 1) / (math.e**e + 1) * grown)
    assert quoted < expected < 1.1 * quoted
    assert shuffling.closed_form_epsilon(e, n, delta=d) == pytest.approx(expected, rel=1e-11)
    assert shuffling.closed_form_epsilon(e, 1000, delta=d) == e  # outside of its condition


def test_more_participants_hide_more_and_rounds_add_up() -> None:
    def upper(n: int) -> float:
        found = pld.profile(Shuffled(PureDP(1.0), n), adjacency=REPLACE).epsilon(delta=1e-6)
        return found.upper

    assert upper(10) > upper(100) > upper(1000)
    once = Shuffled(RandomizedResponse(0.75), 200)
    profile = pld.profile(Repeated(once, 10), adjacency=REPLACE)
    found = profile.epsilon(delta=1e-6)
    assert 0 < found.lower < found.upper < 10 * math.log(3)
    assert profile.epsilon(delta=0).upper == pytest.approx(10 * math.log(3), rel=1e-11)
    assert profile.delta(epsilon=found.upper).upper <= 1e-6 * (1 + 1e-3)


def test_masses_sum_to_one_and_are_those_of_binomials() -> None:
    for count, rate in ((1, 0.3), (25, 0.01), (10**4, 0.4), (10**6, 1e-3)):
        k = np.unique(np.linspace(0, min(count, 3000), 200).astype(int)).astype(float)
        found = shuffled_reports._log_binomial(count, rate, k)
        expected = stats.binom.logpmf(k, count, rate)
        assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)
    pair = shuffled_reports.shuffled_pair_above(Shuffled(PureDP(1.0), 5000), 1e-20)
    for masses in (pair.atom_masses, pair.atom_masses * np.exp(pair.atom_losses)):
        assert abs(masses.sum() - 1) < shuffled_reports.RELATIVE_ERROR


@pytest.mark.parametrize("count", [3, 40, 10**4, 10**9])
@pytest.mark.parametrize("rate", [0.5, 0.37, 1e-6])
def test_log_masses_err_by_less_than_the_slack_covers(count: int, rate: float) -> None:
    deviation = math.sqrt(count * rate * (1 - rate))
    at = {round(count * rate + z * deviation) for z in (-17, -6, -1, 0, 1, 6, 17)}
    k = np.array(sorted(x for x in at if 0 <= x <= count), dtype=np.float64)
    found = shuffled_reports._log_binomial(count, rate, k)
    with mpmath.workdps(40):
        q = mpmath.mpf(rate)
        exact = [
            mpmath.loggamma(count + 1) - mpmath.loggamma(x + 1) - mpmath.loggamma(count - x + 1)
            + x * mpmath.log(q) + (count - x) * mpmath.log(1 - q)
            for x in map(int, k)
        ]  # fmt: skip
        errors = [abs(float(mpmath.mpf(one) - two)) for one, two in zip(found, exact, strict=True)]
    assert max(errors) < shuffled_reports.RELATIVE_ERROR / 2


def test_other_adjacencies_and_accountants_refuse_by_name() -> None:
    mechanism = Shuffled(PureDP(1.0), 100)
    for adjacency in (Adjacency.ADD_OR_REMOVE_ONE, Adjacency.ZERO_OUT):
        for accountant in (pld, naive, rdp):
            with pytest.raises(UnsupportedMechanism, match="use replace-one"):
                accountant.profile(mechanism, adjacency=adjacency)
    with pytest.raises(UnsupportedMechanism, match="use pld or naive"):
        rdp.profile(mechanism, adjacency=REPLACE)
    with pytest.raises(UnsupportedMechanism):
        zcdp.profile(mechanism, adjacency=REPLACE)


def test_json_round_trip_and_refused_fields() -> None:
    mechanism = Repeated(Shuffled(RandomizedResponse(0.75), np.int64(100)), 3)
    assert msgspec.json.decode(msgspec.json.encode(mechanism), type=Mechanism) == mechanism
    for local, participants in ((Gaussian(1.0), 10), (PureDP(1.0), 0), (PureDP(1.0), 1.5)):
        with pytest.raises(InvalidArgument):
            Shuffled(local, participants)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("local", [1e-6, 50.0, 599.0, 800.0])
def test_extreme_local_losses_give_at_most_the_local_epsilon(local: float) -> None:
    profile = pld.profile(Shuffled(PureDP(local), 1000), adjacency=REPLACE)
    for asked in (1e-6, 1e-30):
        found = profile.epsilon(delta=asked)
        assert 0 <= found.lower <= found.upper <= local


def test_beyond_the_largest_count_the_upper_end_holds_and_the_lower_one_is_0() -> None:
    profile = pld.profile(Shuffled(PureDP(8.0), 10**15), adjacency=REPLACE)
    found = profile.epsilon(delta=1e-6)
    assert found.lower == 0
    most = shuffled_reports.LARGEST_COUNT
    fewer = pld.profile(Shuffled(PureDP(8.0), most), adjacency=REPLACE).epsilon(delta=1e-6)
    assert 0 < found.upper <= fewer.upper
