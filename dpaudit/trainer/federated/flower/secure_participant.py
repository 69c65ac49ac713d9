"""A participant of secure aggregation whose process may end between two messages.

Flower starts a process per message. So the participant's state of a round is a mapping of bytes
and numbers: a fresh key, the phase, and the messages that were answered. The protocol's client
is made again from them. A key is drawn for one round, and erased when the round's last message
is answered. No message is answered twice, and no round is repeated.

No Flower: ``secure_client`` keeps the state in Flower's context, which stays on the node.
"""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation.client import Client
from dpaudit.trainer.federated.secure_aggregation.messages import (
    ForwardedShares,
    KeyList,
    Phase,
    SecureSumParameters,
    UnmaskRequest,
    decode_message,
    encode_message,
)
from dpaudit.trainer.federated.secure_aggregation.noisy_sum import NoisySum
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import ProtocolViolation, ReplayedRound
from dpaudit.vocabulary.federation import SecureAggregationSettings
from dpaudit.vocabulary.ledger import Randomness

KEY_BYTES = 32
LARGEST_INVITATION = 4096
ROUND, ANSWERED, KEY = "round", "answered", "key"
INVITATION, KEY_LIST, FORWARDED = "invitation", "key_list", "forwarded"

State = MutableMapping[str, int | bytes]
"""What is kept between two messages; it holds a secret key and must not leave the participant."""

KeySource = Callable[[int], bytes]
"""Returns the 32 secret bytes of a round."""

_Kind = TypeVar("_Kind", KeyList, ForwardedShares, UnmaskRequest)


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="invitation"):
    """The server's first message of a round.

    Attributes:
        round: Number of the round, from 0.
        parameters: What all participants and the server must agree on for the protocol.
        secure: Dropouts, colluders, noise shares and modulus.
        clip_norm: Largest L2 norm of an update.
        noise_multiplier: Standard deviation of the honest survivors' noise over the clip norm.

    Example:
        >>> noisy = NoisySum(SecureAggregationSettings(), 2, 3, 1.0, noise_multiplier=1.0)
        >>> Invitation.of(noisy, 7, bytes(32)).round
        7
    """

    round: int
    parameters: SecureSumParameters
    secure: SecureAggregationSettings
    clip_norm: float
    noise_multiplier: float

    @classmethod
    def of(cls, noisy_sum: NoisySum, round_number: int, session: bytes) -> Invitation:
        """Return the invitation to a round.

        Args:
            noisy_sum: The settings of the sum.
            round_number: Number of the round, from 0.
            session: Public identifier of the run, 32 bytes.

        Returns:
            The invitation.
        """
        return cls(
            round_number,
            noisy_sum.parameters(session),
            noisy_sum.settings,
            noisy_sum.clip_norm,
            noisy_sum.noise_multiplier,
        )


def fresh_key(round_number: int) -> bytes:
    """Return fresh secret bytes of the operating system.

    Args:
        round_number: Number of the round, from 0.

    Returns:
        32 bytes.
    """
    del round_number
    return os.urandom(KEY_BYTES)


class StoredParticipant:
    """One participant of one secure sum after another, from what is stored between messages.

    Args:
        number: Number of the participant, from 0.
        settings: Returns the participant's own noisy sum of a dimension; the server's must be
            equal.
        state: What is stored; an empty mapping before the first round.
        key_source: Draws the key of a round.

    Example:
        >>> def settings(dimension):
        ...     secure = SecureAggregationSettings()
        ...     return NoisySum(secure, 2, dimension, clip_norm=1.0, noise_multiplier=1.0)
        >>> state = {}
        >>> invited = msgspec.msgpack.encode(Invitation.of(settings(3), 0, bytes(32)))
        >>> answer = StoredParticipant(0, settings, state).advertise_keys(invited)
        >>> len(state["key"]), state["answered"]
        (32, 1)
    """

    def __init__(
        self,
        number: int,
        settings: Callable[[int], NoisySum],
        state: State,
        key_source: KeySource = fresh_key,
    ) -> None:
        self._number, self._settings = number, settings
        self._state, self._key_source = state, key_source

    def advertise_keys(self, message: bytes) -> bytes:
        """Start a round: draw its key, and return fresh public keys.

        Args:
            message: The server's invitation.

        Returns:
            The answer.

        Raises:
            ProtocolViolation: If the invitation is malformed, or of other settings than the
                participant's own.
            ReplayedRound: If this round, or a later one, was started before.
        """
        invitation = self._invitation(message)
        if invitation.round <= int(self._state.get(ROUND, -1)):
            raise ReplayedRound(
                f"participant {self._number} was asked for round {invitation.round} after round "
                f"{self._state[ROUND]!r}: its masks would be used twice"
            )
        key = self._key_source(invitation.round)
        self._state.clear()
        self._state.update({ROUND: invitation.round, ANSWERED: 0, KEY: key, INVITATION: message})
        answer = self._client(invitation).advertise_keys(invitation.round)
        self._state[ANSWERED] = 1
        return encode_message(answer)

    def share_keys(self, message: bytes) -> bytes:
        """Return shares of the round's secrets, each sealed for its recipient.

        Args:
            message: The list of public keys.

        Returns:
            The answer.

        Raises:
            ProtocolViolation: If the message is malformed, or not the next of the round.
        """
        invitation = self._expect(Phase.SHARE_KEYS, 1)
        key_list = self._decoded(message, KeyList, invitation)
        client = self._client(invitation)
        client.advertise_keys(invitation.round)
        answer = client.share_keys(key_list)
        self._state.update({ANSWERED: 2, KEY_LIST: message})
        return encode_message(answer)

    def require_masked_input(self) -> None:
        """Refuse to train for a round that is not at its third message.

        Raises:
            ProtocolViolation: If the message is not the next of the round.
        """
        self._expect(Phase.MASKED_INPUT, 2)

    def masked_input(self, message: bytes, update: NDArray[np.float32]) -> bytes:
        """Return the clipped, rounded update with its share of noise, under masks.

        Args:
            message: The shares that the others sealed for this participant.
            update: The change of the model, shape ``(dimension,)``, finite.

        Returns:
            The answer.

        Raises:
            ProtocolViolation: If the message is malformed, or not the next of the round.
            InvalidArgument: If the update has another shape or holds NaN or infinity.
        """
        invitation = self._expect(Phase.MASKED_INPUT, 2)
        forwarded = self._decoded(message, ForwardedShares, invitation)
        vector = self._noisy_sum(invitation).contribution(update, self._stream, invitation.round)
        # Of a failed or repeated attempt, no second masked input may leave with these masks.
        self._state.update({ANSWERED: 3, FORWARDED: message})
        answer = self._shared_client(invitation).masked_input(forwarded, vector)
        return encode_message(answer)

    def unmask(self, message: bytes) -> bytes:
        """Return the shares that unmask the sum, and erase the round's key.

        Args:
            message: Whose inputs are in the sum, and whose are not.

        Returns:
            The answer.

        Raises:
            ProtocolViolation: If the message is malformed, or not the next of the round.
            UnmaskingRefused: If it asks for both secrets of a participant.
        """
        invitation = self._expect(Phase.UNMASKING, 3)
        request = self._decoded(message, UnmaskRequest, invitation)
        client = self._shared_client(invitation)
        forwarded = self._decoded(bytes(self._stored(FORWARDED)), ForwardedShares, invitation)
        # The vector does not leave: this call brings the client into the state after its input.
        client.masked_input(forwarded, np.zeros(invitation.parameters.dimension, np.int64))
        answer = client.unmask(request)
        number = self._state[ROUND]
        self._state.clear()
        self._state.update({ROUND: number, ANSWERED: 4})
        return encode_message(answer)

    @property
    def _stream(self) -> Keystream:
        return Keystream(bytes(self._stored(KEY)), Randomness.SECURE)

    def _noisy_sum(self, invitation: Invitation) -> NoisySum:
        """Return the participant's own settings of the sum."""
        return self._settings(invitation.parameters.dimension)

    def _client(self, invitation: Invitation) -> Client:
        """Return the protocol's client at the beginning of the round."""
        return Client(self._number, invitation.parameters, self._stream)

    def _shared_client(self, invitation: Invitation) -> Client:
        """Return the protocol's client after it sent its shares."""
        client = self._client(invitation)
        client.advertise_keys(invitation.round)
        client.share_keys(self._decoded(bytes(self._stored(KEY_LIST)), KeyList, invitation))
        return client

    def _stored(self, name: str) -> bytes:
        """Return stored bytes."""
        found = self._state.get(name)
        if not isinstance(found, bytes):
            raise ProtocolViolation(f"participant {self._number} has no {name} of this round")
        return found

    def _expect(self, phase: Phase, answered: int) -> Invitation:
        """Return the round's invitation, if a message of this phase is the next one."""
        if self._state.get(ANSWERED) != answered:
            raise ProtocolViolation(
                f"participant {self._number} got a message of the phase {phase.value!r} out of "
                "order: each message is answered once"
            )
        return self._invitation(self._stored(INVITATION))

    def _invitation(self, message: bytes) -> Invitation:
        """Return a decoded invitation; refuse other settings than the participant's own."""
        if len(message) > LARGEST_INVITATION:
            raise ProtocolViolation(f"an invitation has {len(message)} bytes")
        try:
            found = msgspec.msgpack.decode(message, type=Invitation)
        except msgspec.DecodeError as error:
            raise ProtocolViolation(f"a message is no Invitation: {error}") from error
        own = Invitation.of(self._noisy_sum(found), found.round, found.parameters.session)
        if found != own or not 0 <= found.round < 2**32:
            raise ProtocolViolation(
                f"participant {self._number} is asked for other settings of the sum than its own"
            )
        return found

    def _decoded(self, message: bytes, kind: type[_Kind], invitation: Invitation) -> _Kind:
        """Return a decoded message of the protocol."""
        return decode_message(message, kind, invitation.parameters)
