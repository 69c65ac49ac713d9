"""Which lower bounds an audit of a run holds: a file that lacks one is no complete audit."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpaudit.attacks.one_run import inputs, scored
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.final import FINAL_ITERATE, FinalAudit, planned_final_audits
from dpaudit.attacks.one_run.gradient import Audit, Canaries, planned_audits
from dpaudit.attacks.one_run.likelihood import ClaimedSteps
from dpaudit.attacks.one_run.seen import EVERY_STEP
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_arrays
from dpaudit.runs.planted import recorded_canaries
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import AuditReport, BoundKind
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.estimators import Estimator, OneRun
from dpaudit.vocabulary.ledger import LedgerHeader, PrivacyLedger, Randomness
from dpaudit.vocabulary.release_names import GRADIENT_SUM
from dpaudit.vocabulary.unit import Unit
from dpaudit.workflow.families import Step, booked_steps, family

VIEWS = {"every-step": EVERY_STEP, "final-iterate": FINAL_ITERATE}
"""What is read of gradient canaries, by the name of the option."""

GRADIENT_SHARE = 0.6  # what is certified needs more of the failure probability to say anything


@dataclass(frozen=True)
class Shares:
    """How the failure probability is shared out among an audit's kinds of canaries.

    Attributes:
        gradient: Of gradient canaries.
        inputs: Of the input canaries of ``dpaudit train``.
        planted: Of the canaries of ``dpaudit canaries make``.
    """

    gradient: float
    inputs: float
    planted: float

    @classmethod
    def of(cls, *, gradient: bool, inputs: bool, planted: bool) -> Shares:
        """Return the shares, by which kinds there are."""
        if planted and not (gradient or inputs):
            return cls(0.0, 0.0, 1.0)
        rest = (1 - GRADIENT_SHARE) / (2 if inputs and planted else 1)
        return cls(GRADIENT_SHARE, rest, rest)


@dataclass(frozen=True)
class RunCanaries:
    """What canaries a run had, from its files.

    Attributes:
        gradient: Its gradient canaries; None: it had none.
        inputs: How many input canaries it had.
        planted: How many canaries of ``dpaudit canaries make`` its ledger records; None: it
            records no such file.
    """

    gradient: Canaries | None
    inputs: int
    planted: int | None

    @classmethod
    def read(cls, run: RunDirectory, ledger: PrivacyLedger) -> RunCanaries:
        """Return the canaries of a finished run, whose files were verified.

        Raises:
            IntegrityError: A file is broken.
        """
        recorded = recorded_canaries(run, ledger)
        planted = None if recorded is None else recorded.count
        if not run.secret_canaries.exists():
            return cls(None, 0, planted)
        arrays = read_arrays(run.secret_canaries)
        for name in ("gradient_included", "inputs_included", "direction_coordinates"):
            if name not in arrays:
                raise IntegrityError(f"{run.secret_canaries} lacks {name}")
        count, directions = len(arrays["gradient_included"]), arrays["direction_coordinates"]
        gradient = None
        if count:
            gradient = Canaries(count, directions.size > 0, _batches_recorded(run))
        return cls(gradient, len(arrays["inputs_included"]), planted)


def _batches_recorded(run: RunDirectory) -> bool:
    """Return whether the observations say which canaries each batch held; nothing is unpacked."""
    try:
        with zipfile.ZipFile(run.observations) as archive:
            return "joined.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{run.observations} is missing or broken: {error}") from error


@dataclass(frozen=True)
class Promised:
    """One bound that a complete audit holds.

    Attributes:
        name: How it is called.
        estimators: The statistics that it may be a function of.
        confidence: Probability with which it holds.
        trials: How many canaries there are; None where the run's files do not say.
        delta: The delta that it is for: the run's own.
        kind: What it assumes at least.
    """

    name: str
    estimators: tuple[type[Estimator], ...]
    confidence: float
    trials: int | None
    kind: BoundKind
    delta: float


def claimed_steps(steps: list[Step], *, epsilon: float, delta: float) -> Claimed:
    """Return what is claimed of the steps that canaries observed.

    Args:
        steps: Their sampling rates and noise multipliers; at least one.
        epsilon: The upper end of the run's claim.
        delta: At this delta.
    """
    rates, noises = np.array(steps).T
    return Claimed(ClaimedSteps(rates, noises), epsilon, delta, family(steps, delta))


def protects_canaries(header: LedgerHeader) -> bool:
    """Return whether a canary more or less is what the claim's neighbours differ by."""
    own = header.adjacency is Adjacency.ADD_OR_REMOVE_ONE
    return own and header.unit is Unit.RECORD


def simulation_seed(ledger: PrivacyLedger) -> int:
    """Return the seed of an audit's simulations: fixed before any score existed."""
    return int(ledger.header.run[:12], 16)


def promised_audits(
    run: RunDirectory, ledger: PrivacyLedger, audit: AuditReport, delta: float
) -> tuple[Promised, ...]:
    """Return the bounds that a complete audit of ``run`` holds, at the audit's confidence.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: Says at which confidence, of which view, and whether canaries were scored that
            the run does not record.
        delta: Of the run's own claim.
    """
    canaries = RunCanaries.read(run, ledger)
    scored_others = "canaries" in audit.files
    planted = scored_others or canaries.planted is not None
    shares = Shares.of(
        gradient=canaries.gradient is not None, inputs=canaries.inputs > 0, planted=planted
    )
    alpha = 1 - audit.confidence
    seeded = ledger.header.randomness is Randomness.SEEDED
    certified = BoundKind.CONDITIONAL if seeded else BoundKind.CERTIFIED
    level = 1 - shares.gradient * alpha
    found = list(_of_gradients(canaries.gradient, ledger, audit, level, delta))
    if canaries.inputs:
        name, confidence = inputs.NAME, 1 - shares.inputs * alpha
        found.append(Promised(name, (OneRun,), confidence, canaries.inputs, certified, delta))
    if planted:
        fixed = canaries.planted is not None and protects_canaries(ledger.header)
        kind = BoundKind.CERTIFIED if fixed else BoundKind.CONDITIONAL
        confidence = 1 - shares.planted * alpha
        found.append(Promised(scored.NAME, (OneRun,), confidence, canaries.planted, kind, delta))
    return tuple(found)


def promised_attacks(run: RunDirectory, audit: AuditReport) -> tuple[str, ...]:
    """Return the names of the membership attacks that a complete audit of ``run`` holds."""
    of_losses = ("loss threshold",) if run.config.exists() else ()
    of_canaries = ("scores",) if "canaries" in audit.files else ()
    return (*of_losses, *of_canaries)


def gradient_plan(
    run: RunDirectory, ledger: PrivacyLedger, audit: AuditReport, claimed: Claimed, name: str
) -> Audit | FinalAudit | None:
    """Return the audit of gradient canaries that makes the bound called ``name``.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: What was measured of it.
        claimed: The claimed steps, at the delta of the bound.
        name: As in the audit.

    Returns:
        The audit as it was planned before any score was read; None: there is none of that name.
    """
    canaries = RunCanaries.read(run, ledger)
    if canaries.gradient is None:
        return None
    planted = "canaries" in audit.files or canaries.planted is not None
    shares = Shares.of(gradient=True, inputs=canaries.inputs > 0, planted=planted)
    final = name.endswith(FINAL_ITERATE)
    planned = final_plan if final else planned_audits
    confidence, seed = 1 - shares.gradient * (1 - audit.confidence), simulation_seed(ledger)
    plans: tuple[Audit | FinalAudit, ...] = planned(
        canaries.gradient, claimed, confidence=confidence, seed=seed
    )
    observed = FINAL_ITERATE if final else EVERY_STEP
    return next((plan for plan in plans if plan.name_of(observed) == name), None)


def _of_gradients(
    canaries: Canaries | None,
    ledger: PrivacyLedger,
    audit: AuditReport,
    confidence: float,
    delta: float,
) -> Iterator[Promised]:
    if canaries is None:
        return
    observed = EVERY_STEP
    if any(bound.name.endswith(FINAL_ITERATE) for bound in audit.bounds):
        observed = FINAL_ITERATE
    seeded = ledger.header.randomness is Randomness.SEEDED
    steps = booked_steps(ledger, GRADIENT_SUM)
    if not steps:
        return
    claimed = claimed_steps(steps, epsilon=1.0, delta=0.5)  # nothing is computed of it here
    planned = final_plan if observed == FINAL_ITERATE else planned_audits
    plans: tuple[Audit | FinalAudit, ...] = planned(
        canaries, claimed, confidence=confidence, seed=0
    )
    for plan in plans:
        certified = plan.reads is OneRun and not seeded
        kind = BoundKind.CERTIFIED if certified else BoundKind.CONDITIONAL
        name = plan.name_of(observed)
        yield Promised(name, (plan.reads,), plan.confidence, canaries.count, kind, delta)


def final_plan(
    canaries: Canaries, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[FinalAudit, ...]:
    """Return every audit that is made of the sum of all steps."""
    return planned_final_audits(
        canaries.count,
        claimed,
        interfering=canaries.interfering,
        confidence=confidence,
        seed=seed,
    )
