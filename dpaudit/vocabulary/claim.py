"""Privacy claims, and the answers of the accounting commands: epsilon, delta, noise, risk."""

from __future__ import annotations

from typing import Any

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.federation import FederationHeader
from dpaudit.vocabulary.ledger import NoiseKind, Randomness, Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.mechanism_words import mechanism_in_words
from dpaudit.vocabulary.notebooks import (
    bound_in_words,
    plot_intervals,
    plot_tradeoff,
    table_html,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, ReleaseScope, Unit

# Answers of the accounting commands.


class Explanation(msgspec.Struct, frozen=True):
    """The method of one interval, and its error budget.

    Attributes:
        direction: ``removed`` or ``added``: the neighbor whose output the interval is for;
            empty if both directions agree.
        method: The form of the computation.
        lower: Lower end of the interval.
        upper: Upper end of the interval.
        budget: Errors that the interval includes, each relative to delta, under their names.
    """

    direction: str
    method: str
    lower: float
    upper: float
    budget: dict[str, float]


class DeltaAnswer(msgspec.Struct, frozen=True):
    """The delta of a mechanism at a given epsilon.

    Attributes:
        mechanism: The mechanism that was accounted for.
        adjacency: The adjacency of neighbors.
        epsilon: The given epsilon, in nats.
        delta: Interval of the exact delta, the larger of both directions.
        accountant: The name of the accountant.
        dpaudit_version: The version that computed it.
        explanation: One entry per direction, if it was requested.
        schema_version: Version of the JSON format.
    """

    mechanism: Mechanism
    adjacency: Adjacency
    epsilon: float
    delta: Bound
    accountant: str
    dpaudit_version: str
    explanation: tuple[Explanation, ...] = ()
    schema_version: str = SCHEMA_VERSION

    def _repr_html_(self) -> str:
        """Return the answer as a table for notebooks."""
        rows = (
            ("mechanism", mechanism_in_words(self.mechanism)),
            ("neighbors", self.adjacency.value),
            (f"delta at epsilon {self.epsilon:g}", bound_in_words(self.delta)),
            ("accountant", self.accountant),
        )
        return table_html("Delta", rows)


class NoiseAnswer(msgspec.Struct, frozen=True):
    """The least noise multiplier that was found to meet a target, and its epsilon.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the clip norm.
        target_epsilon: The given upper bound of epsilon, in nats.
        delta: The delta of that epsilon.
        epsilon: Interval of epsilon at ``noise_multiplier``, in nats.
        accountant: The name of the accountant.
        adjacency: The adjacency of neighbors.
        mechanism: The mechanism at ``noise_multiplier``.
        dpaudit_version: The version that computed it.
        schema_version: Version of the JSON format.
    """

    noise_multiplier: float
    target_epsilon: float
    delta: float
    epsilon: Bound
    accountant: str
    adjacency: Adjacency
    mechanism: Mechanism
    dpaudit_version: str
    schema_version: str = SCHEMA_VERSION

    def _repr_html_(self) -> str:
        """Return the answer as a table for notebooks."""
        rows = (
            ("noise multiplier", repr(self.noise_multiplier)),
            ("target epsilon", f"{self.target_epsilon:g}"),
            (f"epsilon at delta {self.delta:g}", bound_in_words(self.epsilon)),
            ("neighbors", self.adjacency.value),
            ("accountant", self.accountant),
            ("mechanism", mechanism_in_words(self.mechanism)),
        )
        return table_html("Noise for a target epsilon", rows)


class QueryNoise(msgspec.Struct, frozen=True):
    """The noise of one query that shares a budget.

    Attributes:
        noise: ``gaussian`` or ``laplace``.
        scale: Standard deviation of Gaussian noise, or scale of Laplace noise, in the unit of the
            result.
        weight: Its share of the budget, relative to the other weights.
        sensitivity: Largest change of the result between neighbors.
        times: How often it is asked, each time with fresh noise.
    """

    noise: str
    scale: float
    weight: float
    sensitivity: float
    times: int


class SplitAnswer(msgspec.Struct, frozen=True):
    """The noise of queries that share a budget, and the epsilon of all of them.

    Attributes:
        queries: The noise of each query, by its name.
        target_epsilon: The given upper bound of epsilon, in nats.
        delta: The delta of that epsilon; 0 for pure epsilon.
        epsilon: Interval of epsilon of all queries together, in nats.
        accountant: The name of the accountant.
        adjacency: The adjacency of neighbors.
        mechanism: All queries together.
        dpaudit_version: The version that computed it.
        schema_version: Version of the JSON format.
    """

    queries: dict[str, QueryNoise]
    target_epsilon: float
    delta: float
    epsilon: Bound
    accountant: str
    adjacency: Adjacency
    mechanism: Mechanism
    dpaudit_version: str
    schema_version: str = SCHEMA_VERSION

    def _repr_html_(self) -> str:
        """Return the answer as a table for notebooks."""
        rows = (
            *(
                (name, f"{query.noise} noise of {query.scale!r}")
                for name, query in self.queries.items()
            ),
            ("target epsilon", f"{self.target_epsilon:g}"),
            (f"epsilon at delta {self.delta:g}", bound_in_words(self.epsilon)),
            ("neighbors", self.adjacency.value),
            ("accountant", self.accountant),
        )
        return table_html("Noise of queries that share a budget", rows)


class RiskNoiseAnswer(msgspec.Struct, frozen=True):
    """The least noise multiplier that was found to meet a target of a risk, and that risk.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the clip norm.
        risk: ``tpr``, ``advantage``, ``bayes-risk`` or ``reconstruction``.
        target: The given limit: an upper one, or a lower one of the Bayes risk.
        given: The false-positive rate of ``tpr``, the prior of ``bayes-risk``, or the chance of
            ``reconstruction``; null for ``advantage``.
        interval: Interval of the risk at ``noise_multiplier``.
        accountant: The name of the accountant.
        adjacency: The adjacency of neighbors.
        mechanism: The mechanism at ``noise_multiplier``.
        dpaudit_version: The version that computed it.
        schema_version: Version of the JSON format.
    """

    noise_multiplier: float
    risk: str
    target: float
    given: float | None
    interval: Bound
    accountant: str
    adjacency: Adjacency
    mechanism: Mechanism
    dpaudit_version: str
    schema_version: str = SCHEMA_VERSION

    def _repr_html_(self) -> str:
        """Return the answer as a table for notebooks."""
        given = () if self.given is None else (("given", f"{self.given:g}"),)
        rows = (
            ("noise multiplier", repr(self.noise_multiplier)),
            ("risk", self.risk),
            *given,
            ("target", f"{self.target:g}"),
            ("interval", bound_in_words(self.interval)),
            ("neighbors", self.adjacency.value),
            ("accountant", self.accountant),
            ("mechanism", mechanism_in_words(self.mechanism)),
        )
        return table_html("Noise for a target of a risk", rows)


class GaussianSummary(msgspec.Struct, frozen=True):
    """A trade-off curve as one number: mu of Gaussian DP.

    Attributes:
        mu: Interval of the least mu; at the upper end no attacker's true-positive rate exceeds
            that of mu-GDP by more than ``slack``.
        regret: Interval of the Delta divergence: by how much the upper end overstates the risk.
        slack: Amount by which the curve may fall below that of mu-GDP.
    """

    mu: Bound
    regret: Bound
    slack: float


class RiskAnswer(msgspec.Struct, frozen=True):
    """Bounds on the success of the best attacker, who knows all records but one.

    Attributes:
        mechanism: The mechanism that was accounted for.
        adjacency: The adjacency of neighbors.
        fpr: False-positive rates, in [0, 1].
        tpr: Intervals of the largest true-positive rate at each of ``fpr``.
        advantage: Interval of the largest difference of true- and false-positive rate.
        accuracy: Interval of the accuracy of the best guess of membership, for a record that
            is a member with probability 1/2.
        accountant: The name of the accountant.
        dpaudit_version: The version that computed it.
        gdp: The curve as mu of Gaussian DP, if it was requested.
        schema_version: Version of the JSON format.
    """

    mechanism: Mechanism
    adjacency: Adjacency
    fpr: tuple[float, ...]
    tpr: tuple[Bound, ...]
    advantage: Bound
    accuracy: Bound
    accountant: str
    dpaudit_version: str
    gdp: GaussianSummary | None = None
    schema_version: str = SCHEMA_VERSION

    def _repr_html_(self) -> str:
        """Return the answer as a table for notebooks."""
        rates = (
            (f"true-positive rate at {rate:g}", bound_in_words(bound))
            for rate, bound in zip(self.fpr, self.tpr, strict=True)
        )
        rows = (
            ("mechanism", mechanism_in_words(self.mechanism)),
            ("neighbors", self.adjacency.value),
            *rates,
            ("advantage", bound_in_words(self.advantage)),
            ("accuracy", bound_in_words(self.accuracy)),
        )
        return table_html("Success of the best attacker", rows)

    def plot(self, axes: Any = None) -> Any:
        """Draw the largest true-positive rate over the false-positive rate.

        Args:
            axes: Axes of matplotlib to draw on; None: those of a new figure.

        Returns:
            The axes.

        Raises:
            MissingExtra: If matplotlib is not installed.
        """
        return plot_tradeoff(axes, self.fpr, self.tpr)


class EpsilonAnswer(msgspec.Struct, frozen=True):
    """The epsilon of one accountant at a given delta.

    Attributes:
        accountant: The name of the accountant.
        adjacency: The adjacency of neighbors.
        delta: The given delta.
        epsilon: Interval of epsilon, in nats: the best of ``methods``.
        methods: Interval of each method that the accountant has.
        sampling: How batches were drawn; null if the mechanism determines it.
        explanation: One entry per direction, if it was requested.
        unit: What neighbors differ by.
        released: The releases that the answer covers.
        participants: Interval of each ledger of a federation, under the name of the participant's
            folder, or ``server``; ``epsilon`` is the largest. Empty for a run of one trainer.
        schema_version: Version of the JSON format.
    """

    accountant: str
    adjacency: Adjacency
    delta: float
    epsilon: Bound
    methods: dict[str, Bound]
    sampling: Sampling | None
    explanation: tuple[Explanation, ...] = ()
    unit: Unit = Unit.RECORD
    released: ReleaseScope = ReleaseScope.EVERY_STEP
    participants: dict[str, Bound] = {}
    schema_version: str = SCHEMA_VERSION

    def _repr_html_(self) -> str:
        """Return the answer as a table for notebooks."""
        rows = (
            ("accountant", self.accountant),
            (f"epsilon at delta {self.delta:g}", bound_in_words(self.epsilon)),
            *((method, bound_in_words(bound)) for method, bound in self.methods.items()),
            *((name, bound_in_words(bound)) for name, bound in self.participants.items()),
            ("neighbors", self.adjacency.value),
            ("unit", self.unit.value),
        )
        return table_html("Epsilon", rows)

    def plot(self, axes: Any = None) -> Any:
        """Draw the interval of each method and participant.

        Args:
            axes: Axes of matplotlib to draw on; None: those of a new figure.

        Returns:
            The axes.

        Raises:
            MissingExtra: If matplotlib is not installed.
        """
        label = f"epsilon at delta {self.delta:g}"
        return plot_intervals(axes, {**self.methods, **self.participants}, label)


class Claim(msgspec.Struct, frozen=True):
    """The epsilon of a ledger at a delta, computed by one accountant, with its assumptions.

    Attributes:
        epsilon: Interval of epsilon, in nats. The upper end is what the run claims.
        delta: The delta of the claim.
        accountant: The name of the accountant.
        adjacency: The adjacency of neighbors.
        sampling: How the records of a step were drawn.
        randomness: The source of noise and sampling.
        releases: Number of recorded releases.
        ledger_head: Hash of the ledger's last line, in hexadecimal digits.
        dpaudit_version: The version that computed the claim.
        unaccounted: Uses of the records that the claim does not cover.
        assumed_public: Quantities that the claim assumes to be public.
        unit: What neighbors differ by.
        released: The releases that the claim covers.
        federation: Strategy, participants, and whom the claim protects against, for a federated
            run; null for a run of one trainer.
        noise: The kind of noise on the sums of gradients; null if it was not recorded, as by
            earlier versions.
        schema_version: Version of the JSON format.

    Example:
        >>> from dpaudit.vocabulary.ledger import Randomness, Sampling
        >>> claim = Claim(
        ...     epsilon=Bound(2.9, 3.0),
        ...     delta=1e-5,
        ...     accountant="pld",
        ...     adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        ...     sampling=Sampling.POISSON,
        ...     randomness=Randomness.SECURE,
        ...     releases=1000,
        ...     ledger_head="0" * 64,
        ...     dpaudit_version="0.1.0",
        ... )
        >>> msgspec.json.decode(msgspec.json.encode(claim), type=Claim) == claim
        True
    """

    epsilon: Bound
    delta: float
    accountant: str
    adjacency: Adjacency
    sampling: Sampling
    randomness: Randomness
    releases: int
    ledger_head: str
    dpaudit_version: str
    unaccounted: tuple[str, ...] = ()
    assumed_public: tuple[str, ...] = ()
    unit: Unit = Unit.RECORD
    released: ReleaseScope = ReleaseScope.EVERY_STEP
    federation: FederationHeader | None = None
    noise: NoiseKind | None = None
    schema_version: str = SCHEMA_VERSION

    def _repr_html_(self) -> str:
        """Return the claim as a table for notebooks."""
        rows = (
            (f"epsilon at delta {self.delta:g}", bound_in_words(self.epsilon)),
            ("accountant", self.accountant),
            ("neighbors", self.adjacency.value),
            ("sampling", self.sampling.value),
            ("randomness", self.randomness.value),
            ("unit", self.unit.value),
            ("releases", self.releases),
            *(("not accounted for", use) for use in self.unaccounted),
            *(("assumed public", quantity) for quantity in self.assumed_public),
        )
        return table_html("Claim", rows)
