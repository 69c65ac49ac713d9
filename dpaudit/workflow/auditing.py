"""Measure a finished run: membership inference, and lower bounds from its canaries."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from torch import nn

from dpaudit.accountants.answers import claim_of
from dpaudit.attacks import membership
from dpaudit.attacks.one_run import (
    Claimed,
    ClaimedSteps,
    FinalIterate,
    Seen,
    audit_final_iterate,
    audit_gradient_canaries,
    audit_input_canaries,
    audit_interfering_canaries,
    audit_interfering_final_iterate,
)
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_arrays, write_json
from dpaudit.trainer.canaries import Canaries
from dpaudit.trainer.data import load
from dpaudit.trainer.evaluate import evaluate, load_trained_model
from dpaudit.trainer.observations import joined_of
from dpaudit.trainer.run import heldout_records
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind, MembershipResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, require_open_unit
from dpaudit.vocabulary.ledger import PrivacyLedger, Randomness
from dpaudit.vocabulary.release_names import GRADIENT_SUM
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta
from dpaudit.workflow.families import booked_steps, family

SEEDED_COINS = "a seed that nobody chose for its coins, which are no secret"

# How the failure probability is shared out: what is certified needs more to say anything.
GRADIENT_SHARE, INPUT_SHARE = 0.6, 0.4


def audit_run(run: RunDirectory, *, confidence: float, view: str = "every-step") -> AuditReport:
    """Measure ``run``, write what was found into it and return it.

    The failure probability 1 - ``confidence`` is shared out, so that all lower bounds hold
    together. ``view`` says what is read of gradient canaries: ``every-step``, or the
    ``final-iterate`` alone.

    Of a loop of your own, its gradient canaries are measured; there are no settings that say
    which records it trained on.

    Raises:
        IntegrityError: The run is unfinished, or a file is missing or altered.
        InvalidArgument: The run's data are gone or changed their form, or there is nothing
            to measure.
    """
    require_open_unit("confidence", confidence)
    ledger = run.read_finished()
    canaries = _canaries_of(run)
    claim = claim_of(ledger, claim_delta(run), CLAIMING_ACCOUNTANT)
    alpha = 1 - confidence
    bounds: tuple[AuditResult, ...] = ()
    if canaries.in_gradients:
        found = _gradient_bounds(run, ledger, claim, canaries, 1 - GRADIENT_SHARE * alpha, view)
        bounds += tuple(replace(one, refutes_epsilon=claim.epsilon.upper) for one in found)
    membership_results: tuple[MembershipResult, ...] = ()
    accuracy = None
    if run.config.exists():
        split = load(run.read_config().data)
        model = load_trained_model(run, split)
        heldout = evaluate(model, heldout_records(run, split))
        scores = membership.loss_threshold(evaluate(model, split.train).losses, heldout.losses)
        accuracy = heldout.accuracy
        membership_results = (membership.evaluate("loss threshold", scores, confidence=confidence),)
        bounds += _input_bounds(model, canaries, claim.delta, 1 - INPUT_SHARE * alpha)
    report = AuditReport(
        ledger_head=ledger.head,
        confidence=confidence,
        bounds=_as_sure_as_coins(bounds, ledger),
        membership=membership_results,
        heldout_accuracy=accuracy,
    )
    write_json(run.audit, report)
    return report


def _canaries_of(run: RunDirectory) -> Canaries:
    """Return the canaries of a run.

    Raises:
        InvalidArgument: There is nothing to measure: the run of your own loop has none.
    """
    if not run.config.exists() and not run.secret_canaries.exists():
        raise InvalidArgument(
            "run",
            str(run.path),
            "one of dpaudit train, or of a loop with make_private(canaries=GradientCanaries(...)); "
            "without canaries, measure its model by dpaudit attack",
        )
    return Canaries.read(run)


def _input_bounds(
    model: nn.Module, canaries: Canaries, delta: float, confidence: float
) -> tuple[AuditResult, ...]:
    """Return the bound from mislabelled records; none where there is no evidence."""
    losses = evaluate(model, canaries.inputs).losses if len(canaries.inputs) else np.zeros(0)
    if not len(losses) or np.ptp(losses) == 0:  # one loss for all is no evidence
        return ()
    included = canaries.inputs_included
    return (audit_input_canaries(-losses, included, delta=delta, confidence=confidence),)


def _gradient_bounds(
    run: RunDirectory,
    ledger: PrivacyLedger,
    claim: Claim,
    canaries: Canaries,
    confidence: float,
    view: str,
) -> tuple[AuditResult, ...]:
    arrays = read_arrays(run.observations)
    observations, steps = arrays["rows"].astype(np.float64), booked_steps(ledger, GRADIENT_SUM)
    if len(steps) != len(observations):
        raise IntegrityError(
            f"{run.observations} holds {len(observations)} steps, the ledger {len(steps)}"
        )
    # A step that was interrupted after its noise was drawn shows nothing: what the others show
    # is held against their own steps, which cost no more than all.
    shown = np.isfinite(observations).all(axis=1)
    observations, steps = observations[shown], [steps[i] for i in np.flatnonzero(shown)]
    joined = joined_of(arrays)
    joined = None if joined is None else joined[shown]
    if not steps:
        return ()
    rates, noises = np.array(steps).T
    claimed = Claimed(
        steps=ClaimedSteps(rates, noises),
        epsilon=claim.epsilon.upper,
        delta=claim.delta,
        family=family(steps, claim.delta),
    )
    seed = int(ledger.header.run[:12], 16)  # fixed before any score existed
    included = canaries.gradient_included
    interfering = not canaries.beside_parameters  # among parameters they meet the records
    if view == "final-iterate":
        last = FinalIterate(observations.sum(axis=0), included)
        audit = audit_interfering_final_iterate if interfering else audit_final_iterate
        return audit(last, claimed, confidence=confidence, seed=seed)
    seen = Seen(observations, included, claimed.steps, joined)
    every_step = audit_interfering_canaries if interfering else audit_gradient_canaries
    return every_step(seen, claimed, confidence=confidence, seed=seed)


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
