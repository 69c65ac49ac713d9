"""Messages: round trips, and errors for malformed and oversized bytes."""

from __future__ import annotations

import msgspec
import pytest

from dpaudit.trainer.federated.secure_aggregation.messages import (
    SEALED_SHARES_BYTES,
    AdvertisedKeys,
    ForwardedShares,
    KeyList,
    MaskedInput,
    Message,
    PublicKeys,
    SealedShares,
    SecureSumParameters,
    UnmaskRequest,
    UnmaskShares,
    decode_message,
    encode_message,
)
from dpaudit.vocabulary.errors import InvalidArgument, ProtocolViolation
from tests.trainer.federated.secure_aggregation.protocol_parts import SESSION, parameters

KEYS = PublicKeys(b"\xff" * 32, b"\xfe" * 32)
AGREED = parameters(participants=100, dimension=3)
ALL = range(100)
LARGE = 2**62

EXAMPLES: list[Message] = [
    AdvertisedKeys(LARGE, 99, KEYS),
    KeyList(LARGE, dict.fromkeys(ALL, KEYS)),
    SealedShares(LARGE, 99, dict.fromkeys(ALL, bytes(SEALED_SHARES_BYTES)), bytes(32)),
    ForwardedShares(LARGE, 99, dict.fromkeys(ALL, bytes(SEALED_SHARES_BYTES))),
    MaskedInput(LARGE, 99, bytes(AGREED.vector_bytes)),
    UnmaskRequest(LARGE, tuple(ALL), ()),
    UnmaskShares(LARGE, 99, dict.fromkeys(ALL, bytes(33)), {}),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_the_largest_valid_message_survives_the_way(message: Message) -> None:
    data = encode_message(message)
    assert decode_message(data, type(message), AGREED) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_a_message_of_another_type_is_refused(message: Message) -> None:
    data = encode_message(message)
    for other in EXAMPLES:
        if type(other) is not type(message):
            with pytest.raises(ProtocolViolation, match="is no"):
                decode_message(data, type(other), AGREED)


@pytest.mark.parametrize("length", [0, 1, 20])
def test_a_cut_message_is_refused(length: int) -> None:
    data = encode_message(EXAMPLES[0])[:length]
    with pytest.raises(ProtocolViolation, match="AdvertisedKeys"):
        decode_message(data, AdvertisedKeys, AGREED)


def test_an_unknown_field_is_refused() -> None:
    data = msgspec.msgpack.encode(
        {"type": "unmask", "round": 0, "survivors": [0], "dropped": [], "update": [1.0]}
    )
    with pytest.raises(ProtocolViolation, match="update"):
        decode_message(data, UnmaskRequest, AGREED)


def test_an_oversized_message_is_refused_before_it_is_decoded() -> None:
    data = bytes(AGREED.largest_message_bytes + 1)
    with pytest.raises(ProtocolViolation, match="more than"):
        decode_message(data, MaskedInput, AGREED)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"participants": 0}, "participants"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 6}, "threshold"),
        ({"modulus_bits": 7}, "modulus_bits"),
        ({"modulus_bits": 63}, "modulus_bits"),
        ({"dimension": 0}, "dimension"),
        ({"session": b"short"}, "session"),
    ],
)
def test_invalid_parameters_are_refused(changes: dict[str, object], name: str) -> None:
    values = {
        "participants": 5,
        "threshold": 3,
        "modulus_bits": 32,
        "dimension": 4,
        "session": SESSION,
    }
    with pytest.raises(InvalidArgument, match=name):
        SecureSumParameters(**{**values, **changes})  # type: ignore[arg-type]
