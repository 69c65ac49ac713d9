"""What participants and the server refuse: order, repetition, contradiction, wrong content."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest

from dpaudit.trainer.federated.secure_aggregation.client import Client
from dpaudit.trainer.federated.secure_aggregation.messages import (
    AdvertisedKeys,
    ForwardedShares,
    KeyList,
    MaskedInput,
    PublicKeys,
    SealedShares,
    UnmaskRequest,
    UnmaskShares,
)
from dpaudit.trainer.federated.secure_aggregation.server import Server
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import (
    ForkedSession,
    InvalidArgument,
    NoiseReused,
    ProtocolViolation,
    ReplayedRound,
    TooFewParticipants,
    UnmaskingRefused,
)
from tests.trainer.federated.secure_aggregation.protocol_parts import parameters

AGREED = parameters(participants=4, threshold=2)
INPUT = np.arange(4)


@dataclass
class Round:
    """A server, four participants, and the messages of a round so far."""

    server: Server
    clients: list[Client]
    number: int = 0
    key_list: KeyList | None = None
    forwarded: dict[int, ForwardedShares] | None = None
    request: UnmaskRequest | None = None


def after_keys() -> Round:
    """Return a round whose first phase ended."""
    clients = [Client(number, AGREED, Keystream.seeded(number)) for number in range(4)]
    now = Round(Server(AGREED), clients)
    now.server.open_round(0, range(4))
    for client in clients:
        now.server.receive_keys(client.advertise_keys(0))
    now.key_list = now.server.key_list()
    return now


def after_shares() -> Round:
    """Return a round whose second phase ended."""
    now = after_keys()
    assert now.key_list
    for client in now.clients:
        now.server.receive_shares(client.share_keys(now.key_list))
    now.forwarded = now.server.forward_shares()
    return now


def after_inputs(senders: tuple[int, ...] = (0, 1, 2, 3)) -> Round:
    """Return a round whose third phase ended, with inputs of ``senders``."""
    now = after_shares()
    assert now.forwarded
    for number in senders:
        masked = now.clients[number].masked_input(now.forwarded[number], INPUT)
        now.server.receive_masked_input(masked)
    now.request = now.server.unmask_request()
    return now


# The participant.


def test_a_participant_refuses_to_repeat_a_round() -> None:
    client = Client(0, AGREED, Keystream.seeded(0))
    client.advertise_keys(3)
    for number in (3, 2, 0):
        with pytest.raises(ReplayedRound, match=f"round {number}"):
            client.advertise_keys(number)
    with pytest.raises(NoiseReused):
        client.advertise_keys(3)
    client.advertise_keys(4)


def test_keys_of_two_rounds_are_independent() -> None:
    client = Client(0, AGREED, Keystream.seeded(0))
    one, other = client.advertise_keys(0), client.advertise_keys(1)
    assert len({one.keys.sealing, one.keys.masking, other.keys.sealing, other.keys.masking}) == 4


@pytest.mark.parametrize("both", [(1,), (0, 1, 2, 3)])
def test_a_participant_never_gives_both_shares_of_a_peer(both: tuple[int, ...]) -> None:
    now = after_inputs()
    request = UnmaskRequest(0, survivors=(0, 1, 2, 3), dropped=both)
    with pytest.raises(UnmaskingRefused, match="both secrets"):
        now.clients[0].unmask(request)


def test_a_second_unmask_request_is_refused() -> None:
    """Else a server could ask for one share of a peer first, and for the other one later."""
    now = after_inputs((0, 1, 2))
    assert now.request
    now.clients[0].unmask(now.request)
    for request in (now.request, UnmaskRequest(0, survivors=(0, 1, 2, 3), dropped=())):
        with pytest.raises(UnmaskingRefused, match="twice"):
            now.clients[0].unmask(request)


def test_a_refused_request_does_not_open_the_way_for_another() -> None:
    """After a refusal the participant still answers the valid request, and it alone."""
    now = after_inputs()
    assert now.request
    with pytest.raises(UnmaskingRefused):
        now.clients[0].unmask(UnmaskRequest(0, (0, 1, 2, 3), (3,)))
    answer = now.clients[0].unmask(now.request)
    assert not set(answer.self_seeds) & set(answer.mask_keys)


@pytest.mark.parametrize(
    "request_",
    [
        UnmaskRequest(0, survivors=(0, 1), dropped=(2,)),  # leaves out 3
        UnmaskRequest(0, survivors=(1, 2, 3), dropped=(0,)),  # declares the asked one lost
        UnmaskRequest(0, survivors=(0, 1, 1), dropped=(2, 3)),
        UnmaskRequest(0, survivors=(0, 1, 2, 3, 4), dropped=()),
        UnmaskRequest(1, survivors=(0, 1, 2, 3), dropped=()),
    ],
)
def test_a_contradictory_request_is_refused(request_: UnmaskRequest) -> None:
    with pytest.raises(ProtocolViolation):
        after_inputs().clients[0].unmask(request_)


def test_a_request_below_the_threshold_is_refused() -> None:
    with pytest.raises(TooFewParticipants):
        after_inputs().clients[0].unmask(UnmaskRequest(0, survivors=(0,), dropped=(1, 2, 3)))


def test_unmasking_before_the_input_is_refused() -> None:
    with pytest.raises(UnmaskingRefused, match="out of order"):
        after_shares().clients[0].unmask(UnmaskRequest(0, (0, 1, 2, 3), ()))


def test_phases_out_of_order_are_refused() -> None:
    now = after_shares()
    assert now.key_list
    assert now.forwarded
    with pytest.raises(ProtocolViolation, match="out of order"):
        now.clients[0].share_keys(now.key_list)
    now.clients[0].masked_input(now.forwarded[0], INPUT)
    with pytest.raises(ProtocolViolation, match="out of order"):
        now.clients[0].masked_input(now.forwarded[0], INPUT)


def altered_lists() -> dict[str, tuple[Callable[[KeyList], KeyList], type[Exception]]]:
    """Return ways to alter a list of keys, with the error of each."""

    def with_keys(
        change: Callable[[dict[int, PublicKeys]], object],
    ) -> Callable[[KeyList], KeyList]:
        def alter(given: KeyList) -> KeyList:
            keys = dict(given.keys)
            change(keys)
            return KeyList(given.round, keys)

        return alter

    other = PublicKeys(b"\x09" * 32, b"\x0a" * 32)
    return {
        "another round": (lambda given: KeyList(1, given.keys), ProtocolViolation),
        "own keys missing": (with_keys(lambda keys: keys.pop(0)), ProtocolViolation),
        "own keys replaced": (with_keys(lambda keys: keys.update({0: other})), ProtocolViolation),
        "equal keys": (with_keys(lambda keys: keys.update({2: keys[1]})), ReplayedRound),
        "short key": (
            with_keys(lambda keys: keys.update({2: PublicKeys(b"", b"")})),
            ProtocolViolation,
        ),
        "unknown participant": (with_keys(lambda keys: keys.update({9: other})), ProtocolViolation),
        "too few": (
            with_keys(lambda keys: [keys.pop(number) for number in (1, 2, 3)]),
            TooFewParticipants,
        ),
    }


@pytest.mark.parametrize("name", altered_lists())
def test_an_altered_list_of_keys_is_refused(name: str) -> None:
    alter, error = altered_lists()[name]
    now = after_keys()
    assert now.key_list
    with pytest.raises(error):
        now.clients[0].share_keys(alter(now.key_list))


def test_altered_shares_are_refused_before_the_input_is_sent() -> None:
    now = after_shares()
    assert now.forwarded
    good = now.forwarded[0]
    swapped = {1: good.sealed[2], 2: good.sealed[1], 3: good.sealed[3]}
    for sealed in (swapped, {**good.sealed, 1: b""}, {**good.sealed, 0: good.sealed[1]}):
        with pytest.raises(ProtocolViolation):
            now.clients[0].masked_input(msgspec.structs.replace(good, sealed=sealed), INPUT)
    with pytest.raises(ProtocolViolation, match="of participant 1"):
        now.clients[0].masked_input(now.forwarded[1], INPUT)
    with pytest.raises(TooFewParticipants):
        now.clients[0].masked_input(msgspec.structs.replace(good, sealed={}), INPUT)


@pytest.mark.parametrize("vector", [np.zeros(3, np.int64), np.zeros(4), np.zeros((2, 2), np.int64)])
def test_an_input_of_another_shape_or_type_is_refused(vector: np.ndarray) -> None:
    now = after_shares()
    assert now.forwarded
    with pytest.raises(InvalidArgument, match="vector"):
        now.clients[0].masked_input(now.forwarded[0], vector)


def test_a_participant_cannot_be_copied_or_forked() -> None:
    client = Client(0, AGREED, Keystream.seeded(0))
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ForkedSession):
            attempt(client)
    child = os.fork()
    if child == 0:
        try:
            client.advertise_keys(0)
        except ForkedSession:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_number_outside_of_the_participants_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="number"):
        Client(4, AGREED, Keystream.seeded(0))


# The server.


def test_the_server_refuses_to_repeat_a_round() -> None:
    server = Server(AGREED)
    server.open_round(1, range(4))
    for number in (1, 0):
        with pytest.raises(ReplayedRound):
            server.open_round(number, range(4))


def test_the_server_detects_keys_that_come_again() -> None:
    """A restored copy of a participant would send its keys, and so its masks, twice."""
    now = after_keys()
    now.server.open_round(1, range(4))
    copied = Client(0, AGREED, Keystream.seeded(0)).advertise_keys(0)
    with pytest.raises(ReplayedRound, match="came before"):
        now.server.receive_keys(msgspec.structs.replace(copied, round=1))


def test_the_server_detects_two_participants_with_one_seed() -> None:
    """Equal seeds give equal noise, which its sum does not average out."""
    server = Server(AGREED)
    server.open_round(0, range(4))
    server.receive_keys(Client(0, AGREED, Keystream.seeded(7)).advertise_keys(0))
    with pytest.raises(ReplayedRound, match="participant 1 came before"):
        server.receive_keys(Client(1, AGREED, Keystream.seeded(7)).advertise_keys(0))


def test_messages_of_strangers_repeated_or_late_are_refused() -> None:
    now = after_keys()
    assert now.key_list
    keys = PublicKeys(b"\x01" * 32, b"\x02" * 32)
    with pytest.raises(ProtocolViolation, match="not the current one"):
        now.server.receive_keys(AdvertisedKeys(0, 0, keys))
    shares = now.clients[0].share_keys(now.key_list)
    now.server.receive_shares(shares)
    with pytest.raises(ProtocolViolation, match="twice"):
        now.server.receive_shares(shares)
    with pytest.raises(ProtocolViolation, match="not expected"):
        now.server.receive_shares(msgspec.structs.replace(shares, sender=9))
    with pytest.raises(ProtocolViolation, match="not the current one"):
        now.server.receive_shares(msgspec.structs.replace(shares, round=1))


def test_malformed_shares_are_refused() -> None:
    now = after_keys()
    assert now.key_list
    good = now.clients[0].share_keys(now.key_list)
    without = {number: one for number, one in good.sealed.items() if number != 3}
    for bad in (
        msgspec.structs.replace(good, sealed=without),
        msgspec.structs.replace(good, sealed={**good.sealed, 3: b""}),
        msgspec.structs.replace(good, commitment=b""),
    ):
        assert isinstance(bad, SealedShares)
        with pytest.raises(ProtocolViolation):
            now.server.receive_shares(bad)


@pytest.mark.parametrize("length", [0, 15, 17, 10**6])
def test_a_masked_input_of_another_length_is_refused(length: int) -> None:
    now = after_shares()
    with pytest.raises(ProtocolViolation, match=f"{length} bytes"):
        now.server.receive_masked_input(MaskedInput(0, 0, bytes(length)))


def test_a_masked_input_above_the_modulus_is_refused() -> None:
    agreed = parameters(participants=1, threshold=1, bits=20)
    server, client = Server(agreed), Client(0, agreed, Keystream.seeded(0))
    server.open_round(0, [0])
    server.receive_keys(client.advertise_keys(0))
    server.receive_shares(client.share_keys(server.key_list()))
    server.forward_shares()
    with pytest.raises(ProtocolViolation, match="20 bits"):
        server.receive_masked_input(MaskedInput(0, 0, np.full(4, 2**20, "<u4").tobytes()))


def wrong_shares() -> list[Callable[[UnmaskShares], UnmaskShares]]:
    """Return ways to alter the shares of a survivor."""
    replace = msgspec.structs.replace
    return [
        lambda good: replace(good, self_seeds={}),
        lambda good: replace(good, mask_keys={0: bytes(33)}),
        lambda good: replace(good, self_seeds={**good.self_seeds, 0: b""}),
    ]


@pytest.mark.parametrize("alter", wrong_shares())
def test_shares_of_others_than_asked_for_are_refused(
    alter: Callable[[UnmaskShares], UnmaskShares],
) -> None:
    now = after_inputs()
    assert now.request
    with pytest.raises(ProtocolViolation):
        now.server.receive_unmask_shares(alter(now.clients[0].unmask(now.request)))


@pytest.mark.parametrize("field", ["self_seeds", "mask_keys"])
def test_shares_that_join_to_another_secret_are_detected(field: str) -> None:
    now = after_inputs((0, 1, 2))
    assert now.request
    for client in now.clients[:3]:
        message = client.unmask(now.request)
        if client.number == 0:
            shares = {number: bytes(33) for number in getattr(message, field)}
            message = msgspec.structs.replace(message, **{field: shares})
        now.server.receive_unmask_shares(message)
    with pytest.raises(ProtocolViolation, match="participant"):
        now.server.secure_sum()


def test_a_phase_cannot_be_ended_twice_or_before_its_turn() -> None:
    now = after_keys()
    with pytest.raises(ProtocolViolation, match="advertise keys"):
        now.server.key_list()
    with pytest.raises(ProtocolViolation, match="unmasking"):
        now.server.secure_sum()
    with pytest.raises(ProtocolViolation):
        Server(AGREED).unmask_request()
