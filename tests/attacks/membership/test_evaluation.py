"""What is said of scores: exact where it can be, and nothing where nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.membership import MembershipScores, evaluate, loss_threshold
from dpaudit.attacks.membership.evaluation import tpr_interval
from dpaudit.vocabulary.audit import MembershipResult
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Bound

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=40)


def evaluated(members: object, others: object) -> MembershipResult:
    both = (np.array(scores, dtype=float) for scores in (members, others))
    return evaluate("x", MembershipScores(*both), confidence=0.95)


def normal(shift: float, size: int, seed: int) -> MembershipScores:
    generator = np.random.default_rng(seed)
    return MembershipScores(
        shift + generator.standard_normal(size), generator.standard_normal(size)
    )


@given(scores, scores)
def test_auc_is_that_of_scikit_learn_ties_included(members: list[int], others: list[int]) -> None:
    try:
        result = evaluated(members, others)
    except InvalidArgument as error:
        assert "inverted" in str(error)  # noqa: PT017  most lists are not
        return
    truth = [1] * len(members) + [0] * len(others)
    assert result.auc == pytest.approx(roc_auc_score(truth, members + others))


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 50]))
def test_tpr_at_fpr_is_that_of_the_best_threshold_allowed(seed: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    members = generator.integers(0, levels * 5 + 2, 60)
    others = generator.integers(0, levels * 5 + 1, 120)
    for rate in evaluated(members, others).tpr_at_fpr:
        allowed = [
            np.mean(members >= t) for t in range(levels * 5 + 4) if np.mean(others >= t) <= rate.fpr
        ]
        assert rate.tpr == pytest.approx(max(allowed))
        assert rate.interval.lower <= rate.tpr <= rate.interval.upper
        assert rate.given_threshold is not None
        assert rate.interval.lower <= rate.given_threshold.lower
        assert rate.given_threshold.upper <= rate.interval.upper


@given(scores, scores)
def test_a_rising_transform_of_the_scores_changes_nothing(
    members: list[int], others: list[int]
) -> None:
    def cubed(values: list[int]) -> list[float]:
        return [math.exp(value) + value**3 for value in values]

    try:
        result = evaluated(members, others)
    except InvalidArgument:
        with pytest.raises(InvalidArgument, match="inverted"):
            evaluated(cubed(members), cubed(others))
        return
    assert evaluated(cubed(members), cubed(others)) == result


def test_a_smaller_loss_means_member() -> None:
    result = evaluate("loss", loss_threshold(np.zeros(50), np.ones(50)), confidence=0.95)
    assert result.auc == 1.0
    assert result.inconclusive is None


def test_the_roc_is_kept_short_and_rising() -> None:
    points = np.array(evaluate("x", normal(0, 5000, 0), confidence=0.95).roc)
    assert len(points) <= 400
    assert (np.diff(points, axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("size", "unresolved"),
    [(9, 4), (10, 3), (99, 3), (100, 2), (999, 2), (1000, 1), (9999, 1), (10000, 0)],
)
def test_rates_that_too_few_nonmembers_show_are_named_and_not_reported(
    size: int, unresolved: int
) -> None:
    result = evaluate("x", normal(1, size, 0), confidence=0.95)
    assert len(result.unresolved) == unresolved
    assert len(result.tpr_at_fpr) == 4 - unresolved
    assert not {rate.fpr for rate in result.tpr_at_fpr} & set(result.unresolved)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("fpr", [0.01, 0.1])
def test_the_interval_holds_the_true_rate_although_its_threshold_is_drawn(
    shift: float, fpr: float
) -> None:
    """A threshold that is taken as fixed misses more often than its confidence says."""
    truth, draws, size = float(ndtr(shift + ndtri(fpr))), 400, 1000
    missed = fixed = 0
    for seed in range(draws):
        drawn = normal(shift, size, seed)
        bound = tpr_interval(drawn, fpr=fpr, confidence=0.9)
        missed += not bound.lower <= truth <= bound.upper
        threshold = -np.sort(-drawn.nonmembers)[int(fpr * size)]
        hits = int((drawn.members > threshold).sum())
        naive = clopper_pearson_interval(successes=hits, trials=size, confidence=0.9)
        fixed += not naive.lower <= truth <= naive.upper
    allowed = 0.1 * draws + 3 * math.sqrt(draws * 0.1 * 0.9)
    assert missed <= allowed < fixed


@given(st.integers(0, 10**6), st.sampled_from([0.001, 0.01, 0.1, 0.5]))
def test_the_interval_is_four_one_sided_statements_of_a_quarter_each(seed: int, fpr: float) -> None:
    drawn = normal(1, 300, seed)
    thresholds = sorted(drawn.nonmembers, reverse=True)
    share = 0.05 / 4

    def limits(taken: int) -> Bound:
        return clopper_pearson_interval(successes=taken, trials=300, confidence=1 - 2 * share)

    k = np.arange(1, 301)
    strict = k[beta.cdf(fpr, k, 301 - k) >= 1 - share].tolist()
    loose = k[beta.sf(fpr, k, 301 - k) >= 1 - share].tolist()
    lower, upper = 0.0, 1.0
    if strict:
        lower = limits(int((drawn.members > thresholds[max(strict) - 1]).sum())).lower
    if loose:
        upper = limits(int((drawn.members >= thresholds[min(loose) - 1]).sum())).upper
    bound = tpr_interval(drawn, fpr=fpr, confidence=0.95)
    assert (bound.lower, bound.upper) == pytest.approx((lower, upper))


def test_null_scores_have_an_auc_of_one_half_within_its_error_and_intervals_that_cover() -> None:
    draws, size = 200, 500
    missed = {"auc": 0, "accuracy": 0, "tpr": 0}
    aucs = []
    for seed in range(draws):
        result = evaluate("null", normal(0, size, seed), confidence=0.9)
        assert result.inconclusive is None
        assert result.auc_interval is not None
        assert result.balanced_accuracy_interval is not None
        aucs.append(result.auc)
        missed["auc"] += not result.auc_interval.lower <= 0.5 <= result.auc_interval.upper
        best = result.balanced_accuracy_interval
        missed["accuracy"] += not best.lower <= 0.5 <= best.upper
        rate = result.tpr_at_fpr[-1]
        missed["tpr"] += not rate.interval.lower <= rate.fpr <= rate.interval.upper
    error = math.sqrt((2 * size + 1) / (12 * size * size))
    assert abs(np.mean(aucs) - 0.5) < 4 * error / math.sqrt(draws)
    assert max(missed.values()) <= 0.1 * draws + 3 * math.sqrt(draws * 0.1 * 0.9)


def test_the_best_threshold_in_hindsight_is_too_good_and_its_interval_says_so() -> None:
    result = evaluate("null", normal(0, 100, 1), confidence=0.95)
    assert result.balanced_accuracy_interval is not None
    assert result.balanced_accuracy > 0.5
    assert result.balanced_accuracy_interval.lower < 0.5


def test_constant_scores_say_nothing_and_report_no_rate() -> None:
    result = evaluated(np.ones(500), np.ones(500))
    assert result.auc == 0.5
    assert result.inconclusive is not None
    assert "every score is the same" in result.inconclusive
    assert (result.tpr_at_fpr, result.band) == ((), ())


def test_inverted_scores_are_an_error_that_says_so() -> None:
    drawn = normal(1, 500, 0)
    with pytest.raises(InvalidArgument, match="the sign looks inverted"):
        evaluate("x", MembershipScores(-drawn.members, -drawn.nonmembers), confidence=0.95)


def test_scores_a_little_but_surely_below_chance_are_inconclusive() -> None:
    drawn = normal(0.2, 5000, 0)
    result = evaluate("x", MembershipScores(-drawn.members, -drawn.nonmembers), confidence=0.95)
    assert result.inconclusive is not None
    assert "worse than chance" in result.inconclusive


def test_few_scores_below_chance_prove_nothing_and_pass() -> None:
    assert evaluated([0, 1, 2], [1, 2, 3]).inconclusive is None


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(InvalidArgument, match="confidence"):
        evaluate("x", normal(0, 10, 0), confidence=confidence)
