"""The server of secure aggregation: collects the messages of each phase, and unmasks the sum.

The server handles masked inputs, and adds them up as they arrive. No message and no state of it
holds an update in the clear, or both secrets of one participant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation.client import (
    pair_mask_key,
    self_mask_key,
)
from dpaudit.trainer.federated.secure_aggregation.key_agreement import (
    KEY_BYTES,
    agree,
    public_key,
)
from dpaudit.trainer.federated.secure_aggregation.masks import (
    Words,
    add_mask,
    centered_integers,
    mask_words,
    pair_sign,
    reduce_words,
    word_type,
)
from dpaudit.trainer.federated.secure_aggregation.messages import (
    COMMITMENT_BYTES,
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
from dpaudit.trainer.federated.secure_aggregation.secret_sharing import SHARE_BYTES, join_shares
from dpaudit.vocabulary.errors import ProtocolViolation, ReplayedRound, TooFewParticipants


@dataclass(frozen=True)
class SecureSum:
    """The result of one round.

    Attributes:
        round: Number of the round.
        total: Sum of the contributors' inputs, as the representatives modulo 2^k around 0; int64,
            shape ``(dimension,)``.
        contributors: Participants whose input is in the sum, in increasing order.
        lost: The phase before whose message a participant was lost. One that is lost in the
            unmasking phase still contributed.

    Example:
        >>> SecureSum(0, np.array([3, -1]), contributors=(0, 2), lost={1: Phase.SHARE_KEYS}).total
        array([ 3, -1])
    """

    round: int
    total: NDArray[np.int64]
    contributors: tuple[int, ...]
    lost: Mapping[int, Phase]


@dataclass
class _Round:
    """What the server received in a round, by phase."""

    number: int
    invited: tuple[int, ...]
    total: Words
    phase: Phase = Phase.ADVERTISE_KEYS
    keys: dict[int, PublicKeys] = field(default_factory=dict)
    shares: dict[int, SealedShares] = field(default_factory=dict)
    survivors: list[int] = field(default_factory=list)
    unmask_shares: dict[int, UnmaskShares] = field(default_factory=dict)


class Server:
    """The server: one method to receive each message, and one to end each phase.

    Args:
        parameters: What all participants and the server agreed on.

    References:
        Bonawitz et al. (2017), Practical secure aggregation for privacy-preserving machine
        learning, Figure 4.

    Example:
        >>> server = Server(SecureSumParameters(3, 2, 32, 4, bytes(32)))
        >>> server.open_round(0, [0, 1, 2])
        >>> server.key_list()
        Traceback (most recent call last):
        ...
        dpaudit.vocabulary.errors.TooFewParticipants: 0 participants are left in the phase \
'advertise keys'; the sum needs at least 2: start a new round with more participants
    """

    def __init__(self, parameters: SecureSumParameters) -> None:
        self.parameters = parameters
        self._last_round = -1
        self._round: _Round | None = None
        self._seen_keys: set[bytes] = set()

    def open_round(self, number: int, invited: Sequence[int]) -> None:
        """Start a round; an unfinished one is dropped.

        Args:
            number: Number of the round, from 0; larger than every earlier one.
            invited: The participants that are asked.

        Raises:
            ReplayedRound: If this round, or a later one, was started before.
            ProtocolViolation: If an invited number is no participant.
        """
        if number <= self._last_round:
            raise ReplayedRound(
                f"round {number} was started after round {self._last_round}: give every round a "
                "new, larger number"
            )
        require_participants("the invitation", invited, self.parameters)
        self._last_round = number
        zeros = np.zeros(self.parameters.dimension, word_type(self.parameters.modulus_bits))
        self._round = _Round(number, tuple(sorted(invited)), zeros)

    def receive_keys(self, message: AdvertisedKeys) -> None:
        """Receive the public keys of one participant.

        Args:
            message: Its message.

        Raises:
            ProtocolViolation: If the message is malformed, unexpected or repeated.
            ReplayedRound: If a key came before, from this participant or another one, in this
                round or an earlier one: its masks would be used twice.
        """
        now = self._expect(Phase.ADVERTISE_KEYS, message.round, message.sender)
        self._require_first(message.sender, now.invited, now.keys)
        for key in (message.keys.sealing, message.keys.masking):
            require_length(f"a public key of participant {message.sender}", key, KEY_BYTES)
            if key in self._seen_keys:
                raise ReplayedRound(
                    f"the public key of participant {message.sender} came before: masks under "
                    "it would cancel in a difference of two inputs"
                )
        self._seen_keys.update((message.keys.sealing, message.keys.masking))
        now.keys[message.sender] = message.keys

    def key_list(self) -> KeyList:
        """End the first phase: return all public keys, for every participant that sent some.

        Returns:
            The message for each of ``keys``.

        Raises:
            TooFewParticipants: If fewer than the threshold sent keys.
        """
        now = self._end(Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS)
        return KeyList(now.number, dict(sorted(now.keys.items())))

    def receive_shares(self, message: SealedShares) -> None:
        """Receive the sealed shares of one participant.

        Args:
            message: Its message.

        Raises:
            ProtocolViolation: If the message is malformed, unexpected or repeated.
        """
        now = self._expect(Phase.SHARE_KEYS, message.round, message.sender)
        self._require_first(message.sender, now.keys, now.shares)
        if set(message.sealed) != set(now.keys) - {message.sender}:
            raise ProtocolViolation(
                f"participant {message.sender} sealed shares for {sorted(message.sealed)}, not "
                "for all others who advertised keys"
            )
        require_length("the commitment", message.commitment, COMMITMENT_BYTES)
        for sealed in message.sealed.values():
            who = f"a sealed share of participant {message.sender}"
            require_length(who, sealed, SEALED_SHARES_BYTES)
        now.shares[message.sender] = message

    def forward_shares(self) -> dict[int, ForwardedShares]:
        """End the second phase: return to each participant the shares sealed for it.

        Returns:
            The message for each participant that sent shares.

        Raises:
            TooFewParticipants: If fewer than the threshold sent shares.
        """
        now = self._end(Phase.SHARE_KEYS, Phase.MASKED_INPUT)
        return {
            recipient: ForwardedShares(
                now.number,
                recipient,
                {
                    sender: message.sealed[recipient]
                    for sender, message in sorted(now.shares.items())
                    if sender != recipient
                },
            )
            for recipient in sorted(now.shares)
        }

    def receive_masked_input(self, message: MaskedInput) -> None:
        """Add the masked input of one participant to the sum.

        Args:
            message: Its message.

        Raises:
            ProtocolViolation: If the message is malformed, oversized, unexpected or repeated.
        """
        now = self._expect(Phase.MASKED_INPUT, message.round, message.sender)
        self._require_first(message.sender, now.shares, now.survivors)
        who = f"the masked input of participant {message.sender}"
        require_length(who, message.vector, self.parameters.vector_bytes)
        words = np.frombuffer(message.vector, dtype=now.total.dtype)
        if int(words.max()) >> self.parameters.modulus_bits:
            raise ProtocolViolation(
                f"{who} holds a word of more than {self.parameters.modulus_bits} bits"
            )
        add_mask(now.total, words, 1)
        now.survivors.append(message.sender)

    def unmask_request(self) -> UnmaskRequest:
        """End the third phase: return whose inputs are in the sum, and whose are not.

        Returns:
            The message for each survivor.

        Raises:
            TooFewParticipants: If fewer inputs than the threshold arrived.
        """
        now = self._end(Phase.MASKED_INPUT, Phase.UNMASKING)
        survivors = tuple(sorted(now.survivors))
        dropped = tuple(sorted(set(now.shares) - set(survivors)))
        return UnmaskRequest(now.number, survivors, dropped)

    def receive_unmask_shares(self, message: UnmaskShares) -> None:
        """Receive the shares of one survivor.

        Args:
            message: Its message.

        Raises:
            ProtocolViolation: If the message is malformed, unexpected or repeated.
        """
        now = self._expect(Phase.UNMASKING, message.round, message.sender)
        self._require_first(message.sender, now.survivors, now.unmask_shares)
        dropped = set(now.shares) - set(now.survivors)
        if set(message.self_seeds) != set(now.survivors) or set(message.mask_keys) != dropped:
            raise ProtocolViolation(
                f"participant {message.sender} sent shares of others than were asked for"
            )
        for share in (*message.self_seeds.values(), *message.mask_keys.values()):
            require_length(f"a share of participant {message.sender}", share, SHARE_BYTES)
        now.unmask_shares[message.sender] = message

    def secure_sum(self) -> SecureSum:
        """End the round: return the sum without its masks.

        Returns:
            The sum of the survivors' inputs.

        Raises:
            TooFewParticipants: If fewer survivors than the threshold sent shares.
            ProtocolViolation: If shares do not belong to the key or the seed that they are of.
        """
        now = self._end(Phase.UNMASKING, Phase.UNMASKING)
        lost = self._lost(now)
        for number in now.survivors:
            self._remove_self_mask(now, number)
        for number in sorted(set(now.shares) - set(now.survivors)):
            self._remove_pair_masks(now, number)
        total = reduce_words(now.total, self.parameters.modulus_bits)
        self._round = None
        return SecureSum(
            now.number,
            centered_integers(total, self.parameters.modulus_bits),
            tuple(sorted(now.survivors)),
            lost,
        )

    def _remove_self_mask(self, now: _Round, number: int) -> None:
        """Subtract the self mask of a survivor from the sum."""
        shares = {sender + 1: one.self_seeds[number] for sender, one in now.unmask_shares.items()}
        seed = join_shares(shares, self.parameters.threshold)
        if hashlib.sha256(seed).digest() != now.shares[number].commitment:
            raise ProtocolViolation(f"the shares of the seed of participant {number} are wrong")
        self._add(now, self_mask_key(seed, self.parameters, now.number, number), -1)

    def _remove_pair_masks(self, now: _Round, number: int) -> None:
        """Subtract the masks that the survivors share with a dropout from the sum."""
        shares = {sender + 1: one.mask_keys[number] for sender, one in now.unmask_shares.items()}
        private = join_shares(shares, self.parameters.threshold)
        if public_key(private) != now.keys[number].masking:
            raise ProtocolViolation(f"the shares of the key of participant {number} are wrong")
        for survivor in now.survivors:
            secret = agree(private, now.keys[survivor].masking)
            key = pair_mask_key(secret, self.parameters, now.number, survivor, number)
            self._add(now, key, -pair_sign(survivor, number))

    def _add(self, now: _Round, key: bytes, sign: int) -> None:
        """Add or subtract the mask under a key."""
        mask = mask_words(key, self.parameters.modulus_bits, self.parameters.dimension)
        add_mask(now.total, mask, sign)

    def _expect(self, phase: Phase, round_number: int, sender: int) -> _Round:
        """Return the round, if a message of this phase and number is expected."""
        now = self._round
        if now is None or now.phase is not phase or now.number != round_number:
            raise ProtocolViolation(
                f"participant {sender} sent a message of the phase {phase.value!r} of round "
                f"{round_number}, which is not the current one"
            )
        return now

    def _end(self, phase: Phase, following: Phase) -> _Round:
        """Return the round after its phase ended with enough messages."""
        now = self._round
        if now is None or now.phase is not phase:
            raise ProtocolViolation(f"the server is not in the phase {phase.value!r}")
        left = len(_received(now, phase))
        if left < self.parameters.threshold:
            raise TooFewParticipants(phase.value, left, self.parameters.threshold)
        now.phase = following
        return now

    def _require_first(self, sender: int, expected: Container[int], seen: Container[int]) -> None:
        """Refuse a sender that is not expected in this phase, or that sent its message before."""
        if sender not in expected:
            raise ProtocolViolation(f"participant {sender} is not expected in this phase")
        if sender in seen:
            raise ProtocolViolation(f"participant {sender} sent a message of this phase twice")

    def _lost(self, now: _Round) -> dict[int, Phase]:
        """Return the phase before whose message each participant was lost."""
        lost: dict[int, Phase] = {}
        for phase in Phase:
            missing = set(now.invited) - set(_received(now, phase)) - set(lost)
            lost |= dict.fromkeys(sorted(missing), phase)
        return lost


def _received(now: _Round, phase: Phase) -> Sequence[int]:
    """Return the participants whose message of a phase arrived."""
    received: dict[Phase, Sequence[int]] = {
        Phase.ADVERTISE_KEYS: tuple(now.keys),
        Phase.SHARE_KEYS: tuple(now.shares),
        Phase.MASKED_INPUT: now.survivors,
        Phase.UNMASKING: tuple(now.unmask_shares),
    }
    return received[phase]
