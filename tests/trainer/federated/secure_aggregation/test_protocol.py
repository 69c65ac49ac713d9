"""The protocol in one process: exact sums under dropouts, and what the server gets to see."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation import client as client_module
from dpaudit.trainer.federated.secure_aggregation import protocol
from dpaudit.trainer.federated.secure_aggregation.client import Client, self_mask_key
from dpaudit.trainer.federated.secure_aggregation.key_agreement import derive_key
from dpaudit.trainer.federated.secure_aggregation.masks import (
    mask_words,
    word_type,
    words_of_integers,
)
from dpaudit.trainer.federated.secure_aggregation.messages import (
    AdvertisedKeys,
    ForwardedShares,
    MaskedInput,
    Message,
    Phase,
    SecureSumParameters,
)
from dpaudit.trainer.federated.secure_aggregation.protocol import Drop, SecureAggregation
from dpaudit.trainer.federated.secure_aggregation.server import Server
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument, ReplayedRound, TooFewParticipants
from tests.trainer.federated.secure_aggregation.protocol_parts import (
    LEAST_P_VALUE,
    aggregation,
    everything_in,
    holds_vector,
    parameters,
    uniform_p_value,
)


def drops_at(lost: Mapping[int, Phase]) -> Drop:
    """Return the hook that loses each participant before its message of one phase."""
    return lambda phase, number: lost.get(number) is phase


# Exact sums.


def random_round(seed: int) -> None:
    """Run a random round with as many dropouts as allowed, and one with one more."""
    choose = random.Random(seed)
    participants = choose.randint(2, 8)
    threshold = choose.randint(1, participants)
    bits, dimension = choose.randint(8, 62), choose.randint(1, 40)
    agreed = SecureSumParameters(participants, threshold, bits, dimension, choose.randbytes(32))
    together = aggregation(agreed, seed)
    bound = (2 ** (bits - 1) - 1) // participants
    inputs = {
        number: np.array([choose.randint(-bound, bound) for _ in range(dimension)])
        for number in range(participants)
    }

    order = choose.sample(range(participants), participants)
    allowed = order[: choose.randint(0, participants - threshold)]
    lost = {number: choose.choice(list(Phase)) for number in allowed}
    found = together.aggregate(0, inputs, drops_at(lost))
    contributors = [n for n in range(participants) if lost.get(n) in (None, Phase.UNMASKING)]
    assert found.contributors == tuple(contributors)
    assert found.lost == lost
    np.testing.assert_array_equal(found.total, sum(inputs[number] for number in contributors))

    too_many = order[: participants - threshold + 1]
    lost = {number: choose.choice(list(Phase)) for number in too_many}
    with pytest.raises(TooFewParticipants) as caught:
        together.aggregate(1, inputs, drops_at(lost))
    assert caught.value.left < caught.value.threshold == threshold


@pytest.mark.parametrize("seed", range(30))
def test_the_sum_is_exact_under_random_dropouts(seed: int) -> None:
    random_round(seed)


@pytest.mark.slow
def test_the_sum_is_exact_in_a_thousand_random_rounds() -> None:
    for seed in range(1000, 2000):
        random_round(seed)


def test_many_rounds_of_one_federation_are_exact() -> None:
    together = aggregation(parameters(participants=4, threshold=3))
    for number in range(10):
        inputs = {one: np.arange(4) * one - number for one in range(4)}
        lost = {number % 4: list(Phase)[number % 3]} if number % 2 else {}
        total = together.aggregate(number, inputs, drops_at(lost)).total
        np.testing.assert_array_equal(
            total, sum(vector for one, vector in inputs.items() if one not in lost)
        )


def test_a_sum_outside_of_the_range_wraps_around() -> None:
    together = aggregation(parameters(participants=2, threshold=1, bits=8))
    total = together.aggregate(0, dict.fromkeys(range(2), np.array([64, -65, 127, 1]))).total
    assert total.tolist() == [-128, 126, -2, 2]


def test_only_invited_participants_take_part() -> None:
    together = aggregation(parameters())
    found = together.aggregate(0, dict.fromkeys((0, 2, 4), np.arange(4)))
    assert (found.contributors, found.lost) == ((0, 2, 4), {})


def test_a_repeated_round_is_refused() -> None:
    together = aggregation(parameters())
    inputs = dict.fromkeys(range(5), np.arange(4))
    together.aggregate(5, inputs)
    for number in (5, 4):
        with pytest.raises(ReplayedRound):
            together.aggregate(number, inputs)


def test_missing_streams_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="streams"):
        SecureAggregation(parameters(), {0: Keystream.seeded(0)})


# What the server sees.


class WatchedServer(Server):
    """A server that keeps each message and a description of its state after each message."""

    def __init__(self, agreed: SecureSumParameters) -> None:
        super().__init__(agreed)
        self.masked: dict[tuple[int, int], NDArray[np.unsignedinteger]] = {}

    def receive_masked_input(self, message: MaskedInput) -> None:
        words = np.frombuffer(message.vector, word_type(self.parameters.modulus_bits))
        self.masked[message.round, message.sender] = words
        super().receive_masked_input(message)


def watched(agreed: SecureSumParameters, seed: int = 0) -> tuple[SecureAggregation, WatchedServer]:
    together = aggregation(agreed, seed)
    server = WatchedServer(agreed)
    together.server = server
    return together, server


MANY = 300_000


@pytest.mark.parametrize("bits", [16, 32, 40])
@pytest.mark.parametrize("value", [0, 1, -5])
def test_the_view_of_one_participant_is_uniform(bits: int, value: int) -> None:
    agreed = parameters(participants=3, threshold=2, bits=bits, dimension=MANY)
    together, server = watched(agreed, seed=bits)
    together.aggregate(0, dict.fromkeys(range(3), np.full(MANY, value)))
    for number in range(3):
        assert uniform_p_value(server.masked[0, number], bits) > LEAST_P_VALUE


def test_the_view_stays_uniform_after_unmasking() -> None:
    """The server learns a survivor's self mask; its pairwise masks remain."""
    agreed = parameters(participants=3, threshold=2, bits=32, dimension=MANY)
    together, server = watched(agreed)
    together.aggregate(0, dict.fromkeys(range(3), np.zeros(MANY, np.int64)))
    secrets = Client(1, agreed, Keystream.seeded(1))
    secrets.advertise_keys(0)
    state = secrets._state
    assert isinstance(state, client_module._Advertised)
    own = self_mask_key(state.secrets.self_seed, agreed, 0, 1)
    remaining = server.masked[0, 1] - mask_words(own, 32, MANY)
    assert uniform_p_value(remaining, 32) > LEAST_P_VALUE


def test_the_view_of_a_late_participant_stays_uniform() -> None:
    """Its mask key is unmasked, as it counts as lost; its self mask still hides a late input."""
    agreed = parameters(participants=3, threshold=2, bits=32, dimension=MANY)
    together = aggregation(agreed)
    zeros = np.zeros(MANY, np.int64)
    together.aggregate(0, dict.fromkeys(range(3), zeros), drops_at({2: Phase.MASKED_INPUT}))
    late = together.clients[2]
    state = late._state
    assert isinstance(state, client_module._Shared)
    masked = words_of_integers(zeros, 32)
    own = self_mask_key(state.secrets.self_seed, agreed, 0, 2)
    masked += mask_words(own, 32, MANY)
    assert uniform_p_value(masked, 32) > LEAST_P_VALUE
    # What it would have sent, less the pairwise masks that the server can compute, is this.
    late._add_masks(masked, state, {})
    masked -= 2 * mask_words(own, 32, MANY)
    assert not masked.any()


# Every message and every state.


def inspected_round(kind: type[Server], lost: Mapping[int, Phase]) -> list[int]:
    """Run a round; return the participants whose input the server held in the clear."""
    agreed = parameters(participants=4, threshold=2, bits=32, dimension=8)
    together = aggregation(agreed)
    server = together.server = kind(agreed)
    inputs = {number: np.arange(8) * (number + 3) - 11 for number in range(4)}
    found: set[int] = set()

    def inspect(seen: object) -> None:
        found.update(number for number, one in inputs.items() if holds_vector(seen, one))

    sent = together._sent

    def inspected(message: Message, kind: type[Message]) -> Message:
        inspect(message)
        inspect(server)
        return sent(message, kind)

    together._sent = inspected  # type: ignore[method-assign,assignment]
    total = together.aggregate(0, inputs, drops_at(lost))
    inspect(server)
    inspect({number: one for number, one in vars(total).items() if number != "total"})
    return sorted(found)


@pytest.mark.parametrize(
    "lost", [{}, {1: Phase.MASKED_INPUT}, {0: Phase.SHARE_KEYS, 3: Phase.UNMASKING}]
)
def test_no_message_and_no_state_of_the_server_holds_an_update(lost: dict[int, Phase]) -> None:
    assert inspected_round(Server, lost) == []


def test_the_inspection_finds_a_server_that_keeps_an_update() -> None:
    """Planted: a server that unmasks one input with a state that it must not have."""

    class Leaking(Server):
        kept: object = None

        def forward_shares(self) -> dict[int, ForwardedShares]:
            self.kept = {"deep": [(np.arange(8) * 5 - 11).astype("<i4").tobytes()]}
            return super().forward_shares()

    assert inspected_round(Leaking, {}) == [2]


def test_the_inspection_finds_an_input_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: participants that add no mask."""
    monkeypatch.setattr(client_module, "add_mask", lambda *_: None)
    assert inspected_round(Server, {}) == [0, 1, 2, 3]


def test_the_server_holds_one_secret_of_a_participant_at_most() -> None:
    agreed = parameters(participants=4, threshold=2)
    together, server = watched(agreed)
    together.aggregate(0, dict.fromkeys(range(4), np.arange(4)), drops_at({3: Phase.MASKED_INPUT}))
    for number in range(4):
        twin = Client(number, agreed, Keystream.seeded(number))
        twin.advertise_keys(0)
        state = twin._state
        assert isinstance(state, client_module._Advertised)
        secrets = [state.secrets.sealing, state.secrets.masking, state.secrets.self_seed]
        held = [one for one in everything_in(server) if isinstance(one, bytes)]
        assert not set(secrets) & set(held)


# Masks that are used twice.


class SameKeysEveryRound(Client):
    """Planted: a participant that uses the secrets of round 0 in every round."""

    def advertise_keys(self, round_number: int) -> AdvertisedKeys:
        twin = Client(self.number, self.parameters, self._stream)
        message = twin.advertise_keys(0)
        self._round, self._state = round_number, twin._state
        return AdvertisedKeys(round_number, self.number, message.keys)


class TrustingServer(Server):
    """A server that does not look for keys that come again."""

    def open_round(self, number: int, invited: object) -> None:
        super().open_round(number, invited)  # type: ignore[arg-type]
        self._seen_keys.clear()


def reusing(server: type[Server]) -> tuple[SecureAggregation, WatchedServer]:
    """Return a federation whose participants use their keys again."""
    agreed = parameters(participants=3, threshold=2, bits=32, dimension=MANY)

    class Watched(WatchedServer, server):  # type: ignore[valid-type,misc]
        pass

    together = aggregation(agreed)
    together.server = found = Watched(agreed)
    together.clients = {
        number: SameKeysEveryRound(number, agreed, Keystream.seeded(number)) for number in range(3)
    }
    return together, found


def mask_difference_p_value(server: WatchedServer, number: int) -> float:
    """Return the uniformity of the difference of one participant's inputs in two rounds."""
    return uniform_p_value(server.masked[1, number] - server.masked[0, number], 32)


def test_planted_keys_of_an_earlier_round_are_detected() -> None:
    together, _ = reusing(Server)
    inputs = dict.fromkeys(range(3), np.zeros(MANY, np.int64))
    together.aggregate(0, inputs)
    with pytest.raises(ReplayedRound, match="came before"):
        together.aggregate(1, inputs)


def test_planted_masks_of_an_earlier_round_are_detected_in_the_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Same keys, a server that does not look, and a derivation that leaves out the round."""
    inputs = dict.fromkeys(range(3), np.zeros(MANY, np.int64))

    def without_round(
        secret: bytes, purpose: object, session: bytes, _: int, first: int, second: int
    ) -> bytes:
        return derive_key(secret, purpose, session, 0, first, second)  # type: ignore[arg-type]

    monkeypatch.setattr(client_module, "derive_key", without_round)
    together, server = reusing(TrustingServer)
    for number in (0, 1):
        together.aggregate(number, inputs)
    assert max(mask_difference_p_value(server, number) for number in range(3)) < 1e-100


def test_the_derivation_alone_separates_the_masks_of_two_rounds() -> None:
    """Even participants that use their keys again have other masks in each round."""
    inputs = dict.fromkeys(range(3), np.zeros(MANY, np.int64))
    together, server = reusing(TrustingServer)
    for number in (0, 1):
        together.aggregate(number, inputs)
    assert min(mask_difference_p_value(server, number) for number in range(3)) > LEAST_P_VALUE


def test_masks_of_two_rounds_are_independent() -> None:
    agreed = parameters(participants=3, threshold=2, bits=32, dimension=MANY)
    together, server = watched(agreed)
    for number in (0, 1):
        together.aggregate(number, dict.fromkeys(range(3), np.zeros(MANY, np.int64)))
    assert min(mask_difference_p_value(server, number) for number in range(3)) > LEAST_P_VALUE


def test_equal_seeds_of_two_participants_are_detected() -> None:
    agreed = parameters(participants=3, threshold=2)
    streams = {number: Keystream.seeded(min(number, 1)) for number in range(3)}
    together = SecureAggregation(agreed, streams)
    with pytest.raises(ReplayedRound, match="participant 2 came before"):
        together.aggregate(0, dict.fromkeys(range(3), np.arange(4)))


def test_nobody_drops_by_default() -> None:
    pairs = itertools.product(Phase, range(3))
    assert not any(protocol.nobody_drops(phase, number) for phase, number in pairs)
