"""Whether scores of members and non-members show less than is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit.attacks.membership.evaluation import evaluate
from dpaudit.attacks.membership.roc import tpr_interval
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores
from dpaudit.attacks.one_run import audit_random_split
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_delta,
    require_open_unit,
    require_positive,
)
from dpaudit.workflow.asserting.words import at_least, at_most, told


@dataclass(frozen=True)
class Allowed:
    """What scores may show.

    Attributes:
        max_tpr_at_fpr: Largest true-positive rate, by false-positive rate.
        claim_epsilon: What no lower bound may be above; None: nothing is claimed.
        delta: Of the claim.
        confidence: Of each interval; of all lower bounds together.
    """

    max_tpr_at_fpr: Mapping[float, float]
    claim_epsilon: float | None
    delta: float | None
    confidence: float

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        for fpr, tpr in self.max_tpr_at_fpr.items():
            require_open_unit("max_tpr_at_fpr", fpr)
            if not 0 <= tpr <= 1:
                raise InvalidArgument(f"max_tpr_at_fpr[{fpr:g}]", tpr, "between 0 and 1")
        if (self.claim_epsilon is None) != (self.delta is None):
            raise InvalidArgument(
                "delta", self.delta, "given with claim_epsilon, and with it alone"
            )
        if self.claim_epsilon is not None and self.delta is not None:
            require_positive("claim_epsilon", self.claim_epsilon)
            require_delta("delta", self.delta)
        elif not self.max_tpr_at_fpr:
            raise InvalidArgument("max_tpr_at_fpr", {}, "some rate, or a claim_epsilon")


def scores_of(scores: Any, members: Any = None) -> dict[str, MembershipScores]:
    """Return scores by attack, from what a test has: an object, a file, or two arrays.

    Raises:
        InvalidArgument: the file or the arrays cannot be used.
        MissingExtra: reading files needs pandas.
    """
    match scores:
        case MembershipScores():
            return {"scores": scores}
        case str() | Path():
            from dpaudit.attacks.membership.score_file import (  # noqa: PLC0415 - pandas
                groups_of,
                read_scores,
            )

            return groups_of(read_scores(Path(scores)))
    if members is None:
        allowed = "given with an array of scores: 1 for each member, 0 for each other record"
        raise InvalidArgument("members", None, allowed)
    return {"scores": RecordScores(np.asarray(scores, np.float64)).split(np.asarray(members))}


def why_leaking(groups: Mapping[str, MembershipScores], allowed: Allowed) -> str:
    """Return what the scores give away, or why that cannot be told; empty: they are fine."""
    share = (1 - allowed.confidence) / max(1, len(groups))
    complaints = [
        complaint
        for name, scores in groups.items()
        for complaint in _complaints(name, scores, allowed, 1 - share)
    ]
    return "\n".join(complaints)


def _complaints(
    name: str, scores: MembershipScores, allowed: Allowed, confidence: float
) -> Iterator[str]:
    """Yield what is wrong with one attack's scores; lower bounds hold with ``confidence``."""
    sizes = f"{name}: {len(scores.members)} members, {len(scores.nonmembers)} non-members"
    nothing = evaluate(name, scores, confidence=allowed.confidence).inconclusive
    if nothing is not None:
        yield told(
            "the scores are no evidence either way",
            ("given", sizes),
            ("seen", nothing),
            ("to do", "score by an attack that can tell: larger must mean member"),
        )
        return
    for fpr, most in sorted(allowed.max_tpr_at_fpr.items()):
        yield from _rate(sizes, scores, fpr, most, allowed.confidence)
    if allowed.claim_epsilon is not None and allowed.delta is not None:
        yield from _bound(sizes, scores, allowed.claim_epsilon, allowed.delta, confidence)


def _rate(
    sizes: str, scores: MembershipScores, fpr: float, most: float, confidence: float
) -> Iterator[str]:
    found = tpr_interval(scores, fpr=fpr, confidence=confidence)
    if found.upper <= most:
        return
    surely = found.lower > most
    yield told(
        "the model tells members from others more often than is allowed"
        if surely
        else "whether the model tells members from others no more often than is allowed "
        "cannot be told",
        ("given", sizes),
        (
            "seen",
            f"a true-positive rate at FPR {fpr:g} of {at_least(found.lower)} to "
            f"{at_most(found.upper)}, with confidence {confidence:g}",
        ),
        ("allowed", f"an upper end of {most:g}"),
        (
            "to do",
            "train with more noise" if surely else "score more records: the interval shrinks",
        ),
    )


def _bound(
    sizes: str, scores: MembershipScores, claim: float, delta: float, confidence: float
) -> Iterator[str]:
    values = np.concatenate([scores.members, scores.nonmembers])
    bound = audit_random_split(
        values,
        np.arange(len(values)) < len(scores.members),
        delta=delta,
        confidence=confidence,
        claimed_epsilon=claim,
    )
    if bound.epsilon_lower <= claim and math.isfinite(bound.epsilon_lower):
        yield from _too_weak(sizes, bound, claim)
        return
    yield told(
        "more is given away than is claimed",
        ("given", sizes),
        ("seen", f"epsilon is at least {at_least(bound.epsilon_lower)} at delta {delta:g}, with "
         f"confidence {confidence:g} ({bound.correct} of {bound.guesses} guesses were right)"),
        ("claimed", f"epsilon is at most {claim:g} at delta {delta:g}"),
        ("assumes", bound.assumes),
        ("to do", "the trainer does not do what its claim says: assert_conforms says where"),
    )  # fmt: skip


def _too_weak(sizes: str, bound: AuditResult, claim: float) -> Iterator[str]:
    """Yield that no outcome could have contradicted the claim, where that is so."""
    greatest = bound.greatest_epsilon
    if greatest is not None and greatest > claim:
        return
    yield told(
        "the scores could not have contradicted the claim",
        ("given", sizes),
        (
            "seen",
            f"had every guess been right, epsilon would be at least {at_least(greatest or 0)}",
        ),
        ("claimed", f"epsilon is at most {claim:g} at delta {bound.delta:g}"),
        ("to do", "score more records"),
    )
