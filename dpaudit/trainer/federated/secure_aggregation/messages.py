"""Messages between the participants and the server of secure aggregation.

A message is a frozen structure with a round number and its sender or recipient, and becomes
bytes by MessagePack. The phases, in order: advertise keys, share keys, masked input, unmasking.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TypeVar

import msgspec

from dpaudit.trainer.federated.secure_aggregation.key_agreement import (
    KEY_BYTES,
    SEAL_OVERHEAD_BYTES,
)
from dpaudit.trainer.federated.secure_aggregation.masks import word_type
from dpaudit.trainer.federated.secure_aggregation.secret_sharing import SHARE_BYTES
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    ProtocolViolation,
    require_count,
)

LARGEST_MODULUS_BITS = 62
SEALED_SHARES_BYTES = 2 * SHARE_BYTES + SEAL_OVERHEAD_BYTES
"""A sealed pair of shares: of the mask key, then of the self mask seed."""

COMMITMENT_BYTES = 32


class Phase(Enum):
    """A phase of a round: what every participant sends in it.

    Example:
        >>> [phase.value for phase in Phase]
        ['advertise keys', 'share keys', 'masked input', 'unmasking']
    """

    ADVERTISE_KEYS = "advertise keys"
    SHARE_KEYS = "share keys"
    MASKED_INPUT = "masked input"
    UNMASKING = "unmasking"


class SecureSumParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every participant and the server of a secure sum must agree on; all of it is public.

    Attributes:
        participants: Number of participants; at least 1.
        threshold: Smallest number of participants whose sum can be unmasked; at least 1.
        modulus_bits: The k of the modulus 2^k, from 8 to 62.
        dimension: Number of coordinates of an input; at least 1.
        session: Identifier of the run, 32 bytes. Keys of two sessions are independent.

    Raises:
        InvalidArgument: If a field is out of its range.

    Example:
        >>> SecureSumParameters(10, 7, 32, 100, bytes(32)).threshold
        7
    """

    participants: int
    threshold: int
    modulus_bits: int
    dimension: int
    session: bytes

    def __post_init__(self) -> None:
        require_count("participants", self.participants)
        require_count("threshold", self.threshold)
        require_count("dimension", self.dimension)
        if self.threshold > self.participants:
            raise InvalidArgument(
                "threshold", self.threshold, f"at most the {self.participants} participants"
            )
        if not 8 <= self.modulus_bits <= LARGEST_MODULUS_BITS:
            raise InvalidArgument(
                "modulus_bits", self.modulus_bits, f"from 8 to {LARGEST_MODULUS_BITS}"
            )
        if len(self.session) != 32:
            raise InvalidArgument("session", f"{len(self.session)} bytes", "of 32 bytes")

    @property
    def vector_bytes(self) -> int:
        """Length of a masked input, in bytes."""
        return word_type(self.modulus_bits).itemsize * self.dimension

    @property
    def largest_message_bytes(self) -> int:
        """Upper bound on the length of any message that is not oversized, in bytes."""
        per_participant = SEALED_SHARES_BYTES + 2 * KEY_BYTES + COMMITMENT_BYTES + 64
        return self.vector_bytes + per_participant * self.participants + 1024


class PublicKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The public keys of one participant in one round.

    Attributes:
        sealing: X25519 key that shares are sealed for, 32 bytes.
        masking: X25519 key that pairwise masks are agreed with, 32 bytes.
    """

    sealing: bytes
    masking: bytes


class AdvertisedKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="keys"):
    """Phase 1, participant to server: its public keys.

    Attributes:
        round: Number of the round, from 0.
        sender: Number of the participant, from 0.
        keys: Its public keys.
    """

    round: int
    sender: int
    keys: PublicKeys


class KeyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="key-list"):
    """Phase 1, server to participants: the public keys of all who advertised some.

    Attributes:
        round: Number of the round, from 0.
        keys: Public keys by participant.
    """

    round: int
    keys: dict[int, PublicKeys]


class SealedShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="shares"):
    """Phase 2, participant to server: its shares, each sealed for one other participant.

    Attributes:
        round: Number of the round, from 0.
        sender: Number of the participant, from 0.
        sealed: Ciphertext of 82 bytes by recipient.
        commitment: SHA-256 of the self mask seed, which the server checks joined shares against.
    """

    round: int
    sender: int
    sealed: dict[int, bytes]
    commitment: bytes


class ForwardedShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="forwarded"):
    """Phase 2, server to one participant: the shares that the others sealed for it.

    Attributes:
        round: Number of the round, from 0.
        recipient: Number of the participant, from 0.
        sealed: Ciphertext by sender. The senders, and the recipient, add pairwise masks.
    """

    round: int
    recipient: int
    sealed: dict[int, bytes]


class MaskedInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="masked"):
    """Phase 3, participant to server: its input under its masks.

    Attributes:
        round: Number of the round, from 0.
        sender: Number of the participant, from 0.
        vector: Little-endian words, each below 2^k.
    """

    round: int
    sender: int
    vector: bytes


class UnmaskRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="unmask"):
    """Phase 4, server to participants: whose inputs are in the sum, and whose are not.

    Attributes:
        round: Number of the round, from 0.
        survivors: Participants whose masked input arrived: shares of self mask seeds.
        dropped: Participants with shares but without input: shares of mask keys.
    """

    round: int
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


class UnmaskShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="unmasked"):
    """Phase 4, participant to server: one share per participant, never of both secrets.

    Attributes:
        round: Number of the round, from 0.
        sender: Number of the participant, from 0.
        self_seeds: Shares of self mask seeds, by survivor.
        mask_keys: Shares of private mask keys, by dropout.
    """

    round: int
    sender: int
    self_seeds: dict[int, bytes]
    mask_keys: dict[int, bytes]


Message = (
    AdvertisedKeys
    | KeyList
    | SealedShares
    | ForwardedShares
    | MaskedInput
    | UnmaskRequest
    | UnmaskShares
)
"""Any message of the protocol."""

_Kind = TypeVar("_Kind", bound=Message)


def encode_message(message: Message) -> bytes:
    """Return a message as bytes.

    Args:
        message: Any message of the protocol.

    Returns:
        MessagePack.

    Example:
        >>> len(encode_message(UnmaskRequest(0, survivors=(0, 1), dropped=(2,)))) < 100
        True
    """
    return msgspec.msgpack.encode(message)


def decode_message(data: bytes, kind: type[_Kind], parameters: SecureSumParameters) -> _Kind:
    """Return the message that bytes hold.

    Args:
        data: The bytes.
        kind: The type of the message that is expected.
        parameters: What the protocol agreed on, which bounds the length.

    Returns:
        The message. Its content is checked by the participant or the server that receives it.

    Raises:
        ProtocolViolation: If the bytes are too many, no message, or one of another type.

    Example:
        >>> parameters = SecureSumParameters(3, 2, 32, 4, bytes(32))
        >>> request = UnmaskRequest(0, survivors=(0, 1), dropped=(2,))
        >>> decode_message(encode_message(request), UnmaskRequest, parameters) == request
        True
    """
    if len(data) > parameters.largest_message_bytes:
        raise ProtocolViolation(
            f"a message has {len(data)} bytes, more than the {parameters.largest_message_bytes} "
            "that any message of this round can have"
        )
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise ProtocolViolation(f"a message is no {kind.__name__}: {error}") from error


def require_length(what: str, value: bytes, length: int) -> None:
    """Refuse bytes of another length than the protocol prescribes."""
    if len(value) != length:
        raise ProtocolViolation(f"{what} has {len(value)} bytes; the protocol prescribes {length}")


def require_participants(
    what: str, numbers: Iterable[int], parameters: SecureSumParameters
) -> None:
    """Refuse numbers that are no participants, or that are repeated."""
    found = list(numbers)
    if len(set(found)) != len(found):
        raise ProtocolViolation(f"{what} names a participant twice")
    if any(not 0 <= number < parameters.participants for number in found):
        raise ProtocolViolation(
            f"{what} names a participant outside 0 to {parameters.participants - 1}"
        )
