"""Shamir's secret sharing of 32-byte secrets over a prime field.

The field has p = 2^256 + 297 elements, the smallest prime above 2^256, so that every 32-byte
secret is one element. Fewer shares than the threshold are independent of the secret.

pycryptodome's shares take 16-byte secrets over GF(2^128). It needs 0.12 s to split one of them
among 100 participants and 0.2 s to join 67 shares: over a minute per round. Python's whole
numbers need milliseconds. They do not run in constant time; a participant's own machine is
trusted in the threat model.

References:
    Shamir (1979), How to share a secret, Communications of the ACM 22(11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpaudit.vocabulary.errors import ProtocolViolation

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
COEFFICIENT_BYTES = 64
"""Random bytes per coefficient: reduced modulo p, they are uniform up to 2^-255."""


def split_secret(secret: bytes, threshold: int, points: Sequence[int], coins: bytes) -> list[bytes]:
    """Return one share per point; any ``threshold`` of them give the secret.

    Args:
        secret: 32 bytes.
        threshold: Number of shares that give the secret, at least 1.
        points: Where the polynomial is evaluated: different whole numbers from 1.
        coins: Uniform bytes, ``coefficient_bytes(threshold)`` of them, used for nothing else.

    Returns:
        33 bytes per point.

    Example:
        >>> shares = split_secret(bytes(range(32)), 2, [1, 2, 3], bytes(range(64)))
        >>> join_shares({1: shares[0], 3: shares[2]}, 2) == bytes(range(32))
        True
    """
    numbers = [int.from_bytes(secret, "big")]
    for start in range(0, coefficient_bytes(threshold), COEFFICIENT_BYTES):
        numbers.append(int.from_bytes(coins[start : start + COEFFICIENT_BYTES], "big") % PRIME)
    return [_evaluate(numbers, point).to_bytes(SHARE_BYTES, "big") for point in points]


def coefficient_bytes(threshold: int) -> int:
    """Return the number of random bytes that one split needs."""
    return COEFFICIENT_BYTES * (threshold - 1)


def join_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret of the first ``threshold`` shares in the order of their points.

    Args:
        shares: Share by point.
        threshold: Number of shares that are used.

    Returns:
        32 bytes.

    Raises:
        ProtocolViolation: If there are too few shares, or a share is no element of the field,
            or the shares do not belong together.
    """
    if len(shares) < threshold:
        raise ProtocolViolation(f"{len(shares)} shares of a secret, but {threshold} are needed")
    points = tuple(sorted(shares))[:threshold]
    values = [_read_share(shares[point]) for point in points]
    weights = lagrange_weights(points)
    secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ProtocolViolation("the shares of a secret do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def lagrange_weights(points: Sequence[int]) -> list[int]:
    """Return the factors with which the values at ``points`` give the value at 0.

    Args:
        points: Different whole numbers from 1.

    Returns:
        One element of the field per point.
    """
    weights = []
    for point in points:
        top = bottom = 1
        for other in points:
            if other != point:
                top = top * other % PRIME
                bottom = bottom * (other - point) % PRIME
        weights.append(top * pow(bottom, -1, PRIME) % PRIME)
    return weights


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    """Return the polynomial's value by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _read_share(share: bytes) -> int:
    """Return the element of the field that a share holds."""
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise ProtocolViolation(f"a share is no element of the field ({len(share)} bytes)")
    return value
