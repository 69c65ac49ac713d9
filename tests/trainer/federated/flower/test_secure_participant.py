"""A participant whose process ends between messages: nothing is answered twice. No Flower."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from dpaudit.trainer.federated.flower.secure_participant import (
    Invitation,
    State,
    StoredParticipant,
)
from dpaudit.trainer.federated.secure_aggregation.messages import (
    AdvertisedKeys,
    MaskedInput,
    SealedShares,
    UnmaskRequest,
    UnmaskShares,
    decode_message,
    encode_message,
)
from dpaudit.trainer.federated.secure_aggregation.noisy_sum import NoisySum
from dpaudit.trainer.federated.secure_aggregation.server import Server
from dpaudit.vocabulary.errors import InvalidArgument, ProtocolViolation, ReplayedRound
from dpaudit.vocabulary.federation import SecureAggregationSettings

DIMENSION, SESSION = 20, bytes(range(32))
UPDATE = np.full(DIMENSION, 0.1, np.float32)


def settings(dimension: int) -> NoisySum:
    secure = SecureAggregationSettings(dropouts=1)
    return NoisySum(secure, 3, dimension, clip_norm=1.0, noise_multiplier=0.001)


PARAMETERS = settings(DIMENSION).parameters(SESSION)


def invitation(number: int = 0, noisy_sum: NoisySum | None = None) -> bytes:
    return msgspec.msgpack.encode(Invitation.of(noisy_sum or settings(DIMENSION), number, SESSION))


class Round:
    """A server and three participants, each made again for every message."""

    def __init__(self, number: int = 0) -> None:
        self.number, self.server = number, Server(PARAMETERS)
        self.states: list[State] = [{}, {}, {}]

    def participant(self, number: int) -> StoredParticipant:
        return StoredParticipant(number, settings, self.states[number])

    def key_list(self) -> bytes:
        self.server.open_round(self.number, [0, 1, 2])
        for number in range(3):
            answer = self.participant(number).advertise_keys(invitation(self.number))
            self.server.receive_keys(decode_message(answer, AdvertisedKeys, PARAMETERS))
        return encode_message(self.server.key_list())

    def forwarded(self) -> list[bytes]:
        key_list = self.key_list()
        for number in range(3):
            answer = self.participant(number).share_keys(key_list)
            self.server.receive_shares(decode_message(answer, SealedShares, PARAMETERS))
        messages = self.server.forward_shares()
        return [encode_message(messages[number]) for number in range(3)]

    def request(self) -> bytes:
        for number, message in enumerate(self.forwarded()):
            answer = self.participant(number).masked_input(message, UPDATE)
            self.server.receive_masked_input(decode_message(answer, MaskedInput, PARAMETERS))
        return encode_message(self.server.unmask_request())


def test_three_participants_without_a_process_give_the_exact_sum_with_noise() -> None:
    one = Round()
    request = one.request()
    for number in range(3):
        answer = one.participant(number).unmask(request)
        one.server.receive_unmask_shares(decode_message(answer, UnmaskShares, PARAMETERS))
    found = one.server.secure_sum()
    # Ten standard deviations of three shares, of which two have the accounted noise of 0.001.
    error = np.abs(settings(DIMENSION).decode(found.total) - 0.3).max()
    assert error < 10 * 0.001 * 1.5**0.5
    assert found.contributors == (0, 1, 2)


def test_keys_differ_between_rounds_and_are_erased() -> None:
    keys = []
    state: State = {}
    for number in range(3):
        StoredParticipant(0, settings, state).advertise_keys(invitation(number))
        keys.append(state["key"])
    assert len(set(keys)) == 3
    one = Round()
    request = one.request()
    one.participant(0).unmask(request)
    assert dict(one.states[0]) == {"round": 0, "answered": 4}


def test_no_message_is_answered_twice() -> None:
    one = Round()
    key_list = one.key_list()
    first = one.participant(0)
    with pytest.raises(ReplayedRound):
        first.advertise_keys(invitation(0))
    first.share_keys(key_list)
    with pytest.raises(ProtocolViolation, match="out of order"):
        first.share_keys(key_list)
    two = Round()
    forwarded = two.forwarded()
    two.participant(0).masked_input(forwarded[0], UPDATE)
    with pytest.raises(ProtocolViolation, match="out of order"):
        two.participant(0).masked_input(forwarded[0], UPDATE + 1)
    three = Round()
    request = three.request()
    three.participant(0).unmask(request)
    with pytest.raises(ProtocolViolation, match="out of order"):
        three.participant(0).unmask(encode_message(UnmaskRequest(0, (0, 1), (2,))))
    with pytest.raises(ReplayedRound):
        three.participant(0).advertise_keys(invitation(0))
    three.participant(0).advertise_keys(invitation(1))


def test_a_failed_input_cannot_be_tried_again_with_the_same_masks() -> None:
    one = Round()
    forwarded = one.forwarded()
    with pytest.raises(ProtocolViolation):
        one.participant(0).masked_input(forwarded[1], UPDATE)  # sealed for another one
    with pytest.raises(ProtocolViolation, match="out of order"):
        one.participant(0).masked_input(forwarded[0], UPDATE)


def test_messages_before_the_first_round_are_refused() -> None:
    empty = StoredParticipant(0, settings, {})
    for answer in (empty.share_keys, empty.unmask, lambda data: empty.masked_input(data, UPDATE)):
        with pytest.raises(ProtocolViolation, match="out of order"):
            answer(b"")  # type: ignore[operator]
    with pytest.raises(ProtocolViolation):
        empty.require_masked_input()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"garbage",
        bytes(5000),
        invitation()[:-1],
        invitation(-1),
        invitation(noisy_sum=replace(settings(DIMENSION), clip_norm=2.0)),
        invitation(noisy_sum=replace(settings(DIMENSION), noise_multiplier=0.002)),
        invitation(noisy_sum=replace(settings(DIMENSION), participants=4)),
        invitation(
            noisy_sum=replace(
                settings(DIMENSION), settings=SecureAggregationSettings(modulus_bits=40)
            )
        ),
    ],
)
def test_an_invitation_that_is_malformed_or_of_other_settings_is_refused(message: bytes) -> None:
    state: State = {}
    with pytest.raises(ProtocolViolation):
        StoredParticipant(0, settings, state).advertise_keys(message)
    assert state == {}


@pytest.mark.parametrize("update", [UPDATE[:-1], np.full(DIMENSION, np.nan, np.float32)])
def test_an_update_that_does_not_fit_is_refused_before_it_is_masked(update: object) -> None:
    one = Round()
    forwarded = one.forwarded()
    with pytest.raises(InvalidArgument):
        one.participant(0).masked_input(forwarded[0], update)  # type: ignore[arg-type]
    assert one.states[0]["answered"] == 2
