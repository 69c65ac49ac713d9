"""Extraction: exact probabilities of attempts, exact intervals, and what is left out."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

from dpaudit.attacks.language_models.extraction import (
    attempt_log_probability,
    extract_probabilistically,
    extract_verbatim,
    queries_needed,
    succeeds_within,
)
from dpaudit.attacks.language_models.token_signals import SamplingScheme, TokenSignals
from dpaudit.vocabulary.errors import InvalidArgument, InvalidData


@pytest.mark.parametrize(("success", "queries", "wanted"), [
    (Fraction(1, 3), 5, Fraction(1, 2)), (Fraction(1, 100), 69, Fraction(1, 2)),
    (Fraction(1, 100), 68, Fraction(1, 2)), (Fraction(9, 10), 1, Fraction(8, 9)),
    (Fraction(9, 10), 1, Fraction(19, 20)), (Fraction(1, 10**12), 10**12, Fraction(6, 10)),
    (Fraction(1, 10**12), 10**12, Fraction(7, 10)),
])  # fmt: skip
def test_attempts_succeed_as_exact_fractions_say(
    success: Fraction, queries: int, wanted: Fraction
) -> None:
    if queries < 100:
        exact = 1 - (1 - success) ** queries >= wanted
    else:  # (1 - 1/n)^n tends to 1/e: 0.632 of the attempts succeed
        exact = bool(wanted < Fraction(632, 1000))
    assert succeeds_within(math.log(success), queries, float(wanted)) == exact
    needed = queries_needed(math.log(success), float(wanted))
    assert (queries >= needed) == exact


def test_an_impossible_suffix_is_never_drawn_and_a_certain_one_at_once() -> None:
    assert queries_needed(-math.inf, 0.5) == math.inf
    assert not succeeds_within(-math.inf, 10**9, 1e-9)
    assert queries_needed(0.0, 0.999) == 1
    assert succeeds_within(0.0, 1, 0.999)
    with pytest.raises(InvalidArgument, match="log_probability"):
        succeeds_within(math.nan, 1, 0.5)


def texts_of(greedy: list[bool]) -> TokenSignals:
    values = np.where(greedy, math.log(0.9), math.log(0.01))
    return TokenSignals(values, greedy=np.array(greedy))


def test_the_probability_of_an_attempt_is_the_product_over_the_suffix() -> None:
    text = TokenSignals(np.log([0.001, 0.5, 0.25, 0.125]))
    assert attempt_log_probability(text, 2) == pytest.approx(math.log(0.25 * 0.125), abs=1e-12)
    drawn = TokenSignals(np.log([0.5, 0.5]), drawn=np.array([-1.0, -np.inf]))
    assert attempt_log_probability(drawn, 1) == -math.inf
    with pytest.raises(InvalidArgument, match="suffix_tokens"):
        attempt_log_probability(text, 4)


def test_texts_are_counted_by_class_with_exact_intervals() -> None:
    known, unknown = texts_of([False, True, True]), texts_of([True, True, False])
    short = texts_of([True, True])
    member = np.array([True] * 10 + [False] * 20 + [True])
    texts = [known] * 6 + [unknown] * 4 + [known] * 1 + [unknown] * 19 + [short]
    found = extract_verbatim(texts, member, suffix_tokens=2, confidence=0.9)
    assert (found.members.extracted, found.members.texts) == (6, 10)
    assert (found.nonmembers.extracted, found.nonmembers.texts) == (1, 20)
    assert found.too_short == 1
    # The ends of a Clopper-Pearson interval have binomial tails of 5% each.
    for share in (found.members, found.nonmembers):
        lower = binom.sf(share.extracted - 1, share.texts, share.interval.lower)
        upper = binom.cdf(share.extracted, share.texts, share.interval.upper)
        assert (lower, upper) == (pytest.approx(0.05, rel=1e-6), pytest.approx(0.05, rel=1e-6))


def test_more_attempts_extract_more_texts() -> None:
    texts = [TokenSignals(np.log([0.5, p])) for p in (0.6, 0.05, 0.6, 0.001)]
    member = np.array([True, True, False, False])
    counts = []
    for queries in (1, 14, 700):
        found = extract_probabilistically(texts, member, suffix_tokens=1, queries=queries,
                                          probability=0.5, confidence=0.95)  # fmt: skip
        counts.append((found.members.extracted, found.nonmembers.extracted))
        assert (found.queries, found.probability) == (queries, 0.5)
    assert counts == [(1, 1), (2, 1), (2, 2)]


def test_a_class_without_a_long_text_is_refused() -> None:
    texts = [texts_of([True] * 3), texts_of([True] * 2)]
    with pytest.raises(InvalidData, match="no non-members"):
        extract_verbatim(texts, np.array([True, False]), suffix_tokens=2, confidence=0.95)


def test_signals_that_extraction_needs_are_named() -> None:
    texts, member = [TokenSignals(np.array([-1.0, -1.0]))] * 2, np.array([True, False])
    with pytest.raises(InvalidArgument, match="greedy"):
        extract_verbatim(texts, member, suffix_tokens=1, confidence=0.95)
    with pytest.raises(InvalidArgument, match=r"temperature 0\.5"):
        extract_probabilistically(texts, member, suffix_tokens=1, scheme=SamplingScheme(0.5),
                                  confidence=0.95)  # fmt: skip
