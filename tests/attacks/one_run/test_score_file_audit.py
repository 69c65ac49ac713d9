"""Audits of one score a canary, and of final iterates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpaudit.attacks.one_run import (
    ClaimedMechanism,
    ClaimedSteps,
    FinalIterate,
    audit_final_iterate,
    audit_interfering_final_iterate,
    audit_random_split,
    audit_scores,
    sizes_fit_fair_coins,
)
from dpaudit.attacks.one_run.registration import GUESS_SHARES, Guesses
from dpaudit.attacks.one_run.score_file_audit import (
    GaussianScores,
    class_guess_counts,
    guess_classes,
    register_class_share,
    register_guess_count,
)
from dpaudit.attacks.one_run.simulation import ScorePool, _score_draw_counts
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.audit.audit_plan import claimed_family

DELTA = 1e-5


def audited(
    scores: np.ndarray, included: np.ndarray, claimed: float | None = 2.0, confidence: float = 0.95
) -> AuditResult:
    return audit_scores(
        scores, included, delta=DELTA, confidence=confidence, claimed_epsilon=claimed,
        fair_coins=BoundKind.CERTIFIED,
    )  # fmt: skip


def test_scores_that_give_canaries_away_refute_a_small_claim() -> None:
    rng = np.random.default_rng(0)
    included = rng.random(400) < 0.5
    bound = audited(included * 3.0 + rng.standard_normal(400), included)
    assert bound.epsilon_lower > 2.0
    assert bound.registered


def test_inverted_scores_and_scores_that_know_nothing_give_zero() -> None:
    rng = np.random.default_rng(1)
    included = rng.random(400) < 0.5
    assert audited(included * -3.0 + rng.standard_normal(400), included).epsilon_lower == 0
    assert audited(rng.standard_normal(400), included).epsilon_lower == 0


def test_only_ranks_count() -> None:
    rng = np.random.default_rng(2)
    included = rng.random(300) < 0.5
    scores = included + rng.standard_normal(300)
    assert audited(scores, included) == audited(np.exp(5 * scores) - 7, included)


@pytest.mark.parametrize(
    ("scores", "included", "why"),
    [
        (np.zeros(10), np.arange(10) < 5, "one value for all"),
        (np.arange(10.0), np.ones(10, bool), "every canary"),
        (np.arange(10.0), np.zeros(10, bool), "no canary"),
        (np.arange(9.0), np.arange(10) < 5, "one for each canary"),
        (np.full(10, math.nan), np.arange(10) < 5, "finite"),
    ],
)
def test_scores_that_can_say_nothing_are_refused_not_called_private(
    scores: np.ndarray, included: np.ndarray, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        audited(scores, included)


def test_how_many_are_guessed_depends_on_the_claim_alone() -> None:
    asked = {"canaries": 500, "epsilon": 1.0, "delta": DELTA, "confidence": 0.95}
    assert register_guess_count(**asked) == register_guess_count(**asked)
    rng = np.random.default_rng(5)
    included = rng.random(500) < 0.5
    registered = {
        audited(leak * included + rng.standard_normal(500), included, 1.0).registered
        for leak in (0.0, 1.0, 5.0)
    }
    assert len(registered) == 1


RATE, NOISE, STEPS = 0.2, 2.0, 40
CLAIM = ClaimedSteps(np.full(STEPS, RATE), np.full(STEPS, NOISE))
FAMILY = claimed_family([(RATE, NOISE)] * STEPS, DELTA)
CLAIMED = ClaimedMechanism(CLAIM, FAMILY.epsilon(1.0).upper, DELTA, FAMILY)


def final(rng: np.random.Generator, canaries: int, factor: float) -> FinalIterate:
    included = rng.random(canaries) < 0.5
    joined = included * rng.binomial(STEPS, RATE, canaries)
    noise = factor * NOISE * math.sqrt(STEPS) * rng.standard_normal(canaries)
    return FinalIterate(joined + noise, included)


def test_a_final_iterate_refutes_far_too_little_noise_and_not_the_claim() -> None:
    rng = np.random.default_rng(3)
    honest = audit_final_iterate(final(rng, 400, 1.0), CLAIMED, confidence=0.99, seed=1)
    leaky = audit_final_iterate(final(rng, 400, 0.05), CLAIMED, confidence=0.99, seed=1)
    assert all(bound.epsilon_lower <= CLAIMED.epsilon for bound in honest)
    assert [bound.epsilon_lower > CLAIMED.epsilon for bound in leaky][-1]
    assert len(honest) == 3


def test_canaries_that_interfere_get_no_bound_that_needs_independence() -> None:
    seen = final(np.random.default_rng(4), 200, 1.0)
    results = audit_interfering_final_iterate(seen, CLAIMED, confidence=0.95, seed=1)
    assert len(results) == 2
    assert not any("non-interfering" in result.assumes for result in results)


def test_sums_that_do_not_pair_with_canaries_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="sums"):
        FinalIterate(np.zeros(3), np.zeros(4, bool))
    with pytest.raises(InvalidArgument, match="finite"):
        FinalIterate(np.array([math.nan]), np.zeros(1, bool))


def test_the_greatest_bound_is_that_of_perfect_guesses_and_no_outcome_passes_it() -> None:
    rng = np.random.default_rng(3)
    included = rng.random(200) < 0.5
    for shift in (0.0, 1.0, 100.0):
        scores = rng.standard_normal(200) + shift * included
        found = audit_scores(
            scores,
            included,
            delta=1e-5,
            confidence=0.95,
            claimed_epsilon=3.0,
            fair_coins=BoundKind.CERTIFIED,
        )
        assert found.greatest_epsilon is not None
        assert found.epsilon_lower <= found.greatest_epsilon
        assert (found.correct == found.guesses) == (found.epsilon_lower == found.greatest_epsilon)


# Audits of a random split: what is guessed, ties, the claim, and sizes that coins do not give.


def audited_split(
    scores: NDArray[np.float64], member: NDArray[np.bool_], claim: float | None = 2.0
) -> AuditResult:
    return audit_random_split(scores, member, delta=DELTA, confidence=0.95, claimed_epsilon=claim)


def test_groups_of_equal_scores_are_guessed_as_a_whole() -> None:
    scores = np.array([5.0, 4.0, 4.0, 4.0, 3.0, 1.0, 1.0, 0.0])
    member = np.array([1, 1, 0, 1, 0, 1, 0, 0], dtype=bool)
    found = guess_classes(scores, member, 1.0)  # four members: the cut after three equal scores
    assert (found.guessed_in, found.right_in) == (4, 3)
    assert (found.guessed_out, found.right_out) == (4, 3)
    few = guess_classes(scores, member, 0.5)  # two of each: inside of a group, so the nearest gap
    assert (few.guessed_in, few.right_in) == (1, 1)
    assert (few.guessed_out, few.right_out) == (1, 1)


@pytest.mark.parametrize("members", [3, 40, 77])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_both_sets_are_disjoint_and_never_empty(members: int, share: float) -> None:
    rng = np.random.default_rng(members)
    for values in (2, 3, 20, 10**6):
        scores = rng.integers(0, values, 80).astype(float)
        scores[:2] = 0, 1
        found = guess_classes(scores, np.arange(80) < members, share)
        assert found.guessed_in >= 1
        assert found.guessed_out >= 1
        assert found.guessed_in + found.guessed_out <= 80


def test_scores_in_any_order_of_rows_give_one_result() -> None:
    rng = np.random.default_rng(0)
    member = np.arange(600) < 450
    scores = np.round(member + rng.standard_normal(600), 1)
    mixed = rng.permutation(600)
    assert audited_split(scores, member) == audited_split(scores[mixed], member[mixed])
    assert audited_split(scores, member) == audited_split(np.exp(scores), member)


@pytest.mark.parametrize(("members", "nonmembers"), [(1000, 500), (5000, 1000), (300, 4000)])
@pytest.mark.parametrize("claim", [0.5, 1.3, 3.0, 5.0])
def test_perfect_scores_contradict_every_claim_within_reach(
    members: int, nonmembers: int, claim: float
) -> None:
    member = np.arange(members + nonmembers) < members
    bound = audited_split(member + np.linspace(0, 0.5, len(member)), member, claim)
    assert bound.epsilon_lower > claim
    assert bound.epsilon_lower == bound.greatest_epsilon


def test_how_much_is_guessed_depends_on_sizes_and_claim_alone() -> None:
    rng = np.random.default_rng(1)
    member = np.arange(900) < 600
    registered = {
        audited_split(leak * member + rng.standard_normal(900), member).registered
        for leak in (0.0, 1.0, 9.0)
    }
    assert len(registered) == 1
    assert audited_split(1.0 * member + rng.random(900), member, 4.0).registered not in registered


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 12), st.sampled_from([1e-9, 1e-3])
)
def test_every_claim_and_every_size_has_a_share(
    members: int, nonmembers: int, epsilon: float, delta: float
) -> None:
    share = register_class_share(
        members=members, nonmembers=nonmembers, epsilon=epsilon, delta=delta, confidence=0.95
    )
    assert share in GUESS_SHARES


def test_a_larger_claim_is_audited_with_more_guesses() -> None:
    asked = {"members": 5000, "nonmembers": 1000, "delta": DELTA, "confidence": 0.95}
    shares = [register_class_share(**asked, epsilon=epsilon) for epsilon in (0.5, 3.0, 6.0)]
    assert shares == sorted(shares)
    assert class_guess_counts(5000, 1000, shares[0]) < class_guess_counts(5000, 1000, shares[2])


@pytest.mark.parametrize(
    ("scores", "member", "why"),
    [
        (np.zeros(10), np.arange(10) < 5, "one value for all"),
        (np.arange(10.0), np.ones(10, bool), "every canary"),
        (np.arange(9.0), np.arange(10) < 5, "one for each canary"),
        (np.full(10, np.inf), np.arange(10) < 5, "finite"),
    ],
)
def test_scores_that_can_say_nothing_are_refused(
    scores: np.ndarray, member: np.ndarray, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        audited_split(scores, member)


@pytest.mark.parametrize(
    ("included", "canaries", "fair"),
    [(500, 1000, True), (560, 1000, True), (600, 1000, False), (10, 1000, False), (20, 20, True),
     (21, 21, False), (0, 30, False), (1, 1, True)],
)  # fmt: skip
def test_sizes_contradict_fair_coins_once_in_a_million(
    included: int, canaries: int, fair: bool
) -> None:
    bits = np.arange(canaries) < included
    assert sizes_fit_fair_coins(bits) is fair
    assert sizes_fit_fair_coins(~bits) is fair


@pytest.mark.parametrize(("members", "mu"), [(0.5, 1.0), (0.9, 0.3), (0.2, 3.0)])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.7, 1.0])
def test_expected_guesses_are_those_of_many_scores(members: float, mu: float, share: float) -> None:
    rng = np.random.default_rng(2)
    member = rng.random(400_000) < members
    order = np.argsort(-(mu * member + rng.standard_normal(len(member))))
    guessed = int(share * len(member))
    law = GaussianScores(members, mu)
    # Six standard errors of a share of at least 4,000 guesses.
    assert law.right_in(share) == pytest.approx(member[order[:guessed]].mean(), abs=0.03)
    assert law.right_out(share) == pytest.approx((~member[order[::-1][:guessed]]).mean(), abs=0.03)


@pytest.mark.parametrize("rounded", [False, True])
def test_simulated_counts_have_the_law_of_guesses_on_drawn_canaries(rounded: bool) -> None:
    rng = np.random.default_rng(3)
    out, included = rng.normal(-0.5, 1, 500), rng.normal(0.5, 1, 500)
    if rounded:
        out, included = np.round(out), np.round(included)
    counts = [30, 150, 400]
    found = ScorePool(out, included).right_guesses(400, 5, 200, counts)
    drawn = []
    for _ in range(200):
        bits = rng.random(400) < 0.5
        scores = np.where(bits, included[rng.integers(0, 500, 400)], out[rng.integers(0, 500, 400)])
        drawn.append([Guesses(count).correct(scores, bits) for count in counts])
    # Five standard errors of the difference of two means of 200.
    error = 5 * np.sqrt(2 / 200) * np.std(drawn, axis=0)
    assert (np.abs(found.mean(axis=0) - np.mean(drawn, axis=0)) <= error).all()
    assert found.std(axis=0) == pytest.approx(np.std(drawn, axis=0), rel=0.35)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("canaries", [1, 7, 59, 60, 300])  # fewer than scores, and more
def test_simulated_counts_are_those_of_the_scores_that_were_drawn(
    canaries: int, rounded: bool
) -> None:
    rng = np.random.default_rng(4)
    out, included = rng.normal(-0.5, 1, 30), rng.normal(0.5, 1, 30)
    if rounded:
        out, included = np.round(out), np.round(included)
    guesses = sorted({1, 1 + canaries // 3, canaries})
    found = ScorePool(out, included).right_guesses(canaries, 5, 20, guesses)
    scores, bits = np.concatenate([out, included]), np.arange(60) >= 30
    for draws, counted in zip(_score_draw_counts(canaries, 60, 5), found, strict=False):
        drawn = np.repeat(np.arange(60), draws)
        expected = [Guesses(count).correct(scores[drawn], bits[drawn]) for count in guesses]
        assert counted.tolist() == expected


def test_simulated_ends_guess_the_highest_in_and_the_lowest_out() -> None:
    pool = ScorePool(np.array([0.0, 1.0]), np.array([2.0, 3.0]))
    assert (pool.right_guesses_by_rank(100, 1, 20, [10, 40]) == [10, 40]).all()
    upside_down = ScorePool(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert (upside_down.right_guesses_by_rank(100, 1, 20, [10, 40]) == 0).all()


@pytest.mark.parametrize("ties", [1, 3, 50])
def test_a_tie_counts_against_the_guesser(ties: int) -> None:
    rng = np.random.default_rng(ties)
    scores = rng.integers(-ties, ties + 1, 200).astype(float)
    bits = rng.random(200) < 0.5
    right = np.where(scores > 0, bits, ~bits) & (scores != 0)
    for count in (1, 17, 100, 200):
        surest = np.lexsort((right, -np.abs(scores)))[:count]
        assert Guesses(count).correct(scores, bits) == right[surest].sum()
