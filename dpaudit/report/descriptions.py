"""Descriptions of mechanisms, guarantees, claims and presets for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import dpaudit
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.federation import FederationHeader, FederationSettings
from dpaudit.vocabulary.ledger import NoiseKind
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.mechanism_words import mechanism_in_words
from dpaudit.vocabulary.privacy_terms import Adjacency, ReleaseScope, Unit
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.settings import HYPERPARAMETER_TUNING, Preset

NOT_COVERED = (
    "It does not cover other releases about the same records, choices that were based on them "
    "(hyper-parameters, features, early stopping), or a mechanism that differs from the one above."
)


def guarantee_in_words(mechanism: Mechanism, answer: EpsilonAnswer) -> str:
    """State the guarantee of an answer, and what it does not cover.

    Args:
        mechanism: What was released.
        answer: Epsilon of the mechanism, with the terms that it holds under.

    Returns:
        Two sentences; epsilon is rounded up.
    """
    neighbors = {
        Adjacency.ADD_OR_REMOVE_ONE: "one {unit} added or removed",
        Adjacency.REPLACE_ONE: "one {unit} replaced by another",
        Adjacency.ZERO_OUT: "one {unit} replaced by one that contributes nothing",
    }[answer.adjacency].format(unit=answer.unit.value)
    sampled = f", batches drawn by {answer.sampling.value} sampling" if answer.sampling else ""
    return (
        f"Guarantee: the outputs of {mechanism_in_words(mechanism)}{sampled}, on two data sets "
        f"that differ by {neighbors}, are indistinguishable up to epsilon "
        f"{round_up(answer.epsilon.upper)} and delta {answer.delta:g} "
        f"({answer.accountant} accountant, dpaudit {dpaudit.__version__}). {NOT_COVERED}"
    )


UNIT_DESCRIPTIONS = {
    Unit.RECORD: "one record",
    Unit.USER: "one user with all of their records",
    Unit.PARTICIPANT: "one participant with all of their records",
}
RELEASE_DESCRIPTIONS = {
    ReleaseScope.EVERY_STEP: "every step may be published",
    ReleaseScope.FINAL_MODEL: "the final model alone may be published",
}


NOISE_DESCRIPTIONS = {
    NoiseKind.NORMAL: "normals in float32",
    NoiseKind.GRID: "exactly rounded normals on a grid",
    NoiseKind.CORRELATED: "correlated normals in float32",
    NoiseKind.OTHER: "of the trainer's own code",
}


def noise_in_words(noise: NoiseKind | None) -> str:
    """Describe the kind of noise on the sums of gradients.

    Args:
        noise: The kind; None if it was not recorded.

    Returns:
        A phrase such as "normals in float32".
    """
    return "not recorded" if noise is None else NOISE_DESCRIPTIONS[noise]


def claim_in_words(claim: Claim) -> str:
    """State a claim with its terms as one sentence.

    Args:
        claim: The claim.

    Returns:
        The sentence; epsilon is rounded up. A second one states whom a federation protects
        against.
    """
    return (
        f"At delta {claim.delta:g}, epsilon is at most {round_up(claim.epsilon.upper)} for "
        f"{UNIT_DESCRIPTIONS[claim.unit]} ({claim.adjacency.value}, {claim.accountant} accountant, "
        f"{claim.sampling.value} sampling, {claim.randomness.value} randomness, "
        f"{'' if claim.noise is None else f'{claim.noise.value} noise, '}"
        f"{claim.releases} releases; {RELEASE_DESCRIPTIONS[claim.released]})."
        f"{_federation_sentence(claim)}"
    )


def _federation_sentence(claim: Claim) -> str:
    federation = claim.federation
    if federation is None:
        return ""
    return (
        f" The run is a federation of {federation.participants} participants "
        f"({federation.strategy}) and protects against {observers_in_words(federation)}."
        f"{_threat_model_sentence(federation)}"
    )


def _threat_model_sentence(federation: FederationHeader) -> str:
    """State what protection by secure aggregation assumes; empty without it."""
    return "" if federation.threat_model is None else f" {federation.threat_model.summary}"


def threat_model_in_words(federation: FederationHeader | None) -> str | None:
    """State every assumption of secure aggregation.

    Args:
        federation: What a ledger records; None for a run of one trainer.

    Returns:
        One clause per assumption, joined by semicolons; None without secure aggregation.
    """
    if federation is None or federation.threat_model is None:
        return None
    return "; ".join(federation.threat_model.assumptions)


def participants_in_words(federation: FederationHeader) -> str:
    """Return the number of participants of a federation, as "1 participant".

    Args:
        federation: What its ledger records.

    Returns:
        The number and the noun.
    """
    count = federation.participants
    return f"{count} participant" if count == 1 else f"{count} participants"


def observers_in_words(federation: FederationHeader) -> str:
    """State whom a federated run protects against.

    Args:
        federation: What its ledger records.

    Returns:
        A phrase such as "the server, other participants and readers of the final model".
    """
    names = [_OBSERVER_PHRASES.get(one, one) for one in federation.protects_against]
    if not names:
        return "nobody"
    return " and ".join(one for one in (", ".join(names[:-1]), names[-1]) if one)


_OBSERVER_PHRASES = {"server": "the server"}


def partition_in_words(federation: FederationSettings) -> str:
    """Describe how a federation divides its records.

    Args:
        federation: Its settings.

    Returns:
        A phrase with the numbers that the division depends on.
    """
    more = {
        "shards": f", {federation.shards_per_participant} label shards each",
        "dirichlet": f", concentration {federation.dirichlet_alpha:g}",
        "column": f" {federation.partition_column}",
        "independent": f", {federation.records_per_participant} records each, with overlap",
    }.get(federation.partition, "")
    return (
        f"{federation.partition}{more}, {federation.participants} participants, "
        f"seed {federation.partition_seed}"
    )


def spent_epsilon_in_words(epsilon: float) -> str:
    """Return the epsilon spent so far, rounded up, for a progress bar."""
    return f"epsilon at most {round_up(epsilon)}"


def contradicting_bound(
    bounds: Sequence[AuditResult], claimed_epsilon: float
) -> AuditResult | None:
    """Find the bound that contradicts a claim most: a certified one, if there is one.

    Args:
        bounds: Lower bounds at the delta of the claim; estimates are no bounds.
        claimed_epsilon: The claimed upper bound.

    Returns:
        The largest certified bound above the claim, else the largest conditional one; None if
        none is above it. A bound that is NaN is above it.
    """
    for kind in (BoundKind.CERTIFIED, BoundKind.CONDITIONAL):
        above = [
            one for one in bounds if one.kind is kind and not one.epsilon_lower <= claimed_epsilon
        ]
        if above:
            return max(above, key=lambda one: one.epsilon_lower)
    return None


def contradiction_in_words(bounds: Sequence[AuditResult], claimed_epsilon: float) -> str | None:
    """State that a lower bound contradicts a claim.

    Args:
        bounds: Lower bounds at the delta of the claim.
        claimed_epsilon: The claimed upper bound.

    Returns:
        One clause, without a period; None if no bound contradicts the claim.
    """
    bound = contradicting_bound(bounds, claimed_epsilon)
    if bound is None:
        return None
    certified = bound.kind is BoundKind.CERTIFIED
    return (
        f"the claimed epsilon of {round_up(claimed_epsilon)} is contradicted by the lower bound "
        f"{round_down(bound.epsilon_lower)} ({bound.kind.value}: {bound.name})"
        f"{'' if certified else ', if the assumptions of this bound hold'}"
    )


def support_in_words(bounds: Sequence[AuditResult], claimed_epsilon: float) -> str | None:
    """State what bounds that do not contradict a claim show about it.

    Args:
        bounds: Lower bounds at the delta of the claim, at least one.
        claimed_epsilon: The claimed upper bound.

    Returns:
        One clause, without a period; None if a bound contradicts the claim.
    """
    if contradicting_bound(bounds, claimed_epsilon) is not None:
        return None
    doubts = [bound.inconclusive for bound in bounds]
    if doubts[0] is not None and None not in doubts:
        return f"INCONCLUSIVE about the claimed epsilon of {round_up(claimed_epsilon)}: {doubts[0]}"
    return (
        f"the claimed epsilon of {round_up(claimed_epsilon)} is not contradicted; this is no proof"
    )


def stop_reason_in_words(
    step: int, noise_factor: float, epsilon: float, delta: float, confidence: float
) -> str:
    """State why a sequential audit stopped a run.

    Args:
        step: Number of steps taken.
        noise_factor: Upper bound on the share of the claimed noise that was added.
        epsilon: Lower bound on epsilon after the last planned step with that noise.
        delta: Delta of this epsilon.
        confidence: Joint confidence of the tests at all steps.

    Returns:
        One clause, without a period.
    """
    return (
        f"stopped after step {step}: the canaries show less than {round_up(noise_factor)} of the "
        f"claimed noise (conditional, confidence {confidence:g} at every step at once); by its "
        f"last step, the lower bound on epsilon would be {round_down(epsilon)} at delta {delta:g}"
    )


def loss_in_words(loss: float) -> str:
    """Describe the mean loss of a language model.

    Args:
        loss: Mean loss over tokens, in nats.

    Returns:
        The loss, and the perplexity that follows from it.
    """
    perplexity = math.exp(min(loss, MAX_EXPONENT))
    return f"loss {loss:.3f} nats per token, perplexity {perplexity:.4g}"


MAX_EXPONENT = 700.0
"""Largest exponent of a perplexity; the exponential of a larger one overflows."""


# Descriptions of the presets.

PRESET_WARNING = (
    "Each preset was tuned on the records that it names. Tuning costs privacy: the claim of a\n"
    f"run from a preset does not account for {HYPERPARAMETER_TUNING!r}."
)


def presets_in_words(presets: Mapping[str, Preset]) -> str:
    """Describe the settings, the data set and the source of each preset.

    Args:
        presets: Presets by name, in the order of the output.

    Returns:
        One paragraph per preset, then the warning about the cost of tuning.
    """
    return "\n\n".join(
        [*(_preset_in_words(name, preset) for name, preset in presets.items()), PRESET_WARNING]
    )


def _preset_in_words(name: str, preset: Preset) -> str:
    model = preset.model
    averaged = model.average_decay is not None
    return "\n".join(
        (
            f"{name}  for {preset.data}",
            f"  epsilon {preset.target_epsilon:g} at delta {preset.delta:g}; clip norm "
            f"{preset.clip_norm:g}; expected batch {preset.batch_size} of {preset.dataset_size} "
            f"records, {preset.epochs:g} epochs",
            f"  model {model.model}; {model.optimizer}, learning rate {model.learning_rate:g}, "
            f"momentum {model.momentum:g}"
            + (f", weights averaged with decay {model.average_decay:g}" if averaged else ""),
            f"  from {preset.source}",
            f"  measured: {preset.figure}",
        )
    )
