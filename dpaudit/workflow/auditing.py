"""Measure a finished run: membership inference, and lower bounds from its canaries."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from dpaudit.accountants import pld
from dpaudit.accountants.answers import claim_of
from dpaudit.attacks import membership
from dpaudit.attacks.canary_scores import ClaimedSteps
from dpaudit.attacks.one_run import Claimed, audit_gradient_canaries, audit_input_canaries
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_arrays, write_json
from dpaudit.trainer.canaries import Canaries
from dpaudit.trainer.data import load
from dpaudit.trainer.evaluate import evaluate, load_trained_model
from dpaudit.trainer.private_sgd import GRADIENT_SUM
from dpaudit.trainer.run import heldout_records
from dpaudit.vocabulary.audit import AuditReport, AuditResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, require_open_unit
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, PoissonSampled
from dpaudit.workflow.training import CLAIMING_ACCOUNTANT

# How the failure probability is shared out. The conditional bound is sharp, so its share
# is how often it contradicts a true claim; the certified ones need more to say anything.
CERTIFIED_SHARE, INPUT_SHARE, CONDITIONAL_SHARE = 0.48, 0.48, 0.04


def audit_run(run: RunDirectory, *, confidence: float) -> AuditReport:
    """Measure ``run``, write what was found into it and return it.

    The failure probability 1 - ``confidence`` is shared out, so that all lower bounds hold
    together.

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
        bounds += _gradient_bounds(run, ledger, claim, canaries, alpha)
    if len(canaries.inputs):
        losses = evaluate(model, canaries.inputs).losses
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
        bounds=bounds,
        membership=(membership.evaluate("loss threshold", scores, confidence=confidence),),
        heldout_accuracy=heldout.accuracy,
    )
    write_json(run.audit, report)
    return report


def _gradient_bounds(
    run: RunDirectory, ledger: PrivacyLedger, claim: Claim, canaries: Canaries, alpha: float
) -> tuple[AuditResult, ...]:
    observations = read_arrays(run.observations)["rows"].astype(np.float64)
    steps = _booked_steps(ledger)
    if len(steps) != len(observations):
        raise IntegrityError(
            f"{run.observations} holds {len(observations)} steps, the ledger {len(steps)}"
        )
    return audit_gradient_canaries(
        observations,
        canaries.gradient_included,
        _claimed(steps, claim),
        confidences=(1 - CERTIFIED_SHARE * alpha, 1 - CONDITIONAL_SHARE * alpha),
        seed=int(ledger.header.run[:12], 16),  # fixed before any score existed
    )


def _booked_steps(ledger: PrivacyLedger) -> list[tuple[float, float]]:
    """Return the booked (sampling rate, noise multiplier) of every step; the last booking counts.

    A step that was taken again after a crash is booked twice and was observed once.
    """
    steps: dict[int, tuple[float, float]] = {}
    for release in ledger.releases:
        if release.what != GRADIENT_SUM or release.step is None:
            continue
        match release.mechanism:
            case PoissonSampled(Gaussian(noise_multiplier), sampling_rate):
                steps[release.step] = (sampling_rate, noise_multiplier)
            case _:
                raise IntegrityError(f"step {release.step} books no sampled Gaussian")
    return [steps[number] for number in sorted(steps)]


def _claimed(steps: list[tuple[float, float]], claim: Claim) -> Claimed:
    """Return the claim for the attacks, with the accountant handed in as functions."""
    epsilon_at, total_variation_at = _family(steps, claim.delta)
    rates, noises = np.array(steps).T
    return Claimed(
        steps=ClaimedSteps(rates, noises),
        epsilon=claim.epsilon.upper,
        delta=claim.delta,
        epsilon_at=epsilon_at,
        total_variation_at=total_variation_at,
    )


def _family(
    steps: list[tuple[float, float]], delta: float
) -> tuple[Callable[[float], tuple[float, float]], Callable[[float], float]]:
    """Return epsilon (both ends) and total variation (upper end) at a factor on all noise."""

    def mechanism(noise_factor: float) -> Mechanism:
        return Composed(
            tuple(PoissonSampled(Gaussian(noise_factor * noise), rate) for rate, noise in steps)
        )

    @lru_cache
    def epsilon_at(noise_factor: float) -> tuple[float, float]:
        bound = pld.profile(mechanism(noise_factor)).epsilon(delta=delta)
        return bound.lower, bound.upper

    @lru_cache
    def total_variation_at(noise_factor: float) -> float:
        return pld.profile(mechanism(noise_factor)).delta(epsilon=0.0).upper

    return epsilon_at, total_variation_at
