"""Collect the data of a report on one run or on two. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants import pld, risk
from dpaudit.accountants.answers import (
    compared_by,
    compute_epsilon,
    costliest_ledger,
    ledger_epsilons,
)
from dpaudit.attacks.one_run import CanaryObservations, ClaimedSteps
from dpaudit.gate.run_differences import (
    DifferenceCost,
    EpsilonEffect,
    IsolatedChange,
    RunComparison,
    RunDifference,
    isolated_changes,
)
from dpaudit.report.descriptions import partition_in_words
from dpaudit.report.evidence import (
    CanaryScoreHistogram,
    ComparisonEvidence,
    EpsilonCurve,
    ParticipantEpsilon,
    ProfilePoint,
    RefusedAccountant,
    ReportEvidence,
    RunFacts,
    TradeoffPoint,
)
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.runs.file_io import read_arrays, read_json, read_optional_json
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import Baseline, ReleaseCount
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import (
    AccountingError,
    IntegrityError,
    InvalidArgument,
    UnsupportedMechanism,
)
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.ledger import GRADIENT_SUM, SERVER, PrivacyLedger, Sampling
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Repeated
from dpaudit.vocabulary.mechanism_words import mechanism_in_words, refusal_in_words
from dpaudit.vocabulary.privacy_terms import SAMPLING_ACCOUNTANTS, Adjacency
from dpaudit.vocabulary.settings import NoProgress, Progress
from dpaudit.vocabulary.verdict import PastRun, Verdict
from dpaudit.workflow.audit.audit_plan import recorded_steps
from dpaudit.workflow.gate.baselines import baseline_of_run, have_same_data, read_baseline
from dpaudit.workflow.gate.policy_sources import project_digest
from dpaudit.workflow.gate.run_evaluation import utc_now
from dpaudit.workflow.gate.verdict_history import count_steps
from dpaudit.workflow.run_claims import require_claim_of_ledger, require_current_verdict
from dpaudit.workflow.train.federated_plan import published_figure

# Scores of a run's gradient canaries, counted in bins.

MAX_BINS = 24
CANARIES_PER_BIN = 8


def canary_score_histogram(run: RunDirectory, ledger: PrivacyLedger) -> CanaryScoreHistogram | None:
    """Count the likelihood-ratio scores of a run's gradient canaries in bins.

    Args:
        run: A finished run.
        ledger: Its ledger.

    Returns:
        Counts of included and excluded canaries per bin; None where nothing was observed.

    Raises:
        IntegrityError: If a file is broken, or is not of the ledger's steps.
    """
    if not (run.secret_canaries.exists() and run.observations.exists()):
        return None
    included = _array(run.secret_canaries, "gradient_included").astype(np.bool_)
    observations = _array(run.observations, "rows").astype(np.float64)
    if not included.size or not observations.size:
        return None
    steps = recorded_steps(ledger, GRADIENT_SUM)
    if observations.shape != (len(steps), len(included)):
        raise IntegrityError(
            f"{run.observations} holds {observations.shape[0]} steps of {observations.shape[-1]} "
            f"canaries, the run has {len(steps)} steps and {len(included)} canaries"
        )
    observed = CanaryObservations(observations, included, ClaimedSteps(*np.array(steps).T))
    return _in_bins(
        f"gradient canaries, {observed.name}",
        observed.scores,
        included,
    )


def _array(path: Path, name: str) -> NDArray[Any]:
    arrays = read_arrays(path)
    if name not in arrays:
        raise IntegrityError(f"{path} lacks {name}")
    return arrays[name]


def _in_bins(
    name: str, scores: NDArray[np.float64], included: NDArray[np.bool_]
) -> CanaryScoreHistogram:
    bins = min(MAX_BINS, max(1, len(scores) // CANARIES_PER_BIN))
    edges = np.histogram_bin_edges(scores, bins)
    counts = [np.histogram(scores[those], edges)[0] for those in (included, ~included)]
    return CanaryScoreHistogram(name, tuple(edges.tolist()), *(tuple(c.tolist()) for c in counts))


# Differences between two runs, and the cost of each one by itself.


def compare_runs(before: Path, after: Path) -> RunComparison:
    """Compare two runs.

    Args:
        before: A run directory or a baseline file.
        after: Another one.

    Returns:
        Every difference, with its cost.

    Raises:
        InvalidArgument: If there is nothing at a path.
        IntegrityError: If a run is unfinished, or a file is missing, altered or broken.
    """
    content = None
    if before.is_dir() and after.is_dir():
        content = have_same_data(open_run(before), open_run(after))
    return compare_baselines(read_baseline(before), read_baseline(after), same_data=content)


def compare_baselines(
    before: Baseline, after: Baseline, *, same_data: bool | None = None
) -> RunComparison:
    """List the differences between two runs, each with the epsilon that it alone would cause.

    Args:
        before: The figures of one run.
        after: The figures of the other.
        same_data: Whether two different data files have the same bytes; None where that is not
            known, or both runs name one file.

    Returns:
        Every difference, with its cost.
    """
    costs = tuple(
        DifferenceCost(change.difference, _epsilon_of(change, before.claim))
        for change in isolated_changes(before, after)
    )
    if same_data is not None:
        now = "another file of the same bytes" if same_data else "other bytes"
        costs += (
            DifferenceCost(RunDifference("data (content)", "its file", now, EpsilonEffect.NONE)),
        )
    return RunComparison(before=before, after=after, costs=costs)


def _epsilon_of(change: IsolatedChange, claim: Claim) -> float | None:
    """Return the upper bound, had ``change`` alone been made; None where it has none."""
    if change.alone is None or claim.accountant not in SAMPLING_ACCOUNTANTS:
        return None
    try:
        return compute_epsilon(
            claim.accountant,
            _composed(change.alone),
            claim.delta,
            claim.adjacency,
            claim.sampling,
        ).epsilon.upper
    except (InvalidArgument, AccountingError):  # the accountant has no valid bound
        return None


def _composed(recorded: tuple[ReleaseCount, ...]) -> Composed:
    return Composed(tuple(Repeated(one.mechanism, one.times) for one in recorded))


CURVE_POINTS = 12
PROFILE_DELTAS = tuple(float(delta) for delta in np.geomspace(1e-2, 1e-10, 17))
TRADEOFF_FPRS = (*np.geomspace(1e-5, 1, 31).tolist(), *np.linspace(0.05, 0.95, 19).tolist())
MAX_CURVE_QUERIES = 30
"""Number of deltas behind the trade-off curve; twice as many lower it by less than 1%."""

NO_ANSWER_ERRORS = (UnsupportedMechanism, AccountingError)
"""Raised by an accountant that has no valid bound for a mechanism."""


def gather_evidence(
    run: RunDirectory,
    history: tuple[PastRun, ...] = (),
    *,
    progress: Progress | None = None,
) -> ReportEvidence:
    """Collect the data of the report on one finished run.

    Args:
        run: The run; its files are verified, and its claim.json is compared with the claim
            that is recomputed from its ledger.
        history: Past verdicts to show, the oldest first.
        progress: Receives each finished curve.

    Returns:
        Claim, measurements, verdict and curves of the run.

    Raises:
        IntegrityError: If the run is unfinished, if a file is missing or altered, or if
            claim.json differs from the recomputed claim.
    """
    ledger = run.read_finished()
    require_claim_of_ledger(run, ledger)
    claim = read_json(run.claim, Claim)
    accounted = costliest_ledger(ledger, claim.delta, compared_by(claim))
    known = ReportEvidence(
        run=run.name,
        claim=claim,
        mechanism_in_words=mechanism_in_words(accounted.mechanism),
        answers=(),
        curves=(),
        profile=(),
        audit=read_optional_json(run.audit, AuditReport),
        verdict=_verdict(run),
        canaries=canary_score_histogram(run, ledger),
        attack=read_optional_json(run.attack, AttackReport),
        conformance=read_optional_json(run.conformance, ConformanceResult),
        history=history,
        project_digest=project_digest(),
        facts=_facts(run, ledger),
        participants=_participants(ledger, claim),
        rounds=count_steps(ledger) if ledger.header.federation is not None else 0,
        published=published_figure(run, ledger) or "",
    )
    return _priced(known, accounted, progress or NoProgress())


def _participants(ledger: PrivacyLedger, claim: Claim) -> tuple[ParticipantEpsilon, ...]:
    """Return epsilon of each ledger of a federation; empty for a run of one trainer."""
    if ledger.header.federation is None:
        return ()
    parts = ledger_epsilons(ledger, claim.delta, compared_by(claim))
    rejected = Counter(name for one in ledger.rounds for name in one.rejected)
    left = {name: one.number for one in reversed(ledger.rounds) for name in one.left}
    return tuple(
        ParticipantEpsilon(
            name=name,
            releases=parts[name].releases if name in parts else 0,
            epsilon=parts[name].epsilon if name in parts else None,
            left=left.get(name),
            rejected=rejected[name],
        )
        for name in (SERVER, *ledger.participants)
    )


def _facts(run: RunDirectory, ledger: PrivacyLedger) -> RunFacts:
    digest = ledger.seal.files.get(run.model.name, "") if ledger.seal else ""
    if not run.config.exists():  # your own training loop has no recorded settings
        return RunFacts(utc_now().replace(microsecond=0), model_digest=digest)
    config = run.read_settings()
    data, model = config.data, config.model
    divided = ""
    if isinstance(config, FederatedConfig):
        divided = f"; partition {partition_in_words(config.federation)}"
    return RunFacts(
        written=utc_now().replace(microsecond=0),
        data=f"{data.source} (test fraction {data.test_fraction:g}, split seed {data.split_seed}"
        f"{divided})",
        model=f"{model.model}, trained with {model.optimizer}",
        model_digest=digest,
    )


def _verdict(run: RunDirectory) -> Verdict | None:
    verdict = read_optional_json(run.verdict, Verdict)
    if verdict is not None:
        require_current_verdict(run, verdict)
    return verdict


def gather_comparison(before: RunDirectory, after: RunDirectory) -> ComparisonEvidence:
    """Collect the data of the report on two finished runs and on their differences.

    Args:
        before: The first run, A.
        after: The second run, B.

    Returns:
        The data of both runs, and the cost of each difference.

    Raises:
        IntegrityError: As for one run.
    """
    found = compare_baselines(baseline_of_run(before, None), baseline_of_run(after, None))
    return ComparisonEvidence(gather_evidence(before), gather_evidence(after), found.costs)


def _priced(known: ReportEvidence, ledger: PrivacyLedger, progress: Progress) -> ReportEvidence:
    """Add the results of every accountant.

    If the schedule was chosen during the run, the theorems of the accountants do not apply.
    Then only the claim, which a privacy filter guarantees, is known.
    """
    if not ledger.header.schedule_fixed_in_advance:
        return known
    progress.start("computing epsilon curves", len(SAMPLING_ACCOUNTANTS) + 2)
    results = [_answer(name, ledger.mechanism, known.claim) for name in SAMPLING_ACCOUNTANTS]
    answers = tuple(one for one in results if isinstance(one, EpsilonAnswer))
    curves: list[EpsilonCurve] = []
    for one in answers:
        curves += _curves(ledger, known.claim, [one.accountant])
        progress.advance()
    profile = _profile(ledger.mechanism, known.claim.adjacency)
    progress.advance()
    tradeoff = _tradeoff(ledger.mechanism, known.claim.adjacency)
    progress.advance()
    return msgspec.structs.replace(
        known,
        answers=answers,
        refused=tuple(one for one in results if isinstance(one, RefusedAccountant)),
        curves=tuple(curves),
        profile=profile,
        tradeoff=tradeoff,
    )


# Most of the time of a report is spent in these numbers. They depend on mechanism and claim alone:
# reports on runs of one plan, and a second report on a run, take them from memory.

KEPT_ANSWERS = 64
"""Answers that are kept: all of one run, which has 13 a curve and one curve an accountant."""


def _answer(
    accountant: str, mechanism: Mechanism, claim: Claim
) -> EpsilonAnswer | RefusedAccountant:
    return _cached_answer(accountant, mechanism, claim.delta, claim.adjacency, claim.sampling)


@lru_cache(KEPT_ANSWERS)
def _cached_answer(
    accountant: str,
    mechanism: Mechanism,
    delta: float,
    adjacency: Adjacency,
    sampling: Sampling | None,
) -> EpsilonAnswer | RefusedAccountant:
    try:
        return compute_epsilon(accountant, mechanism, delta, adjacency, sampling)
    except NO_ANSWER_ERRORS as error:
        return RefusedAccountant(accountant, refusal_in_words(error))


def _curves(
    ledger: PrivacyLedger, claim: Claim, accountants: Iterable[str]
) -> tuple[EpsilonCurve, ...]:
    """Compute epsilon after ``CURVE_POINTS`` numbers of steps, by each accountant."""
    ends = ends_of_steps(ledger)
    if not ends:
        return ()
    counts = sorted({int(count) for count in np.linspace(1, len(ends), CURVE_POINTS)})
    parts = [(count, _first(ledger, ends[count - 1])) for count in counts]
    return tuple(_curve(accountant, parts, claim) for accountant in accountants)


def ends_of_steps(ledger: PrivacyLedger) -> list[int]:
    """Find where each step ends; consecutive releases of one step are one step.

    A release that is no step counts with the next step.

    Args:
        ledger: Ledger of a run.

    Returns:
        Number of releases up to the end of each step, in order.
    """
    steps = [(i + 1, one.step) for i, one in enumerate(ledger.releases) if one.step is not None]
    following = [step for _, step in steps[1:]]
    return [end for (end, step), after in zip_longest(steps, following) if step != after]


def _curve(accountant: str, parts: list[tuple[int, Mechanism]], claim: Claim) -> EpsilonCurve:
    found = ((count, _answer(accountant, part, claim)) for count, part in parts)
    known = [(n, one.epsilon.upper) for n, one in found if isinstance(one, EpsilonAnswer)]
    return EpsilonCurve(accountant, tuple(n for n, _ in known), tuple(upper for _, upper in known))


def _first(ledger: PrivacyLedger, count: int) -> Mechanism:
    occurrences = Counter(release.mechanism for release in ledger.releases[:count])
    return Composed(tuple(Repeated(release, times) for release, times in occurrences.items()))


@lru_cache(2)
def _profile(mechanism: Mechanism, adjacency: Adjacency) -> tuple[ProfilePoint, ...]:
    """Compute the privacy profile at ``PROFILE_DELTAS``, without those that have no answer."""
    points = []
    for delta in PROFILE_DELTAS:
        with suppress(*NO_ANSWER_ERRORS):
            epsilon = pld.profile(mechanism, adjacency=adjacency).epsilon(delta=delta)
            points.append(ProfilePoint(delta, epsilon))
    return tuple(points)


@lru_cache(2)
def _tradeoff(mechanism: Mechanism, adjacency: Adjacency) -> tuple[TradeoffPoint, ...]:
    try:
        profile = pld.profile(mechanism, adjacency=adjacency)
        curve = risk.tradeoff(profile, TRADEOFF_FPRS, most_evaluations=MAX_CURVE_QUERIES)
    except NO_ANSWER_ERRORS:
        return ()
    return tuple(map(TradeoffPoint, curve.fpr, curve.tpr))
