"""Measure a finished run: membership inference, and lower bounds from its canaries."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

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
from dpaudit.trainer.private_sgd import GRADIENT_SUM
from dpaudit.trainer.run import heldout_records
from dpaudit.trainer.taps import joined_of
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, require_open_unit
from dpaudit.vocabulary.ledger import PrivacyLedger, Randomness
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT
from dpaudit.workflow.families import booked_steps, family

SEEDED_COINS = "a seed that nobody chose for its coins, which are no secret"

# How the failure probability is shared out: what is certified needs more to say anything.
GRADIENT_SHARE, INPUT_SHARE = 0.6, 0.4

AUDITS = {
    "own": audit_gradient_canaries,
    "dirac": audit_interfering_canaries,
    "orthogonal": audit_interfering_canaries,
}
FINAL_AUDITS = {
    "own": audit_final_iterate,
    "dirac": audit_interfering_final_iterate,
    "orthogonal": audit_interfering_final_iterate,
}
"""By where the canaries point: among the parameters they meet the records' gradients."""


def audit_run(run: RunDirectory, *, confidence: float, view: str = "every-step") -> AuditReport:
    """Measure ``run``, write what was found into it and return it.

    The failure probability 1 - ``confidence`` is shared out, so that all lower bounds hold
    together. ``view`` says what is read of gradient canaries: ``every-step``, or the
    ``final-iterate`` alone.

    Raises:
        IntegrityError: the run is unfinished, or a file is missing or altered.
        InvalidArgument: the run's data are gone or changed their form.
    """
    require_open_unit("confidence", confidence)
    ledger, config = run.read_finished(), run.read_config()
    split = load(config.data)
    model = load_trained_model(run, split)
    heldout = evaluate(model, heldout_records(run, split))
    members = evaluate(model, split.train)
    scores = membership.loss_threshold(members.losses, heldout.losses)
    alpha = 1 - confidence
    bounds: tuple[AuditResult, ...] = ()
    canaries = Canaries.read(run)
    claim = claim_of(ledger, config.privacy.delta, CLAIMING_ACCOUNTANT)
    if len(canaries.gradient_included):
        found = _gradient_bounds(run, ledger, claim, canaries, 1 - GRADIENT_SHARE * alpha, view)
        bounds += tuple(replace(one, refutes_epsilon=claim.epsilon.upper) for one in found)
    losses = evaluate(model, canaries.inputs).losses if len(canaries.inputs) else np.zeros(0)
    if len(losses) and np.ptp(losses) > 0:  # one loss for all is no evidence
        bounds += (
            audit_input_canaries(
                -losses,
                canaries.inputs_included,
                delta=claim.delta,
                confidence=1 - INPUT_SHARE * alpha,
            ),
        )
    report = AuditReport(
        ledger_head=ledger.head,
        confidence=confidence,
        bounds=_as_sure_as_coins(bounds, ledger),
        membership=(membership.evaluate("loss threshold", scores, confidence=confidence),),
        heldout_accuracy=heldout.accuracy,
    )
    write_json(run.audit, report)
    return report


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
    rates, noises = np.array(steps).T
    claimed = Claimed(
        steps=ClaimedSteps(rates, noises),
        epsilon=claim.epsilon.upper,
        delta=claim.delta,
        family=family(steps, claim.delta),
    )
    seed = int(ledger.header.run[:12], 16)  # fixed before any score existed
    included = canaries.gradient_included
    directions = run.read_config().canaries.directions
    if view == "final-iterate":
        last = FinalIterate(observations.sum(axis=0), included)
        return FINAL_AUDITS[directions](last, claimed, confidence=confidence, seed=seed)
    seen = Seen(observations, included, claimed.steps, joined_of(arrays))
    return AUDITS[directions](seen, claimed, confidence=confidence, seed=seed)


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
    ledger, config = run.read_finished(), run.read_config()
    return claim_of(ledger, config.privacy.delta, CLAIMING_ACCOUNTANT).epsilon.upper
