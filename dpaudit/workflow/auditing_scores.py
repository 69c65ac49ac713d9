"""Audit canaries that another framework trained on: by a score file, or by the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.canaries import exposure
from dpaudit.attacks.membership.confidence import logit_scaled
from dpaudit.attacks.membership.evaluation import evaluate
from dpaudit.attacks.membership.score_file import GROUPS, read_scores
from dpaudit.attacks.membership.scores import (
    MembershipScores,
    membership,
    require_distinct,
)
from dpaudit.attacks.one_run import audit_random_split, audit_scores, sizes_of_fair_coins
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_positive
from dpaudit.workflow.planted import Planted, read_planted

if TYPE_CHECKING:  # where pandas is missing, score_file names the extra
    import pandas as pd

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreAudit:
    """What is asked of scores.

    Attributes:
        delta: In (0, 1).
        confidence: In (0, 1).
        claimed_epsilon: What is claimed, if anything is.
    """

    delta: float
    confidence: float
    claimed_epsilon: float | None

    def __post_init__(self) -> None:
        if self.claimed_epsilon is not None:
            require_positive("claim_epsilon", self.claimed_epsilon)

    def report(self, scores: Array, included: NDArray[np.bool_], kind: BoundKind) -> AuditReport:
        """Return the audit of one score a canary, and what the scores tell as an attack.

        Args:
            scores: Shape ``(records,)``; larger means included.
            included: Shape ``(records,)``.
            kind: CERTIFIED where fair coins are known to have chosen the included.

        Raises:
            InvalidArgument: the scores cannot be used, or rank the left out above the included.
        """
        bound = self._bound(scores, included, kind)
        told = MembershipScores(scores[included], scores[~included])
        attack = evaluate("scores", told, confidence=self.confidence)
        return AuditReport(
            ledger_head="",
            confidence=self.confidence,
            bounds=(msgspec.structs.replace(bound, inconclusive=attack.inconclusive),),
            membership=(attack,),
        )

    def _bound(self, scores: Array, included: NDArray[np.bool_], kind: BoundKind) -> AuditResult:
        """Return the bound of fair coins where they are known, else that of a random split.

        Coins whose sizes contradict them (once in a million audits, if they are fair) count as
        not known.
        """
        if kind is BoundKind.CERTIFIED and sizes_of_fair_coins(included):
            return audit_scores(
                scores,
                included,
                delta=self.delta,
                confidence=self.confidence,
                claimed_epsilon=self.claimed_epsilon,
                fair_coins=kind,
            )
        return audit_random_split(
            scores,
            included,
            delta=self.delta,
            confidence=self.confidence,
            claimed_epsilon=self.claimed_epsilon,
        )


def audit_score_file(path: Path, asked: ScoreAudit) -> AuditReport:
    """Audit scores whose members the file itself names: nothing shows that coins chose them.

    Raises:
        InvalidArgument: the file is broken, holds several attacks or steps, or scores are
            unpaired, NaN or of one class.
    """
    frame = read_scores(path)
    several = [name for name in GROUPS if name in frame.columns and frame[name].nunique() > 1]
    if several:
        raise InvalidArgument("scores", str(path), f"of one {several[0]} alone: choose its rows")
    member = membership(frame["member"].to_numpy(), len(frame))
    if "id" in frame.columns:
        require_distinct(frame["id"].to_numpy(), len(frame))
    return asked.report(_numbers(frame["score"], path), member, BoundKind.CONDITIONAL)


def audit_canary_scores(canaries: Path, scores: Path, asked: ScoreAudit) -> AuditReport:
    """Audit a score for each canary of a file that ``dpaudit canaries make`` wrote.

    Raises:
        InvalidArgument: a canary without a score, or with two; or a ``member`` that is not
            the canary's bit.
        IntegrityError: the canary file is missing or broken.
    """
    planted = read_planted(canaries)
    frame = read_scores(scores, ("id", "score"))
    by_id = _by_id(frame["id"], frame["score"], scores)
    if "member" in frame.columns:
        _require_same_members(planted, _by_id(frame["id"], frame["member"], scores))
    missing = [name for name in planted.ids if name not in by_id]
    if missing:
        given = f"no score of {missing[0]} and {len(missing) - 1} others"
        raise InvalidArgument("scores", given, "a score for every canary, in or out")
    values = np.array([by_id[name] for name in planted.ids])
    return asked.report(values, planted.included, BoundKind.CERTIFIED)


def audit_canary_model(
    canaries: Path,
    checkpoint: Path,
    factory: str | None,
    asked: ScoreAudit,
    *,
    trust_model_code: bool = False,
) -> AuditReport:
    """Audit a model on its input canaries, by how sure it is of their labels.

    Raises:
        InvalidArgument: canaries that are no records, or a model that cannot be used.
        IntegrityError: the canary file is missing or broken.
    """
    from dpaudit.attacks.membership.models.opening import open_model  # noqa: PLC0415 - torch

    planted = read_planted(canaries)
    if not {"x", "y"} <= planted.arrays.keys():
        raise InvalidArgument("canaries", planted.kind, "records; of others, give --scores")
    features = np.asarray(planted.arrays["x"], dtype=np.float32)
    labels = np.asarray(planted.arrays["y"], dtype=np.int64)
    shape, classes = features.shape[1:], int(labels.max()) + 1
    model = open_model(
        checkpoint,
        factory=factory,
        shape=shape,
        classes=classes,
        trust_model_code=trust_model_code,
    )
    scores = logit_scaled(model.predict(features), labels)
    return asked.report(scores, planted.included, BoundKind.CERTIFIED)


def exposures(canaries: Path, scores: Path) -> Array | None:
    """Return the exposure of each included secret in bits; None for canaries of other kinds.

    References are scored under the names ``reference-0``, ``reference-1`` ... in the order in
    which the auditor's file has them; without any, nothing is returned.
    """
    planted = read_planted(canaries)
    if planted.kind != "secrets":
        return None
    frame = read_scores(scores, ("id", "score"))
    by_id = _by_id(frame["id"], frame["score"], scores)
    names = [f"reference-{number}" for number in range(len(planted.arrays["references"]))]
    references = np.array([by_id[name] for name in names if name in by_id])
    pairs = zip(planted.ids, planted.included, strict=True)
    included = np.array([by_id[name] for name, bit in pairs if bit])
    if len(references) == 0 or len(included) == 0:
        return None
    return exposure(included, references, int(planted.arrays["space"]))


def _by_id(ids: pd.Series, values: pd.Series, path: Path) -> dict[str, float]:
    names = [str(name) for name in ids]
    require_distinct(np.array(names), len(names))
    return dict(zip(names, _numbers(values, path).tolist(), strict=True))


def _numbers(values: pd.Series, path: Path) -> Array:
    if values.dtype.kind not in "buif":
        raise InvalidArgument("scores", str(path), "a file whose scores and members are numbers")
    return values.to_numpy(dtype=np.float64)


def _require_same_members(planted: Planted, member: dict[str, float]) -> None:
    """Refuse a file that says of a canary what its coin does not."""
    for name, bit in zip(planted.ids, planted.included, strict=True):
        if member.get(name, float(bit)) != float(bit):
            given = f"member {member[name]:g} for {name}"
            raise InvalidArgument("scores", given, "a file whose members are those of the coins")
