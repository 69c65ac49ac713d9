"""Audit canaries of another framework, from a score file or from the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.canaries import exposure
from dpaudit.attacks.membership.evaluation import evaluate
from dpaudit.attacks.membership.output_signals import logit_scaled_confidence
from dpaudit.attacks.membership.score_file import GROUP_COLUMNS, ScoreColumns, read_scores
from dpaudit.attacks.membership.scores import (
    MembershipScores,
    membership_mask,
    require_distinct_ids,
)
from dpaudit.attacks.one_run import audit_random_split, audit_scores, sizes_fit_fair_coins
from dpaudit.runs.file_io import read_arrays
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, require_positive

if TYPE_CHECKING:
    import pandas as pd


# Read the auditor's canary file, which holds all canaries with their inclusion bits.

CanaryArrays = dict[str, NDArray[np.generic]]
REQUIRED_ARRAYS = ("ids", "included", "kind")


def auditor_path_beside(path: Path) -> Path:
    """Return the path of the auditor's file that belongs to the trainer's file at ``path``."""
    return path.with_name(path.name.removesuffix(".npz") + ".secret.npz")


@dataclass(frozen=True)
class AuditorCanaries:
    """The content of the auditor's canary file.

    Attributes:
        kind: How the canaries were made.
        ids: Their names.
        included: Whether each one is in the training set, shape ``(m,)``.
        arrays: Everything in the file, including the canaries themselves.
    """

    kind: str
    ids: tuple[str, ...]
    included: NDArray[np.bool_]
    arrays: CanaryArrays


def auditor_path(path: Path) -> Path:
    """Return the auditor's file: ``path`` itself, or the one that belongs to the trainer's file."""
    return path if path.name.endswith(".secret.npz") else auditor_path_beside(path)


def read_auditor_canaries(path: Path) -> AuditorCanaries:
    """Read the auditor's canary file.

    Args:
        path: The auditor's file, or the trainer's file beside it.

    Returns:
        Every canary with its inclusion bit.

    Raises:
        IntegrityError: If the file is missing, broken, or the trainer's own.
    """
    found = auditor_path(path)
    arrays = read_arrays(found)
    missing = [name for name in REQUIRED_ARRAYS if name not in arrays]
    if missing:
        raise IntegrityError(f"{found} lacks {', '.join(missing)}: it is no auditor's canary file")
    included = np.asarray(arrays["included"], dtype=np.bool_)
    ids = tuple(str(name) for name in arrays["ids"])
    if len(ids) != len(included):
        raise IntegrityError(f"{found} has {len(ids)} canaries and {len(included)} bits")
    return AuditorCanaries(str(arrays["kind"]), ids, included, arrays)


Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreAuditSettings:
    """Settings of an audit of scores.

    Attributes:
        delta: The delta of the lower bound, in (0, 1).
        confidence: Probability with which the lower bound holds, in (0, 1).
        claimed_epsilon: Upper bound of the claim, in nats; None: nothing is claimed.

    Raises:
        InvalidArgument: If the claimed epsilon is not positive and finite.
    """

    delta: float
    confidence: float
    claimed_epsilon: float | None

    def __post_init__(self) -> None:
        if self.claimed_epsilon is not None:
            require_positive("claim_epsilon", self.claimed_epsilon)

    def report(self, scores: Array, included: NDArray[np.bool_], kind: BoundKind) -> AuditReport:
        """Audit one score per canary, and evaluate the scores as a membership attack.

        Args:
            scores: Shape ``(records,)``; larger means included.
            included: Shape ``(records,)``.
            kind: CERTIFIED where fair coins are known to have chosen the included.

        Returns:
            One lower bound and one attack, for no ledger.

        Raises:
            InvalidArgument: If the scores cannot be used, or rank the excluded above the included.
        """
        bound = self._bound(scores, included, kind)
        split = MembershipScores(scores[included], scores[~included])
        attack = evaluate("scores", split, confidence=self.confidence)
        return AuditReport(
            ledger_head="",
            confidence=self.confidence,
            bounds=(msgspec.structs.replace(bound, inconclusive=attack.inconclusive),),
            membership=(attack,),
        )

    def _bound(self, scores: Array, included: NDArray[np.bool_], kind: BoundKind) -> AuditResult:
        """Return the bound for fair coins where they are known, else that for a random split.

        Coins whose sizes contradict them (once in a million audits, if they are fair) count as
        not known.
        """
        if kind is BoundKind.CERTIFIED and sizes_fit_fair_coins(included):
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


def audit_score_file(
    path: Path, settings: ScoreAuditSettings, columns: ScoreColumns | None = None
) -> AuditReport:
    """Audit a score file that states its members itself.

    Nothing shows that fair coins chose the members, so the bound is conditional.

    Args:
        path: The file, with the columns ``score`` and ``member``.
        settings: Delta, confidence and claim.
        columns: Other names of the columns, and direction of the scores.

    Returns:
        The audit, for no ledger.

    Raises:
        InvalidArgument: If the file is broken, holds several attacks or steps, or if scores are
            unpaired, NaN or of one class.
    """
    frame = read_scores(path, columns=columns)
    several = [
        name for name in GROUP_COLUMNS if name in frame.columns and frame[name].nunique() > 1
    ]
    if several:
        raise InvalidArgument("scores", str(path), f"with one {several[0]} only: select its rows")
    member = membership_mask(frame["member"].to_numpy(), len(frame))
    if "id" in frame.columns:
        require_distinct_ids(frame["id"].to_numpy(), len(frame))
    return settings.report(_numbers(frame["score"], path), member, BoundKind.CONDITIONAL)


def audit_canary_scores(
    canaries: Path,
    scores: Path,
    settings: ScoreAuditSettings,
    columns: ScoreColumns | None = None,
) -> AuditReport:
    """Audit one score per canary of a file of ``dpaudit canaries make``.

    Args:
        canaries: The canary file; the auditor's file is beside it.
        scores: The score file, with the columns ``id`` and ``score``.
        settings: Delta, confidence and claim.
        columns: Other names of the columns, and direction of the scores.

    Returns:
        The audit, for no ledger.

    Raises:
        InvalidArgument: If a canary has no score or two, or if a ``member`` differs from the
            canary's bit.
        IntegrityError: If the canary file is missing or broken.
    """
    auditor = read_auditor_canaries(canaries)
    frame = read_scores(scores, ("id", "score"), columns)
    by_id = _by_id(frame["id"], frame["score"], scores)
    if "member" in frame.columns:
        _require_same_members(auditor, _by_id(frame["id"], frame["member"], scores))
    return audit_scored_canaries(auditor, by_id, settings)


def audit_scored_canaries(
    auditor: AuditorCanaries, by_id: Mapping[str, float], settings: ScoreAuditSettings
) -> AuditReport:
    """Audit canaries by one score each.

    Args:
        auditor: All canaries.
        by_id: Score of each canary under its name; further names are ignored.
        settings: Delta, confidence and claim.

    Returns:
        The audit, for no ledger.

    Raises:
        InvalidArgument: If a canary has no score.
    """
    missing = [name for name in auditor.ids if name not in by_id]
    if missing:
        given = f"no score of {missing[0]} and {len(missing) - 1} others"
        raise InvalidArgument("scores", given, "a score for every canary, included or not")
    values = np.array([by_id[name] for name in auditor.ids])
    return settings.report(values, auditor.included, BoundKind.CERTIFIED)


def audit_canary_model(
    canaries: Path,
    checkpoint: Path,
    factory: str | None,
    settings: ScoreAuditSettings,
    *,
    trust_model_code: bool = False,
) -> AuditReport:
    """Audit a model on its input canaries, by its confidence in their labels.

    Args:
        canaries: The canary file; the auditor's file is beside it.
        checkpoint: The model's file.
        factory: ``package.module:factory`` of the model, where its file needs one.
        settings: Delta, confidence and claim.
        trust_model_code: Whether code in the file may run.

    Returns:
        The audit, for no ledger.

    Raises:
        InvalidArgument: If the canaries are no records, or the model cannot be used.
        IntegrityError: If the canary file is missing or broken.
    """
    from dpaudit.attacks.membership.target_models.model_files import open_model  # noqa: PLC0415 - torch

    auditor = read_auditor_canaries(canaries)
    if not {"x", "y"} <= auditor.arrays.keys():
        raise InvalidArgument(
            "canaries", auditor.kind, "records; for other canaries, give --scores"
        )
    features = np.asarray(auditor.arrays["x"], dtype=np.float32)
    labels = np.asarray(auditor.arrays["y"], dtype=np.int64)
    shape, classes = features.shape[1:], int(labels.max()) + 1
    model = open_model(
        checkpoint,
        factory=factory,
        shape=shape,
        classes=classes,
        trust_model_code=trust_model_code,
    )
    scores = logit_scaled_confidence(model.predict(features), labels)
    return settings.report(scores, auditor.included, BoundKind.CERTIFIED)


def secret_exposures(
    canaries: Path, scores: Path, columns: ScoreColumns | None = None
) -> Array | None:
    """Compute the exposure of each included secret.

    References have the ids ``reference-0``, ``reference-1`` ... in the score file, in the order
    of the auditor's file.

    Args:
        canaries: The canary file; the auditor's file is beside it.
        scores: The score file, with the columns ``id`` and ``score``.
        columns: Other names of the columns, and direction of the scores.

    Returns:
        Exposures in bits; None for canaries of other kinds, and without scores of references.
    """
    frame = read_scores(scores, ("id", "score"), columns)
    by_id = _by_id(frame["id"], frame["score"], scores)
    return exposures_of_scores(read_auditor_canaries(canaries), by_id)


def exposures_of_scores(auditor: AuditorCanaries, by_id: Mapping[str, float]) -> Array | None:
    """Compute the exposure of each included secret from scores.

    Args:
        auditor: All canaries.
        by_id: Scores of canaries and of references, which are ``reference-0``, ``reference-1`` ...

    Returns:
        Exposures in bits; None for canaries of other kinds, and without scores of references.
    """
    if auditor.kind != "secrets":
        return None
    names = [f"reference-{number}" for number in range(len(auditor.arrays["references"]))]
    references = np.array([by_id[name] for name in names if name in by_id])
    pairs = zip(auditor.ids, auditor.included, strict=True)
    included = np.array([by_id[name] for name, bit in pairs if bit])
    if len(references) == 0 or len(included) == 0:
        return None
    return exposure(included, references, int(auditor.arrays["space"]))


def _by_id(ids: pd.Series, values: pd.Series, path: Path) -> dict[str, float]:
    names = [str(name) for name in ids]
    require_distinct_ids(np.array(names), len(names))
    return dict(zip(names, _numbers(values, path).tolist(), strict=True))


def _numbers(values: pd.Series, path: Path) -> Array:
    if values.dtype.kind not in "buif":
        raise InvalidArgument("scores", str(path), "a file whose scores and members are numbers")
    return values.to_numpy(dtype=np.float64)


def _require_same_members(canaries: AuditorCanaries, member: dict[str, float]) -> None:
    """Refuse a file whose member of a canary differs from the canary's bit."""
    for name, bit in zip(canaries.ids, canaries.included, strict=True):
        if member.get(name, float(bit)) != float(bit):
            given = f"member {member[name]:g} for {name}"
            raise InvalidArgument("scores", given, "a file whose members are the canaries' bits")
