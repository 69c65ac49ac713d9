"""Convert the state of a Flower privacy accountant to a mechanism.

Flower's ``PrivacyAccountant`` protocol records Gaussian releases: a noise multiplier, a sample
size and a population size. Its RDP accountant and dpaudit's accountant for Flower write the same
layout. The state does not record clip norm, standard deviation of the noise, replies, source of
randomness or client metrics. An epsilon computed from it assumes that the strategy added the
noise that it recorded.

Flower's strategies draw a fixed number of participants and divide by that number. One
participant more then displaces another, which moves the sum by up to twice the clip norm. One
participant whose update counts as zero moves it by the clip norm. So a state that says
``no-amplification`` with ``add-or-remove-one`` is accounted for under zero-out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import msgspec

from dpaudit.accountants.importers.dp_event import LARGEST_COUNT, VerbatimText, abbreviated
from dpaudit.accountants.schedules import poisson_step
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    Release,
    Repeated,
    SampledWithoutReplacement,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.validation_messages import explain_validation

STATE_FORMAT = "what state_dict() of a Flower accountant returns"
STATE_VERSION = 1
"""Version of the layout of a state, as Flower 1.42 writes it."""

FLOWER_BACKEND, OWN_BACKEND = "rdp", "dpaudit-pld"
"""Names of the accountants whose state is read: Flower's own, and dpaudit's for Flower."""

NOT_IN_STATE = (
    "the round of each release",
    "the clip norm that the strategy used",
    "the standard deviation of the noise that was added",
    "how many replies each sum had",
    "the source of the randomness of noise and sampling",
    "metrics that clients sent, which are released without noise",
)
"""What Flower does not pass to an accountant, so that no epsilon from its state covers it."""


@dataclass(frozen=True)
class SamplingModel:
    """How one sampling method of Flower is accounted for.

    Attributes:
        relation: The neighboring relation that Flower requires with the method.
        adjacency: The adjacency that epsilon is computed for.
        sampling: The sampler that a ledger records.
        release: Builds a release from noise, sample size and population size.
    """

    relation: str
    adjacency: Adjacency
    sampling: Sampling
    release: Callable[[Gaussian, int, int], Release]


def _unsampled(noise: Gaussian, sample_size: int, population_size: int) -> Release:
    """Return the noise mechanism itself: each participant is assumed to join every round."""
    return noise


def _poisson(noise: Gaussian, sample_size: int, population_size: int) -> Release:
    """Return a Poisson step, whose rate is rounded up to a double."""
    rate = sample_size / population_size
    if Fraction(rate) < Fraction(sample_size, population_size):
        rate = math.nextafter(rate, 1)
    return poisson_step(noise, rate)


SAMPLING_MODELS = {
    "no-amplification": SamplingModel(
        "add-or-remove-one", Adjacency.ZERO_OUT, Sampling.FULL_BATCH, _unsampled
    ),
    "poisson": SamplingModel(
        "add-or-remove-one", Adjacency.ADD_OR_REMOVE_ONE, Sampling.POISSON, _poisson
    ),
    "without-replacement": SamplingModel(
        "replace-one", Adjacency.REPLACE_ONE, Sampling.FIXED_SIZE, SampledWithoutReplacement
    ),
}
"""Flower's sampling methods; it allows each with one neighboring relation."""


def sampling_model(method: str, relation: str) -> SamplingModel:
    """Return how a sampling method of Flower is accounted for.

    Args:
        method: ``no-amplification``, ``poisson`` or ``without-replacement``.
        relation: Flower's neighboring relation.

    Returns:
        Adjacency, sampler and release of the method.

    Raises:
        InvalidArgument: If Flower has no such method, or does not allow it with the relation.
    """
    if method not in SAMPLING_MODELS:
        raise InvalidArgument("sampling_method", method, f"one of {', '.join(SAMPLING_MODELS)}")
    model = SAMPLING_MODELS[method]
    if relation != model.relation:
        raise InvalidArgument("neighboring_relation", relation, f"{model.relation} with {method}")
    return model


class FlowerEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One Gaussian release, by the names of Flower's ``GaussianPrivacyEvent``.

    Attributes:
        noise_multiplier: Noise standard deviation divided by the clip norm; above 0.
        sample_size: Number of sampled participants, or its expectation; at least 1.
        population_size: Number of participants; at least ``sample_size``.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    noise_multiplier: float
    sample_size: int
    population_size: int

    def __post_init__(self) -> None:
        require_positive("noise_multiplier", self.noise_multiplier)
        require_count("sample_size", self.sample_size)
        require_count("population_size", self.population_size, least=self.sample_size)
        _require_exact("population_size", self.population_size)


class FlowerComposition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Equal releases.

    Attributes:
        event: The release.
        count: How often it was made; at least 1.

    Raises:
        InvalidArgument: If ``count`` is out of its range.
    """

    event: FlowerEvent
    count: int

    def __post_init__(self) -> None:
        require_count("count", self.count)
        _require_exact("count", self.count)


class FlowerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of an accountant, by the names of Flower's ``PrivacyConfig``.

    Attributes:
        target_delta: The delta of reported epsilons, in (0, 1).
        population_size: Number of participants; at least 1.
        neighboring_relation: ``add-or-remove-one`` or ``replace-one``.
        sampling_method: How participants are drawn.
        max_epsilon: Budget at ``target_delta``, in nats, above 0; None: no budget.

    Raises:
        InvalidArgument: If a setting is out of its range, or Flower does not allow the method
            with the relation.
    """

    target_delta: float
    population_size: int
    neighboring_relation: str
    sampling_method: str
    max_epsilon: float | None

    def __post_init__(self) -> None:
        require_delta("target_delta", self.target_delta)
        require_count("population_size", self.population_size)
        if self.max_epsilon is not None:
            require_positive("max_epsilon", self.max_epsilon)
        sampling_model(self.sampling_method, self.neighboring_relation)

    @property
    def model(self) -> SamplingModel:
        """How the sampling method is accounted for."""
        return sampling_model(self.sampling_method, self.neighboring_relation)

    def release(self, event: FlowerEvent) -> Release:
        """Return the mechanism of one release.

        Args:
            event: The release, as Flower describes it.

        Returns:
            The Gaussian, with the amplification of the sampling method.
        """
        noise = Gaussian(event.noise_multiplier)
        return self.model.release(noise, event.sample_size, event.population_size)


class FlowerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``state_dict`` of a privacy accountant for Flower returns.

    Attributes:
        schema_version: Version of the layout.
        backend: Name of the accountant that wrote the state.
        config: Its settings.
        compositions: The releases, in order.
        orders: Renyi orders of Flower's accountant, which epsilon by PLD does not use.

    Raises:
        InvalidArgument: If the version or the backend is unknown, a release has another
            population than the settings, or Flower's accountant has no valid orders.
    """

    schema_version: int
    backend: str
    config: FlowerConfig
    compositions: tuple[FlowerComposition, ...]
    orders: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.schema_version != STATE_VERSION:
            raise InvalidArgument("schema_version", self.schema_version, str(STATE_VERSION))
        if self.backend not in (FLOWER_BACKEND, OWN_BACKEND):
            raise InvalidArgument("backend", self.backend, f"{FLOWER_BACKEND} or {OWN_BACKEND}")
        _require_orders(self.backend, self.orders)
        for one in self.compositions:
            require_same_population(one.event, self.config)
        _require_exact("the number of releases", sum(one.count for one in self.compositions))

    @property
    def mechanism(self) -> Mechanism:
        """All releases as one mechanism.

        Raises:
            InvalidArgument: If there is no release.
        """
        if not self.compositions:
            raise InvalidArgument("compositions", [], "at least one release")
        release = self.config.release
        parts = tuple(Repeated(release(one.event), one.count) for one in self.compositions)
        return parts[0] if len(parts) == 1 else Composed(parts)


def require_same_population(event: FlowerEvent, config: FlowerConfig) -> None:
    """Refuse a release over another population than the accountant's.

    Args:
        event: The release.
        config: The accountant's settings.

    Raises:
        InvalidArgument: If the two sizes differ.
    """
    if event.population_size != config.population_size:
        raise InvalidArgument(
            "population_size of the event",
            event.population_size,
            f"{config.population_size}, as in the accountant's config",
        )


def read_flower_state(state: Any) -> FlowerState:
    """Read the state of a privacy accountant for Flower, and check every field.

    Args:
        state: ``accountant.state_dict()``, the accountant itself, or the parsed JSON of its
            state.

    Returns:
        The state.

    Raises:
        InvalidArgument: If a field is missing, unknown, of another type, or out of its range.
    """
    if callable(getattr(state, "state_dict", None)):
        state = state.state_dict()
    if not isinstance(state, dict):
        raise InvalidArgument("state", abbreviated(state), STATE_FORMAT)
    try:
        return msgspec.convert(state, FlowerState)
    except msgspec.ValidationError as error:
        allowed = f"{STATE_FORMAT}, {explain_validation(error, state, FlowerState)}"
        raise InvalidArgument("state", VerbatimText("one with another content"), allowed) from error


def from_flower(state: Any) -> Mechanism:
    """Convert the state of a privacy accountant for Flower to a mechanism.

    The result assumes that the strategy added the noise that it recorded. The state cannot
    confirm it, and does not cover client metrics.

    Args:
        state: ``accountant.state_dict()``, the accountant itself, or the parsed JSON of its
            state.

    Returns:
        One ``Repeated`` release for one entry, else the ``Composed`` entries in order.

    Raises:
        InvalidArgument: If this is no such state, it holds no release, or a field is out of
            range.

    Example:
        >>> from dpaudit.accountants import from_flower
        >>> event = {"noise_multiplier": 2.0, "sample_size": 4, "population_size": 4}
        >>> config = {
        ...     "target_delta": 1e-5,
        ...     "population_size": 4,
        ...     "neighboring_relation": "add-or-remove-one",
        ...     "sampling_method": "no-amplification",
        ...     "max_epsilon": None,
        ... }
        >>> state = {
        ...     "schema_version": 1,
        ...     "backend": "rdp",
        ...     "config": config,
        ...     "orders": [2.0, 3.0],
        ...     "compositions": [{"event": event, "count": 3}],
        ... }
        >>> from_flower(state).times
        3
    """
    return read_flower_state(state).mechanism


def _require_exact(name: str, value: int) -> None:
    """Refuse a count that a double does not represent exactly."""
    if not value <= LARGEST_COUNT:
        raise InvalidArgument(name, value, f"at most {LARGEST_COUNT}")


def _require_orders(backend: str, orders: tuple[float, ...] | None) -> None:
    """Refuse a state whose Renyi orders do not fit its backend."""
    if backend == OWN_BACKEND:
        if orders is not None:
            raise InvalidArgument("orders", abbreviated(orders), f"absent with {OWN_BACKEND}")
    elif not orders or not all(1 < order < math.inf for order in orders):
        raise InvalidArgument("orders", abbreviated(orders), "numbers above 1, at least one")
