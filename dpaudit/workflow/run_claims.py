"""Claims of runs: of a finished run, and of training settings before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import msgspec

import dpaudit
from dpaudit.accountants import calibrate, pld
from dpaudit.accountants.answers import claim_from_ledger, compute_epsilon
from dpaudit.accountants.schedules import coin_sampling, training_mechanism
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, StaleVerdict
from dpaudit.vocabulary.ledger import NoiseKind, PrivacyLedger, Randomness
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.settings import PrivacySettings
from dpaudit.vocabulary.verdict import Verdict

CLAIM_ACCOUNTANT = "pld"

ClaimAt = Callable[[float, str], Claim]
"""The claim of one ledger at a delta, by the accountant of a name."""


def claims_of_ledger(ledger: PrivacyLedger) -> ClaimAt:
    """Return a function that computes each claim of a ledger once.

    Args:
        ledger: The ledger, of at least one release.

    Returns:
        ``claim_from_ledger`` of this ledger, which keeps what it has computed.
    """
    return cache(partial(claim_from_ledger, ledger))


def claim_delta(run: RunDirectory) -> float:
    """Return the delta that a run was made for: that of its settings, or else of its claim.

    Args:
        run: The run; it may be unfinished.

    Returns:
        The delta.

    Raises:
        InvalidArgument: If the run has neither settings nor a claim.
    """
    if run.config.exists():
        return run.read_settings().privacy.delta
    if run.claim.exists():
        return read_json(run.claim, Claim).delta
    raise InvalidArgument(
        "run", str(run.path), "one with settings or a claim, as no policy sets a delta"
    )


def require_current_verdict(run: RunDirectory, verdict: Verdict) -> None:
    """Refuse a verdict on other measurements than those that are in the run now.

    Args:
        run: The run.
        verdict: A verdict on it.

    Raises:
        StaleVerdict: If a measurement was made, changed or removed since the verdict.
    """
    if verdict.measured != run.measured():
        raise StaleVerdict(
            f"{run.verdict} is older than the newest measurement (an audit, attack or conformance "
            f"result): evaluate the run again by dpaudit gate {run.path}"
        )


def require_claim_of_ledger(
    run: RunDirectory, ledger: PrivacyLedger, claim_at: ClaimAt | None = None
) -> None:
    """Refuse a claim.json that differs from the claim recomputed from the ledger.

    Epsilon may differ by a relative 1e-6, as the last digits depend on the machine.

    Args:
        run: The run whose claim is compared.
        ledger: Its ledger, sealed.
        claim_at: Claims of this ledger that may have been computed before; None: compute it.

    Raises:
        IntegrityError: If the claim is of another ledger, or states another epsilon.
        InvalidArgument: If the ledger is that of a participant of a federation.
    """
    federation = ledger.header.federation
    if federation is not None and federation.participant is not None:
        # Also if a claim was put there: it would state the cost of one participant as the run's.
        raise InvalidArgument(
            "run", str(run.path), "the run of its federation: a participant's ledger has no claim"
        )
    written = read_json(run.claim, Claim)
    again = (claim_at or claims_of_ledger(ledger))(written.delta, written.accountant)
    same_ends = math.isclose(
        written.epsilon.upper, again.epsilon.upper, rel_tol=1e-6
    ) and math.isclose(written.epsilon.lower, again.epsilon.lower, rel_tol=1e-6)
    rest = msgspec.structs.replace(
        written, epsilon=again.epsilon, dpaudit_version=again.dpaudit_version
    )
    if not same_ends or rest != again:
        raise IntegrityError(
            f"{run.claim} does not match its ledger: restore both from one copy of the run"
        )


# The cost of training settings, before anything is trained.

PROGRESS_POINTS = 20


def planned_mechanism(privacy: PrivacySettings, steps: int | None = None) -> Mechanism:
    """Return the mechanism of a run under given settings.

    Args:
        privacy: The settings.
        steps: Number of steps that are taken; None: all.

    Returns:
        The composed steps, and the noisy count of records if the expected batch size is not
        public.
    """
    training = training_mechanism(
        sampling=coin_sampling(privacy.sampling_rate),
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=privacy.noise_multiplier,
        steps=privacy.steps if steps is None else steps,
    )
    parts: tuple[Mechanism, ...] = (training,)
    if privacy.expected_batch_size is None:
        parts = (*parts, Gaussian(privacy.count_noise_multiplier))
    return Composed(parts)


def planned_epsilon(privacy: PrivacySettings, steps: int | None = None) -> float:
    """Compute an upper bound on epsilon after some steps, by the PLD accountant.

    Args:
        privacy: The settings.
        steps: Number of steps that are taken; None: all.

    Returns:
        The upper bound at the settings' delta, in nats.
    """
    mechanism = planned_mechanism(privacy, steps)
    return pld.profile(mechanism).epsilon(delta=privacy.delta).upper


def with_calibrated_noise(privacy: PrivacySettings, target_epsilon: float) -> PrivacySettings:
    """Find the least noise multiplier that keeps epsilon at most ``target_epsilon``.

    Args:
        privacy: The settings; their noise multiplier is ignored.
        target_epsilon: Largest allowed epsilon at the settings' delta, in nats.

    Returns:
        The settings with the noise multiplier that was found.

    Raises:
        InvalidArgument: If no noise meets the target.
    """

    def with_noise(noise: float) -> PrivacySettings:
        return msgspec.structs.replace(privacy, noise_multiplier=noise)

    found = calibrate.noise_multiplier(
        lambda noise: planned_mechanism(with_noise(noise)),
        target_epsilon=target_epsilon,
        delta=privacy.delta,
    )
    return with_noise(found.value)


def epsilon_progress(privacy: PrivacySettings) -> Callable[[int], float]:
    """Return a function that bounds epsilon by the number of completed steps.

    Exact accounting at every step would cost more than the steps. Epsilon is computed at about
    ``PROGRESS_POINTS`` milestones; between two of them, the later one is an upper bound.

    Args:
        privacy: The settings.

    Returns:
        A function from the number of completed steps to an upper bound, in nats.
    """
    every = max(1, privacy.steps // PROGRESS_POINTS)
    known: dict[int, float] = {}

    def spent(done: int) -> float:
        milestone = min(privacy.steps, -(-done // every) * every)
        if milestone not in known:
            known[milestone] = planned_epsilon(privacy, milestone)
        return known[milestone]

    return spent


def planned_claim(privacy: PrivacySettings, delta: float, accountant: str) -> Claim:
    """Compute the claim that a run under given settings will make.

    Args:
        privacy: The settings.
        delta: The delta of the claim, in (0, 1).
        accountant: Name of the accountant.

    Returns:
        The claim, with an empty ledger head.

    Raises:
        InvalidArgument: If ``delta`` or ``accountant`` is not allowed.
        UnsupportedMechanism: If the accountant does not cover the mechanism.
    """
    mechanism = planned_mechanism(privacy)
    sampling = coin_sampling(privacy.sampling_rate)
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    return Claim(
        epsilon=compute_epsilon(accountant, mechanism, delta, adjacency, sampling).epsilon,
        delta=delta,
        accountant=accountant,
        adjacency=adjacency,
        sampling=sampling,
        randomness=Randomness.SECURE if privacy.seed is None else Randomness.SEEDED,
        releases=privacy.steps,
        ledger_head="",
        dpaudit_version=dpaudit.__version__,
        unaccounted=privacy.unaccounted,
        noise=None if privacy.noise == "auto" else NoiseKind(privacy.noise),
    )
