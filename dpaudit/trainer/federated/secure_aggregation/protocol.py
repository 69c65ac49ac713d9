"""Secure aggregation in one process: every participant, the server, and the messages between.

One process holds the state of all parties, so it protects nobody from that process. It runs the
protocol of separate machines unchanged: participants and server exchange bytes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation.client import Client
from dpaudit.trainer.federated.secure_aggregation.messages import (
    AdvertisedKeys,
    ForwardedShares,
    KeyList,
    MaskedInput,
    Message,
    Phase,
    SealedShares,
    SecureSumParameters,
    UnmaskRequest,
    UnmaskShares,
    decode_message,
    encode_message,
)
from dpaudit.trainer.federated.secure_aggregation.server import SecureSum, Server
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument

_Kind = TypeVar("_Kind", bound=Message)

Drop = Callable[[Phase, int], bool]
"""Whether a participant is lost before it sends its message of a phase."""


def nobody_drops(phase: Phase, participant: int) -> bool:
    """Lose no participant.

    Args:
        phase: The phase.
        participant: Number of the participant.

    Returns:
        False.
    """
    del phase, participant
    return False


class SecureAggregation:
    """A server and its participants in one process, for the embedded engine and for tests.

    Args:
        parameters: What all participants and the server agree on.
        streams: Keystream of each participant, by its number; no two with the same key.

    Raises:
        InvalidArgument: If the streams are not those of all participants.

    Example:
        >>> parameters = SecureSumParameters(3, 2, 32, 2, bytes(32))
        >>> streams = {number: Keystream.secure() for number in range(3)}
        >>> aggregation = SecureAggregation(parameters, streams)
        >>> inputs = {number: np.array([number, -1]) for number in range(3)}
        >>> aggregation.aggregate(0, inputs).total
        array([ 3, -3])
        >>> lost = lambda phase, number: phase is Phase.MASKED_INPUT and number == 2
        >>> aggregation.aggregate(1, inputs, drop=lost).total
        array([ 1, -2])
    """

    def __init__(self, parameters: SecureSumParameters, streams: Mapping[int, Keystream]) -> None:
        if set(streams) != set(range(parameters.participants)):
            raise InvalidArgument(
                "streams",
                sorted(streams),
                f"one for each of {parameters.participants} participants",
            )
        self.parameters = parameters
        self.server = Server(parameters)
        self.clients = {
            number: Client(number, parameters, stream) for number, stream in streams.items()
        }

    def aggregate(
        self,
        round_number: int,
        vectors: Mapping[int, NDArray[np.int64]],
        drop: Drop = nobody_drops,
    ) -> SecureSum:
        """Run one round.

        Args:
            round_number: Number of the round, from 0; larger than every earlier one.
            vectors: Input of each participant that takes part, int64, shape ``(dimension,)``.
            drop: Whether a participant is lost before it sends its message of a phase. A lost
                participant sends nothing in later phases.

        Returns:
            The sum of the inputs that arrived, exact if it lies in [-2^(k-1), 2^(k-1)).

        Raises:
            TooFewParticipants: If fewer participants than the threshold are left in a phase.
            ReplayedRound: If the round was run before, or two participants have the same key.
        """
        server, clients = self.server, self.clients
        server.open_round(round_number, list(vectors))

        here = _still_here(vectors, Phase.ADVERTISE_KEYS, drop)
        for number in here:
            keys = self._sent(clients[number].advertise_keys(round_number), AdvertisedKeys)
            server.receive_keys(keys)
        key_list = self._sent(server.key_list(), KeyList)

        here = _still_here(here, Phase.SHARE_KEYS, drop)
        for number in here:
            server.receive_shares(self._sent(clients[number].share_keys(key_list), SealedShares))
        forwarded = server.forward_shares()

        here = _still_here(here, Phase.MASKED_INPUT, drop)
        for number in here:
            shares = self._sent(forwarded[number], ForwardedShares)
            masked = clients[number].masked_input(shares, vectors[number])
            server.receive_masked_input(self._sent(masked, MaskedInput))
        request = self._sent(server.unmask_request(), UnmaskRequest)

        for number in _still_here(here, Phase.UNMASKING, drop):
            server.receive_unmask_shares(self._sent(clients[number].unmask(request), UnmaskShares))
        return server.secure_sum()

    def _sent(self, message: Message, kind: type[_Kind]) -> _Kind:
        """Return what arrives of a message: its bytes, decoded and bounded in length."""
        return decode_message(encode_message(message), kind, self.parameters)


def _still_here(numbers: Iterable[int], phase: Phase, drop: Drop) -> list[int]:
    """Return the participants that send their message of a phase, in increasing order."""
    return [number for number in sorted(numbers) if not drop(phase, number)]
