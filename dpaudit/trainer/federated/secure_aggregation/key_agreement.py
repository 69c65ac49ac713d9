"""Keys of secure aggregation: X25519 agreement, HKDF with one label per use, sealed shares.

Every key is derived for one session, round, purpose and pair of participants. So no two masks
and no two ciphertexts share a key, and a fixed nonce is used once per key.
"""

from __future__ import annotations

import struct
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dpaudit.vocabulary.errors import ProtocolViolation

KEY_BYTES = 32
SEAL_OVERHEAD_BYTES = 16
NONCE = bytes(12)
"""Every sealing key encrypts one message, so its nonce is a constant."""

DOMAIN = b"dpaudit secure aggregation, version 1"


class KeyPurpose(Enum):
    """What a derived key is used for; the value is part of its derivation."""

    PAIRWISE_MASK = 1
    SELF_MASK = 2
    SHARE_SEALING = 3


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a private key.

    Args:
        private: 32 bytes.

    Returns:
        32 bytes.
    """
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, peer: bytes) -> bytes:
    """Return the shared secret of a private key and the public key of a peer.

    Args:
        private: 32 bytes.
        peer: 32 bytes.

    Returns:
        32 bytes; use them through ``derive_key`` alone.

    Raises:
        ProtocolViolation: If the public key is a point of low order, which fixes the secret.
    """
    key = X25519PrivateKey.from_private_bytes(private)
    try:
        return key.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise ProtocolViolation(
            "a public key is a point of low order: the secret would be known to all"
        ) from error


def derive_key(
    secret: bytes, purpose: KeyPurpose, session: bytes, round_number: int, first: int, second: int
) -> bytes:
    """Return the key of one purpose, session, round and pair.

    Args:
        secret: A shared secret, or a self mask seed, of 32 bytes.
        purpose: What the key is used for.
        session: Public identifier of the run, 32 bytes.
        round_number: Number of the round, from 0.
        first: A participant: of a pair of masks the smaller number, of a sealed share the sender.
        second: The other participant; ``first`` again for a self mask.

    Returns:
        32 bytes.

    References:
        RFC 5869 (HKDF) with SHA-256.

    Example:
        >>> derive_key(bytes(32), KeyPurpose.SELF_MASK, bytes(32), 0, 1, 1).hex()[:16]
        'f7a360d0aa89e937'
    """
    # Fixed widths: no two contexts have the same encoding.
    context = session + struct.pack(">BQQQ", purpose.value, round_number, first, second)
    hkdf = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=DOMAIN, info=context)
    return hkdf.derive(secret)


def seal(key: bytes, message: bytes) -> bytes:
    """Encrypt and authenticate one message with a key that seals nothing else.

    Args:
        key: 32 bytes, derived for this message alone.
        message: The plaintext.

    Returns:
        The ciphertext, 16 bytes longer than the message.
    """
    return ChaCha20Poly1305(key).encrypt(NONCE, message, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Decrypt a message of ``seal``.

    Args:
        key: 32 bytes.
        sealed: The ciphertext.

    Returns:
        The plaintext.

    Raises:
        ProtocolViolation: If the ciphertext was altered, or sealed with another key.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(NONCE, sealed, None)
    except InvalidTag as error:
        raise ProtocolViolation(
            "a sealed share was altered, or was sealed for another round or participant"
        ) from error
