"""A privacy accountant for Flower's fixed-clipping strategies: PLD, and a ledger on disk.

It has the methods of Flower's ``PrivacyAccountant`` protocol and imports no Flower: the
protocol is structural. Every release that a strategy reports is one line of a ledger, so a
restarted server continues with the epsilon that it had spent.

What Flower does not pass to an accountant is in the ledger's ``unaccounted``. In particular,
Flower reports a release after its noise was drawn: if the server dies in between, that release
is missing. ``strategy`` has a strategy without these limits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from dpaudit.accountants import answers, pld
from dpaudit.accountants.importers.flower import (
    NOT_IN_STATE,
    OWN_BACKEND,
    STATE_VERSION,
    FlowerComposition,
    FlowerConfig,
    FlowerEvent,
    FlowerState,
    read_flower_state,
    require_same_population,
)
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.flower.run_ledger import finish_run, library_versions, open_ledger
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_not_negative,
    require_positive,
)
from dpaudit.vocabulary.federation import FederationHeader
from dpaudit.vocabulary.ledger import UPDATE_SUM, LedgerHeader, Randomness
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    Release,
    Repeated,
    SampledWithoutReplacement,
)
from dpaudit.vocabulary.privacy_terms import Unit

STRATEGY = "flower-fixed-clipping"
METHOD = "pld"
PROTECTS_AGAINST = ("other participants", "readers of the final model")
"""The server sees every update, so nothing is claimed against it."""

NOT_KNOWN = (
    *NOT_IN_STATE,
    "a release whose server died between its noise and its record",
    "a choice of noise or sample size during the run",
)
"""What Flower's interface for accountants cannot cover."""

MOST_RELEASES = 100_000
"""Releases that are recorded at once: each is a line of the ledger."""

ASSUMED_PUBLIC = ("number of participants", "number of sampled participants", "hyper-parameters")

__all__ = ["LedgerAccountant", "PrivacySpent"]


class _Named(Protocol):
    """A member of an enumeration of Flower."""

    @property
    def value(self) -> str:
        """Its text."""


class PrivacyConfig(Protocol):
    """The fields of Flower's ``PrivacyConfig``."""

    @property
    def target_delta(self) -> float:
        """Delta of reported epsilons."""

    @property
    def population_size(self) -> int:
        """Number of participants."""

    @property
    def neighboring_relation(self) -> _Named:
        """Which populations are neighbors."""

    @property
    def sampling_method(self) -> _Named:
        """How participants are drawn."""

    @property
    def max_epsilon(self) -> float | None:
        """Budget at ``target_delta``."""


class GaussianPrivacyEvent(Protocol):
    """The fields of Flower's ``GaussianPrivacyEvent``."""

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation divided by the clip norm."""

    @property
    def sample_size(self) -> int:
        """Number of sampled participants."""

    @property
    def population_size(self) -> int:
        """Number of participants."""


@dataclass(frozen=True)
class PrivacySpent:
    """Epsilon so far, with the fields of Flower's ``PrivacySpent``.

    Attributes:
        epsilon: Upper bound, in nats.
        delta: Its delta.
        num_releases: Number of recorded releases.
        accounting_method: ``pld``.
        optimal_order: None: PLD has no Renyi order.

    Example:
        >>> PrivacySpent(1.0, 1e-5, 1).accounting_method
        'pld'
    """

    epsilon: float
    delta: float
    num_releases: int
    accounting_method: str = METHOD
    optimal_order: float | None = None


class LedgerAccountant:
    """Accounts for the releases of a Flower strategy by PLD, and records them in a ledger.

    A ledger that is in the run directory is continued. Its randomness is recorded as seeded,
    because Flower draws noise from NumPy's global generator.

    Flower's strategies draw a fixed number of participants. For these, the epsilon holds under
    zero-out adjacency: one participant's update counts as zero.

    Args:
        config: Flower's ``PrivacyConfig``; strategies compare its members by identity.
        out: The run directory, which ``dpaudit epsilon`` reads.
        clip_norm: The clip norm that the strategy is given. Flower does not pass it on.

    Raises:
        InvalidArgument: If a setting is out of its range, or differs from a ledger that is
            continued.
        RunExists: If the run is finished.
        RunLocked: If another process is writing its ledger.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(
        ...     target_delta=1e-5,
        ...     population_size=4,
        ...     neighboring_relation=SimpleNamespace(value="add-or-remove-one"),
        ...     sampling_method=SimpleNamespace(value="no-amplification"),
        ...     max_epsilon=None,
        ... )
        >>> event = SimpleNamespace(noise_multiplier=2.0, sample_size=4, population_size=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     accountant = LedgerAccountant(config, Path(folder) / "run", clip_norm=0.1)
        ...     accountant.compose(event)
        ...     spent = accountant.get_privacy_spent()
        ...     accountant.close()
        >>> round(spent.epsilon, 6), spent.num_releases
        (1.993091, 1)
    """

    def __init__(
        self, config: PrivacyConfig, out: str | os.PathLike[str], *, clip_norm: float
    ) -> None:
        require_positive("clip_norm", clip_norm)
        self._given = config
        self._config = FlowerConfig(
            config.target_delta,
            config.population_size,
            config.neighboring_relation.value,
            config.sampling_method.value,
            config.max_epsilon,
        )
        self._ledger = open_ledger(Path(out), _header(self._config, clip_norm))

    @property
    def config(self) -> PrivacyConfig:
        """The object that was given."""
        return self._given

    @property
    def num_releases(self) -> int:
        """Number of recorded releases, those before a restart included."""
        return self._ledger.releases

    def compose(self, event: GaussianPrivacyEvent, count: int = 1) -> None:
        """Record equal releases; they are on disk when this returns.

        Args:
            event: The release.
            count: How often it was made, at least 1.

        Raises:
            InvalidArgument: If a number is out of its range, or the event has another
                population than the config.
            IntegrityError: If another process wrote the ledger.
        """
        release = self._release(event, count)
        _require_few("count", count)
        for _ in range(count):
            self._ledger.record(UPDATE_SUM, release)

    def get_epsilon(self, delta: float) -> float:
        """Return an upper bound on epsilon of all releases so far.

        Args:
            delta: Delta, in (0, 1).

        Returns:
            The bound, in nats; 0 if nothing was released.

        Raises:
            InvalidArgument: If delta is out of range.
        """
        return self._ledger.epsilon(delta).upper

    def get_delta(self, epsilon: float) -> float:
        """Return an upper bound on delta of all releases so far.

        Args:
            epsilon: Epsilon, in nats, at least 0.

        Returns:
            The bound; 0 if nothing was released.

        Raises:
            InvalidArgument: If epsilon is out of range.
        """
        require_not_negative("epsilon", epsilon)
        recorded = self._ledger.recorded
        if not recorded:
            return 0.0
        adjacency = self._ledger.header.adjacency
        return answers.compute_delta(epsilon, _composed(recorded), adjacency).delta.upper

    def get_privacy_spent(self, delta: float | None = None) -> PrivacySpent:
        """Return epsilon of all releases so far.

        Args:
            delta: Delta, in (0, 1); None: the config's.

        Returns:
            An upper bound on epsilon, with its delta and the number of releases.

        Raises:
            InvalidArgument: If delta is out of range.
        """
        at = self._config.target_delta if delta is None else delta
        return PrivacySpent(self.get_epsilon(at), at, self.num_releases)

    def would_exceed(
        self, event: GaussianPrivacyEvent, max_epsilon: float | None = None, count: int = 1
    ) -> bool:
        """Return whether further releases would exceed a budget; nothing is recorded.

        Args:
            event: The release.
            max_epsilon: The budget at the config's delta, in nats, above 0; None: the config's.
            count: How often it would be made, at least 1.

        Returns:
            True unless an upper bound on epsilon is within the budget.

        Raises:
            InvalidArgument: If there is no budget, or a number is out of its range.
        """
        limit = self._config.max_epsilon if max_epsilon is None else max_epsilon
        if limit is None:
            raise InvalidArgument("max_epsilon", limit, "given, here or in the config")
        require_positive("max_epsilon", limit)
        release = self._release(event, count)
        later = Counter(self._ledger.recorded)
        later[release] += count
        profile = pld.profile(_composed(later), adjacency=self._ledger.header.adjacency)
        return not profile.epsilon(delta=self._config.target_delta).upper <= limit

    def state_dict(self) -> dict[str, object]:
        """Return the releases in Flower's layout, for ``dpaudit epsilon --from flower``.

        The ledger is the lasting record; a restarted server needs no state. Without
        amplification, the sample size is given as the population size: the ledger has none.

        Returns:
            Text, numbers, lists and dicts, which JSON can hold.
        """
        compositions = tuple(
            FlowerComposition(self._event(release), count)
            for release, count in self._ledger.recorded.items()
        )
        state = FlowerState(STATE_VERSION, OWN_BACKEND, self._config, compositions)
        found: dict[str, object] = msgspec.json.decode(msgspec.json.encode(state))
        del found["orders"]
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add the releases of a state that the ledger lacks.

        A ledger that is ahead of the state keeps its releases: nothing is forgotten.

        Args:
            state: What ``state_dict`` returned.

        Raises:
            InvalidArgument: If it is no such state, has another config, or neither the state
                nor the ledger contains the other's releases.
        """
        found = read_flower_state(dict(state) if isinstance(state, Mapping) else state)
        if found.config != self._config:
            raise InvalidArgument("config", found.config, f"{self._config}, the accountant's own")
        stated: Counter[Release] = Counter()
        for one in found.compositions:
            stated[self._release(one.event, one.count)] += one.count
        recorded = Counter(self._ledger.recorded)
        missing = stated - recorded
        if missing and recorded - stated:
            raise InvalidArgument(
                "state", f"one of {stated.total()} releases", "of the run that the ledger records"
            )
        _require_few("state", missing.total())
        for release in missing.elements():
            self._ledger.record(UPDATE_SUM, release)

    def finish(self) -> RunDirectory:
        """Write the claim at the config's delta, and seal the ledger.

        Returns:
            The finished run; nothing can be recorded in it any more.

        Raises:
            IntegrityError: If no release is recorded.
        """
        return finish_run(self._ledger, self._config.target_delta)

    def close(self) -> None:
        """Release the ledger's lock, so that another process can continue it."""
        self._ledger.close()

    def _release(self, event: GaussianPrivacyEvent, count: int) -> Release:
        """Return the mechanism of a checked event."""
        require_count("count", count)
        given = FlowerEvent(event.noise_multiplier, event.sample_size, event.population_size)
        require_same_population(given, self._config)
        # NumPy's floats are floats, but a ledger's encoder knows Python's alone.
        noise = float(given.noise_multiplier)
        return self._config.release(msgspec.structs.replace(given, noise_multiplier=noise))

    def _event(self, release: Release) -> FlowerEvent:
        """Return a release of the ledger as Flower describes it."""
        population = self._config.population_size
        match release:
            case Gaussian(noise):
                return FlowerEvent(noise, population, population)
            case PoissonSampled(Gaussian(noise), rate):
                return FlowerEvent(noise, max(1, round(rate * population)), population)
            case SampledWithoutReplacement(Gaussian(noise), sample, _):
                return FlowerEvent(noise, sample, population)
            case _:
                raise InvalidArgument("release", release, "one that Flower's accountants describe")


def _require_few(name: str, releases: int) -> None:
    """Refuse more releases than lines that a ledger can hold."""
    if releases > MOST_RELEASES:
        raise InvalidArgument(name, f"{releases} releases", f"at most {MOST_RELEASES} at once")


def _composed(recorded: Mapping[Release, int]) -> Mechanism:
    """Return recorded releases as one mechanism."""
    return Composed(tuple(Repeated(release, count) for release, count in recorded.items()))


def _header(config: FlowerConfig, clip_norm: float) -> LedgerHeader:
    """Return the header of a new ledger."""
    require_delta("target_delta", config.target_delta)
    return LedgerHeader(
        adjacency=config.model.adjacency,
        sampling=config.model.sampling,
        randomness=Randomness.SEEDED,  # not known: NumPy's global generator may be seeded
        schedule_fixed_in_advance=True,
        clip_norm=clip_norm,
        versions=library_versions(),
        run=os.urandom(16).hex(),
        unaccounted=NOT_KNOWN,
        assumed_public=ASSUMED_PUBLIC,
        unit=Unit.PARTICIPANT,
        federation=FederationHeader(STRATEGY, config.population_size, PROTECTS_AGAINST),
    )
