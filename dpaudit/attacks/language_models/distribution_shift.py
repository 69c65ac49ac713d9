"""Baselines that guess membership without any model: do members differ from non-members anyway?

An attack on texts is evidence only if members and non-members have one distribution. Sets that were
collected at different times, or from different sources, are distinguished by their words. Such a
split makes any attack look strong, and a claim look broken. Each baseline here is a test of the
null hypothesis that the members are a random choice of the texts.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import mannwhitneyu

from dpaudit.attacks.language_models.token_signals import TokenSignals, zlib_bytes
from dpaudit.vocabulary.arrays import BoolArray, FloatArray
from dpaudit.vocabulary.language_models import BlindBaseline

FALSE_ALARM_LEVEL = 1e-3
"""Probability that any baseline is significant if members are a random choice."""

WORD = re.compile(r"\w+|[^\w\s]")
BUCKETS = 1 << 16  # of hashed words
FOLDS = 2
LEAST_PER_CLASS = 10  # texts of a class, for the classifier


def blind_baselines(
    texts: Sequence[str] | None,
    signals: Sequence[TokenSignals],
    member: BoolArray,
    *,
    seed: int = 0,
) -> tuple[BlindBaseline, ...]:
    """Test whether members differ from non-members in length, compressed size or words.

    Args:
        texts: The texts; None if only signals are known.
        signals: Signals of each text, for its number of tokens and compressed size.
        member: Membership, shape ``(texts,)``.
        seed: Seed of the folds of the classifier.

    Returns:
        One baseline per measurable difference. Quantities that are equal for all texts give none.

    Example:
        >>> member = np.arange(200) < 100
        >>> texts = [f"written in {2023 + year}" for year in member]
        >>> signals = [TokenSignals(np.array([-1.0]))] * 200
        >>> found = blind_baselines(texts, signals, member)
        >>> [(one.name, one.auc) for one in found]
        [('bag of words', 1.0)]
    """
    measured = {"number of tokens": [float(len(one)) for one in signals]}
    if texts is not None:
        measured["length"] = [float(len(text.encode())) for text in texts]
        measured["compressed size"] = [float(zlib_bytes(text)) for text in texts]
    elif all(one.compressed_bytes is not None for one in signals):
        measured["compressed size"] = [float(one.compressed_bytes or 0) for one in signals]
    found = [
        _of_quantity(name, np.array(values), member)
        for name, values in measured.items()
        if len(set(values)) > 1
    ]
    if texts is not None and min(member.sum(), (~member).sum()) >= LEAST_PER_CLASS:
        found.append(_bag_of_words(texts, member, seed))
    return tuple(found)


def separation_warning(baselines: Sequence[BlindBaseline]) -> str | None:
    """Return why no attack on these texts is evidence; None if no baseline is significant.

    Args:
        baselines: The baselines of one set of texts.

    Returns:
        The most significant baseline, as text, if its p-value is below its share of
        ``FALSE_ALARM_LEVEL``.

    Example:
        >>> separation_warning([BlindBaseline("length", 0.52, 0.3)]) is None
        True
    """
    if not baselines:
        return None
    worst = min(baselines, key=lambda one: one.p_value)
    if not worst.p_value <= FALSE_ALARM_LEVEL / len(baselines):
        return None
    return (
        f"{worst.name} alone, without any model, tells members from non-members "
        f"(AUC {worst.auc:.3f}, p = {worst.p_value:.1g}): they differ in other respects than "
        "membership. Choose members and non-members at random from one set"
    )


def _of_quantity(name: str, values: FloatArray, member: BoolArray) -> BlindBaseline:
    """Compare one quantity of members and non-members, in both directions."""
    found = mannwhitneyu(values[member], values[~member], alternative="two-sided")
    auc = float(found.statistic) / (int(member.sum()) * int((~member).sum()))
    return BlindBaseline(name, max(auc, 1 - auc), float(found.pvalue))


def _bag_of_words(texts: Sequence[str], member: BoolArray, seed: int) -> BlindBaseline:
    """Score each half of the texts by naive Bayes that was fitted on the other half.

    Given the classifier of a half, the labels of the other half are a random choice under the
    null hypothesis: each half is a valid test, and the smaller p-value is multiplied by their
    number.
    """
    counts = _word_counts(texts)
    fold = _balanced_folds(member, seed)
    aucs, p_values = [], []
    for number in range(FOLDS):
        tested = fold == number
        log_odds = _log_odds(counts[~tested], member[~tested])
        scores, own = counts[tested] @ log_odds, member[tested]
        found = mannwhitneyu(scores[own], scores[~own], alternative="greater")
        aucs.append(float(found.statistic) / (int(own.sum()) * int((~own).sum())))
        p_values.append(float(found.pvalue))
    return BlindBaseline("bag of words", float(np.mean(aucs)), min(1.0, FOLDS * min(p_values)))


def _balanced_folds(member: BoolArray, seed: int) -> NDArray[np.int64]:
    """Return the fold of each text; each class is divided evenly, at random."""
    fold = np.empty(len(member), np.int64)
    rng = np.random.default_rng(seed)
    for chosen in (member, ~member):
        places = rng.permutation(np.flatnonzero(chosen))
        fold[places] = np.arange(len(places)) % FOLDS
    return fold


def _word_counts(texts: Sequence[str]) -> csr_array:
    """Return how often each hashed word, and pair of words, occurs, ``(texts, BUCKETS)``."""
    rows, columns = [], []
    for row, text in enumerate(texts):
        words = WORD.findall(text.lower())
        found = [*words, *(" ".join(pair) for pair in pairwise(words))]
        rows += [row] * len(found)
        columns += [_bucket(word) for word in found]
    ones = np.ones(len(rows))
    return csr_array((ones, (rows, columns)), shape=(len(texts), BUCKETS))


def _bucket(word: str) -> int:
    """Return a stable hash of a word: Python's own differs between processes."""
    return zlib.crc32(word.encode()) % BUCKETS


def _log_odds(counts: csr_array, member: BoolArray) -> FloatArray:
    """Return the log-odds of each bucket under multinomial naive Bayes with add-one counts."""
    of_members = np.asarray(counts[member].sum(axis=0)).ravel() + 1.0
    of_others = np.asarray(counts[~member].sum(axis=0)).ravel() + 1.0
    return np.asarray(np.log(of_members / of_members.sum()) - np.log(of_others / of_others.sum()))
