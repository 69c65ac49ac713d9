"""The lower bounds that a complete audit of a run holds, and the claim that they test.

The gate compares an audit with this plan: a file that lacks a bound is not complete.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpaudit.accountants import pld
from dpaudit.accountants.pld import PldProfile
from dpaudit.accountants.schedules import poisson_step
from dpaudit.attacks.bounds import MechanismFamily, PiecewiseLinearTradeoff
from dpaudit.attacks.final_model import planned_audits
from dpaudit.attacks.one_run import guess_audits, score_file_audit
from dpaudit.attacks.one_run.gradient_canary_audits import (
    FINAL_ITERATE,
    CanaryDesign,
    FinalAudit,
    OneRunAudit,
    plan_audits,
    plan_final_audits,
)
from dpaudit.attacks.one_run.observations import EVERY_STEP, ClaimedMechanism, ClaimedSteps
from dpaudit.runs.directory import RunDirectory, read_canary_file_record
from dpaudit.runs.file_io import read_arrays, read_json, sha256
from dpaudit.vocabulary.audit import AuditReport, BoundKind, BoundStatistics, OneRun
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import GRADIENT_SUM, LedgerHeader, PrivacyLedger, Randomness
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, Unit
from dpaudit.workflow.audit.final_model_trials import (
    FINAL_MODEL_PLAN,
    FINAL_MODELS,
    TrialFiles,
    TrialPlan,
    complete_trials,
)

# Number of supporting lines of a trade-off curve. With 150, a bound would rise by 0.02, in seven
# times the time.
SUPPORT_LINES = 20
MAX_LINE_EPSILON = 500.0  # of a line: exp of more overflows
MIN_LINE_DELTA = 1e-5  # below it, a few thousand canaries cannot detect a line

StepParameters = tuple[float, float]
"""A sampling rate and a noise multiplier."""


def require_one_trainer(run: RunDirectory, ledger: PrivacyLedger) -> None:
    """Refuse the run of a federation, whose participants train without canaries.

    Args:
        run: The run.
        ledger: Its ledger.

    Raises:
        InvalidArgument: If it is a federation.
    """
    if ledger.header.federation is not None:
        raise InvalidArgument(
            "run",
            str(run.path),
            "a run of one trainer: the participants of a federation train without canaries",
        )


def recorded_steps(ledger: PrivacyLedger, what: str) -> list[StepParameters]:
    """Return the recorded steps of the releases called ``what``, in the order of their numbers.

    A step that was repeated after a crash is recorded twice and was observed once: its last
    record counts.

    Args:
        ledger: The ledger of a run.
        what: Name of the release, such as ``GRADIENT_SUM``.

    Returns:
        Sampling rate and noise multiplier of each step; a full batch has sampling rate 1.

    Raises:
        IntegrityError: If a step is not recorded as a sampled Gaussian.
    """
    steps: dict[int, StepParameters] = {}
    for release in ledger.releases:
        if release.what != what or release.step is None:
            continue
        match release.mechanism:
            case PoissonSampled(Gaussian(noise_multiplier), sampling_rate):
                steps[release.step] = (sampling_rate, noise_multiplier)
            case Gaussian(noise_multiplier):  # a full batch
                steps[release.step] = (1.0, noise_multiplier)
            case _:
                raise IntegrityError(f"step {release.step} is not recorded as a sampled Gaussian")
    return [steps[number] for number in sorted(steps)]


def claimed_family(steps: list[StepParameters], delta: float) -> MechanismFamily:
    """Return the cost of the steps as a function of a factor on all noise.

    Args:
        steps: Sampling rate and noise multiplier of each step.
        delta: The delta at which epsilon is computed.

    Returns:
        Epsilon, total variation and trade-off curve by noise factor; computed on use and cached.
    """
    # Composition is commutative: equal steps are composed together.
    times = {step: steps.count(step) for step in dict.fromkeys(steps)}
    return _family(tuple(times.items()), delta)


@lru_cache(maxsize=8)
def _family(times: tuple[tuple[StepParameters, int], ...], delta: float) -> MechanismFamily:
    """Return the family of steps and their numbers; an audit and its gate share what it computed.

    A search for the least refuted factor needs about 20 trade-off curves, of 21 deltas each.
    """

    @lru_cache
    def profile(noise_factor: float) -> PldProfile:
        return pld.profile(_mechanism(times, noise_factor))

    @lru_cache
    def epsilon(noise_factor: float) -> Bound:
        return profile(noise_factor).epsilon(delta=delta)

    @lru_cache
    def total_variation(noise_factor: float) -> float:
        return profile(noise_factor).delta(epsilon=0.0).upper

    @lru_cache
    def tradeoff(noise_factor: float) -> PiecewiseLinearTradeoff:
        return _supported(profile(noise_factor))

    return MechanismFamily(epsilon, total_variation, tradeoff)


def _mechanism(times: tuple[tuple[StepParameters, int], ...], noise_factor: float) -> Mechanism:
    return Composed(
        tuple(
            Repeated(poisson_step(Gaussian(noise_factor * noise), rate), count)
            for (rate, noise), count in times
        )
    )


def _supported(profile: PldProfile) -> PiecewiseLinearTradeoff:
    """Bound the trade-off curve from below by supporting lines, at equally spaced epsilons."""
    # (epsilon, delta)-DP with an upper bound on delta gives the line
    # 1 - delta - exp(epsilon) alpha, which lies below the trade-off curve.
    most = min(MAX_LINE_EPSILON, profile.epsilon(delta=MIN_LINE_DELTA).upper)
    epsilons = np.linspace(0.0, most, SUPPORT_LINES)
    return PiecewiseLinearTradeoff(epsilons, profile.deltas(epsilons=epsilons).upper)


VIEWS = {"every-step": EVERY_STEP, "final-iterate": FINAL_ITERATE}
"""What is read of gradient canaries, by the value of the option ``--view``."""

GRADIENT_SHARE = 0.6  # certified bounds need most of the failure probability
FINAL_MODEL_SHARE = 0.5  # where there are canaries, too


@dataclass(frozen=True)
class FailureShares:
    """Shares of the failure probability, by kind of canary.

    Attributes:
        gradient: Share of gradient canaries.
        inputs: Share of the input canaries of ``dpaudit train``.
        canary_file: Share of the canaries of ``dpaudit canaries make``.
        final_models: Share of models that were trained with and without a target record.
    """

    gradient: float
    inputs: float
    canary_file: float
    final_models: float = 0.0

    @classmethod
    def of(
        cls, *, gradient: bool, inputs: bool, canary_file: bool, final_models: bool = False
    ) -> FailureShares:
        """Return the shares for the kinds of canaries that a run has.

        Args:
            gradient: Whether there are gradient canaries.
            inputs: Whether there are input canaries.
            canary_file: Whether there are canaries from a canary file.
            final_models: Whether models were trained with and without a target record.

        Returns:
            The shares; those of the kinds that a run has sum to at most 1.
        """
        if final_models:
            others = cls.of(gradient=gradient, inputs=inputs, canary_file=canary_file)
            whole = 1 - FINAL_MODEL_SHARE
            own = FINAL_MODEL_SHARE if gradient or inputs or canary_file else 1.0
            of_canaries = (others.gradient, others.inputs, others.canary_file)
            first, second, third = (whole * share for share in of_canaries)
            return cls(first, second, third, own)
        if canary_file and not (gradient or inputs):
            return cls(0.0, 0.0, 1.0)
        # Union bound: the shares of the kinds that a run has sum to at most 1.
        rest = (1 - GRADIENT_SHARE) / (2 if inputs and canary_file else 1)
        return cls(GRADIENT_SHARE, rest, rest)


@dataclass(frozen=True)
class RunCanaries:
    """The canaries of a run, from its files.

    Attributes:
        gradient: Its gradient canaries; None: it had none.
        inputs: Number of input canaries.
        canary_file: Number of canaries in the canary file that the ledger records; None: it
            records no such file.
    """

    gradient: CanaryDesign | None
    inputs: int
    canary_file: int | None

    @classmethod
    def read(cls, run: RunDirectory, ledger: PrivacyLedger) -> RunCanaries:
        """Read the canaries of a finished run, whose files were verified.

        Args:
            run: The run.
            ledger: Its ledger.

        Returns:
            The kinds and numbers of canaries.

        Raises:
            IntegrityError: If a file is broken.
        """
        recorded = read_canary_file_record(run, ledger)
        canary_file = None if recorded is None else recorded.count
        if not run.secret_canaries.exists():
            return cls(None, 0, canary_file)
        arrays = read_arrays(run.secret_canaries)
        for name in ("gradient_included", "inputs_included", "direction_coordinates"):
            if name not in arrays:
                raise IntegrityError(f"{run.secret_canaries} lacks {name}")
        count, directions = len(arrays["gradient_included"]), arrays["direction_coordinates"]
        gradient = None
        if count:
            gradient = CanaryDesign(count, directions.size > 0, _batches_recorded(run))
        return cls(gradient, len(arrays["inputs_included"]), canary_file)


def _batches_recorded(run: RunDirectory) -> bool:
    """Return whether the observations record the canaries of each batch; reads names only."""
    try:
        with zipfile.ZipFile(run.observations) as archive:
            return "joined.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{run.observations} is missing or broken: {error}") from error


@dataclass(frozen=True)
class ExpectedBound:
    """A lower bound that a complete audit holds.

    Attributes:
        name: Its name in the audit.
        estimators: The statistics that it may be a function of.
        confidence: Probability with which it holds.
        trials: Number of canaries; None where the run's files do not determine it.
        kind: Its kind, which must agree.
        delta: The delta of the bound: the run's own.
    """

    name: str
    estimators: tuple[type[BoundStatistics], ...]
    confidence: float
    trials: int | None
    kind: BoundKind
    delta: float


def claimed_steps(steps: list[StepParameters], *, epsilon: float, delta: float) -> ClaimedMechanism:
    """Return the claim on the steps that canaries observed.

    Args:
        steps: Sampling rates and noise multipliers; at least one.
        epsilon: Upper bound of the run's claim, in nats.
        delta: The delta of the claim.

    Returns:
        The claimed mechanism, for the inversion of lower bounds.
    """
    rates, noises = np.array(steps).T
    return ClaimedMechanism(
        ClaimedSteps(rates, noises), epsilon, delta, claimed_family(steps, delta)
    )


def claim_covers_canaries(header: LedgerHeader) -> bool:
    """Return whether the claim's neighbors differ by one canary: add-or-remove-one, by record."""
    own = header.adjacency is Adjacency.ADD_OR_REMOVE_ONE
    return own and header.unit is Unit.RECORD


def simulation_seed(ledger: PrivacyLedger) -> int:
    """Return the seed of an audit's simulations, which was fixed before any score existed."""
    return int(ledger.header.run[:12], 16)


def expected_bounds(
    run: RunDirectory, ledger: PrivacyLedger, audit: AuditReport, delta: float
) -> tuple[ExpectedBound, ...]:
    """Return the bounds that a complete audit of a run holds, at the audit's confidence.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: Determines the confidence, the view, and whether canaries were scored that the
            run does not record.
        delta: Of the run's own claim.

    Returns:
        The bounds, by kind of canary.
    """
    canaries = RunCanaries.read(run, ledger)
    scored_others = "canaries" in audit.files
    canary_file = scored_others or canaries.canary_file is not None
    shares = FailureShares.of(
        gradient=canaries.gradient is not None,
        inputs=canaries.inputs > 0,
        canary_file=canary_file,
        final_models=FINAL_MODELS in audit.files,
    )
    alpha = 1 - audit.confidence
    seeded = ledger.header.randomness is Randomness.SEEDED
    certified = BoundKind.CONDITIONAL if seeded else BoundKind.CERTIFIED
    level = 1 - shares.gradient * alpha
    found = list(_of_gradients(canaries.gradient, ledger, audit, level, delta))
    if canaries.inputs:
        name, confidence = guess_audits.INPUT_CANARY_AUDIT_NAME, 1 - shares.inputs * alpha
        found.append(ExpectedBound(name, (OneRun,), confidence, canaries.inputs, certified, delta))
    if canary_file:
        fixed = canaries.canary_file is not None and claim_covers_canaries(ledger.header)
        kind = BoundKind.CERTIFIED if fixed else BoundKind.CONDITIONAL
        confidence = 1 - shares.canary_file * alpha
        found.append(
            ExpectedBound(
                score_file_audit.SCORE_AUDIT_NAME,
                (OneRun,),
                confidence,
                canaries.canary_file,
                kind,
                delta,
            )
        )
    if FINAL_MODELS in audit.files:
        level = 1 - shares.final_models * alpha
        _require_same_models(run, audit)
        found += list(_of_final_models(run, ledger, level, delta))
    elif run.final_model_trials.exists():  # a later audit must not drop what they showed
        found += list(_of_final_models(run, ledger, audit.confidence, delta))
    return tuple(found)


def _require_same_models(run: RunDirectory, audit: AuditReport) -> None:
    """Refuse another plan, other outputs, or another number of models than the plan fixed."""
    for path, role in (
        (run.final_model_trials, FINAL_MODELS),
        (run.final_model_plan, FINAL_MODEL_PLAN),
    ):
        if sha256(path) != audit.files.get(role):
            raise IntegrityError(
                f"{path} is not the file that {run.audit} was computed from: audit the run again"
            )
    if complete_trials(TrialFiles(run.final_model_plan, run.final_model_trials)) is None:
        raise IntegrityError(
            f"{run.final_model_trials} holds fewer models than {run.final_model_plan} fixed: "
            "finish the audit by --black-box"
        )


def _of_final_models(
    run: RunDirectory, ledger: PrivacyLedger, confidence: float, delta: float
) -> Iterator[ExpectedBound]:
    """Yield the bounds from models with and without a target record, by the run's own files."""
    plan = read_json(run.final_model_plan, TrialPlan)
    pairs = len(read_arrays(run.final_model_trials)["with_record"])
    own = claim_covers_canaries(ledger.header) and plan.settings.get("trainer") == "own"
    for one in planned_audits(stops_early=plan.stops_early):
        kind = one.kind if own else BoundKind.CONDITIONAL
        level = 1 - one.share * (1 - confidence)
        yield ExpectedBound(one.name, (one.statistics,), level, 2 * pairs, kind, delta)


def expected_attacks(run: RunDirectory, audit: AuditReport) -> tuple[str, ...]:
    """Return the names of the membership attacks that a complete audit holds.

    Args:
        run: A finished run.
        audit: Determines whether the scores of a canary file were read.

    Returns:
        Names, as in the audit.
    """
    of_losses = ("loss threshold",) if run.config.exists() else ()
    of_canaries = ("scores",) if "canaries" in audit.files else ()
    return (*of_losses, *of_canaries)


def plan_gradient_audit(
    run: RunDirectory,
    ledger: PrivacyLedger,
    audit: AuditReport,
    claimed: ClaimedMechanism,
    name: str,
) -> OneRunAudit | FinalAudit | None:
    """Return the audit of gradient canaries that makes the bound called ``name``.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: The measurements of the run.
        claimed: The claimed steps, at the delta of the bound.
        name: Name of the bound, as in the audit.

    Returns:
        The audit as it was planned before any score was read; None: no audit has that name.
    """
    canaries = RunCanaries.read(run, ledger)
    if canaries.gradient is None:
        return None
    canary_file = "canaries" in audit.files or canaries.canary_file is not None
    shares = FailureShares.of(
        gradient=True,
        inputs=canaries.inputs > 0,
        canary_file=canary_file,
        final_models=FINAL_MODELS in audit.files,
    )
    final = name.endswith(FINAL_ITERATE)
    planned = plan_final_iterate_audits if final else plan_audits
    confidence, seed = 1 - shares.gradient * (1 - audit.confidence), simulation_seed(ledger)
    plans: tuple[OneRunAudit | FinalAudit, ...] = planned(
        canaries.gradient, claimed, confidence=confidence, seed=seed
    )
    observed = FINAL_ITERATE if final else EVERY_STEP
    return next((plan for plan in plans if plan.name_of(observed) == name), None)


def _of_gradients(
    canaries: CanaryDesign | None,
    ledger: PrivacyLedger,
    audit: AuditReport,
    confidence: float,
    delta: float,
) -> Iterator[ExpectedBound]:
    if canaries is None:
        return
    observed = EVERY_STEP
    if any(bound.name.endswith(FINAL_ITERATE) for bound in audit.bounds):
        observed = FINAL_ITERATE
    seeded = ledger.header.randomness is Randomness.SEEDED
    steps = recorded_steps(ledger, GRADIENT_SUM)
    if not steps:
        return
    claimed = claimed_steps(
        steps, epsilon=1.0, delta=0.5
    )  # any values: only the names of the plans are read
    planned = plan_final_iterate_audits if observed == FINAL_ITERATE else plan_audits
    plans: tuple[OneRunAudit | FinalAudit, ...] = planned(
        canaries, claimed, confidence=confidence, seed=0
    )
    for plan in plans:
        certified = plan.statistics is OneRun and not seeded
        kind = BoundKind.CERTIFIED if certified else BoundKind.CONDITIONAL
        name = plan.name_of(observed)
        yield ExpectedBound(name, (plan.statistics,), plan.confidence, canaries.count, kind, delta)


def plan_final_iterate_audits(
    canaries: CanaryDesign, claimed: ClaimedMechanism, *, confidence: float, seed: int
) -> tuple[FinalAudit, ...]:
    """Return every audit that reads only the sum of all steps.

    Args:
        canaries: Number and design of the gradient canaries.
        claimed: The claimed steps.
        confidence: Probability with which all bounds hold together.
        seed: Seed of the simulations.

    Returns:
        The audits, planned before any score is read.
    """
    return plan_final_audits(
        canaries.count,
        claimed,
        interfering=canaries.interfering,
        confidence=confidence,
        seed=seed,
    )
