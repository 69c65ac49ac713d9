"""Measure a finished run: membership inference, and lower bounds from its canaries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.attacks import membership
from dpaudit.attacks.one_run import CanaryObservations, FinalIterate, audit_input_canaries
from dpaudit.attacks.one_run.gradient_canary_audits import (
    FINAL_ITERATE,
    CanaryDesign,
    plan_audits,
)
from dpaudit.attacks.one_run.guess_audits import result_without_evidence
from dpaudit.runs.directory import RunDirectory, read_canary_file_record
from dpaudit.runs.file_io import PRIVATE, read_arrays, write_json
from dpaudit.trainer.canaries.run_canaries import NO_INPUT_CANARIES, RunCanaries, sampled_canaries
from dpaudit.trainer.run import heldout_records
from dpaudit.trainer.tasks import load_trained_model, task_of
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind, MembershipResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, require_open_unit
from dpaudit.vocabulary.ledger import GRADIENT_SUM, PrivacyLedger, Randomness
from dpaudit.vocabulary.settings import NoProgress, Progress
from dpaudit.workflow.audit.audit_plan import (
    VIEWS,
    FailureShares,
    claim_covers_canaries,
    claimed_steps,
    plan_final_iterate_audits,
    recorded_steps,
    require_one_trainer,
    simulation_seed,
)
from dpaudit.workflow.audit.final_model_trials import TrialFiles, complete_trials
from dpaudit.workflow.audit.run_canary_files import (
    CanaryScoring,
    audit_canary_file,
    canaries_beside,
)
from dpaudit.workflow.run_claims import CLAIM_ACCOUNTANT, claim_delta

if TYPE_CHECKING:
    from dpaudit.workflow.audit.final_model_settings import FinalModelSettings

OTHER_NEIGHBORS_ASSUMPTION = (
    "that the target record is a unit of the claim, and that adding it changes no more than the "
    "claim's neighbors differ by"
)
SEEDED_COINS_ASSUMPTION = "that the seed was not chosen for its coins, which are not secret"


def audit_run(
    run: RunDirectory,
    *,
    confidence: float,
    view: str = "every-step",
    canary_scoring: CanaryScoring | None = None,
    final_models: FinalModelSettings | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Measure a finished run, write the audit into it and return it.

    The failure probability 1 - ``confidence`` is split among the kinds of canaries, so that all
    lower bounds hold together.

    Args:
        run: A finished run. For your own training loop, its gradient canaries are measured, and
            the canaries in ``canary_scoring``; without settings, membership of records is not.
        confidence: Probability with which all bounds hold together, in (0, 1).
        view: What is read of gradient canaries: ``every-step``, or the ``final-iterate`` alone.
        canary_scoring: Canaries of ``dpaudit canaries make``, with their scores or a factory of
            the run's model; None: those of ``dpaudit train --canary-file``, if the auditor's file
            is beside that file.
        final_models: Settings of models that are trained with and without a target record; None:
            none are trained, and those of a finished black-box audit are evaluated again.
        progress: Receives each finished part of the audit.

    Returns:
        Lower bounds with assumptions and power, and membership inference by loss.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If the run's data are gone or changed their form, or there is nothing
            to measure.
    """
    require_open_unit("confidence", confidence)
    if view not in VIEWS:
        raise InvalidArgument("view", view, f"one of {', '.join(VIEWS)}")
    ledger = run.read_finished()
    require_one_trainer(run, ledger)
    canary_scoring = canary_scoring or canaries_beside(run, ledger)
    canaries = _canaries_of(run, ledger, canary_scoring)
    claim = claim_from_ledger(ledger, claim_delta(run), CLAIM_ACCOUNTANT)
    shares = FailureShares.of(
        gradient=canaries.has_gradient_canaries,
        inputs=len(canaries.inputs) > 0,
        canary_file=canary_scoring is not None or read_canary_file_record(run, ledger) is not None,
        final_models=final_models is not None or _has_final_models(run),
    )
    progress = progress or NoProgress()
    of_models: _Found | None = None
    digests: dict[str, str] = {}
    if shares.final_models:
        level = 1 - shares.final_models * (1 - confidence)
        of_models, digests = _of_final_models(run, ledger, claim, final_models, level, progress)
    progress.start("auditing", 3)
    found = _Found()
    if canaries.has_gradient_canaries:
        level = 1 - shares.gradient * (1 - confidence)
        found += _of_gradients(run, ledger, claim, canaries, level, VIEWS[view])
    progress.advance()
    if run.config.exists():
        level = 1 - shares.inputs * (1 - confidence)
        found += _of_model(run, claim, canaries, confidence, level)
    progress.advance()
    found = dataclasses.replace(found, bounds=_as_sure_as_coins(found.bounds, ledger))
    files: dict[str, str] = {}
    if canary_scoring is not None:
        level = 1 - shares.canary_file * (1 - confidence)
        theirs = audit_canary_file(run, ledger, claim, canary_scoring, level)
        found += _Found(theirs.bounds, theirs.membership)
        files = theirs.files
    progress.advance()
    found = found if of_models is None else found + of_models
    report = AuditReport(
        ledger_head=ledger.head,
        confidence=confidence,
        bounds=found.bounds,
        membership=found.membership,
        heldout_accuracy=found.heldout_accuracy,
        heldout_loss=found.heldout_loss,
        unseen_steps=found.unseen_steps,
        files=files | digests,
        spot_checks=ledger.spot_checks,
    )
    write_json(run.audit, report, PRIVATE)
    return report


@dataclass(frozen=True)
class _Found:
    """The measurements so far."""

    bounds: tuple[AuditResult, ...] = ()
    membership: tuple[MembershipResult, ...] = ()
    heldout_accuracy: float | None = None
    unseen_steps: int = 0
    heldout_loss: float | None = None

    def __add__(self, more: _Found) -> _Found:
        accuracy, loss = self.heldout_accuracy, self.heldout_loss
        return _Found(
            (*self.bounds, *more.bounds),
            (*self.membership, *more.membership),
            more.heldout_accuracy if accuracy is None else accuracy,
            self.unseen_steps + more.unseen_steps,
            more.heldout_loss if loss is None else loss,
        )


def _canaries_of(
    run: RunDirectory, ledger: PrivacyLedger, canary_scoring: CanaryScoring | None
) -> RunCanaries:
    """Return the run's own canaries; none if only canaries of a file are scored."""
    if run.config.exists() or run.secret_canaries.exists():
        return RunCanaries.read(run)
    if canary_scoring is not None:
        return RunCanaries(np.zeros(0, np.bool_), NO_INPUT_CANARIES, np.zeros(0, np.bool_))
    if read_canary_file_record(run, ledger) is not None:
        raise InvalidArgument(
            "canaries", None, "given with --canaries FILE, beside --scores or --model: the run "
            "was trained on canaries of dpaudit canaries make",
        )  # fmt: skip
    raise InvalidArgument(
        "run",
        str(run.path),
        "one of dpaudit train, or one with make_private(canaries=GradientCanaries(...)) "
        "or canary_file=; to audit other canaries, give --canaries and --scores; without canaries, "
        "measure its model by dpaudit attack",
    )


def _of_model(
    run: RunDirectory, claim: Claim, canaries: RunCanaries, confidence: float, level: float
) -> _Found:
    """Measure membership inference by loss, and the bound from input canaries."""
    data = run.read_config().data
    task = task_of(data)
    split = task.load(data)
    model = load_trained_model(run, split)
    heldout = task.evaluate(model, heldout_records(run, split))
    # In the order of the losses. Losses of many records can round to 0; confidences do not.
    of_members = task.evaluate(model, split.train).confidences
    split_scores = membership.MembershipScores(of_members, heldout.confidences)
    attack = membership.evaluate("loss threshold", split_scores, confidence=confidence)
    found: tuple[AuditResult, ...] = ()
    if len(canaries.inputs):
        scores = task.canary_scores(model, canaries.inputs)
        found = (_input_bound(scores, canaries, claim.delta, level),)
    return _Found(found, (attack,), heldout.accuracy, heldout_loss=heldout.loss)


def _input_bound(
    scores: NDArray[np.float64], canaries: RunCanaries, delta: float, confidence: float
) -> AuditResult:
    """Return the bound from input canaries; equal scores for all are no evidence."""
    if np.ptp(scores) == 0:
        return result_without_evidence(len(scores), delta=delta, confidence=confidence)
    included = canaries.inputs_included
    return audit_input_canaries(scores, included, delta=delta, confidence=confidence)


def _has_final_models(run: RunDirectory) -> bool:
    """Return whether a finished black-box audit of the run is stored."""
    return complete_trials(TrialFiles(run.final_model_plan, run.final_model_trials)) is not None


def _of_final_models(
    run: RunDirectory,
    ledger: PrivacyLedger,
    claim: Claim,
    settings: FinalModelSettings | None,
    confidence: float,
    progress: Progress,
) -> tuple[_Found, dict[str, str]]:
    """Return the bounds from models with and without a target record, and their files' digests."""
    from dpaudit.workflow.audit import final_model_runs  # noqa: PLC0415 - torch.func

    assumed = [] if claim_covers_canaries(ledger.header) else [OTHER_NEIGHBORS_ASSUMPTION]
    epsilon, delta = claim.epsilon.upper, claim.delta
    outcome = (
        final_model_runs.audit_stored_models(
            run, claimed_epsilon=epsilon, delta=delta, confidence=confidence, assumed=assumed
        )
        if settings is None
        else final_model_runs.audit_run_models(
            run,
            settings,
            claimed_epsilon=epsilon,
            delta=delta,
            confidence=confidence,
            assumed=assumed,
            progress=progress,
        )
    )
    assert outcome is not None  # complete, as the caller found
    return _Found(outcome.bounds), outcome.files


def _of_gradients(
    run: RunDirectory,
    ledger: PrivacyLedger,
    claim: Claim,
    canaries: RunCanaries,
    confidence: float,
    observed: str,
) -> _Found:
    arrays = read_arrays(run.observations)
    observations, steps = arrays["rows"].astype(np.float64), recorded_steps(ledger, GRADIENT_SUM)
    if len(steps) != len(observations):
        raise IntegrityError(
            f"{run.observations} holds {len(observations)} steps, the ledger {len(steps)}"
        )
    # A step that was interrupted after its noise was drawn has no observation. The others are
    # compared with the claim on their own steps, which cost no more than all steps.
    shown = np.isfinite(observations).all(axis=1)
    unseen = int((~shown).sum())
    observations, steps = observations[shown], [steps[i] for i in np.flatnonzero(shown)]
    joined = sampled_canaries(arrays)
    joined = None if joined is None else joined[shown]
    if not steps:
        return _Found(unseen_steps=unseen)
    claimed = claimed_steps(steps, epsilon=claim.epsilon.upper, delta=claim.delta)
    included = canaries.gradient_included
    # Canaries that are directions in the parameters interfere with the records' gradients.
    design = CanaryDesign(len(included), not canaries.in_separate_coordinates, joined is not None)
    seed = simulation_seed(ledger)
    every_step = CanaryObservations(observations, included, claimed.steps, joined)
    if observed == FINAL_ITERATE:
        last = FinalIterate(observations.sum(axis=0), included)
        final = plan_final_iterate_audits(design, claimed, confidence=confidence, seed=seed)
        results = [audit.result(last) for audit in final]
    else:
        every = plan_audits(design, claimed, confidence=confidence, seed=seed)
        results = [audit.result(every_step) for audit in every]
    against = tuple(replace(one, refutes_epsilon=claim.epsilon.upper) for one in results)
    return _Found(against, unseen_steps=unseen)


def _as_sure_as_coins(
    bounds: tuple[AuditResult, ...], ledger: PrivacyLedger
) -> tuple[AuditResult, ...]:
    """Return the bounds; if the coins came from a seed, CERTIFIED becomes CONDITIONAL."""
    if ledger.header.randomness is not Randomness.SEEDED:
        return bounds
    return tuple(
        replace(
            bound, kind=BoundKind.CONDITIONAL, assumes=f"{bound.assumes}; {SEEDED_COINS_ASSUMPTION}"
        )
        if bound.kind is BoundKind.CERTIFIED
        else bound
        for bound in bounds
    )


def claimed_epsilon(run: RunDirectory) -> float:
    """Return the upper bound of the claim of a finished run, at the run's own delta.

    Args:
        run: The run.

    Returns:
        The upper bound, in nats.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
    """
    return claim_from_ledger(run.read_finished(), claim_delta(run), CLAIM_ACCOUNTANT).epsilon.upper
