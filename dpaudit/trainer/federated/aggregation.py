"""The server's release: participants drawn by coins, updates clipped, summed and made noisy.

One release is a Gaussian mechanism on a Poisson sample of participants. The sum has sensitivity
S, the clip norm, and gets noise of deviation z S once. It is divided by the public constant q W,
with q the participation rate and W the number of participants. A participant whose update is
lost or rejected makes the sum smaller; the noise stays the same.

Clipped updates are rounded towards zero to multiples of a power of two g, and summed as whole
numbers. So the sum is exact, does not depend on the order of updates, and its sensitivity is at
most S. Rounded normals on the same grid are added (see ``noise.grid_noise``): the low bits of
the result reveal nothing.

NumPy alone: Flower's strategies use this class as well as the embedded engine.

References: McMahan et al. (2018), arXiv:1710.06963, Algorithm 1; Andrew et al. (2021),
arXiv:1905.03871, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.schedules import coin_sampling, poisson_step
from dpaudit.trainer.federated.updates import Update, check_update, clip_update, update_norm
from dpaudit.trainer.noise.grid_noise import rounded_normals
from dpaudit.trainer.noise.randomness import Keystream, NotCopyable, Purpose
from dpaudit.vocabulary.errors import (
    LARGEST_DEVIATION,
    InvalidArgument,
    InvalidUpdate,
    NoiseReused,
    require_count,
    require_noise_within_float32,
    require_open_unit,
    require_positive,
    require_sampling_rate,
)
from dpaudit.vocabulary.ledger import UPDATE_SUM, UPDATE_SUM_AND_COUNT, Sampling
from dpaudit.vocabulary.mechanism import Gaussian, Release

RecordRelease = Callable[[str, Release, int], None]
"""Records a release by its name, mechanism and round; it counts once the call returns."""

MAX_PARTICIPANTS = 2**20
"""Sums of this many updates, each of at most 2^41 units per coordinate, fit in int64."""

FINEST_UPDATE, FINEST_NOISE = 40, 30
"""The grid has at most 2^40 steps in the clip norm, and 2^30 in the deviation of the noise."""

LEAST_EXPONENT = -1000
LARGEST_CHANGE = 2.0
"""Largest change of the logarithm of the clip norm in one round: one large noise draw cannot
make it overflow or vanish."""

__all__ = [
    "AdaptiveClipping",
    "AggregateResult",
    "ParticipantAggregation",
    "ParticipantClipping",
]


@dataclass(frozen=True)
class AdaptiveClipping:
    """The clip norm follows a quantile of the norms of updates.

    Attributes:
        count_noise: Standard deviation sigma_b of the noise on the number of updates within the
            clip norm, in participants. It must exceed half of the noise multiplier.
        target: Fraction of updates that should be within the clip norm, in (0, 1).
        learning_rate: Step size of the logarithm of the clip norm, above 0.

    Raises:
        InvalidArgument: If a value is out of its range.

    References:
        Andrew et al. (2021), arXiv:1905.03871, Algorithm 1.

    Example:
        >>> AdaptiveClipping(count_noise=5.0).target
        0.5
    """

    count_noise: float
    target: float = 0.5
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        require_positive("count_noise", self.count_noise)
        require_open_unit("target", self.target)
        require_positive("learning_rate", self.learning_rate)


@dataclass(frozen=True)
class ParticipantClipping:
    """The settings of one participant-level server.

    Attributes:
        clip_norm: The bound S of one participant's update; with adaptive clipping, that of the
            first round. Above 0.
        noise_multiplier: Noise multiplier z of a whole round, the count of adaptive clipping
            included; above 0. The ledger records it.
        participation_rate: Probability q with which a participant joins a round, in (0, 1].
        participants: Public number of participants W; at least 1.
        adaptive: Adaptive clipping; None: the clip norm is constant.

    Raises:
        InvalidArgument: If a value is out of its range.

    Example:
        >>> settings = ParticipantClipping(0.5, 1.0, participation_rate=0.1, participants=200)
        >>> settings.denominator, settings.deviation
        (20.0, 0.5)
    """

    clip_norm: float
    noise_multiplier: float
    participation_rate: float
    participants: int
    adaptive: AdaptiveClipping | None = None

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        require_positive("noise_multiplier", self.noise_multiplier)
        require_sampling_rate("participation_rate", self.participation_rate)
        require_count("participants", self.participants)
        if self.participants > MAX_PARTICIPANTS:
            raise InvalidArgument("participants", self.participants, f"at most {MAX_PARTICIPANTS}")
        if self.adaptive and not self.adaptive.count_noise > self.noise_multiplier / 2:
            raise InvalidArgument(
                "quantile_noise",
                self.adaptive.count_noise,
                f"above half of noise_multiplier {self.noise_multiplier}",
            )
        require_noise_within_float32(self.clip_norm, self.sum_multiplier)

    @property
    def denominator(self) -> float:
        """The public constant q W that noisy sums are divided by, in participants."""
        return self.participation_rate * self.participants

    @property
    def sum_multiplier(self) -> float:
        """The noise multiplier of the sum alone; larger than z where a count is released too.

        A participant moves the sum by at most S, and the centered count by 1/2. In units of the
        noise, both together move by at most z if
        1/z^2 = 1/z_sum^2 + 1/(2 sigma_b)^2.
        """
        z = self.noise_multiplier
        if self.adaptive is None:
            return z
        ratio = z / (2 * self.adaptive.count_noise)
        # 1 - ratio^2 as a product, which loses no digits; the factor rounds the result up.
        return z / math.sqrt((1 - ratio) * (1 + ratio)) * (1 + 2.0**-50)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on one coordinate of the sum."""
        return self.sum_multiplier * self.clip_norm

    @property
    def sampling(self) -> Sampling:
        """How participants are drawn, for the ledger's header."""
        return coin_sampling(self.participation_rate)

    @property
    def release(self) -> Release:
        """The release of one round: a Gaussian mechanism on a Poisson sample of participants."""
        return poisson_step(Gaussian(self.noise_multiplier), self.participation_rate)

    @property
    def what(self) -> str:
        """The name of the release in the ledger."""
        return UPDATE_SUM if self.adaptive is None else UPDATE_SUM_AND_COUNT


@dataclass(frozen=True)
class AggregateResult:
    """What one round of a server gave.

    Attributes:
        noisy_sum: The released sum by parameter, float64.
        average: The noisy sum divided by q W: what the global model moves by. float32.
        clip_norm: The clip norm of this round.
        next_clip_norm: The clip norm of the next round.
        deviation: Standard deviation of the noise on one coordinate of the sum.
        noisy_share: Noisy fraction of updates within the clip norm; None without adaptive
            clipping. It may be outside of [0, 1].
        accepted: Numbers of the participants in the sum, ascending.
        rejected: Why each other update was left out, by number of the participant.

    Example:
        >>> server = ParticipantAggregation(
        ...     ParticipantClipping(1.0, 1.0, participation_rate=1.0, participants=2),
        ...     {"w": np.zeros(2, np.float32)}, Keystream.seeded(0), lambda *release: None)
        >>> found = server.aggregate(0, {1: {"w": np.zeros(3, np.float32)}}, [0, 1])
        >>> found.accepted, found.rejected
        ((), {1: 'w has shape (3,), not (2,)'})
    """

    noisy_sum: dict[str, NDArray[np.float64]]
    average: Update
    clip_norm: float
    next_clip_norm: float
    deviation: float
    noisy_share: float | None
    accepted: tuple[int, ...]
    rejected: dict[int, str]


class ParticipantAggregation(NotCopyable):
    """Turns the updates of a round into one recorded, noisy sum.

    It belongs to the process that made it: a copy would repeat its noise.

    Args:
        settings: Clip norm, noise and participation. To resume, give the clip norm of the next
            round.
        reference: The model's parameters; their names and shapes count.
        stream: Keystream of coins and noise; a resumed secure server has a fresh key.
        record: Records the release of a round, before its noise is drawn.
        first_round: The first round that this server may aggregate.

    Attributes:
        settings: The settings of the next round; adaptive clipping changes their clip norm.

    Example:
        >>> recorded = []
        >>> server = ParticipantAggregation(
        ...     ParticipantClipping(1.0, 1e-3, participation_rate=1.0, participants=2),
        ...     {"w": np.zeros(2, np.float32)},
        ...     Keystream.seeded(0),
        ...     lambda what, release, number: recorded.append((what, number)),
        ... )
        >>> drawn = server.draw_participants(0)
        >>> updates = {k: {"w": np.array([30.0, 40.0], np.float32)} for k in drawn}
        >>> server.aggregate(0, updates, drawn).average["w"].round(1)
        array([0.6, 0.8], dtype=float32)
        >>> recorded
        [('update sum', 0)]
    """

    description = "a server of a federation"

    def __init__(
        self,
        settings: ParticipantClipping,
        reference: Mapping[str, NDArray[Any]],
        stream: Keystream,
        record: RecordRelease,
        *,
        first_round: int = 0,
    ) -> None:
        require_count("first_round", first_round, least=0)
        if not reference:
            raise InvalidArgument("reference", "no parameter", "at least one array by name")
        self.settings = settings
        self._shapes = {name: np.empty(part.shape, np.float32) for name, part in reference.items()}
        self._stream, self._record = stream, record
        self._next_round, self._lock = first_round, Lock()

    def draw_participants(self, round_number: int) -> NDArray[np.int64]:
        """Return who joins a round: each participant by one coin of the keystream.

        Args:
            round_number: Number of the round, from 0.

        Returns:
            Numbers of participants, ascending; possibly none.
        """
        settings = self.settings
        coins = self._stream.coins(
            Purpose.PARTICIPANT_SAMPLING,
            round_number,
            settings.participants,
            settings.participation_rate,
        )
        return np.flatnonzero(coins).astype(np.int64)

    def aggregate(
        self, round_number: int, updates: Mapping[int, Mapping[str, Any]], expected: Sequence[int]
    ) -> AggregateResult:
        """Release the noisy sum of a round, and move the clip norm if it is adaptive.

        The release is recorded before its noise is drawn. A round without any update is a
        release like any other.

        Args:
            round_number: Number of the round, from 0; rounds rise.
            updates: What participants sent, by number; some may be missing.
            expected: The participants that were drawn for the round. Updates of others are
                rejected.

        Returns:
            The noisy sum, its average, and the updates that were left out.

        Raises:
            NoiseReused: If this round, or a later one, was aggregated before.
            ForkedSession: If this process is a fork of the one that made the server.
        """
        self._stream.require_own_process()
        with self._lock:
            if round_number < self._next_round:
                raise NoiseReused(
                    f"round {round_number} was aggregated before: noise that is used twice cancels"
                )
            accepted, rejected = self._accepted(updates, expected)
            return self._release(round_number, accepted, rejected)

    def _accepted(
        self, updates: Mapping[int, Mapping[str, Any]], expected: Sequence[int]
    ) -> tuple[dict[int, Update], dict[int, str]]:
        """Return the checked updates in the order of participants, and why others are left out."""
        drawn = {int(one) for one in expected}
        accepted: dict[int, Update] = {}
        rejected: dict[int, str] = {}
        for number in sorted(updates):
            try:
                if number not in drawn:
                    raise InvalidUpdate(number, "it was not drawn for this round")
                accepted[number] = check_update(updates[number], self._shapes, participant=number)
            except InvalidUpdate as error:
                rejected[number] = error.reason
        return accepted, rejected

    def _release(
        self, round_number: int, accepted: Mapping[int, Update], rejected: dict[int, str]
    ) -> AggregateResult:
        """Clip, sum, record, then add noise; the round counts as used from its record on."""
        settings = self.settings
        grid = grid_spacing(settings)
        total = self._clipped_sum(accepted, grid)
        within = sum(update_norm(update) <= settings.clip_norm for update in accepted.values())
        self._record(settings.what, settings.release, round_number)
        self._next_round = round_number + 1
        noisy_sum = self._with_noise(round_number, total, grid)
        share = self._noisy_share(round_number, within - len(accepted) / 2)
        self.settings = with_next_clip_norm(settings, share)
        denominator = settings.denominator
        return AggregateResult(
            noisy_sum,
            {name: (part / denominator).astype(np.float32) for name, part in noisy_sum.items()},
            settings.clip_norm,
            self.settings.clip_norm,
            settings.deviation,
            share,
            tuple(accepted),
            rejected,
        )

    def _clipped_sum(
        self, accepted: Mapping[int, Update], grid: float
    ) -> dict[str, NDArray[np.int64]]:
        """Return the sum of clipped updates in units of the grid, without rounding error."""
        total = {name: np.zeros(part.shape, np.int64) for name, part in self._shapes.items()}
        for update in accepted.values():
            clipped, _ = clip_update(update, self.settings.clip_norm)
            for name, part in clipped.items():
                # Dividing by a power of two is exact; rounding towards zero adds to no norm.
                total[name] += np.trunc(part / np.float64(grid)).astype(np.int64)
        return total

    def _with_noise(
        self, round_number: int, total: dict[str, NDArray[np.int64]], grid: float
    ) -> dict[str, NDArray[np.float64]]:
        """Return the sum with rounded normals on its grid, one draw per coordinate."""
        dimension = sum(part.size for part in total.values())
        noise = rounded_normals(
            self._stream,
            Purpose.UPDATE_NOISE,
            round_number,
            self.settings.deviation,
            grid,
            dimension,
        )
        noisy, start = {}, 0
        for name, part in total.items():
            own = noise[start : start + part.size].reshape(part.shape)
            noisy[name] = (part + own).astype(np.float64) * grid
            start += part.size
        return noisy

    def _noisy_share(self, round_number: int, centered: float) -> float | None:
        """Return the noisy fraction of updates within the clip norm; each counts as 1/2 or -1/2."""
        adaptive = self.settings.adaptive
        if adaptive is None:
            return None
        grid = math.ldexp(1.0, math.frexp(adaptive.count_noise)[1] - FINEST_NOISE)
        grid = min(grid, 0.5)  # the centered count is a multiple of 1/2
        noise = rounded_normals(
            self._stream, Purpose.CLIPPED_COUNT_NOISE, round_number, adaptive.count_noise, grid, 1
        )
        return 0.5 + (centered + float(noise[0]) * grid) / self.settings.denominator


def grid_spacing(settings: ParticipantClipping) -> float:
    """Return the power of two that sums of clipped updates are multiples of.

    Args:
        settings: Clip norm and noise of the round.

    Returns:
        The grid spacing g: the deviation of the noise is at most 2^30 g, S at most 2^40 g.

    Raises:
        InvalidArgument: If the clip norm is too small for a grid of floats.
    """
    exponent = max(
        math.frexp(settings.deviation)[1] - FINEST_NOISE,
        math.frexp(settings.clip_norm)[1] - FINEST_UPDATE,
    )
    if exponent < LEAST_EXPONENT:
        raise InvalidArgument("clip_norm", settings.clip_norm, "large enough for a grid of floats")
    return math.ldexp(1.0, exponent)


def with_next_clip_norm(settings: ParticipantClipping, share: float | None) -> ParticipantClipping:
    """Return the settings of the next round: S exp(-learning_rate (share - target)).

    Args:
        settings: The settings of this round.
        share: The noisy fraction of updates within the clip norm; None without adaptive clipping.

    Returns:
        The settings with the next clip norm.
    """
    adaptive = settings.adaptive
    if adaptive is None or share is None:
        return settings
    change = adaptive.learning_rate * (share - adaptive.target)
    change = min(LARGEST_CHANGE, max(-LARGEST_CHANGE, change))
    limit = LARGEST_DEVIATION / settings.sum_multiplier
    # In this order, min keeps NaN, which the settings refuse.
    return replace(settings, clip_norm=min(settings.clip_norm * math.exp(-change), limit))
