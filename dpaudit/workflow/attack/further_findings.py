"""What an attack on models reports besides the scores: diagnostics, record risks, inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pandas as pd

from dpaudit.attacks.membership.attribute_inference import (
    InferenceCase,
    infer_feature,
    infer_labels,
)
from dpaudit.attacks.membership.evaluation import FALSE_POSITIVE_RATES
from dpaudit.attacks.membership.loss_tail import loss_tail_rate
from dpaudit.attacks.membership.normality import TAIL, normality_diagnostics
from dpaudit.attacks.membership.record_risk import record_risks
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.vocabulary.audit import InferenceResult
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.attack.attack_settings import LABEL, AttackSettings
from dpaudit.workflow.attack.attacked_target import AttackedTarget
from dpaudit.workflow.attack.score_evaluation import AttackOutcome, scores_by_attack

LIRA = ("lira-online", "lira-offline")


def with_findings(
    found: AttackOutcome, targets: Sequence[AttackedTarget], settings: AttackSettings
) -> AttackOutcome:
    """Add diagnostics, and the record risks and inferences that were asked for.

    Args:
        found: The outcome of the attacks on the targets.
        targets: The targets, at least one; all have the same references.
        settings: What was asked for.

    Returns:
        The outcome with notes, results of inference and risks.

    Raises:
        InvalidArgument: If a feature cannot be inferred, or there are too few references.
    """
    signals = targets[0].target.reference_signals
    notes = [*found.report.notes, *_loss_tail_notes(found, settings)]
    if signals is not None and set(LIRA) & set(settings.attacks):
        notes += _normality_notes(signals.references)
    report = msgspec.structs.replace(
        found.report, notes=tuple(notes), inference=_inferred(targets[0], settings)
    )
    found = replace(found, report=report)
    if not settings.record_risk:
        return found
    references = targets[0].target.require_references().references
    return replace(found, risks=risk_table(references, targets[0], settings))


def risk_table(
    references: ReferenceConfidences, one: AttackedTarget, settings: AttackSettings
) -> pd.DataFrame:
    """Return the detection rate of each record over reference models.

    Args:
        references: The reference models.
        one: A target with the same records.
        settings: The confidence of each interval.

    Returns:
        One row per record, the most detected first.
    """
    risks = record_risks(references, confidence=settings.confidence)
    frame = pd.DataFrame(
        {
            **({} if one.classes is None else {"class": one.classes}),
            "models": risks.trials,
            "detected": risks.detections,
            "lower": risks.lower,
            "upper": risks.upper,
            "other_models": risks.false_trials,
            "falsely_detected": risks.false_detections,
        }
    )
    frame.index.name = "id"
    ranked = frame.reset_index().sort_values(["lower", "detected"], ascending=False, kind="stable")
    return ranked.reset_index(drop=True)


def _loss_tail_notes(found: AttackOutcome, settings: AttackSettings) -> list[str]:
    """Return the estimate from the losses alone."""
    if "loss" not in settings.attacks or not settings.labels_known:
        return []
    scores = scores_by_attack(found)["loss"]
    resolved = [rate for rate in FALSE_POSITIVE_RATES if len(scores.members) >= 1 / rate]
    if not resolved:
        return []
    rate = loss_tail_rate(scores, fnr=resolved[0], confidence=settings.confidence)
    return [
        f"{100 * rate.tpr:.3g}% of the non-members have a larger loss than "
        f"{100 * (1 - rate.fpr):g}% of the members: an estimate, and no bound, of LiRA's "
        f"true-positive rate at FPR {100 * rate.fpr:g}%"
    ]


def _normality_notes(references: ReferenceConfidences) -> list[str]:
    """Return a note for each side whose confidences are not normal over the models."""
    notes = []
    for side, which in (("with", references.member), ("without", ~references.member)):
        tails = normality_diagnostics(references, which)
        if tails.heavy_tails:
            notes.append(
                f"confidences of reference models {side} a record are not normal: "
                f"{100 * tails.lower_tail:.2g}% and {100 * tails.upper_tail:.2g}% are in the lower "
                f"and upper tails of {100 * TAIL:g}%; LiRA may miss members"
            )
    return notes


def _inferred(one: AttackedTarget, settings: AttackSettings) -> tuple[InferenceResult, ...]:
    """Return the results of label and attribute inference on one target."""
    if not settings.infer:
        return ()
    target = one.target
    if one.classes is None:
        raise InvalidArgument("infer", list(settings.infer), "left out without classes")
    case = InferenceCase(
        target.model,
        target.features,
        one.classes,
        one.member,
        target.known_nonmembers,
        target.seed,
    )
    return tuple(
        infer_labels(case, confidence=settings.confidence)
        if what == LABEL
        else infer_feature(case, int(what), confidence=settings.confidence)
        for what in settings.infer
    )
