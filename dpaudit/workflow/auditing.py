"""Measure a finished run: membership inference, and lower bounds from its canaries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from torch import nn

from dpaudit.accountants.answers import claim_of
from dpaudit.attacks import membership
from dpaudit.attacks.one_run import FinalIterate, Seen, audit_input_canaries
from dpaudit.attacks.one_run.final import FINAL_ITERATE
from dpaudit.attacks.one_run.gradient import Canaries as PublicCanaries
from dpaudit.attacks.one_run.gradient import planned_audits
from dpaudit.attacks.one_run.inputs import without_evidence
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import PRIVATE, read_arrays, write_json
from dpaudit.runs.planted import recorded_canaries
from dpaudit.trainer.canaries import NO_INPUTS, Canaries
from dpaudit.trainer.data import load
from dpaudit.trainer.evaluate import evaluate, load_trained_model
from dpaudit.trainer.observations import joined_of
from dpaudit.trainer.run import heldout_records
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind, MembershipResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, require_open_unit
from dpaudit.vocabulary.ledger import PrivacyLedger, Randomness
from dpaudit.vocabulary.release_names import GRADIENT_SUM
from dpaudit.workflow.auditing_planted import Scored, audit_planted
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta
from dpaudit.workflow.families import booked_steps
from dpaudit.workflow.promised_audits import (
    VIEWS,
    Shares,
    claimed_steps,
    final_plan,
    simulation_seed,
)

SEEDED_COINS = "a seed that nobody chose for its coins, which are no secret"


def audit_run(
    run: RunDirectory,
    *,
    confidence: float,
    view: str = "every-step",
    planted: Scored | None = None,
) -> AuditReport:
    """Measure ``run``, write what was found into it and return it.

    The failure probability 1 - ``confidence`` is shared out, so that all lower bounds hold
    together.

    Args:
        run: A finished run. Of a loop of your own, its gradient canaries are measured, and the
            canaries in ``planted``; there are no settings that say which records it trained on.
        confidence: Probability with which all bounds hold together.
        view: What is read of gradient canaries: ``every-step``, or the ``final-iterate`` alone.
        planted: Canaries of ``dpaudit canaries make`` with their scores, or the model's factory.

    Raises:
        IntegrityError: The run is unfinished, or a file is missing or altered.
        InvalidArgument: The run's data are gone or changed their form, or there is nothing
            to measure.
    """
    require_open_unit("confidence", confidence)
    ledger = run.read_finished()
    canaries = _canaries_of(run, ledger, planted)
    claim = claim_of(ledger, claim_delta(run), CLAIMING_ACCOUNTANT)
    shares = Shares.of(
        gradient=canaries.in_gradients,
        inputs=len(canaries.inputs) > 0,
        planted=planted is not None or recorded_canaries(run, ledger) is not None,
    )
    found = _Found()
    if canaries.in_gradients:
        level = 1 - shares.gradient * (1 - confidence)
        found += _of_gradients(run, ledger, claim, canaries, level, VIEWS[view])
    if run.config.exists():
        level = 1 - shares.inputs * (1 - confidence)
        found += _of_model(run, claim, canaries, confidence, level)
    found = dataclasses.replace(found, bounds=_as_sure_as_coins(found.bounds, ledger))
    files: dict[str, str] = {}
    if planted is not None:
        level = 1 - shares.planted * (1 - confidence)
        theirs = audit_planted(run, ledger, claim, planted, level)
        found += _Found(theirs.bounds, theirs.membership)
        files = theirs.files
    report = AuditReport(
        ledger_head=ledger.head,
        confidence=confidence,
        bounds=found.bounds,
        membership=found.membership,
        heldout_accuracy=found.heldout_accuracy,
        unseen_steps=found.unseen_steps,
        files=files,
    )
    write_json(run.audit, report, PRIVATE)
    return report


@dataclass(frozen=True)
class _Found:
    """What was measured so far."""

    bounds: tuple[AuditResult, ...] = ()
    membership: tuple[MembershipResult, ...] = ()
    heldout_accuracy: float | None = None
    unseen_steps: int = 0

    def __add__(self, more: _Found) -> _Found:
        accuracy = self.heldout_accuracy
        return _Found(
            (*self.bounds, *more.bounds),
            (*self.membership, *more.membership),
            more.heldout_accuracy if accuracy is None else accuracy,
            self.unseen_steps + more.unseen_steps,
        )


def _canaries_of(run: RunDirectory, ledger: PrivacyLedger, planted: Scored | None) -> Canaries:
    """Return the canaries of a run's own; none where there are planted ones alone.

    Raises:
        InvalidArgument: There is nothing to measure: the run of your own loop has none.
    """
    if run.config.exists() or run.secret_canaries.exists():
        return Canaries.read(run)
    if planted is not None:
        return Canaries(np.zeros(0, np.bool_), NO_INPUTS, np.zeros(0, np.bool_))
    if recorded_canaries(run, ledger) is not None:
        raise InvalidArgument(
            "canaries", None, "given with --canaries FILE, beside --scores or --model: the run "
            "was trained on canaries of dpaudit canaries make",
        )  # fmt: skip
    raise InvalidArgument(
        "run",
        str(run.path),
        "one of dpaudit train, or of a loop with make_private(canaries=GradientCanaries(...)) "
        "or canary_file=; with --canaries and --scores, others are audited; without canaries, "
        "measure its model by dpaudit attack",
    )


def _of_model(
    run: RunDirectory, claim: Claim, canaries: Canaries, confidence: float, level: float
) -> _Found:
    """Return what the run's model tells of its records, and of its input canaries."""
    split = load(run.read_config().data)
    model = load_trained_model(run, split)
    heldout = evaluate(model, heldout_records(run, split))
    # Ordered as losses are; a loss of many records can round to 0, a confidence does not.
    of_members = evaluate(model, split.train).confidences
    scores = membership.MembershipScores(of_members, heldout.confidences)
    attack = membership.evaluate("loss threshold", scores, confidence=confidence)
    found: tuple[AuditResult, ...] = ()
    if len(canaries.inputs):
        found = (_input_bound(model, canaries, claim.delta, level),)
    return _Found(found, (attack,), heldout.accuracy)


def _input_bound(
    model: nn.Module, canaries: Canaries, delta: float, confidence: float
) -> AuditResult:
    """Return the bound from mislabelled records; one loss for all is no evidence."""
    scores = evaluate(model, canaries.inputs).confidences
    if np.ptp(scores) == 0:
        return without_evidence(len(scores), delta=delta, confidence=confidence)
    included = canaries.inputs_included
    return audit_input_canaries(scores, included, delta=delta, confidence=confidence)


def _of_gradients(
    run: RunDirectory,
    ledger: PrivacyLedger,
    claim: Claim,
    canaries: Canaries,
    confidence: float,
    observed: str,
) -> _Found:
    arrays = read_arrays(run.observations)
    observations, steps = arrays["rows"].astype(np.float64), booked_steps(ledger, GRADIENT_SUM)
    if len(steps) != len(observations):
        raise IntegrityError(
            f"{run.observations} holds {len(observations)} steps, the ledger {len(steps)}"
        )
    # A step that was interrupted after its noise was drawn shows nothing: what the others show
    # is held against their own steps, which cost no more than all.
    shown = np.isfinite(observations).all(axis=1)
    unseen = int((~shown).sum())
    observations, steps = observations[shown], [steps[i] for i in np.flatnonzero(shown)]
    joined = joined_of(arrays)
    joined = None if joined is None else joined[shown]
    if not steps:
        return _Found(unseen_steps=unseen)
    claimed = claimed_steps(steps, epsilon=claim.epsilon.upper, delta=claim.delta)
    included = canaries.gradient_included
    # Among the parameters, canaries meet the records.
    public = PublicCanaries(len(included), not canaries.beside_parameters, joined is not None)
    seed = simulation_seed(ledger)
    seen = Seen(observations, included, claimed.steps, joined)
    if observed == FINAL_ITERATE:
        last = FinalIterate(observations.sum(axis=0), included)
        final = final_plan(public, claimed, confidence=confidence, seed=seed)
        results = [audit.result(last) for audit in final]
    else:
        every = planned_audits(public, claimed, confidence=confidence, seed=seed)
        results = [audit.result(seen) for audit in every]
    against = tuple(replace(one, refutes_epsilon=claim.epsilon.upper) for one in results)
    return _Found(against, unseen_steps=unseen)


def _as_sure_as_coins(
    bounds: tuple[AuditResult, ...], ledger: PrivacyLedger
) -> tuple[AuditResult, ...]:
    """Return the bounds; where a seed tossed the coins, none is certified."""
    if ledger.header.randomness is not Randomness.SEEDED:
        return bounds
    return tuple(
        replace(bound, kind=BoundKind.CONDITIONAL, assumes=f"{bound.assumes}; {SEEDED_COINS}")
        if bound.kind is BoundKind.CERTIFIED
        else bound
        for bound in bounds
    )


def claimed_epsilon(run: RunDirectory) -> float:
    """Return the upper end of what the run's ledger claims, at the delta that was asked for."""
    return claim_of(run.read_finished(), claim_delta(run), CLAIMING_ACCOUNTANT).epsilon.upper
