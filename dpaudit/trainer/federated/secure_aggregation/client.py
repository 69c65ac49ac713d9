"""The participant of secure aggregation: one method per phase, each answering one message."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation.key_agreement import (
    KEY_BYTES,
    KeyPurpose,
    agree,
    derive_key,
    public_key,
    seal,
    unseal,
)
from dpaudit.trainer.federated.secure_aggregation.masks import (
    add_mask,
    mask_words,
    pair_sign,
    reduce_words,
    words_of_integers,
)
from dpaudit.trainer.federated.secure_aggregation.messages import (
    SEALED_SHARES_BYTES,
    AdvertisedKeys,
    ForwardedShares,
    KeyList,
    MaskedInput,
    Phase,
    PublicKeys,
    SealedShares,
    SecureSumParameters,
    UnmaskRequest,
    UnmaskShares,
    require_length,
    require_participants,
)
from dpaudit.trainer.federated.secure_aggregation.secret_sharing import (
    SHARE_BYTES,
    coefficient_bytes,
    split_secret,
)
from dpaudit.trainer.noise.randomness import Keystream, NotCopyable, Purpose
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    ProtocolViolation,
    ReplayedRound,
    TooFewParticipants,
    UnmaskingRefused,
    require_part,
)


@dataclass(frozen=True)
class _Secrets:
    """The private keys and the self mask seed of one round; 32 bytes each."""

    sealing: bytes
    masking: bytes
    self_seed: bytes

    @property
    def public(self) -> PublicKeys:
        """The keys that the server may see."""
        return PublicKeys(public_key(self.sealing), public_key(self.masking))


@dataclass(frozen=True)
class _Advertised:
    """The participant sent its keys, and waits for those of the others."""

    secrets: _Secrets


@dataclass(frozen=True)
class _Shared:
    """The participant sent its shares, and waits for those of the others.

    ``own`` holds its shares of its own mask key and self mask seed.
    """

    secrets: _Secrets
    keys: Mapping[int, PublicKeys]
    own: bytes


@dataclass(frozen=True)
class _Masked:
    """The participant sent its input. ``shares`` holds both shares of each participant."""

    shares: Mapping[int, bytes]


class Client(NotCopyable):
    """One participant: makes keys, shares, the masked input, and the shares that unmask the sum.

    All secrets of a round come from the participant's keystream, under the round's number. The
    participant takes part in each round once, in increasing order, and answers each message once.

    Args:
        number: Number of the participant, from 0.
        parameters: What all participants and the server agreed on.
        stream: Keystream of this participant alone; secure outside of tests.

    Raises:
        InvalidArgument: If the number is no participant.

    References:
        Bonawitz et al. (2017), Practical secure aggregation for privacy-preserving machine
        learning, Figure 4, without the consistency check and signatures of active adversaries.

    Example:
        >>> parameters = SecureSumParameters(3, 2, 32, 4, bytes(32))
        >>> client = Client(0, parameters, Keystream.secure())
        >>> len(client.advertise_keys(0).keys.masking)
        32
    """

    description = "a participant of secure aggregation"

    def __init__(self, number: int, parameters: SecureSumParameters, stream: Keystream) -> None:
        require_part("number", number, parameters.participants - 1)
        self.number, self.parameters, self._stream = number, parameters, stream
        self._round = -1
        self._state: _Advertised | _Shared | _Masked | None = None

    def advertise_keys(self, round_number: int) -> AdvertisedKeys:
        """Start a round: return fresh public keys.

        Args:
            round_number: Number of the round, from 0; larger than every earlier one.

        Returns:
            The message for the server.

        Raises:
            ReplayedRound: If the participant started this round, or a later one, before.
        """
        if round_number <= self._round:
            raise ReplayedRound(
                f"participant {self.number} was asked for round {round_number} after round "
                f"{self._round}: its masks would be used twice"
            )
        self._round = round_number
        # One read for all three: parts of one keystream, at an address of this round alone.
        drawn = bytes(self._stream.bits(Purpose.AGGREGATION_SECRETS, round_number, 3 * KEY_BYTES))
        secrets = _Secrets(*(drawn[i : i + KEY_BYTES] for i in range(0, 3 * KEY_BYTES, KEY_BYTES)))
        self._state = _Advertised(secrets)
        return AdvertisedKeys(round_number, self.number, secrets.public)

    def share_keys(self, key_list: KeyList) -> SealedShares:
        """Share the mask key and the self mask seed among all participants of the list.

        Args:
            key_list: The public keys of all who advertised some.

        Returns:
            The message for the server; each share is sealed for its recipient.

        Raises:
            ProtocolViolation: If the list is malformed, of another round, lacks the own keys, or
                holds one key twice.
            TooFewParticipants: If the list is shorter than the threshold.
        """
        state = self._state
        if not isinstance(state, _Advertised):
            raise self._out_of_order(Phase.SHARE_KEYS)
        self._require_round(key_list.round)
        self._check_keys(key_list.keys, state.secrets.public)
        shares = self._split(state.secrets, sorted(key_list.keys))
        sealed = {
            peer: seal(self._sealing_key(state.secrets, keys, self.number, peer), shares[peer])
            for peer, keys in sorted(key_list.keys.items())
            if peer != self.number
        }
        self._state = _Shared(state.secrets, dict(key_list.keys), shares[self.number])
        commitment = hashlib.sha256(state.secrets.self_seed).digest()
        return SealedShares(self._round, self.number, sealed, commitment)

    def masked_input(self, forwarded: ForwardedShares, vector: NDArray[np.int64]) -> MaskedInput:
        """Return the input plus the own self mask and one pairwise mask per other participant.

        Args:
            forwarded: The shares that the others sealed for this participant.
            vector: The input with its noise, shape ``(dimension,)``; it is reduced modulo 2^k.

        Returns:
            The message for the server.

        Raises:
            ProtocolViolation: If the shares are malformed, of another round, or do not open.
            TooFewParticipants: If fewer participants than the threshold sent shares.
            InvalidArgument: If the vector has another shape or type.
        """
        state = self._state
        if not isinstance(state, _Shared):
            raise self._out_of_order(Phase.MASKED_INPUT)
        if vector.shape != (self.parameters.dimension,) or vector.dtype != np.int64:
            raise InvalidArgument(
                "vector",
                f"{vector.dtype} of shape {vector.shape}",
                f"int64 of shape ({self.parameters.dimension},)",
            )
        self._require_round(forwarded.round)
        shares = self._open(state, forwarded)
        masked = words_of_integers(vector, self.parameters.modulus_bits)
        self._add_masks(masked, state, forwarded.sealed)
        self._state = _Masked(shares)
        return MaskedInput(self._round, self.number, masked.tobytes())

    def unmask(self, request: UnmaskRequest) -> UnmaskShares:
        """Return one share per participant: of the self mask seed, or of the mask key.

        A second request of the same round is refused, whatever it asks for.

        Args:
            request: Whose inputs are in the sum, and whose are not.

        Returns:
            The message for the server.

        Raises:
            UnmaskingRefused: If the request asks for both secrets of a participant, or is the
                second one.
            ProtocolViolation: If the request is malformed or of another round.
            TooFewParticipants: If fewer participants than the threshold survived.
        """
        state = self._state
        if not isinstance(state, _Masked):
            raise self._unmasking_out_of_order()
        self._require_round(request.round)
        self._check_request(request, state)
        self._state = None
        return UnmaskShares(
            self._round,
            self.number,
            self_seeds={one: state.shares[one][SHARE_BYTES:] for one in request.survivors},
            mask_keys={one: state.shares[one][:SHARE_BYTES] for one in request.dropped},
        )

    def _split(self, secrets: _Secrets, peers: list[int]) -> dict[int, bytes]:
        """Return both shares of each participant: of the mask key, then of the self mask seed."""
        threshold, points = self.parameters.threshold, [peer + 1 for peer in peers]
        length = coefficient_bytes(threshold)
        coins = bytes(self._stream.bits(Purpose.SHARE_COEFFICIENTS, self._round, 2 * length))
        of_keys = split_secret(secrets.masking, threshold, points, coins[:length])
        of_seeds = split_secret(secrets.self_seed, threshold, points, coins[length:])
        both = zip(of_keys, of_seeds, strict=True)
        return {peer: key + seed for peer, (key, seed) in zip(peers, both, strict=True)}

    def _sealing_key(
        self, secrets: _Secrets, peer_keys: PublicKeys, sender: int, recipient: int
    ) -> bytes:
        """Return the key of the shares that ``sender`` seals for ``recipient`` in this round."""
        return derive_key(
            agree(secrets.sealing, peer_keys.sealing),
            KeyPurpose.SHARE_SEALING,
            self.parameters.session,
            self._round,
            sender,
            recipient,
        )

    def _open(self, state: _Shared, forwarded: ForwardedShares) -> dict[int, bytes]:
        """Return both shares of each participant that sent some, with the own ones."""
        if forwarded.recipient != self.number:
            raise ProtocolViolation(
                f"participant {self.number} got the shares of participant {forwarded.recipient}"
            )
        unknown = set(forwarded.sealed) - (set(state.keys) - {self.number})
        if unknown:
            raise ProtocolViolation(f"shares came from {sorted(unknown)}, who advertised no keys")
        self._require_enough(Phase.SHARE_KEYS, len(forwarded.sealed) + 1)
        shares = {self.number: state.own}
        for peer, sealed in forwarded.sealed.items():
            require_length(f"the sealed share of participant {peer}", sealed, SEALED_SHARES_BYTES)
            key = self._sealing_key(state.secrets, state.keys[peer], peer, self.number)
            shares[peer] = unseal(key, sealed)
        return shares

    def _add_masks(
        self, masked: NDArray[np.unsignedinteger], state: _Shared, peers: Mapping[int, bytes]
    ) -> None:
        """Add the self mask and the pairwise masks, in place."""
        bits, count = self.parameters.modulus_bits, self.parameters.dimension
        own = self_mask_key(state.secrets.self_seed, self.parameters, self._round, self.number)
        add_mask(masked, mask_words(own, bits, count), 1)
        for peer in peers:
            secret = agree(state.secrets.masking, state.keys[peer].masking)
            key = pair_mask_key(secret, self.parameters, self._round, self.number, peer)
            add_mask(masked, mask_words(key, bits, count), pair_sign(self.number, peer))
        masked[:] = reduce_words(masked, bits)

    def _check_keys(self, keys: Mapping[int, PublicKeys], own: PublicKeys) -> None:
        """Refuse a list of keys that the protocol cannot have made."""
        require_participants("the list of keys", keys, self.parameters)
        if keys.get(self.number) != own:
            raise ProtocolViolation(
                f"the list of keys does not hold the keys of participant {self.number}"
            )
        check_distinct_keys(keys)
        self._require_enough(Phase.ADVERTISE_KEYS, len(keys))

    def _check_request(self, request: UnmaskRequest, state: _Masked) -> None:
        """Refuse a request that could unmask an update, or that names others than expected."""
        both = set(request.survivors) & set(request.dropped)
        if both:
            raise UnmaskingRefused(
                f"the server asked participant {self.number} for both secrets of {sorted(both)}: "
                "together they unmask single updates"
            )
        named = (*request.survivors, *request.dropped)
        require_participants("the unmask request", named, self.parameters)
        if set(named) != set(state.shares) or self.number not in request.survivors:
            raise ProtocolViolation(
                f"the unmask request names {sorted(named)}; survivors and dropouts of this round "
                f"are {sorted(state.shares)}, and {self.number} survived"
            )
        self._require_enough(Phase.MASKED_INPUT, len(request.survivors))

    def _require_round(self, round_number: int) -> None:
        """Refuse a message of another round."""
        if round_number != self._round:
            raise ProtocolViolation(
                f"participant {self.number} is in round {self._round} and got a message of round "
                f"{round_number}"
            )

    def _require_enough(self, phase: Phase, left: int) -> None:
        """Refuse to go on below the threshold."""
        if left < self.parameters.threshold:
            raise TooFewParticipants(phase.value, left, self.parameters.threshold)

    def _out_of_order(self, phase: Phase) -> ProtocolViolation:
        """Return the error of a message that does not follow the last one."""
        return ProtocolViolation(
            f"participant {self.number} was asked for {phase.value!r} out of order in round "
            f"{self._round}"
        )

    def _unmasking_out_of_order(self) -> UnmaskingRefused:
        """Return the error of a request before the input, or of a second request."""
        return UnmaskingRefused(
            f"participant {self.number} was asked to unmask out of order, or twice, in round "
            f"{self._round}: two requests can unmask single updates"
        )


def check_distinct_keys(keys: Mapping[int, PublicKeys]) -> None:
    """Refuse public keys that two participants, or two purposes, share.

    Equal keys come from equal seeds: copies of one participant would add equal masks and noise.

    Args:
        keys: Public keys by participant.

    Raises:
        ProtocolViolation: If a key has another length.
        ReplayedRound: If a key occurs twice.
    """
    seen: dict[bytes, int] = {}
    for number, one in sorted(keys.items()):
        for key in (one.sealing, one.masking):
            require_length(f"a public key of participant {number}", key, KEY_BYTES)
            if key in seen:
                raise ReplayedRound(
                    f"participants {seen[key]} and {number} have the same public key: their "
                    "random numbers have the same seed"
                )
            seen[key] = number


def self_mask_key(
    seed: bytes, parameters: SecureSumParameters, round_number: int, number: int
) -> bytes:
    """Return the key of a participant's self mask.

    Args:
        seed: Its self mask seed of this round, 32 bytes.
        parameters: What the protocol agreed on.
        round_number: Number of the round.
        number: The participant.

    Returns:
        32 bytes.
    """
    purpose = KeyPurpose.SELF_MASK
    return derive_key(seed, purpose, parameters.session, round_number, number, number)


def pair_mask_key(
    secret: bytes, parameters: SecureSumParameters, round_number: int, one: int, other: int
) -> bytes:
    """Return the key of the mask that two participants share.

    Args:
        secret: Their agreed secret of this round, 32 bytes.
        parameters: What the protocol agreed on.
        round_number: Number of the round.
        one: A participant.
        other: The other one.

    Returns:
        32 bytes.
    """
    first, second = min(one, other), max(one, other)
    purpose = KeyPurpose.PAIRWISE_MASK
    return derive_key(secret, purpose, parameters.session, round_number, first, second)
