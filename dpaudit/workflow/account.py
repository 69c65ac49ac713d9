"""Epsilon, delta, noise and risk of mechanisms and settings, runs and files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from dpaudit.accountants import answers
from dpaudit.accountants.answers import compute_epsilon, costliest_ledger, require_accountable
from dpaudit.accountants.importers import (
    from_dp_event,
    from_jax_privacy,
    from_opacus,
    from_tensorflow_privacy,
)
from dpaudit.accountants.importers.flower import NOT_IN_STATE, read_flower_state
from dpaudit.accountants.importers.jax_privacy import is_jax_privacy_plan
from dpaudit.accountants.importers.tensorflow_privacy import is_tensorflow_ledger
from dpaudit.accountants.schedules import training_mechanism
from dpaudit.files.documents import read_json_document, read_toml_document
from dpaudit.files.regular_files import InputFile
from dpaudit.gate.policy_evaluation import delta_warning, smallest_dataset
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.vocabulary.claim import DeltaAnswer, EpsilonAnswer, RiskAnswer
from dpaudit.vocabulary.errors import (
    IntegrityError,
    InvalidArgument,
    UnsupportedMechanism,
    require_count,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.federation import FederationHeader
from dpaudit.vocabulary.ledger import SERVER, PrivacyLedger, Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import SAMPLING_ACCOUNTANTS, Adjacency, Bound, Unit
from dpaudit.workflow.plan_files import (
    ACCEPTED,
    CHECKPOINT_SUFFIXES,
    PLAN,
    NamedMechanism,
    is_own_document,
    read_checkpoint_history,
    read_own_document,
)
from dpaudit.workflow.run_claims import claim_delta
from dpaudit.workflow.train.federated_plan import published_figure

# Requests of ``dpaudit epsilon``, ``delta``, ``risk`` and ``noise``, and their results.
#
# A request comes from rates and steps, from sizes and epochs, from a run's ledger, or from the
# file of another library.

UNFINISHED_CAVEAT = "the run is not finished: this is the epsilon spent so far"
POISSON_CAVEAT = (
    "an Opacus history does not record how batches were drawn: this holds for Poisson sampling only"
)
TF_PRIVACY_CAVEAT = (
    "a ledger of TensorFlow Privacy does not record how samples were drawn: this holds for "
    "Poisson sampling only"
)
FLOWER_CAVEAT = (
    "this holds if the strategy added the noise that it recorded; the state of a Flower "
    f"accountant has not: {'; '.join(NOT_IN_STATE)}"
)


class ExternalFormat(Enum):
    """What wrote a file."""

    DPAUDIT = "dpaudit"
    """A mechanism or an answer of dpaudit in JSON, or a plan in TOML."""

    OPACUS = "opacus"
    """The history of an Opacus accountant, or its state_dict."""

    DP_EVENT = "dp-event"
    """The named tuple of a dp_accounting event."""

    FLOWER = "flower"
    """The ``state_dict`` of a privacy accountant for Flower."""

    TF_PRIVACY = "tf-privacy"
    """The formatted ledger of TensorFlow Privacy."""

    JAX_PRIVACY = "jax-privacy"
    """The fields of an execution plan of JAX Privacy."""


@dataclass(frozen=True)
class PricingRequest:
    """A mechanism, and the statement whose cost is computed.

    Attributes:
        mechanism: What was released; in a federation, by the ledger with the largest epsilon.
        delta: The delta of the statement.
        adjacency: Which data sets are neighbors.
        sampling: How batches were drawn; None where the mechanism alone determines it.
        caveat: A limitation of the result that the reader must know; None: there is none.
        unit: The unit of privacy: what neighbors differ by.
        participants: What each ledger of a federation released, by its name; empty for a run of
            one trainer. The answer is the largest over them.
        federation: The federation of the run; None for a run of one trainer.
        without_release: Names of the ledgers of a federation that record no release.
        notes: What a reader of the epsilons of a federation must know: uses of the records that
            are not accounted for, and the figure that the paper of the strategy quotes.
    """

    mechanism: Mechanism
    delta: float
    adjacency: Adjacency
    sampling: Sampling | None
    caveat: str | None = None
    unit: Unit = Unit.RECORD
    participants: Mapping[str, Mechanism] = field(default_factory=dict)
    federation: FederationHeader | None = None
    without_release: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The different mechanisms among the ledgers, the costliest first."""
        return tuple(dict.fromkeys((self.mechanism, *self.participants.values())))


def request_for_run(path: Path, delta: float | None) -> PricingRequest:
    """Build the request for a run's ledger.

    Args:
        path: The run; it may be unfinished, in which case the request has a caveat.
        delta: The delta of the statement; None: the run's own.

    Returns:
        The request, with the adjacency, sampling and unit of the ledger.

    Raises:
        IntegrityError: If the ledger is missing, damaged or altered, if another file of the run
            contradicts it, or if it records no release yet.
        InvalidArgument: If ``delta`` is out of range, or is None and the run has none.
    """
    run = open_run(path)
    ledger = run.read_unfinished()
    if ledger.seal is not None or run.claim.exists():
        run.read_finished()  # a run that has ended must have its seal and its sealed files
    parts = ledger.accounted_ledgers
    if not parts and ledger.ended is not None:
        raise IntegrityError(f"{run.path} has ended and added no noise: its epsilon is infinite")
    if not parts:
        raise IntegrityError(f"{run.ledger} records no release yet")
    for part in parts.values():
        require_accountable(part)
    at = claim_delta(run) if delta is None else delta
    _require_delta_or_zero(at)
    costliest, header = costliest_ledger(ledger, at), ledger.header
    caveat = None if ledger.seal is not None else UNFINISHED_CAVEAT
    request = PricingRequest(
        costliest.mechanism, at, header.adjacency, costliest.header.sampling, caveat, header.unit
    )
    if header.federation is None:
        return request
    return replace(
        request,
        participants={name: part.mechanism for name, part in parts.items()},
        federation=header.federation,
        without_release=tuple(name for name in (SERVER, *ledger.participants) if name not in parts),
        notes=tuple(_notes(run, ledger)),
    )


def _require_delta_or_zero(delta: float) -> None:
    """Refuse a delta out of range; 0 is in it, for mechanisms with a bounded loss."""
    if isinstance(delta, bool) or delta != 0:
        require_delta("delta", delta)


def _notes(run: RunDirectory, ledger: PrivacyLedger) -> Iterator[str]:
    published = published_figure(run, ledger)
    if published is not None:
        yield published
    for use in ledger.unaccounted:
        yield f"not accounted for: {use}"


def request_for_file(
    source: ExternalFormat | None,
    path: Path,
    *,
    adjacency: Adjacency | None,
    noise_set_for: Adjacency,
    delta: float | None,
) -> PricingRequest:
    """Build the request for a file that names a mechanism.

    Args:
        source: What wrote the file; None: it is recognized by its content.
        path: The file, in JSON or TOML, or a checkpoint of Opacus.
        adjacency: Which data sets are neighbors; None: as the file says, or else add-or-remove-one.
            A Flower state has its own.
        noise_set_for: The adjacency that the noise multipliers of a dp_accounting event refer to.
        delta: The delta of the statement, in (0, 1); None: that of the file.

    Returns:
        The request. An Opacus history does not record how batches were drawn: Poisson
        sampling is assumed, with a caveat. A Flower state has a caveat, too.

    Raises:
        InvalidArgument: If the file cannot be read, or is not what ``source`` writes.
        UnsupportedMechanism: If it holds an event that has no counterpart here.
        MissingExtra: If it is a checkpoint and torch is not installed.
    """
    document = _read_document(path)
    match source or _recognized(document, path):
        case ExternalFormat.FLOWER:
            return _request_for_flower(document, delta)
        case ExternalFormat.DPAUDIT:
            named = read_own_document(document, adjacency)
        case ExternalFormat.OPACUS:
            named = NamedMechanism(
                from_opacus(document), sampling=Sampling.POISSON, caveat=POISSON_CAVEAT
            )
        case ExternalFormat.TF_PRIVACY:
            named = NamedMechanism(
                from_tensorflow_privacy(document),
                sampling=Sampling.POISSON,
                caveat=TF_PRIVACY_CAVEAT,
            )
        case ExternalFormat.JAX_PRIVACY:
            planned, stated = from_jax_privacy(document, adjacency=adjacency)
            named = NamedMechanism(planned, adjacency=stated)
        case ExternalFormat.DP_EVENT:
            known = adjacency or Adjacency.ADD_OR_REMOVE_ONE
            named = NamedMechanism(
                from_dp_event(document, adjacency=known, noise_set_for=noise_set_for)
            )
    at = named.delta if delta is None else delta
    if at is None:
        raise InvalidArgument("delta", at, "given in the file, or with --delta")
    _require_delta_or_zero(at)
    return PricingRequest(
        named.mechanism,
        at,
        adjacency or named.adjacency or Adjacency.ADD_OR_REMOVE_ONE,
        named.sampling,
        named.caveat,
        named.unit,
    )


def _recognized(document: Any, path: Path) -> ExternalFormat:
    """Return what wrote a file, by the form of its content."""
    if is_own_document(document):
        return ExternalFormat.DPAUDIT
    if path.suffix == ".toml":  # of all these, plans alone are in TOML
        raise InvalidArgument("FILE", str(path), PLAN)
    if isinstance(document, Mapping) and "compositions" in document:
        return ExternalFormat.FLOWER
    if isinstance(document, Mapping) and "history" in document:
        return ExternalFormat.OPACUS
    if is_tensorflow_ledger(document):
        return ExternalFormat.TF_PRIVACY
    if is_jax_privacy_plan(document):
        return ExternalFormat.JAX_PRIVACY
    if isinstance(document, list) and all(isinstance(entry, list) for entry in document):
        numbers = all(isinstance(one, int | float) for entry in document for one in entry)
        return ExternalFormat.OPACUS if numbers else ExternalFormat.DP_EVENT
    if isinstance(document, list | Mapping):
        return ExternalFormat.DP_EVENT
    raise InvalidArgument("FILE", str(path), ACCEPTED)


def _request_for_flower(document: Any, delta: float | None) -> PricingRequest:
    """Build the request for the state of a privacy accountant for Flower."""
    state = read_flower_state(document)
    at = state.config.target_delta if delta is None else delta
    _require_delta_or_zero(at)
    model = state.config.model
    return PricingRequest(
        state.mechanism, at, model.adjacency, model.sampling, FLOWER_CAVEAT, Unit.PARTICIPANT
    )


def _read_document(path: Path) -> Any:
    """Return the parsed content of a TOML or a JSON file, or the history in a checkpoint."""
    if path.suffix == ".toml":
        return read_toml_document(InputFile(path, "FILE"))
    if path.suffix in CHECKPOINT_SUFFIXES:
        return read_checkpoint_history(path)
    # msgspec refuses Infinity, which an event may hold (a Poisson number of trials).
    return read_json_document(InputFile(path, "FILE"))


def request_for_plan(
    *,
    rate: tuple[float, int],
    noise_multiplier: float,
    sampling: Sampling,
    adjacency: Adjacency,
    delta: float,
) -> PricingRequest:
    """Build the request for a training plan.

    Args:
        rate: The sampling rate and the number of steps.
        noise_multiplier: Noise standard deviation divided by the clip norm.
        sampling: How batches are drawn.
        adjacency: Which data sets are neighbors.
        delta: The delta of the statement, in (0, 1).

    Returns:
        The request.

    Raises:
        InvalidArgument: If an argument is out of range.
    """
    _require_delta_or_zero(delta)
    sampling_rate, steps = rate
    mechanism = training_mechanism(
        sampling=sampling,
        sampling_rate=sampling_rate,
        noise_multiplier=noise_multiplier,
        steps=steps,
        adjacency=adjacency,
    )
    return PricingRequest(mechanism, delta, adjacency, sampling)


def epsilon_answers(request: PricingRequest, accountant: str) -> tuple[EpsilonAnswer, ...]:
    """Compute epsilon by one accountant, or by all that cover the mechanism.

    Args:
        request: The mechanism and the statement.
        accountant: Name of the accountant, or ``all``.

    Returns:
        One result per accountant.

    Raises:
        InvalidArgument: If there is no such accountant.
        UnsupportedMechanism: If the accountant, or every one of all, refuses the mechanism.
    """
    if accountant != "all":
        return (_largest_answer(request, accountant),)
    if request.delta == 0:  # of all accountants, pld alone answers at delta 0
        return (_largest_answer(request, "pld"),)
    found: list[EpsilonAnswer] = []
    refusals: list[UnsupportedMechanism] = []
    for name in SAMPLING_ACCOUNTANTS:
        try:
            found.append(_largest_answer(request, name))
        except UnsupportedMechanism as refusal:
            refusals.append(refusal)
    if not found:
        raise refusals[0]
    return tuple(found)


def _largest_answer(request: PricingRequest, accountant: str) -> EpsilonAnswer:
    """Compute epsilon by one accountant: the largest over the ledgers of a federation."""
    found = {
        mechanism: compute_epsilon(
            accountant,
            mechanism,
            request.delta,
            request.adjacency,
            request.sampling,
            request.unit,
        )
        for mechanism in request.mechanisms
    }
    largest = max(found.values(), key=lambda one: one.epsilon.upper)
    return msgspec.structs.replace(
        largest,
        epsilon=_largest_bound(one.epsilon for one in found.values()),
        participants={name: found[one].epsilon for name, one in request.participants.items()},
    )


def _largest_bound(bounds: Iterable[Bound]) -> Bound:
    """Return the interval of the largest of several numbers."""
    known = tuple(bounds)
    return Bound(max(one.lower for one in known), max(one.upper for one in known))


def delta_warnings(request: PricingRequest, dataset_size: int | None) -> Iterator[str]:
    """Warn if delta is too large for the data set.

    Args:
        request: The mechanism and the statement.
        dataset_size: Number of records, if it is public; None: that of the mechanism, if it
            fixes one.

    Returns:
        At most one message.
    """
    size = dataset_size or smallest_dataset(request.mechanism)
    return delta_warning(request.delta, size)


def with_explanations(
    request: PricingRequest, results: tuple[EpsilonAnswer, ...]
) -> tuple[EpsilonAnswer, ...]:
    """Add to the PLD accountant's result how it was computed.

    Args:
        request: The mechanism and the statement.
        results: Results for that request.

    Returns:
        The results, in the same order; those of other accountants are unchanged.
    """
    return tuple(
        msgspec.structs.replace(
            one,
            explanation=answers.explain_epsilon(
                request.mechanism, request.delta, request.adjacency
            ),
        )
        if one.accountant == "pld"
        else one
        for one in results
    )


def delta_answer(request: PricingRequest, epsilon: float) -> DeltaAnswer:
    """Compute the interval of delta for a given epsilon; the request's delta is ignored."""
    found = [
        answers.compute_delta(epsilon, mechanism, request.adjacency)
        for mechanism in request.mechanisms
    ]
    largest = max(found, key=lambda one: one.delta.upper)
    return msgspec.structs.replace(largest, delta=_largest_bound(one.delta for one in found))


def risk_answer(
    request: PricingRequest, fpr: tuple[float, ...], gdp_slack: float | None = None
) -> RiskAnswer:
    """Compute the success of the best possible attacker.

    Args:
        request: The mechanism and its adjacency; delta is ignored.
        fpr: False-positive rates at which the true-positive rate is bounded.
        gdp_slack: Slack of a summary by mu of Gaussian DP; None: no summary.

    Returns:
        Upper bounds on the attacker's success.
    """
    found = [
        answers.compute_risk(mechanism, request.adjacency, fpr, gdp_slack)
        for mechanism in request.mechanisms
    ]
    summaries = [one.gdp for one in found if one.gdp is not None]
    return msgspec.structs.replace(
        max(found, key=lambda one: one.advantage.upper),
        tpr=tuple(map(_largest_bound, zip(*(one.tpr for one in found), strict=True))),
        advantage=_largest_bound(one.advantage for one in found),
        accuracy=_largest_bound(one.accuracy for one in found),
        # Every ledger is mu-GDP at the largest mu; its regret is that of this ledger.
        gdp=max(summaries, key=lambda one: one.mu.upper, default=None),
    )


def schedule_from_sizes(dataset_size: int, batch_size: int, epochs: float) -> tuple[float, int]:
    """Compute the sampling rate B/N and the number of steps ceil(E N / B).

    Args:
        dataset_size: Number of records N, which becomes public.
        batch_size: Expected batch size B, at most N.
        epochs: Number of epochs E, above 0.

    Returns:
        The sampling rate, in (0, 1], and the number of steps.

    Raises:
        InvalidArgument: If an argument is out of range.
    """
    require_positive("epochs", epochs)
    rate = rate_from_sizes(dataset_size, batch_size)
    return rate, math.ceil(epochs * dataset_size / batch_size)


def rate_from_sizes(dataset_size: int, batch_size: int) -> float:
    """Compute the sampling rate B/N.

    Args:
        dataset_size: Number of records N, which becomes public.
        batch_size: Expected batch size B, at most N.

    Returns:
        The sampling rate, in (0, 1], rounded up: a larger rate never costs less.

    Raises:
        InvalidArgument: If an argument is out of range.
    """
    require_count("dataset_size", dataset_size)
    require_count("batch_size", batch_size)
    if batch_size > dataset_size:
        raise InvalidArgument(
            "batch_size", batch_size, f"at most the dataset_size of {dataset_size}"
        )
    near, exact = batch_size / dataset_size, Fraction(batch_size, dataset_size)
    return near if near >= exact else math.nextafter(near, math.inf)
