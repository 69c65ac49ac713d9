"""DP-FedAvg over secure aggregation: the server sees a noisy sum, and no single update.

The class has the interface of ``aggregation.ParticipantAggregation``. Each update goes to its
own participant's side of the protocol, which checks, clips, rounds and adds noise to it. The
server's side gets messages alone.

Who takes part in a round is public: the server and all participants of a round see it. So drawing
participants amplifies nothing, and every round is accounted for as one that all take part in.

With adaptive clipping, each participant adds to the sum whether its update is within the clip
norm. The count is one more coordinate of the secure sum, with the same noise per integer step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.aggregation import (
    AggregateResult,
    ParticipantClipping,
    RecordRelease,
    with_next_clip_norm,
)
from dpaudit.trainer.federated.secure_aggregation.messages import Phase
from dpaudit.trainer.federated.secure_aggregation.noisy_sum import NoisySum
from dpaudit.trainer.federated.secure_aggregation.protocol import (
    Drop,
    SecureAggregation,
    nobody_drops,
)
from dpaudit.trainer.federated.updates import Update, check_update
from dpaudit.trainer.noise.randomness import Keystream, NotCopyable, Purpose
from dpaudit.vocabulary.errors import (
    InvalidUpdate,
    NoiseReused,
    TooFewParticipants,
    require_count,
)
from dpaudit.vocabulary.federation import SecureAggregationSettings, ThreatModel

__all__ = ["SecureParticipantAggregation"]


class SecureParticipantAggregation(NotCopyable):
    """Turns the updates of a round into one recorded, noisy sum that no party computed alone.

    Args:
        settings: Clip norm, noise and participation. To resume, give the clip norm of the next
            round.
        secure: Dropouts, colluders, noise shares and modulus.
        reference: The model's parameters; their names and shapes count.
        stream: Keystream of the server: draws participants, and the public session.
        participant_streams: Keystream of each participant, by number.
        record: Records each release of a round, before its noise is drawn.
        first_round: The first round that this server may aggregate.
        drop: Whether a participant is lost before it sends its message of a phase; for tests.

    Raises:
        InvalidArgument: If a setting is out of its range, or a round has fewer participants than
            the threshold.

    Example:
        >>> recorded = []
        >>> server = SecureParticipantAggregation(
        ...     ParticipantClipping(1.0, 1e-3, participation_rate=1.0, participants=2),
        ...     SecureAggregationSettings(),
        ...     {"w": np.zeros(2, np.float32)},
        ...     Keystream.seeded(0),
        ...     {number: Keystream.seeded(1 + number) for number in range(2)},
        ...     lambda what, release, number: recorded.append((what, number)),
        ... )
        >>> updates = {k: {"w": np.array([30.0, 40.0], np.float32)} for k in range(2)}
        >>> server.aggregate(0, updates, [0, 1]).average["w"].round(1)
        array([0.6, 0.8], dtype=float32)
        >>> recorded
        [('update sum', 0), ('wrap-around of the update sum', 0)]
    """

    description = "a server of a federation"

    def __init__(
        self,
        settings: ParticipantClipping,
        secure: SecureAggregationSettings,
        reference: Mapping[str, NDArray[Any]],
        stream: Keystream,
        participant_streams: Mapping[int, Keystream],
        record: RecordRelease,
        *,
        first_round: int = 0,
        drop: Drop = nobody_drops,
    ) -> None:
        require_count("first_round", first_round, least=0)
        self.settings, self._secure = settings, secure
        self._shapes = {name: np.empty(part.shape, np.float32) for name, part in reference.items()}
        self._dimension = sum(part.size for part in self._shapes.values())
        self.noisy_sum = noisy_sum_of_round(settings, secure, self._dimension)
        self._drawn = self.threat_model.drawn_participants(settings.participation_rate)
        session = bytes(stream.bits(Purpose.AGGREGATION_SESSION, first_round, 32))
        parameters = self.noisy_sum.parameters(session)
        self._protocol = SecureAggregation(parameters, participant_streams)
        self._stream, self._streams = stream, dict(participant_streams)
        self._record, self._next_round, self._drop = record, first_round, drop

    @property
    def threat_model(self) -> ThreatModel:
        """The parties that the guarantee holds against."""
        return self.noisy_sum.threat_model

    def draw_participants(self, round_number: int) -> NDArray[np.int64]:
        """Return who joins a round: as many as in every round, drawn uniformly by the server.

        Args:
            round_number: Number of the round, from 0.

        Returns:
            Numbers of participants, ascending.
        """
        participants = self.settings.participants
        words = self._stream.words(Purpose.PARTICIPANT_SAMPLING, round_number, participants)
        return np.sort(words.argsort(kind="stable")[: self._drawn]).astype(np.int64)

    def aggregate(
        self, round_number: int, updates: Mapping[int, Mapping[str, Any]], expected: Sequence[int]
    ) -> AggregateResult:
        """Release the noisy sum of a round.

        The releases are recorded before any share of the noise is drawn.

        Args:
            round_number: Number of the round, from 0; rounds rise.
            updates: What each participant computed, by number; some may be missing. Each is
                handed to its own participant's side of the protocol alone.
            expected: The participants that were drawn for the round. Updates of others are
                rejected.

        Returns:
            The noisy sum, its average, and the updates that were left out.

        Raises:
            NoiseReused: If this round, or a later one, was aggregated before.
            TooFewParticipants: If fewer participants than the threshold are left. If they are
                lost in the middle of the protocol, the release is recorded all the same.
        """
        self._stream.require_own_process()
        if round_number < self._next_round:
            raise NoiseReused(
                f"round {round_number} was aggregated before: noise that is used twice cancels"
            )
        accepted, rejected = self._checked(updates, expected)
        threshold = self.threat_model.threshold
        if len(accepted) < threshold:
            raise TooFewParticipants(Phase.ADVERTISE_KEYS.value, len(accepted), threshold)
        for what, mechanism in self.noisy_sum.releases:
            self._record(what, mechanism, round_number)
        self._next_round = round_number + 1
        inputs = {
            number: self.noisy_sum.contribution(update, self._streams[number], round_number)
            for number, update in accepted.items()
        }
        found = self._protocol.aggregate(round_number, inputs, self._drop)
        lost = {
            number: f"lost in the phase {phase.value!r} of secure aggregation"
            for number, phase in found.lost.items()
            if number not in found.contributors
        }
        return self._result(found.total, found.contributors, {**rejected, **lost})

    def _checked(
        self, updates: Mapping[int, Mapping[str, Any]], expected: Sequence[int]
    ) -> tuple[dict[int, NDArray[np.float32]], dict[int, str]]:
        """Return the flat updates of participants that can take part, and why others cannot.

        Each check is made by the participant itself: the server could not make it.
        """
        drawn = {int(one) for one in expected}
        accepted: dict[int, NDArray[np.float32]] = {}
        rejected: dict[int, str] = {}
        for number in sorted(updates):
            try:
                if number not in drawn:
                    raise InvalidUpdate(number, "it was not drawn for this round")
                update = check_update(updates[number], self._shapes, participant=number)
                accepted[number] = np.concatenate([part.ravel() for part in update.values()])
            except InvalidUpdate as error:
                rejected[number] = error.reason
        return accepted, rejected

    def _result(
        self, total: NDArray[np.int64], contributors: tuple[int, ...], rejected: dict[int, str]
    ) -> AggregateResult:
        """Return the decoded sum, and divided by the public number of drawn participants.

        The clip norm of the next round follows from the noisy count alone.
        """
        noisy_sum = self._by_parameter(self.noisy_sum.decode(total))
        denominator, clip_norm = self._drawn, self.settings.clip_norm
        deviation, count = self.noisy_sum.deviation, self.noisy_sum.decode_count(total)
        share = None if count is None else 0.5 + count / denominator
        self.settings = with_next_clip_norm(self.settings, share)
        self.noisy_sum = noisy_sum_of_round(self.settings, self._secure, self._dimension)
        average: Update = {
            name: (part / denominator).astype(np.float32) for name, part in noisy_sum.items()
        }
        return AggregateResult(
            noisy_sum,
            average,
            clip_norm,
            self.settings.clip_norm,
            deviation,
            share,
            contributors,
            rejected,
        )

    def _by_parameter(self, flat: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return a flat vector as one array per parameter."""
        found, start = {}, 0
        for name, part in self._shapes.items():
            found[name] = flat[start : start + part.size].reshape(part.shape)
            start += part.size
        return found


def noisy_sum_of_round(
    settings: ParticipantClipping, secure: SecureAggregationSettings, dimension: int
) -> NoisySum:
    """Return the noisy sum of one round.

    Args:
        settings: Clip norm, noise and participation. The releases do not depend on the clip norm.
        secure: Dropouts, colluders, noise shares and modulus.
        dimension: Number of coordinates of an update.

    Returns:
        The sum, with a count of the updates within the clip norm if clipping is adaptive.
    """
    adaptive = settings.adaptive
    return NoisySum(
        secure,
        settings.participants,
        dimension,
        settings.clip_norm,
        settings.sum_multiplier,
        None if adaptive is None else adaptive.count_noise,
    )
