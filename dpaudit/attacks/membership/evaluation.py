"""How well scores tell members from non-members, and when they say nothing at all."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import mannwhitneyu

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.bounds.rate_intervals import interval_of_hits
from dpaudit.attacks.membership.roc import Roc, band, hits_around, roc
from dpaudit.attacks.membership.scores import MembershipScores
from dpaudit.vocabulary.audit import MembershipResult, TprAtFpr
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

FALSE_POSITIVE_RATES = (0.0001, 0.001, 0.01, 0.1)
ONE_MODEL = "given the model, records are independent trials"

# An attack that guesses is this far below one half once in a million evaluations.
BELOW_CHANCE = 1e-6
INVERTED_AUC = 0.4


def evaluate(
    attack: str, scores: MembershipScores, *, confidence: float, assumes: str = ONE_MODEL
) -> MembershipResult:
    """Return how well ``scores`` tell members from non-members, each interval by itself.

    ``interval`` of a true-positive rate allows for non-members being a sample;
    ``given_threshold`` takes the threshold that they set as if it had been fixed before.
    Rates that too few non-members were there to see are named, not reported. Scores that are
    all the same, or worse than chance, are no evidence of privacy: ``inconclusive`` says why.

    Raises:
        InvalidArgument: the scores rank non-members above members, as with the wrong sign.
    """
    require_open_unit("confidence", confidence)
    curve, nonmembers = roc(scores), len(scores.nonmembers)
    auc = float(np.trapezoid(curve.tpr, curve.fpr))
    resolved = [rate for rate in FALSE_POSITIVE_RATES if nonmembers >= 1 / rate]
    inconclusive = _inconclusive(scores, curve, auc)
    constant = len(curve.fpr) == 2
    return MembershipResult(
        attack=attack,
        members=len(scores.members),
        nonmembers=nonmembers,
        auc=auc,
        balanced_accuracy=float(((1 + curve.tpr - curve.fpr) / 2).max()),
        tpr_at_fpr=() if constant else tuple(_rate(scores, curve, r, confidence) for r in resolved),
        roc=curve.points(),
        auc_interval=_auc_interval(scores, auc, confidence),
        balanced_accuracy_interval=_accuracy_interval(scores, curve, confidence),
        band=() if constant else band(scores, confidence=confidence),
        unresolved=tuple(rate for rate in FALSE_POSITIVE_RATES if rate not in resolved),
        assumes=assumes,
        inconclusive=inconclusive,
    )


def _rate(scores: MembershipScores, curve: Roc, fpr: float, confidence: float) -> TprAtFpr:
    place, members = curve.at(fpr), len(scores.members)
    hits = int(curve.true_positives[place])
    around = hits_around(scores, fpr=fpr, confidence=confidence)
    return TprAtFpr(
        fpr=fpr,
        tpr=hits / members,
        interval=interval_of_hits(
            around,
            members=members,
            nonmembers=len(scores.nonmembers),
            fpr=fpr,
            confidence=confidence,
        ),
        confidence=confidence,
        given_threshold=clopper_pearson_interval(
            successes=hits, trials=members, confidence=confidence
        ),
        false_positives=int(curve.false_positives[place]),
        least_hits=around[0],
        greatest_hits=around[1],
    )


def _inconclusive(scores: MembershipScores, curve: Roc, auc: float) -> str | None:
    """Return why these scores are no evidence either way, if so."""
    if len(curve.fpr) == 2:
        return "every score is the same: an AUC of 0.5 by an attack that says nothing"
    if auc >= 0.5:
        return None
    chance = mannwhitneyu(scores.members, scores.nonmembers, alternative="less").pvalue
    if not chance <= BELOW_CHANCE:
        return None
    if auc < INVERTED_AUC:
        allowed = "larger for members: the sign looks inverted (a loss? score by its negative)"
        raise InvalidArgument("scores", f"an AUC of {auc:.3f}", allowed)
    return (
        f"an AUC of {auc:.3f} is worse than chance (p = {chance:.1g}): members and non-members "
        "differ in more than membership, or the sign is wrong"
    )


def _auc_interval(scores: MembershipScores, auc: float, confidence: float) -> Bound:
    """Hoeffding 1963, section 5b: a two-sample mean moves like one of the smaller sample."""
    smaller = min(len(scores.members), len(scores.nonmembers))
    return _around(auc, math.sqrt(math.log(2 / (1 - confidence)) / (2 * smaller)))


def _accuracy_interval(scores: MembershipScores, curve: Roc, confidence: float) -> Bound:
    """Pay for the best threshold being chosen in hindsight: a band around both whole curves.

    Massart 1990: each empirical distribution is within sqrt(ln(2/a)/(2n)) of its own.
    """
    sizes = (len(scores.members), len(scores.nonmembers))
    errors = [math.sqrt(math.log(4 / (1 - confidence)) / (2 * size)) for size in sizes]
    best = float(((1 + curve.tpr - curve.fpr) / 2).max())
    return _around(best, sum(errors) / 2)


def _around(value: float, error: float) -> Bound:
    return Bound(max(0.0, value - error), min(1.0, value + error))
