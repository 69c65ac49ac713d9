"""Distributed selective SGD (DSSGD) as Shokri & Shmatikov (2015) published it.

A server holds the parameters as one flat vector, with one update counter per coordinate. In its
turn, a participant

1. downloads the fraction theta_d of the coordinates with the highest counters,
2. runs one epoch of SGD on its own records,
3. uploads at most theta_u d entries of the change of its parameters: the largest ones, or random
   ones above the threshold tau. Each is bounded to [-gamma, gamma].

The server adds the entries and counts them. Counters decay by beta at each upload.

With a budget epsilon per epoch, the entries are selected by the sparse vector technique, and
Laplace noise is added to each. ``SparseVectorScales`` has the scales as published. What such a run
costs one record is computed in ``dssgd_accounting.py``. The published noise is kept here without
any correction; ``dssgd_corrected.py`` is the strategy to use where records need protection.

The functions work on flat arrays and change none of their arguments.

References:
    Shokri & Shmatikov (2015), "Privacy-preserving deep learning", ACM CCS 2015.
    Dwork & Roth (2014), "The algorithmic foundations of differential privacy", section 3.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive
from dpaudit.vocabulary.federation import SelectiveSettings

__all__ = [
    "Action",
    "Event",
    "ParameterServer",
    "SparseVectorScales",
    "Upload",
    "apply_upload",
    "bound_entries",
    "download",
    "laplace_draws",
    "largest_positions",
    "select_above",
    "select_largest",
    "select_upload",
    "sparse_vector_upload",
    "turn_events",
    "upload_size",
]

THRESHOLD_SHARE = 8 / 9
"""Share of the budget of an epoch that the sparse vector selection spends."""
VALUE_SHARE = 2 / 9
"""Budget in the scale of the value noise. The value costs half of it: 8/9 + 1/9 is the whole."""
FIRST_CHUNK = 256
"""Coordinates that are examined at once after an answer; doubled until the next one."""

Vector = NDArray[np.float32]
"""All parameters of a model as one vector, shape ``(d,)``."""


@dataclass(frozen=True)
class ParameterServer:
    """The state of the server.

    Attributes:
        parameters: The global parameters, shape ``(d,)``, float32.
        counters: Decayed number of updates of each coordinate, shape ``(d,)``, float64.

    Example:
        >>> ParameterServer.start(np.zeros(3, dtype=np.float32)).counters
        array([0., 0., 0.])
    """

    parameters: Vector
    counters: NDArray[np.float64]

    @classmethod
    def start(cls, parameters: Vector) -> ParameterServer:
        """Return the server before the first upload.

        Args:
            parameters: Initial global parameters, shape ``(d,)``.

        Returns:
            The server, with counters of zero.
        """
        return cls(parameters.copy(), np.zeros(len(parameters)))


@dataclass(frozen=True)
class Upload:
    """What a participant sends: some entries of the change of its parameters.

    Attributes:
        positions: Coordinates, distinct, shape ``(k,)``, int64.
        values: The change of each, shape ``(k,)``, float32.

    Raises:
        InvalidArgument: If the shapes differ, or a coordinate is there twice.

    Example:
        >>> Upload(np.array([4, 1]), np.array([0.5, -0.5], dtype=np.float32)).positions
        array([4, 1])
    """

    positions: NDArray[np.int64]
    values: Vector

    def __post_init__(self) -> None:
        if self.positions.shape != self.values.shape or self.positions.ndim != 1:
            raise InvalidArgument(
                "values", self.values.shape, f"one per position: {self.positions.shape}"
            )
        if len(np.unique(self.positions)) != len(self.positions):
            raise InvalidArgument("positions", "a coordinate twice", "each coordinate once")


# The server.


def largest_positions(values: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Return the positions of the largest values; among equal ones, the lowest positions.

    Args:
        values: Numbers without NaN, shape ``(d,)``.
        count: How many positions, from 0 to d.

    Returns:
        Positions in rising order, shape ``(count,)``.

    Raises:
        InvalidArgument: If a value is NaN, or ``count`` is out of range.

    Example:
        >>> largest_positions(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 3)
        array([1, 2, 3])
    """
    require_count("count", count, least=0)
    if count > len(values):
        raise InvalidArgument("count", count, f"at most the number of values, {len(values)}")
    if np.isnan(values).any():
        raise InvalidArgument("values", "NaN", "numbers that can be compared")
    if count == 0:
        return np.empty(0, dtype=np.int64)
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    equal = np.flatnonzero(values == least)[: count - len(above)]
    return np.sort(np.concatenate([above, equal])).astype(np.int64)


def upload_size(fraction: float, dimension: int) -> int:
    """Return how many entries a fraction of the coordinates is: at most theta d, at least 1.

    Args:
        fraction: theta_u or theta_d, in (0, 1].
        dimension: Number of coordinates d, at least 1.

    Returns:
        The number of entries.

    Example:
        >>> upload_size(0.01, 140_106)
        1401
    """
    return max(1, math.floor(fraction * dimension))


def download(server: ParameterServer, local: Vector, fraction: float) -> Vector:
    """Return local parameters with those of highest counter replaced by the server's.

    Args:
        server: The server.
        local: The participant's parameters, shape ``(d,)``.
        fraction: theta_d, in (0, 1].

    Returns:
        The new local parameters, shape ``(d,)``.

    Example:
        >>> server = ParameterServer(np.ones(2, dtype=np.float32), np.array([0.0, 3.0]))
        >>> download(server, np.zeros(2, dtype=np.float32), 0.5)
        array([0., 1.], dtype=float32)
    """
    count = upload_size(fraction, len(local))
    if count == len(local):
        return server.parameters.copy()
    chosen, fresh = largest_positions(server.counters, count), local.copy()
    fresh[chosen] = server.parameters[chosen]
    return fresh


def apply_upload(server: ParameterServer, upload: Upload, decay: float) -> ParameterServer:
    """Return the server after an upload: entries added, counters decayed, then raised by 1.

    Args:
        server: The server before.
        upload: The entries.
        decay: beta, in (0, 1].

    Returns:
        The server after.

    Raises:
        InvalidArgument: If a value is not finite, or a position is out of range.

    Example:
        >>> server = ParameterServer.start(np.zeros(2, dtype=np.float32))
        >>> upload = Upload(np.array([1]), np.array([0.5], dtype=np.float32))
        >>> apply_upload(apply_upload(server, upload, 0.5), upload, 0.5).counters
        array([0. , 1.5])
    """
    if not np.isfinite(upload.values).all():
        raise InvalidArgument("values", "NaN or infinity", "finite numbers")
    inside = (upload.positions >= 0) & (upload.positions < len(server.parameters))
    if not inside.all():
        raise InvalidArgument(
            "positions", "out of range", f"from 0 to {len(server.parameters) - 1}"
        )
    parameters, counters = server.parameters.copy(), server.counters * decay
    parameters[upload.positions] += upload.values
    counters[upload.positions] += 1
    return ParameterServer(parameters, counters)


# The selection without noise.


def bound_entries(values: NDArray[np.floating], bound: float) -> Vector:
    """Return values bounded to [-gamma, gamma].

    Args:
        values: Numbers without NaN, any shape.
        bound: gamma, above 0.

    Returns:
        The bounded values, float32; never beyond ``bound`` as a float64.

    Raises:
        InvalidArgument: If a value is NaN.

    Example:
        >>> bound_entries(np.array([-3.0, 0.25]), 1.0)
        array([-1.  ,  0.25], dtype=float32)
    """
    if np.isnan(values).any():
        raise InvalidArgument("values", "NaN", "numbers that can be bounded")
    limit = np.float32(bound)
    if float(limit) > bound:  # rounded up
        limit = np.nextafter(limit, np.float32(0))
    return np.asarray(np.clip(values, -limit, limit), dtype=np.float32)


def select_largest(change: Vector, count: int) -> NDArray[np.int64]:
    """Return the coordinates that change most, by absolute value.

    Args:
        change: Change of the local parameters, shape ``(d,)``.
        count: Largest number of coordinates.

    Returns:
        Coordinates in rising order. One that did not change at all is left out.

    Example:
        >>> select_largest(np.array([0.1, -0.5, 0.0, 0.2], dtype=np.float32), 2)
        array([1, 3])
    """
    found = largest_positions(np.abs(change), count)
    return np.asarray(found[change[found] != 0])


def select_above(
    change: Vector, count: int, threshold: float, stream: Keystream, turn: int
) -> NDArray[np.int64]:
    """Return random coordinates whose absolute change is above a threshold.

    Args:
        change: Change of the local parameters, shape ``(d,)``.
        count: Largest number of coordinates.
        threshold: tau, at least 0.
        stream: The participant's keystream.
        turn: Number of the turn; one turn gives one choice.

    Returns:
        Coordinates in rising order, each such set of coordinates equally likely.

    Example:
        >>> change = np.array([0.1, -0.5, 0.0, 0.2], dtype=np.float32)
        >>> select_above(change, 3, 0.15, Keystream.seeded(0), turn=0)
        array([1, 3])
    """
    # The first coordinates of a random order of those above the threshold, without sorting.
    above = np.flatnonzero(np.abs(change) > threshold).astype(np.int64)
    if count == 0 or len(above) <= count:
        return above[:count]
    words = stream.words(Purpose.SELECTION_ORDER, turn, len(change))[above]
    last = np.partition(words, count - 1)[count - 1]
    return np.asarray(above[words <= last][:count])


def select_upload(
    change: Vector, settings: SelectiveSettings, stream: Keystream, turn: int
) -> Upload:
    """Return what a participant uploads of a change, without noise or with the published noise.

    Args:
        change: Change of the local parameters in one epoch, finite, shape ``(d,)``.
        settings: Settings of the strategy.
        stream: The participant's keystream.
        turn: Number of the turn; one turn gives one noise.

    Returns:
        At most theta_u d entries, each in [-gamma, gamma].

    Raises:
        InvalidArgument: If a change is not finite.

    Example:
        >>> change = np.array([0.1, -0.5, 0.0, 0.2], dtype=np.float32)
        >>> settings = SelectiveSettings(upload_fraction=0.5, gradient_bound=0.25)
        >>> select_upload(change, settings, Keystream.seeded(0), turn=0).values
        array([-0.25,  0.2 ], dtype=float32)
    """
    if not np.isfinite(change).all():
        raise InvalidArgument(
            "change", "NaN or infinity", "finite numbers: lower the learning rate"
        )
    count = upload_size(settings.upload_fraction, len(change))
    scales = SparseVectorScales.of(settings, len(change))
    if scales is not None:
        return sparse_vector_upload(change, settings, scales, stream, turn)
    if settings.selection == "largest":
        chosen = select_largest(change, count)
    else:
        chosen = select_above(change, count, settings.threshold, stream, turn)
    return Upload(chosen, bound_entries(change[chosen], settings.gradient_bound))


# The published noise: sparse vector selection and Laplace noise.


@dataclass(frozen=True)
class SparseVectorScales:
    """Scales of the Laplace noise of one epoch, as published.

    With c entries, sensitivity s and sigma(x) = 2 c s / x: the threshold gets
    Lap(sigma(8/9 epsilon)), every examined coordinate Lap(2 sigma(8/9 epsilon)), and every
    selected value Lap(sigma(2/9 epsilon)).

    Attributes:
        epsilon: Budget of one epoch of one participant, above 0.
        entries: c, the largest number of uploaded entries; at least 1.
        sensitivity: s, the assumed largest change of one coordinate; 2 gamma as published.

    Raises:
        InvalidArgument: If a number is out of range.

    Example:
        >>> scales = SparseVectorScales(epsilon=9.0, entries=2, sensitivity=1.0)
        >>> scales.threshold, scales.entry, scales.value
        (0.5, 1.0, 2.0)
    """

    epsilon: float
    entries: int
    sensitivity: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_count("entries", self.entries)
        require_positive("sensitivity", self.sensitivity)

    @classmethod
    def of(cls, settings: SelectiveSettings, dimension: int) -> SparseVectorScales | None:
        """Return the scales of a run; None if it has no noise.

        Args:
            settings: Settings of the strategy.
            dimension: Number of coordinates d.

        Returns:
            The scales at the sensitivity 2 gamma.

        Raises:
            InvalidArgument: If a budget is set for the selection of the largest entries.
        """
        if settings.epsilon_per_epoch is None:
            return None
        if settings.selection == "largest":
            allowed = "'threshold' with epsilon_per_epoch: the published noise has no other"
            raise InvalidArgument("selection", settings.selection, allowed)
        return cls(
            settings.epsilon_per_epoch,
            upload_size(settings.upload_fraction, dimension),
            2 * settings.gradient_bound,
        )

    def _sigma(self, budget: float) -> float:
        """Return sigma(x) = 2 c s / x."""
        return 2 * self.entries * self.sensitivity / budget

    @property
    def threshold(self) -> float:
        """Scale of the noise of the threshold, drawn afresh after each selected entry."""
        return self._sigma(THRESHOLD_SHARE * self.epsilon)

    @property
    def entry(self) -> float:
        """Scale of the noise of each examined coordinate."""
        return 2 * self._sigma(THRESHOLD_SHARE * self.epsilon)

    @property
    def value(self) -> float:
        """Scale of the noise of each released value."""
        return self._sigma(VALUE_SHARE * self.epsilon)


def laplace_draws(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return standard Laplace draws from uniform 64-bit words.

    The lowest bit is the sign. The others give a uniform u in (0, 1), and -ln u is the magnitude.
    It ends at 44: the mass beyond is 2^-63. The numbers are float64, so the law is exact up to
    rounding. As for other floating-point noise, guarantees are for real arithmetic.

    Args:
        words: Uniform words, any shape.

    Returns:
        Draws with density exp(-|x|) / 2, in the shape of ``words``.

    Example:
        >>> laplace_draws(np.array([2**63, 2**63 + 1], dtype=np.uint64)).round(4)
        array([ 0.6931, -0.6931])
    """
    uniform = ((words >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-63
    magnitudes = -np.log(np.minimum(uniform, 1.0))
    return np.where(words & np.uint64(1), -magnitudes, magnitudes)


def sparse_vector_upload(
    change: Vector,
    settings: SelectiveSettings,
    scales: SparseVectorScales,
    stream: Keystream,
    turn: int,
) -> Upload:
    """Return entries selected by the sparse vector technique, with noisy values.

    Coordinates are examined once each, in a random order. A coordinate w is selected if
    |bound(w, gamma)| plus its noise is at least tau plus the noise of the threshold. The value
    bound(w + noise, gamma) is released, and the threshold gets fresh noise. The epoch ends after
    c entries, or when all coordinates were examined. As published, the value is bounded after
    the noise alone, so nothing enforces the sensitivity 2 gamma of the value.

    Args:
        change: Change of the local parameters, shape ``(d,)``.
        settings: Settings of the strategy, for gamma and tau.
        scales: Scales of the noise.
        stream: The participant's keystream.
        turn: Number of the turn; one turn gives one noise.

    Returns:
        At most ``scales.entries`` entries, in the order of their selection.

    Example:
        >>> change = np.array([0.1, -0.5, 0.0, 0.2], dtype=np.float32)
        >>> settings = SelectiveSettings(gradient_bound=0.25, threshold=0.05)
        >>> scales = SparseVectorScales(epsilon=1e9, entries=4, sensitivity=0.5)
        >>> upload = sparse_vector_upload(change, settings, scales, Keystream.seeded(0), turn=0)
        >>> sorted((int(i), round(float(x), 4)) for i, x in zip(upload.positions, upload.values))
        [(0, 0.1), (1, -0.25), (3, 0.2)]
    """
    order = _random_order(stream, Purpose.SELECTION_ORDER, turn, len(change))
    draws = laplace_draws(stream.words(Purpose.ENTRY_NOISE, turn, len(change)))
    bounded = np.abs(bound_entries(change[order], settings.gradient_bound))
    queries = bounded.astype(np.float64) + scales.entry * draws
    thresholds = settings.threshold + scales.threshold * laplace_draws(
        stream.words(Purpose.THRESHOLD_NOISE, turn, scales.entries)
    )
    chosen = order[_answers(queries, thresholds)]
    noise = scales.value * laplace_draws(
        stream.words(Purpose.VALUE_NOISE, turn, scales.entries)[: len(chosen)]
    )
    values = change[chosen].astype(np.float64) + noise
    return Upload(chosen, bound_entries(values, settings.gradient_bound))


def _answers(queries: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the queries that reach the threshold of their turn.

    Query i is compared with the threshold that is in force; each answer ends one threshold.
    """
    found: list[int] = []
    position = 0
    for threshold in thresholds:
        position = _first_at_least(queries, position, threshold)
        if position == len(queries):
            break
        found.append(position)
        position += 1
    return np.array(found, dtype=np.int64)


def _first_at_least(queries: NDArray[np.float64], start: int, threshold: float) -> int:
    """Return the first index from ``start`` whose query is at least ``threshold``, or the end."""
    size = FIRST_CHUNK
    while start < len(queries):
        reached = queries[start : start + size] >= threshold
        first = int(reached.argmax())
        if reached[first]:
            return start + first
        start, size = start + size, 2 * size
    return len(queries)


# The order of the participants.


class Action(Enum):
    """What a participant does at one moment of a round.

    Example:
        >>> [action.value for action in Action]
        ['download', 'upload']
    """

    DOWNLOAD = "download"
    UPLOAD = "upload"


@dataclass(frozen=True)
class Event:
    """One moment of a round.

    Attributes:
        participant: Number of the participant, from 0.
        action: ``DOWNLOAD``: download and train. ``UPLOAD``: upload what was trained.

    Example:
        >>> Event(3, Action.UPLOAD).action.value
        'upload'
    """

    participant: int
    action: Action


def turn_events(
    order: str, participants: int, stream: Keystream, round_number: int
) -> tuple[Event, ...]:
    """Return the downloads and uploads of one round; each participant has one of both.

    The order is public. ``round-robin``: by number. ``random``: by a fresh permutation.
    ``asynchronous``: downloads and uploads are interleaved at random, so that a participant may
    train on parameters that others have changed since. The start and the end of a turn are two
    uniform times; the round simulates them one after the other and is reproducible.

    Args:
        order: One of the orders of ``SelectiveSettings``.
        participants: Number of participants, at least 1.
        stream: The server's keystream.
        round_number: Number of the round, from 0.

    Returns:
        ``2 participants`` events.

    Raises:
        InvalidArgument: If the order is unknown.

    Example:
        >>> [event.participant for event in turn_events("round-robin", 2, Keystream.seeded(0), 0)]
        [0, 0, 1, 1]
    """
    require_count("participants", participants)
    match order:
        case "round-robin":
            return _one_after_another(np.arange(participants))
        case "random":
            return _one_after_another(
                _random_order(stream, Purpose.TURN_ORDER, round_number, participants)
            )
        case "asynchronous":
            return _interleaved(stream, round_number, participants)
        case _:
            raise InvalidArgument("order", order, "round-robin, random or asynchronous")


def _one_after_another(turns: NDArray[np.int64]) -> tuple[Event, ...]:
    """Return a download and an upload of each participant in turn."""
    return tuple(Event(int(turn), action) for turn in turns for action in Action)


def _interleaved(stream: Keystream, round_number: int, participants: int) -> tuple[Event, ...]:
    """Return events sorted by two random times of each participant."""
    times = stream.words(Purpose.TURN_ORDER, round_number, 2 * participants).reshape(-1, 2)
    starts, ends = times.min(axis=1), times.max(axis=1)
    moments = [
        (int(time), action is Action.UPLOAD, number, action)
        for action, column in ((Action.DOWNLOAD, starts), (Action.UPLOAD, ends))
        for number, time in enumerate(column)
    ]
    return tuple(
        Event(number, action) for _, _, number, action in sorted(moments, key=lambda m: m[:3])
    )


def _random_order(stream: Keystream, purpose: Purpose, turn: int, count: int) -> NDArray[np.int64]:
    """Return a uniform permutation of 0 .. count - 1, by sorting random words.

    Two equal words, which have probability below count^2 / 2^64, are left in their order.
    """
    return np.argsort(stream.words(purpose, turn, count), kind="stable").astype(np.int64)
