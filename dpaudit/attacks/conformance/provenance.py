"""Does a claim cover what its ledger books, and what else was made of the records?

Nothing is sampled here: a ledger says what was released, a claim what it covers, and the
one must not leave out what the other holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dpaudit.attacks.conformance.words import undecided, violated
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import Finding, StepClaim
from dpaudit.vocabulary.errors import require_count
from dpaudit.vocabulary.ledger import PrivacyLedger, Sampling
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Gaussian,
    PoissonSampled,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.release_names import GRADIENT_SUM
from dpaudit.vocabulary.verdict import Outcome

CHECK = "provenance"
EXACT = "exact: no chance is involved"
TUNING, EARLY_STOPPING = "hyperparameter-tuning", "early-stopping"


@dataclass(frozen=True)
class Made:
    """What was made of the records, as those who did it know; None: they do not say.

    Attributes:
        steps: Steps that were taken, in all processes of the run.
        runs: Runs among which this one was chosen.
        stopped_early: Whether the records decided when to stop.
        checkpoints: Steps whose weights were given away.
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
    made: Made | None = None,
) -> list[Finding]:
    """Return whether ``claim`` covers what ``ledger`` books and what was ``made`` beside.

    Args:
        ledger: Read and verified.
        claim: The epsilon that is given for it.
        steps: What is claimed of each step, where that is claimed as well.
        made: What else is known to have been made of the records.
    """
    tested = f"the ledger's {len(ledger.releases)} releases against the claim"
    wrong = [*_terms(ledger, claim), *_left_out(ledger, claim, made or Made())]
    if steps is not None:
        wrong += list(_steps(ledger, steps))
    weaker = [] if steps is None else list(_weaker(ledger, steps))
    if wrong or weaker:
        return [
            *(violated(CHECK, name, tested, why) for name, why in wrong),
            *(undecided(CHECK, name, tested, why) for name, why in weaker),
        ]
    return [_unsealed(tested) if ledger.seal is None else _covered(tested, claim)]


def _covered(tested: str, claim: Claim) -> Finding:
    openly = f"; it says itself that it leaves out {', '.join(claim.leaves_out)}"
    return Finding(
        check=CHECK,
        name="releases",
        outcome=Outcome.HOLDS,
        tested=tested,
        why="the claim covers all that is booked" + (openly if claim.leaves_out else ""),
        power="what was never booked, and nobody names, would not be seen",
    )


def _unsealed(tested: str) -> Finding:
    return Finding(
        check=CHECK,
        name="releases",
        outcome=Outcome.INCONCLUSIVE,
        tested=tested,
        why="the ledger is not sealed: the run may have released more since",
        power=EXACT,
    )


def _terms(ledger: PrivacyLedger, claim: Claim) -> Iterator[tuple[str, str]]:
    """Yield the terms on which a claim and its ledger disagree."""
    header = ledger.header
    if claim.adjacency is not header.adjacency:
        yield "adjacency", _other_adjacency(header.adjacency, claim.adjacency)
    elif claim.adjacency is Adjacency.REPLACE_ONE and _set_for_less(ledger):
        yield "adjacency", _other_adjacency(Adjacency.ADD_OR_REMOVE_ONE, claim.adjacency)
    for name in ("sampling", "randomness"):
        was, is_said = getattr(header, name), getattr(claim, name)
        if was is not is_said:
            yield name, f"the claim says {name} {is_said.value}, the ledger {was.value}"
    if claim.unit != header.unit:
        yield "unit", f"the claim protects a {claim.unit}, the ledger's noise a {header.unit}"
    if claim.releases != len(ledger.releases):
        yield (
            "releases",
            f"the claim covers {claim.releases} releases, the ledger books "
            f"{len(ledger.releases)}: steps are left out",
        )
    if claim.ledger_head != ledger.head:
        yield "ledger", "the claim is of another ledger, or of this one before it went on"


def _other_adjacency(was: Adjacency, is_said: Adjacency) -> str:
    return (
        f"the claim is for {is_said.value} neighbours, with noise that was set for {was.value}: "
        "a record that is replaced moves a clipped sum by twice the clip norm"
    )


def _set_for_less(ledger: PrivacyLedger) -> bool:
    """Return whether a sum's noise was set, by what it says itself, for add-or-remove."""
    noises = [_noise(booked.mechanism) for booked in ledger.releases]
    # Sampling without replacement is priced for replaced records by its own mechanism.
    return any(isinstance(booked.mechanism, PoissonSampled) for booked in ledger.releases) and any(
        noise is not None and noise.set_for is Adjacency.ADD_OR_REMOVE_ONE for noise in noises
    )


def _left_out(ledger: PrivacyLedger, claim: Claim, made: Made) -> Iterator[tuple[str, str]]:
    for name in ledger.leaves_out:
        if name not in claim.leaves_out:
            yield "left out", f"the ledger says that no claim covers {name}; the claim is silent"
    if made.runs > 1 and TUNING not in claim.leaves_out:
        yield (
            "tuning",
            f"this run is one of {made.runs}, and was chosen: the claim covers it alone, and "
            f"does not say that it leaves out {TUNING}",
        )
    if made.stopped_early and EARLY_STOPPING not in claim.leaves_out:
        yield "early stopping", "the records decided when to stop, and the claim is silent of it"
    if not ledger.header.schedule_fixed_in_advance and ledger.header.budget is None:
        yield "schedule", "steps were chosen on the way, and no filter was asked before each"
    booked = {release.step for release in ledger.releases if release.step is not None}
    if made.steps is not None and made.steps > len(booked):
        yield "steps", f"{made.steps} steps were taken, {len(booked)} are booked"
    # Step n's weights are those after n releases: of the steps before it.
    beyond = [step for step in made.checkpoints if step - 1 not in booked]
    if beyond:
        named = ", ".join(map(str, beyond))
        yield "checkpoints", f"checkpoints were released of steps that are not booked: {named}"


def _steps(ledger: PrivacyLedger, claim: StepClaim) -> Iterator[tuple[str, str]]:
    """Yield where the booked steps are not those that are claimed of the trainer."""
    sums = [release for release in ledger.releases if release.what == GRADIENT_SUM]
    if len(sums) > claim.steps:
        yield "steps", f"{len(sums)} steps are booked, {claim.steps} are claimed"
    noises = [noise for booked in sums if (noise := _noise(booked.mechanism)) is not None]
    least = min((noise.noise_multiplier for noise in noises), default=claim.noise_multiplier)
    if not least >= claim.noise_multiplier:
        yield (
            "noise",
            f"a step is booked with noise multiplier {least:g}, claimed is "
            f"{claim.noise_multiplier:g}",
        )
    rates = [b.mechanism.sampling_rate for b in sums if isinstance(b.mechanism, PoissonSampled)]
    if not max(rates, default=claim.sampling_rate) <= claim.sampling_rate:
        yield (
            "sampling rate",
            f"a step is booked at rate {max(rates):g}, claimed is {claim.sampling_rate:g}",
        )
    if ledger.header.clip_norm > claim.clip_norm:
        yield (
            "clip norm",
            f"the ledger clips at {ledger.header.clip_norm:g}, claimed is {claim.clip_norm:g}",
        )


def _weaker(ledger: PrivacyLedger, claim: StepClaim) -> Iterator[tuple[str, str]]:
    """Yield where the trainer was tested for less, or for something else, than is booked."""
    sums = [release for release in ledger.releases if release.what == GRADIENT_SUM]
    if not sums:
        yield "steps", f"the ledger books no {GRADIENT_SUM}, which the trainer was tested for"
    noises = [noise for booked in sums if (noise := _noise(booked.mechanism)) is not None]
    most = max((noise.noise_multiplier for noise in noises), default=claim.noise_multiplier)
    if not most <= claim.noise_multiplier:
        yield "noise", _tested(f"noise multiplier {most:g}", f"{claim.noise_multiplier:g} alone")
    rates = [rate for booked in sums if (rate := _rate(booked.mechanism)) is not None]
    least = min(rates, default=claim.sampling_rate)
    if not (
        least >= claim.sampling_rate or math.isclose(least, claim.sampling_rate, rel_tol=1e-12)
    ):
        yield "sampling rate", _tested(f"rate {least:g}", f"{claim.sampling_rate:g} alone")
    header = ledger.header
    if _drawn(claim) is not header.sampling:
        yield "sampling", _tested(f"{header.sampling.value} sampling", claim.sampling.value)
    if claim.adjacency is not header.adjacency:
        yield "adjacency", _tested(f"{header.adjacency.value} neighbours", claim.adjacency.value)


def _tested(booked: str, tested: str) -> str:
    return f"steps are booked with {booked}, the trainer was tested for {tested}"


def _drawn(claim: StepClaim) -> Sampling:
    """Return how records are drawn: Poisson samples at rate 1 are full batches."""
    everyone = claim.sampling is Sampling.POISSON and claim.sampling_rate == 1
    return Sampling.FULL_BATCH if everyone else claim.sampling


def _rate(release: Release) -> float | None:
    """Return the share of the records in a step, where privacy is claimed from it."""
    match release:
        case PoissonSampled(sampling_rate=rate) | TruncatedPoisson(sampling_rate=rate):
            return rate
        case SampledWithoutReplacement(batch_size=batch, dataset_size=size):
            return batch / size
        case _:
            return None


def _noise(release: Release) -> Gaussian | None:
    """Return the Gaussian noise of a release on one step's sum, if that is what it is."""
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
