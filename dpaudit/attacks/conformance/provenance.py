"""Provenance: whether a claim covers its ledger and the other known uses of the records.

The checks are deterministic. A claim must cover every release that its ledger records, under the
ledger's adjacency, sampling, randomness and privacy unit. It must also mention known uses of the
data that the ledger does not contain, such as hyperparameter tuning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dpaudit.attacks.conformance.statistical_tests import failed_finding, inconclusive_finding
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim
from dpaudit.vocabulary.errors import require_count
from dpaudit.vocabulary.ledger import (
    GRADIENT_SUM,
    UPDATE_SUM,
    UPDATE_SUM_AND_COUNT,
    PrivacyLedger,
    Sampling,
)
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Gaussian,
    PoissonSampled,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome

CHECK = "provenance"
EXACT_POWER = "exact: the test is deterministic"
SUMS = (GRADIENT_SUM, UPDATE_SUM, UPDATE_SUM_AND_COUNT)
"""Releases that a claim on each step, or on each round of a server, is about."""
TUNING, EARLY_STOPPING = "hyperparameter-tuning", "early-stopping"


@dataclass(frozen=True)
class DataUse:
    """Known uses of the records that a ledger may lack.

    Attributes:
        steps: Number of steps taken in all processes of the run, at least 0; None if not known.
        runs: Number of runs from which this one was chosen, at least 1.
        stopped_early: Whether a result on the records decided when to stop.
        checkpoints: Numbers of the steps whose weights were released.
    """

    steps: int | None = None
    runs: int = 1
    stopped_early: bool = False
    checkpoints: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.steps is not None:
            require_count("steps", self.steps, least=0)
        require_count("runs", self.runs)


def check_provenance(
    ledger: PrivacyLedger,
    claim: Claim,
    *,
    steps: StepClaim | None = None,
    data_use: DataUse | None = None,
) -> list[ConformanceFinding]:
    """Check that a claim covers a ledger and the other known uses of the records.

    Args:
        ledger: The ledger of the run, read and verified.
        claim: The privacy claim for it.
        steps: The claim about each step that the trainer was tested for; None if there is none.
        data_use: Other known uses of the records; None if none are known.

    Returns:
        FAIL findings for what the claim does not cover, and INCONCLUSIVE findings where the
        trainer was tested for less than is recorded. If there are neither, one PASS finding; an
        INCONCLUSIVE one if the ledger is not sealed.
    """
    tested = f"the ledger's {ledger.release_count} releases against the claim"
    wrong = [
        *_term_differences(ledger, claim),
        *_uncovered_uses(ledger, claim, data_use or DataUse()),
    ]
    weaker: list[tuple[str, str]] = []
    if steps is not None:
        accounted = ledger.accounted_ledgers or {"": ledger}
        for one, part in accounted.items():
            of = f"participant {one}: " if one in ledger.participants else ""
            wrong += [(name, of + why) for name, why in _step_differences(part, steps)]
            weaker += [(name, of + why) for name, why in _weaker_tests(part, steps)]
    if wrong or weaker:
        return [
            *(failed_finding(CHECK, name, tested, why) for name, why in wrong),
            *(inconclusive_finding(CHECK, name, tested, why) for name, why in weaker),
        ]
    return [_unsealed_finding(tested) if ledger.seal is None else _covered_finding(tested, claim)]


def _covered_finding(tested: str, claim: Claim) -> ConformanceFinding:
    unaccounted = f"; it states that it does not cover {', '.join(claim.unaccounted)}"
    return ConformanceFinding(
        check=CHECK,
        name="releases",
        outcome=Outcome.PASS,
        tested=tested,
        why="the claim covers all recorded releases" + (unaccounted if claim.unaccounted else ""),
        power="releases that are neither recorded nor declared are not detectable",
    )


def _unsealed_finding(tested: str) -> ConformanceFinding:
    return ConformanceFinding(
        check=CHECK,
        name="releases",
        outcome=Outcome.INCONCLUSIVE,
        tested=tested,
        why="the ledger is not sealed: the run may have released more since; finish the run",
        power=EXACT_POWER,
    )


def _term_differences(ledger: PrivacyLedger, claim: Claim) -> Iterator[tuple[str, str]]:
    """Yield name and reason of each term in which a claim differs from its ledger."""
    header = ledger.header
    if claim.adjacency is not header.adjacency:
        yield "adjacency", _other_adjacency(header.adjacency, claim.adjacency)
    elif claim.adjacency is Adjacency.REPLACE_ONE and _noise_set_for_add_or_remove(ledger):
        yield "adjacency", _other_adjacency(Adjacency.ADD_OR_REMOVE_ONE, claim.adjacency)
    for name in ("sampling", "randomness"):
        recorded, claimed = getattr(header, name), getattr(claim, name)
        if recorded is not claimed:
            yield name, f"the claim has {name} {claimed.value}, the ledger {recorded.value}"
    if claim.unit != header.unit:
        yield (
            "unit",
            f"the claim's privacy unit is a {claim.unit}, that of the ledger's noise a "
            f"{header.unit}",
        )
    if claim.releases != ledger.release_count:
        yield (
            "releases",
            f"the claim covers {claim.releases} releases, the ledger records "
            f"{ledger.release_count}: steps are left out",
        )
    if claim.ledger_head != ledger.head:
        yield "ledger", "the claim is for another ledger, or for an earlier state of this one"


def _other_adjacency(recorded: Adjacency, claimed: Adjacency) -> str:
    return (
        f"the claim is for {claimed.value} neighbors, with noise that was calibrated for "
        f"{recorded.value}: replacing one record moves a clipped sum by up to twice the clip norm"
    )


def _noise_set_for_add_or_remove(ledger: PrivacyLedger) -> bool:
    """Return whether a Poisson-sampled sum records noise calibrated for add-or-remove-one."""
    noises = [_recorded_noise(recorded.mechanism) for recorded in ledger.releases]
    # Sampling without replacement is accounted for under replace-one by its own mechanism.
    return any(
        isinstance(recorded.mechanism, PoissonSampled) for recorded in ledger.releases
    ) and any(
        noise is not None and noise.set_for is Adjacency.ADD_OR_REMOVE_ONE for noise in noises
    )


def _uncovered_uses(
    ledger: PrivacyLedger, claim: Claim, data_use: DataUse
) -> Iterator[tuple[str, str]]:
    """Yield name and reason of each known use of the records that the claim omits."""
    for name in ledger.unaccounted:
        if name not in claim.unaccounted:
            yield (
                "left out",
                f"the ledger lists {name} as unaccounted for, and the claim does not mention it",
            )
    if data_use.runs > 1 and TUNING not in claim.unaccounted:
        yield (
            "tuning",
            f"this run was selected as one of {data_use.runs}: the claim covers this run only, and "
            f"does not list {TUNING} as unaccounted for",
        )
    if data_use.stopped_early and EARLY_STOPPING not in claim.unaccounted:
        yield (
            "early stopping",
            f"the records decided when to stop, and the claim does not list {EARLY_STOPPING} as "
            "unaccounted for",
        )
    if not ledger.header.schedule_fixed_in_advance and ledger.header.budget is None:
        yield (
            "schedule",
            "the steps were chosen adaptively, and no privacy filter was checked before each",
        )
    recorded = {release.step for release in ledger.releases if release.step is not None}
    if data_use.steps is not None and data_use.steps > len(recorded):
        yield "steps", f"{data_use.steps} steps were taken, {len(recorded)} are recorded"
    # The weights of step n are those after n releases, of the steps before it.
    beyond = [step for step in data_use.checkpoints if step - 1 not in recorded]
    if beyond:
        named = ", ".join(map(str, beyond))
        yield "checkpoints", f"checkpoints were released at steps that are not recorded: {named}"


def _step_differences(ledger: PrivacyLedger, claim: StepClaim) -> Iterator[tuple[str, str]]:
    """Yield name and reason of each recorded step that is less private than the step claim."""
    sums = [release for release in ledger.releases if release.what in SUMS]
    if len(sums) > claim.steps:
        yield "steps", f"{len(sums)} steps are recorded, {claim.steps} are claimed"
    noises = [
        noise for recorded in sums if (noise := _recorded_noise(recorded.mechanism)) is not None
    ]
    least = min((noise.noise_multiplier for noise in noises), default=claim.noise_multiplier)
    if not least >= claim.noise_multiplier:
        yield (
            "noise",
            f"a step is recorded with noise multiplier {least:g}; the claim is "
            f"{claim.noise_multiplier:g}",
        )
    rates = [b.mechanism.sampling_rate for b in sums if isinstance(b.mechanism, PoissonSampled)]
    if not max(rates, default=claim.sampling_rate) <= claim.sampling_rate:
        yield (
            "sampling rate",
            f"a step is recorded with sampling rate {max(rates):g}; the claim is "
            f"{claim.sampling_rate:g}",
        )
    if ledger.header.clip_norm > claim.clip_norm:
        yield (
            "clip norm",
            f"the ledger records clip norm {ledger.header.clip_norm:g}; the claim is "
            f"{claim.clip_norm:g}",
        )


def _weaker_tests(ledger: PrivacyLedger, claim: StepClaim) -> Iterator[tuple[str, str]]:
    """Yield where the trainer was tested for a weaker or a different step than is recorded."""
    sums = [release for release in ledger.releases if release.what in SUMS]
    if not sums:
        yield (
            "steps",
            f"the ledger records no {' and no '.join(SUMS)}, which the trainer was tested for",
        )
    noises = [
        noise for recorded in sums if (noise := _recorded_noise(recorded.mechanism)) is not None
    ]
    most = max((noise.noise_multiplier for noise in noises), default=claim.noise_multiplier)
    if not most <= claim.noise_multiplier:
        yield "noise", _tested(f"noise multiplier {most:g}", f"{claim.noise_multiplier:g} only")
    rates = [rate for recorded in sums if (rate := _recorded_rate(recorded.mechanism)) is not None]
    least = min(rates, default=claim.sampling_rate)
    if not (
        least >= claim.sampling_rate or math.isclose(least, claim.sampling_rate, rel_tol=1e-12)
    ):
        yield (
            "sampling rate",
            _tested(f"sampling rate {least:g}", f"{claim.sampling_rate:g} only"),
        )
    header = ledger.header
    if _claimed_sampling(claim) is not header.sampling:
        yield "sampling", _tested(f"{header.sampling.value} sampling", claim.sampling.value)
    if claim.adjacency is not header.adjacency:
        yield "adjacency", _tested(f"{header.adjacency.value} neighbors", claim.adjacency.value)


def _tested(recorded: str, tested: str) -> str:
    return f"steps are recorded with {recorded}; the trainer was tested for {tested}"


def _claimed_sampling(claim: StepClaim) -> Sampling:
    """Return the claimed sampling; Poisson sampling at rate 1 gives full batches."""
    everyone = claim.sampling is Sampling.POISSON and claim.sampling_rate == 1
    return Sampling.FULL_BATCH if everyone else claim.sampling


def _recorded_rate(release: Release) -> float | None:
    """Return the sampling rate of a release with amplification by sampling; None without it."""
    match release:
        case PoissonSampled(sampling_rate=rate) | TruncatedPoisson(sampling_rate=rate):
            return rate
        case SampledWithoutReplacement(batch_size=batch, dataset_size=size):
            return batch / size
        case _:
            return None


def _recorded_noise(release: Release) -> Gaussian | None:
    """Return the Gaussian mechanism of a sampled or plain Gaussian release; None for others."""
    match release:
        case Gaussian():
            return release
        case (
            PoissonSampled(mechanism=Gaussian() as noise)
            | TruncatedPoisson(mechanism=Gaussian() as noise)
            | SampledWithoutReplacement(mechanism=Gaussian() as noise)
            | RandomAllocation(mechanism=Gaussian() as noise)
            | BandedMatrixFactorization(mechanism=Gaussian() as noise)
        ):
            return noise
        case _:
            return None
