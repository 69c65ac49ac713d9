"""The bound for a random split of fixed sizes: its law, its proof by brute force, its levels."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.fixed_class_sizes import (
    _FixedSizesTest,
    fixed_sizes_epsilon,
    greatest_epsilon,
)
from dpaudit.vocabulary.audit import BoundKind, ClassGuesses
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency

ADD, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE


@st.composite
def tables(draw: st.DrawFn) -> ClassGuesses:
    members, nonmembers = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    right_in, wrong_out = draw(st.integers(0, members)), draw(st.integers(0, 60))
    right_out, wrong_in = draw(st.integers(0, nonmembers)), draw(st.integers(0, 60))
    wrong_out, wrong_in = min(wrong_out, members - right_in), min(wrong_in, nonmembers - right_out)
    return ClassGuesses(
        members, nonmembers, right_in + wrong_in, right_in, right_out + wrong_out, right_out
    )


@given(tables(), st.floats(0, 5), st.sampled_from([ADD, REPLACE]))
def test_the_tail_is_that_of_the_noncentral_hypergeometric_law(
    table: ClassGuesses, epsilon: float, adjacency: Adjacency
) -> None:
    tail, first, second = _FixedSizesTest(table, 0.0, 0.05, adjacency).terms(epsilon)
    inside = table.right_in + table.guessed_out - table.right_out
    odds = math.exp(epsilon if adjacency is REPLACE else 2 * epsilon)
    least, most = max(0, inside - table.guessed_out), min(table.guessed_in, inside)
    weights = {
        j: math.comb(table.guessed_in, j) * math.comb(table.guessed_out, inside - j) * odds**j
        for j in range(least, most + 1)
    }
    exact = sum(w for j, w in weights.items() if j >= table.right_in) / sum(weights.values())
    assert tail >= exact * (1 - 1e-12)
    if tail < 1:
        assert tail == pytest.approx(exact, rel=1e-8)
    assert (first, second) == (0, 0) or math.isinf(first)


@given(tables(), st.floats(0.5, 0.999), st.sampled_from([0.0, 1e-5, 1e-2]))
def test_no_outcome_exceeds_the_greatest_bound(
    table: ClassGuesses, confidence: float, delta: float
) -> None:
    found = bounds.fixed_sizes(table, delta=delta, confidence=confidence).epsilon
    greatest = greatest_epsilon(
        members=table.members, nonmembers=table.nonmembers, guessed_in=table.guessed_in,
        guessed_out=table.guessed_out, delta=delta, confidence=confidence,
    )  # fmt: skip
    assert found <= greatest * (1 + 1e-9)


@given(tables(), st.sampled_from([0.0, 1e-4, 1e-2]), st.sampled_from([ADD, REPLACE]))
def test_every_smaller_epsilon_is_rejected_and_every_larger_one_is_not(
    table: ClassGuesses, delta: float, adjacency: Adjacency
) -> None:
    test = _FixedSizesTest(table, delta, 0.2, adjacency)
    rejected = [test.rejects(epsilon) for epsilon in np.linspace(0, 8, 60)]
    assert rejected == sorted(rejected, reverse=True)


@given(st.data(), st.sampled_from([0.0, 1e-4]), st.floats(0, 3))
def test_more_right_guesses_of_the_same_sets_reject_more(
    data: st.DataObject, delta: float, epsilon: float
) -> None:
    guessed_in, guessed_out = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    inside = data.draw(st.integers(1, guessed_in + guessed_out - 1))
    least, most = max(0, inside - guessed_out), min(guessed_in, inside)
    rejected = [
        _FixedSizesTest(
            ClassGuesses(90, 90, guessed_in, k, guessed_out, guessed_out - inside + k),
            delta, 0.3, ADD,
        ).rejects(epsilon)
        for k in range(least, most + 1)
    ]  # fmt: skip
    assert rejected == sorted(rejected)


@pytest.mark.parametrize(
    ("members", "nonmembers", "greatest"),
    [(1000, 500, 5.72), (5000, 1000, 6.87), (10000, 200, 6.41)],
)
def test_perfect_guesses_of_all_records_have_the_known_ceiling(
    members: int, nonmembers: int, greatest: float
) -> None:
    """P(all right) is 1/sum_i C(n1, i) C(n0, i) omega^-i, summed here by itself."""

    def probability(epsilon: float) -> float:
        term, total = 1.0, 1.0
        for i in range(min(members, nonmembers)):
            term *= (members - i) * (nonmembers - i) / (i + 1) ** 2 * math.exp(-2 * epsilon)
            total += term
        return 1 / total

    found = greatest_epsilon(
        members=members, nonmembers=nonmembers, guessed_in=members, guessed_out=nonmembers,
        delta=0.0, confidence=0.95,
    )  # fmt: skip
    assert found == pytest.approx(greatest, abs=0.006)
    assert probability(found) == pytest.approx(0.05, rel=1e-6)


def test_with_delta_perfect_guesses_cost_about_delta_more() -> None:
    table = ClassGuesses(5000, 1000, 5000, 5000, 1000, 1000)
    tail, first, second = _FixedSizesTest(table, 1e-5, 0.05, ADD).terms(5.0)
    assert first == pytest.approx(1e-5, rel=1e-6)
    assert second < 1e-6
    # Any event that tells n1 + 1 sets apart has probability e^epsilon / (n1 + 1) + delta at most.
    assert tail + first + second <= math.exp(5) / 5001 + 1e-5
    assert math.exp(5) / 5001 + 1e-5 == pytest.approx(0.030, abs=5e-4)


@cache
def largest_probability(
    records: int, members: int, epsilon: float, delta: float, rejected: frozenset
) -> float:
    """Return the largest probability that any (epsilon, delta)-DP mechanism gives ``rejected``.

    A linear programme over all mechanisms on data sets of n1 - 1, n1 and n1 + 1 records. The
    outputs are the sets (G, H); ``rejected`` holds pairs of an output and a set of members.
    """
    outputs = sorted({output for output, _ in rejected})
    sizes = [k for k in (members - 1, members, members + 1) if 0 <= k <= records]
    sets = [frozenset(c) for k in sizes for c in itertools.combinations(range(records), k)]
    rest = len(outputs)  # one more output stands for all others
    width = rest + 1
    place = {(s, o): i * width + o for i, s in enumerate(sets) for o in range(width)}
    pairs = [(s, t) for s in sets for t in sets if len(s ^ t) == 1]
    first_slack = len(place)
    slack = {
        (*pair, o): first_slack + i * width + o
        for i, pair in enumerate(pairs)
        for o in range(width)
    }
    rows, columns, values, limits = [], [], [], []

    def constrain(terms: list[tuple[int, float]], limit: float) -> None:
        for column, value in terms:
            rows.append(len(limits))
            columns.append(column)
            values.append(value)
        limits.append(limit)

    for s, t in pairs:
        for o in range(width):
            terms = [(place[s, o], 1.0), (place[t, o], -math.exp(epsilon)), (slack[s, t, o], -1.0)]
            constrain(terms, 0.0)
        constrain([(slack[s, t, o], 1.0) for o in range(width)], delta)
    total = len(place) + len(slack)
    equal = coo_matrix(
        (
            np.ones(len(place)),
            ([i for i in range(len(sets)) for _ in range(width)], list(place.values())),
        ),
        shape=(len(sets), total),
    )
    whole = [s for s in sets if len(s) == members]
    gain = np.zeros(total)
    for s in whole:
        for o, output in enumerate(outputs):
            gain[place[s, o]] = -((output, s) in rejected) / len(whole)
    solved = linprog(
        gain,
        A_ub=coo_matrix((values, (rows, columns)), shape=(len(limits), total)),
        b_ub=limits,
        A_eq=equal,
        b_eq=np.ones(len(sets)),
        bounds=(0, 1),
    )
    assert solved.success
    return -float(solved.fun)


def table_of(
    records: int, guessed_in: frozenset, guessed_out: frozenset, members: frozenset
) -> ClassGuesses:
    return ClassGuesses(
        len(members), records - len(members), len(guessed_in), len(guessed_in & members),
        len(guessed_out), len(guessed_out - members),
    )  # fmt: skip


@pytest.mark.parametrize("delta", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize(("records", "members", "guessed"), [(5, 2, 2), (5, 3, 2), (5, 2, 3)])
def test_no_mechanism_exceeds_the_tail_for_sets_of_fixed_sizes(
    records: int, members: int, guessed: int, epsilon: float, delta: float
) -> None:
    """Fixed g, all records guessed: P(K >= k) <= F_k + X + X' for every mechanism."""
    everyone = frozenset(range(records))
    outputs = [
        (frozenset(c), everyone - frozenset(c))
        for c in itertools.combinations(range(records), guessed)
    ]
    sets = [frozenset(c) for c in itertools.combinations(range(records), members)]
    for least in range(1, min(guessed, members) + 1):
        if least < guessed + members - records:
            continue
        rejected = frozenset(
            (output, s) for output in outputs for s in sets if len(output[0] & s) >= least
        )
        right_out = records - members - (guessed - least)
        table = ClassGuesses(
            members, records - members, guessed, least, records - guessed, right_out
        )
        bound = sum(_FixedSizesTest(table, delta, 0.05, ADD).terms(epsilon))
        found = largest_probability(records, members, epsilon, delta, rejected)
        assert found <= bound + 1e-7, least
        if delta == 0 and bound < 0.5:  # and some mechanism comes near
            assert found >= 0.4 * bound


@pytest.mark.parametrize(
    ("records", "members", "epsilon", "delta"),
    [
        (4, 2, 0.0, 0.0),
        (4, 2, 0.1, 0.02),
        (4, 2, 0.3, 0.05),
        (4, 1, 0.0, 0.05),
        pytest.param(5, 3, 0.2, 0.02, marks=pytest.mark.slow),
        pytest.param(5, 2, 0.4, 0.0, marks=pytest.mark.slow),
    ],
)
def test_no_mechanism_is_falsely_rejected_more_often_than_the_level(
    records: int, members: int, epsilon: float, delta: float
) -> None:
    """The sets may be of any sizes, chosen by the mechanism itself, and leave records out."""
    level, rejected = 0.5, set()
    sets = [frozenset(c) for c in itertools.combinations(range(records), members)]
    for roles in itertools.product(range(3), repeat=records):
        guessed_in, guessed_out = (
            frozenset(i for i, role in enumerate(roles) if role == which) for which in (1, 2)
        )
        for s in sets:
            table = table_of(records, guessed_in, guessed_out, s)
            if _FixedSizesTest(table, delta, level, ADD).rejects(epsilon):
                rejected.add(((tuple(sorted(guessed_in)), tuple(sorted(guessed_out))), s))
    assert rejected
    assert (
        largest_probability(records, members, epsilon, delta, frozenset(rejected)) <= level + 1e-7
    )


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("members", "nonmembers"), [(1000, 500), (5000, 1000), (10000, 200)])
@pytest.mark.parametrize("repetitions", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_randomized_response_is_contradicted_at_most_at_the_nominal_rate(
    members: int, nonmembers: int, epsilon: float, repetitions: int
) -> None:
    rng = np.random.default_rng([members, repetitions])
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    right_in = rng.binomial(members, truth, repetitions)
    right_out = rng.binomial(nonmembers, truth, repetitions)
    false = 0
    for k, r in zip(right_in.tolist(), right_out.tolist(), strict=True):
        table = ClassGuesses(members, nonmembers, k + nonmembers - r, k, members - k + r, r)
        false += _FixedSizesTest(table, 0.0, 0.05, ADD).rejects(epsilon)
    assert false / repetitions <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions)


def test_the_bound_of_leaky_guesses_is_near_the_truth() -> None:
    truth = math.exp(2) / (1 + math.exp(2))
    k, r = round(5000 * truth), round(1000 * truth)
    table = ClassGuesses(5000, 1000, k + 1000 - r, k, 5000 - k + r, r)
    assert 1.85 < bounds.fixed_sizes(table, delta=0.0, confidence=0.95).epsilon < 2.0
    assert 1.8 < bounds.fixed_sizes(table, delta=1e-5, confidence=0.95).epsilon < 2.0


def test_under_replace_one_an_exchange_is_one_step() -> None:
    table = {
        "members": 300, "nonmembers": 200, "guessed_in": 300, "right_in": 260, "guessed_out": 200,
        "right_out": 160, "confidence": 0.95,
    }  # fmt: skip
    one = fixed_sizes_epsilon(**table, delta=0.0)
    other = fixed_sizes_epsilon(**table, delta=0.0, adjacency=REPLACE)
    assert other == pytest.approx(2 * one, rel=1e-9)
    assert fixed_sizes_epsilon(**table, delta=1e-5, adjacency=REPLACE) < other


def test_the_kind_is_conditional_and_names_the_random_split() -> None:
    found = bounds.fixed_sizes(ClassGuesses(9, 9, 9, 9, 9, 9), delta=0.0, confidence=0.95)
    assert found.kind is BoundKind.CONDITIONAL
    assert "uniformly random choice" in found.assumes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"members": 0}, "members"),
        ({"nonmembers": 0}, "nonmembers"),
        ({"right_in": 11}, "right_in"),
        ({"right_out": 9}, "right_out"),
        ({"guessed_in": 40, "right_in": 1}, "right_out"),
        ({"guessed_out": 40}, "right_in"),
        ({"guessed_in": -1}, "guessed_in"),
        ({"delta": math.nan}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"confidence": 0.0}, "confidence"),
        ({"confidence": math.nan}, "confidence"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(
    changes: dict[str, float], named: str
) -> None:
    arguments = {
        "members": 20, "nonmembers": 15, "guessed_in": 10, "right_in": 9, "guessed_out": 8,
        "right_out": 7, "delta": 1e-5, "confidence": 0.95,
    }  # fmt: skip
    assert fixed_sizes_epsilon(**arguments) >= 0
    with pytest.raises(InvalidArgument, match=named):
        fixed_sizes_epsilon(**{**arguments, **changes})


@settings(max_examples=30)
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.02, 1))
def test_large_classes_take_no_time_and_give_finite_bounds(
    members: int, nonmembers: int, share: float
) -> None:
    found = greatest_epsilon(
        members=members, nonmembers=nonmembers, guessed_in=max(1, int(share * members)),
        guessed_out=max(1, int(share * nonmembers)), delta=1e-6, confidence=0.95,
    )  # fmt: skip
    assert 0 <= found < 30
