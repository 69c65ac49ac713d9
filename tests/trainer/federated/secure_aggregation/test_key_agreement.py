"""Keys: published vectors, one key per context, sealed shares that cannot be altered."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import struct

import pytest

from dpaudit.trainer.federated.secure_aggregation.key_agreement import (
    DOMAIN,
    KeyPurpose,
    agree,
    derive_key,
    public_key,
    seal,
    unseal,
)
from dpaudit.vocabulary.errors import ProtocolViolation

# RFC 7748, section 6.1.
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


def test_agreement_matches_the_published_vector() -> None:
    assert public_key(BOB) == BOB_PUBLIC
    assert agree(BOB, ALICE_PUBLIC) == SHARED


def test_derivation_is_hkdf_over_the_whole_context() -> None:
    """RFC 5869, written out: extract with the domain as salt, expand one block."""
    session = bytes(range(32))
    info = session + bytes([KeyPurpose.SHARE_SEALING.value]) + struct.pack(">QQQ", 7, 3, 2)
    extracted = hmac.digest(DOMAIN, SHARED, hashlib.sha256)
    expected = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
    assert derive_key(SHARED, KeyPurpose.SHARE_SEALING, session, 7, 3, 2) == expected


def test_no_two_contexts_share_a_key() -> None:
    contexts = list(
        itertools.product(KeyPurpose, (bytes(32), bytes(31) + b"\x01"), (0, 1, 256), (0, 1), (0, 1))
    )
    keys = {
        derive_key(SHARED, purpose, session, number, first, second)
        for purpose, session, number, first, second in contexts
    }
    assert len(keys) == len(contexts)
    assert all(len(key) == 32 for key in keys)


def test_every_bit_of_a_secret_changes_the_key() -> None:
    """All 256 bits count: no folding of the secret to fewer."""
    secrets = [(1 << bit).to_bytes(32, "big") for bit in range(256)]
    keys = {derive_key(one, KeyPurpose.PAIRWISE_MASK, bytes(32), 0, 0, 1) for one in secrets}
    assert len(keys) == 256


def test_a_public_key_of_low_order_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="low order"):
        agree(BOB, bytes(32))


def test_a_sealed_share_opens_with_its_own_key_alone() -> None:
    sealed = seal(SHARED, b"share")
    assert unseal(SHARED, sealed) == b"share"
    with pytest.raises(ProtocolViolation, match="altered"):
        unseal(BOB, sealed)


@pytest.mark.parametrize("position", [0, 4, -1])
def test_an_altered_share_is_refused(position: int) -> None:
    sealed = bytearray(seal(SHARED, b"share"))
    sealed[position] ^= 1
    with pytest.raises(ProtocolViolation, match="altered"):
        unseal(SHARED, bytes(sealed))
