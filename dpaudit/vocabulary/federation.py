"""Federated training: its settings, and what a ledger records about it.

A federation has a public number of participants. Each holds records that no other participant
needs to see. A run protects either one record of one participant, or one participant with all of
their records.
"""

from __future__ import annotations

import math

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_noise_within_float32,
    require_open_unit,
    require_positive,
    require_rate,
    require_sampling_rate,
    require_text,
)
from dpaudit.vocabulary.settings import DataSettings, ModelSettings, SpeedSettings

FEDAVG = "fedavg"
"""FedAvg whose participants train with DP-SGD: protects one record of one participant."""
DP_FEDAVG = "dp-fedavg"
"""FedAvg with clipped updates and noise of the server: protects one participant."""
DSSGD = "dssgd"
"""Distributed selective SGD as Shokri & Shmatikov (2015) published it."""
DSSGD_CORRECTED = "dssgd-corrected"
"""Selective SGD with clipped records, Gaussian noise and accounted selection."""

STRATEGIES = (FEDAVG, DP_FEDAVG, DSSGD, DSSGD_CORRECTED)
PARTITIONS = ("iid", "shards", "dirichlet", "column", "independent")
ORDERS = ("round-robin", "random", "asynchronous")
SELECTIONS = ("largest", "threshold")
PEERS = "other participants"
FINAL_MODEL_READERS = "readers of the final model"
OBSERVERS = ("server", PEERS, FINAL_MODEL_READERS)
"""Those whom a guarantee may hold against."""

COPIES_OF_RECORDS = "copies of a record that other participants hold"
"""Not covered where participants draw their records independently: epsilon is that of one copy."""


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not in ``allowed``."""
    if value not in allowed:
        raise InvalidArgument(name, value, f"one of {', '.join(allowed)}")


NOISE_SHARES = ("discrete-gaussian", "skellam")
"""Distributions of the noise that a participant adds to its input of a secure sum."""
LARGEST_CLIP_LEVELS = 2**28
LARGEST_LEARNING_RATE = 1e38  # models are of float32


class SecureAggregationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Secure aggregation of the updates of a round, with noise in shares (dp-fedavg).

    The threshold is ``participants - dropouts``: a round with fewer survivors is not released.
    The noise is divided so that ``participants - dropouts - colluders`` shares of it have the
    whole variance.

    Attributes:
        dropouts: Largest number of participants that a round may lose; at least 0. Those that
            are not drawn for a round count as lost.
        colluders: Number of participants that may tell the server their keys, noise and shares;
            at least 0. Protection against other participants needs at least 1.
        noise: ``discrete-gaussian`` or ``skellam``.
        modulus_bits: The k of the modulus 2^k, from 8 to 62.
        clip_levels: Number of integer steps in the clip norm, from 1 to 2^28.
        rounding_failure: Bound on the probability that a randomized rounding is repeated, in
            (0, 1). A smaller one gives less bias and a larger sensitivity.

    Raises:
        InvalidArgument: If a setting is unknown or out of its range.

    References:
        Bonawitz et al. (2017); Kairouz, Liu & Steinke (2021), arXiv:2102.06387.

    Example:
        >>> SecureAggregationSettings(dropouts=3, colluders=1).noise
        'discrete-gaussian'
    """

    dropouts: int = 0
    colluders: int = 0
    noise: str = "discrete-gaussian"
    modulus_bits: int = 32
    clip_levels: int = 2**16
    rounding_failure: float = 0.6065306597126334  # exp(-1/2), as in Kairouz et al. (2021)

    def __post_init__(self) -> None:
        require_count("dropouts", self.dropouts, least=0)
        require_count("colluders", self.colluders, least=0)
        _require_one_of("noise", self.noise, NOISE_SHARES)
        require_count("clip_levels", self.clip_levels)
        require_open_unit("rounding_failure", self.rounding_failure)
        if not 8 <= self.modulus_bits <= 62:
            raise InvalidArgument("modulus_bits", self.modulus_bits, "from 8 to 62")
        if self.clip_levels > LARGEST_CLIP_LEVELS:
            raise InvalidArgument("clip_levels", self.clip_levels, "at most 2^28")


class ThreatModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parties that a guarantee over secure aggregation holds against.

    Attributes:
        participants: Public number of participants.
        threshold: Smallest number of survivors whose sum is released.
        colluders: Number of participants that may tell the server their secrets.
        one_process: Whether participants and server ran in one process.

    Raises:
        InvalidArgument: If there can be no honest survivor, or a number is out of its range.

    Example:
        >>> ThreatModel(participants=10, threshold=7, colluders=2).honest_shares
        5
    """

    participants: int
    threshold: int
    colluders: int = 0
    one_process: bool = False

    def __post_init__(self) -> None:
        require_count("participants", self.participants)
        require_count("colluders", self.colluders, least=0)
        if not 1 <= self.threshold <= self.participants:
            raise InvalidArgument(
                "dropouts", self.participants - self.threshold, f"below {self.participants}"
            )
        if self.colluders >= self.threshold:
            raise InvalidArgument(
                "colluders", self.colluders, f"below the threshold of {self.threshold}"
            )

    @classmethod
    def of(cls, settings: SecureAggregationSettings, participants: int) -> ThreatModel:
        """Return the threat model of settings.

        Args:
            settings: Dropouts and colluders.
            participants: Public number of participants.

        Returns:
            The model with the threshold ``participants - dropouts``.

        Raises:
            InvalidArgument: If dropouts and colluders leave no honest survivor.
        """
        return cls(participants, participants - settings.dropouts, settings.colluders)

    @property
    def dropouts(self) -> int:
        """Largest number of participants that a round may lose."""
        return self.participants - self.threshold

    @property
    def honest_shares(self) -> int:
        """Number of noise shares that are surely in a released sum and known to no colluder."""
        return self.threshold - self.colluders

    def drawn_participants(self, participation_rate: float) -> int:
        """Return the public number of participants that are drawn for each round.

        Args:
            participation_rate: Fraction of the participants in a round, in (0, 1].

        Returns:
            The fraction times the number of participants, rounded down; at least 1.

        Raises:
            InvalidArgument: If fewer are drawn than must survive a round.
        """
        drawn = max(1, math.floor(participation_rate * self.participants + 1e-9))
        if drawn < self.threshold:
            raise InvalidArgument(
                "participation_rate",
                participation_rate,
                f"at least {self.threshold / self.participants:.6g}: {drawn} of "
                f"{self.participants} participants join a round, and {self.threshold} must survive "
                "it; those that are not drawn count as dropouts, so raise either",
            )
        return drawn

    @property
    def protects_against(self) -> tuple[str, ...]:
        """Those whom the guarantee holds against; members of ``OBSERVERS``.

        A participant knows its own noise. So it counts as a colluder, and there must be one.
        """
        return OBSERVERS if self.colluders else tuple(one for one in OBSERVERS if one != PEERS)

    @property
    def summary(self) -> str:
        """The main assumptions in at most three sentences, for a claim."""
        place = " Participants and server ran in one process." if self.one_process else ""
        return (
            "Secure aggregation assumes a semi-honest server, at most "
            f"{self.colluders} of {self.participants} participants who collude with it, and at "
            f"most {self.dropouts} lost per round. A server that reports different dropouts to "
            f"different participants is outside of the model.{place}"
        )

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the guarantee assumes, one sentence each."""
        split = (
            "the threshold is high enough that such a server cannot unmask a single update"
            if 2 * self.threshold > self.participants + self.colluders
            else "such a server can unmask single updates"
        )
        found = [
            "the server is semi-honest: it follows the protocol and keeps what it receives",
            "a server that reports different dropouts to different participants is outside of "
            f"the model; {split}",
            "a server that replaces public keys, or invents participants, is outside of the model",
            f"at most {self.colluders} of {self.participants} participants tell the server their "
            "secrets; all participants follow the protocol",
            f"a round with more than {self.dropouts} dropouts is not released; the accounted noise "
            f"is that of {self.honest_shares} honest survivors",
            "who takes part in a round is public, so drawing participants amplifies nothing: "
            "neighbors differ in whether the input of one participant (its update, and its part of "
            "the count of adaptive clipping) counts as zero",
        ]
        if self.one_process:
            found.append(
                "participants and server ran in one process, which held every update: protection "
                "against the server needs participants on machines of their own"
            )
        return tuple(found)


class FederationHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the header of a ledger records about the federation that it belongs to.

    Attributes:
        strategy: One of ``STRATEGIES``, or the name of a strategy of your own.
        participants: Public number of participants; at least 1.
        protects_against: Those whom the guarantee holds against; members of ``OBSERVERS``.
        participant: The participant whose ledger this is, from 0; None for the server's ledger.
        threat_model: Whom secure aggregation protects against; None without it.

    Raises:
        InvalidArgument: If a field is out of its range.

    Example:
        >>> FederationHeader("dp-fedavg", 100, ("readers of the final model",)).participant is None
        True
    """

    strategy: str
    participants: int
    protects_against: tuple[str, ...]
    participant: int | None = None
    threat_model: ThreatModel | None = None

    def __post_init__(self) -> None:
        require_text("strategy", self.strategy)
        require_count("participants", self.participants)
        for one in self.protects_against:
            _require_one_of("protects_against", one, OBSERVERS)
        if self.participant is not None and not 0 <= self.participant < self.participants:
            raise InvalidArgument(
                "participant", self.participant, f"from 0 to {self.participants - 1}"
            )

    @property
    def kept_out(self) -> tuple[str, ...]:
        """Those in ``protects_against`` who had no access to what the guarantee hides from them.

        One process that runs participants and server of a secure sum holds every update.
        """
        together = self.threat_model is not None and self.threat_model.one_process
        return tuple(
            one for one in self.protects_against if not together or one == FINAL_MODEL_READERS
        )


class FederationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Participants, rounds, and how the records are divided among the participants.

    Attributes:
        strategy: One of ``STRATEGIES``.
        participants: Number of participants, which is public; at least 1.
        rounds: Number of rounds; at least 1. For the selective strategies, the number of times
            that every participant takes a turn.
        partition: ``iid``: at random, in equal parts. ``shards``: ``shards_per_participant``
            parts of the records sorted by label. ``dirichlet``: the share of each label by a
            Dirichlet distribution. ``column``: by the values of a column of the data.
            ``independent``: each participant draws ``records_per_participant`` records; overlap
            is allowed.
        shards_per_participant: Shards of each participant, for ``shards``; at least 1.
        dirichlet_alpha: Concentration of the Dirichlet distribution; above 0.
        partition_column: Name of the column, for ``column``.
        records_per_participant: Number of records of each participant, for ``independent``.
        partition_seed: Seed of the partition, at least 0. It is public.

    Raises:
        InvalidArgument: If a setting is unknown, missing or out of its range.

    Example:
        >>> FederationSettings(strategy="fedavg", participants=4, rounds=10).partition
        'iid'
    """

    strategy: str
    participants: int
    rounds: int
    partition: str = "iid"
    shards_per_participant: int = 3
    dirichlet_alpha: float = 0.5
    partition_column: str | None = None
    records_per_participant: int | None = None
    partition_seed: int = 0

    def __post_init__(self) -> None:
        _require_one_of("strategy", self.strategy, STRATEGIES)
        require_count("participants", self.participants)
        require_count("rounds", self.rounds)
        _require_one_of("partition", self.partition, PARTITIONS)
        require_count("shards_per_participant", self.shards_per_participant)
        require_positive("dirichlet_alpha", self.dirichlet_alpha)
        require_count("partition_seed", self.partition_seed, least=0)
        if self.records_per_participant is not None:
            require_count("records_per_participant", self.records_per_participant)
        if (self.records_per_participant is None) == (self.partition == "independent"):
            raise InvalidArgument(
                "records_per_participant",
                self.records_per_participant,
                "given if, and only if, partition is 'independent'",
            )
        if (self.partition_column is None) == (self.partition == "column"):
            raise InvalidArgument(
                "partition_column",
                self.partition_column,
                "given if, and only if, partition is 'column'",
            )


class LocalTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a participant computes in one round.

    Attributes:
        local_steps: Number of steps of local SGD in a round; at least 1.
        sampling_rate: Probability with which a record joins a local step, in (0, 1].
        expected_batch_size: Public constant that the sum of a local step is divided by, in
            records; above 0. None selects ``sampling_rate`` times the public number of records
            of a participant.
        server_learning_rate: Factor of the averaged update; above 0 and at most 1e38.

    Raises:
        InvalidArgument: If a setting is out of its range.

    Example:
        >>> LocalTraining(local_steps=500, sampling_rate=0.01).server_learning_rate
        1.0
    """

    local_steps: int = 10
    sampling_rate: float = 0.1
    expected_batch_size: float | None = None
    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        require_count("local_steps", self.local_steps)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_positive("server_learning_rate", self.server_learning_rate)
        if self.server_learning_rate > LARGEST_LEARNING_RATE:
            raise InvalidArgument("server_learning_rate", self.server_learning_rate, "at most 1e38")
        if self.expected_batch_size is not None:
            require_positive("expected_batch_size", self.expected_batch_size)


class FederatedPrivacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings that the guarantee of a federated run depends on, besides the federation's.

    Attributes:
        delta: Delta of the claim; at least 1e-300 and below 1.
        noise_multiplier: Noise standard deviation over the clip norm; above 0, or 0 for a run
            without privacy, which has no claim.
        clip_norm: Largest L2 norm of one record's gradient, or of one participant's update;
            above 0.
        participation_rate: Probability with which each participant joins a round, in (0, 1]; with
            secure aggregation, the fraction of the participants that are drawn for each round.
        max_epsilon: Budget at ``delta``: a participant leaves before the round that would exceed
            it, and a participant-level run ends. None: no budget.
        adaptive_clipping: Whether the clip norm of updates follows a quantile (dp-fedavg).
        target_quantile: The quantile of update norms that adaptive clipping tracks, in (0, 1).
        quantile_noise: Standard deviation of the noise of the count of clipped updates, in
            participants; above 0.
        quantile_learning_rate: Step size of the logarithm of the clip norm; above 0.
        seed: None for secure randomness; a number, at least 0, makes the run reproducible.
        unaccounted: Other uses of the records, which the claim does not cover.

    Raises:
        InvalidArgument: If a setting is NaN, infinite or out of its range.

    Example:
        >>> FederatedPrivacy(delta=1e-5, noise_multiplier=1.0, clip_norm=0.1).seed is None
        True
    """

    delta: float
    noise_multiplier: float
    clip_norm: float
    participation_rate: float = 1.0
    max_epsilon: float | None = None
    adaptive_clipping: bool = False
    target_quantile: float = 0.5
    quantile_noise: float = 10.0
    quantile_learning_rate: float = 0.2
    seed: int | None = None
    unaccounted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_delta("delta", self.delta)
        if not 0 <= self.noise_multiplier < math.inf:
            raise InvalidArgument(
                "noise_multiplier", self.noise_multiplier, "at least 0 and finite"
            )
        require_positive("clip_norm", self.clip_norm)
        require_noise_within_float32(self.clip_norm, self.noise_multiplier)
        require_sampling_rate("participation_rate", self.participation_rate)
        require_rate("target_quantile", self.target_quantile)
        require_positive("quantile_noise", self.quantile_noise)
        require_positive("quantile_learning_rate", self.quantile_learning_rate)
        if self.max_epsilon is not None:
            require_positive("max_epsilon", self.max_epsilon)
        if self.seed is not None:
            require_count("seed", self.seed, least=0)


class SelectiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of distributed selective SGD, by the names of Shokri & Shmatikov (2015).

    Attributes:
        upload_fraction: theta_u: fraction of the coordinates that a participant uploads, in
            (0, 1].
        download_fraction: theta_d: fraction of the parameters that a participant downloads, in
            (0, 1].
        gradient_bound: gamma: bound of every uploaded coordinate; above 0. Of ``dssgd`` alone:
            ``dssgd-corrected`` clips records instead.
        threshold: tau: threshold of the selection of ``dssgd``; at least 0.
        counter_decay: beta: factor of the server's update counters after each upload, in (0, 1].
        order: ``round-robin``, ``random`` or ``asynchronous``.
        selection: What ``dssgd`` uploads: the ``largest`` coordinates, or ``threshold``: random
            ones above the threshold. ``dssgd-corrected`` selects from public scores.
        epsilon_per_epoch: Budget of one epoch of one participant, as published; above 0. It
            needs the selection ``threshold``. None: no noise.

    Raises:
        InvalidArgument: If a setting is unknown or out of its range.

    Example:
        >>> SelectiveSettings(upload_fraction=0.1).order
        'round-robin'
    """

    upload_fraction: float = 0.1
    download_fraction: float = 1.0
    gradient_bound: float = 0.001
    threshold: float = 0.0001
    counter_decay: float = 0.8
    order: str = "round-robin"
    selection: str = "largest"
    epsilon_per_epoch: float | None = None

    def __post_init__(self) -> None:
        require_sampling_rate("upload_fraction", self.upload_fraction)
        require_sampling_rate("download_fraction", self.download_fraction)
        require_sampling_rate("counter_decay", self.counter_decay)
        require_positive("gradient_bound", self.gradient_bound)
        if not 0 <= self.threshold < math.inf:
            raise InvalidArgument("threshold", self.threshold, "at least 0 and finite")
        _require_one_of("order", self.order, ORDERS)
        _require_one_of("selection", self.selection, SELECTIONS)
        if self.epsilon_per_epoch is not None:
            require_positive("epsilon_per_epoch", self.epsilon_per_epoch)


class FederatedConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one federated run: the content of its config.toml.

    Attributes:
        data: The records.
        federation: Participants, rounds and partition.
        privacy: Settings that the guarantee depends on.
        local: What a participant computes in one round.
        selective: Settings of the selective strategies.
        secure_aggregation: Secure aggregation of updates; None: the server sees each update.
        model: Model and local optimizer.
        speed: Settings that change speed and memory alone.
        schema_version: Version of the file format.

    Raises:
        InvalidArgument: If secure aggregation is set for a strategy that has none.
    """

    data: DataSettings
    federation: FederationSettings
    privacy: FederatedPrivacy
    local: LocalTraining = msgspec.field(default_factory=LocalTraining)
    selective: SelectiveSettings = msgspec.field(default_factory=SelectiveSettings)
    secure_aggregation: SecureAggregationSettings | None = None
    model: ModelSettings = msgspec.field(default_factory=ModelSettings)
    speed: SpeedSettings = msgspec.field(default_factory=SpeedSettings)
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.secure_aggregation is not None and self.federation.strategy != DP_FEDAVG:
            raise InvalidArgument(
                "strategy", self.federation.strategy, f"{DP_FEDAVG} with secure_aggregation"
            )

    @property
    def adds_noise(self) -> bool:
        """Whether the strategy adds noise under these settings. Without noise there is no claim."""
        if self.federation.strategy == DSSGD:
            return self.selective.epsilon_per_epoch is not None
        return self.privacy.noise_multiplier > 0


def require_secure_settings(config: FederatedConfig, secure: SecureAggregationSettings) -> None:
    """Refuse settings that do not go with secure aggregation.

    Args:
        config: The settings of the run.
        secure: Their section of secure aggregation.

    Raises:
        InvalidArgument: If there is no noise, there may be no honest survivor, a round has fewer
            participants than the threshold, or the updates alone wrap around.
    """
    privacy = config.privacy
    model = ThreatModel.of(secure, config.federation.participants)
    model.drawn_participants(privacy.participation_rate)
    largest = config.federation.participants * (secure.clip_levels + 1)  # rounding adds one
    if largest >= 2 ** (secure.modulus_bits - 1):
        raise InvalidArgument(
            "modulus_bits",
            secure.modulus_bits,
            f"at least {largest.bit_length() + 1}: {config.federation.participants} updates of "
            f"{secure.clip_levels} levels wrap around",
        )
    if not config.adds_noise:
        raise InvalidArgument(
            "noise_multiplier", privacy.noise_multiplier, "above 0 with secure_aggregation"
        )
