"""Shares: any threshold of them gives the secret, fewer say nothing."""

from __future__ import annotations

import itertools
import random

import pytest

from dpaudit.trainer.federated.secure_aggregation.secret_sharing import (
    PRIME,
    SHARE_BYTES,
    coefficient_bytes,
    join_shares,
    lagrange_weights,
    split_secret,
)
from dpaudit.vocabulary.errors import ProtocolViolation


def is_probable_prime(number: int) -> bool:
    """Miller and Rabin's test with 40 fixed bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        value = pow(base, odd, number)
        if value in (1, number - 1):
            continue
        for _ in range(twos - 1):
            value = value * value % number
            if value == number - 1:
                break
        else:
            return False
    return True


def test_the_field_is_the_smallest_prime_above_every_secret() -> None:
    assert is_probable_prime(PRIME)
    assert not any(is_probable_prime(number) for number in range(2**256, PRIME))


@pytest.mark.parametrize("threshold", [1, 2, 4, 5])
def test_any_threshold_of_shares_gives_the_secret(threshold: int) -> None:
    random_bytes = random.Random(threshold).randbytes
    points = [1, 2, 3, 7, 100]
    for secret in (bytes(32), b"\xff" * 32, random_bytes(32)):
        coins = random_bytes(coefficient_bytes(threshold))
        shares = dict(zip(points, split_secret(secret, threshold, points, coins), strict=True))
        assert all(len(share) == SHARE_BYTES for share in shares.values())
        for some in itertools.combinations(points, threshold):
            assert join_shares({one: shares[one] for one in some}, threshold) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """Two of three shares and any secret at 0 lie on one polynomial of degree 2."""
    coins = random.Random(0).randbytes(coefficient_bytes(3))
    shares = split_secret(bytes(range(32)), 3, [1, 2, 3], coins)
    seen = [int.from_bytes(share, "big") for share in shares[:2]]
    for candidate in (0, 1, 2**256 - 1):
        # The third value that makes the candidate the secret always exists.
        weights = lagrange_weights([1, 2, 3])
        known = sum(weight * value for weight, value in zip(weights, seen, strict=False))
        third = (candidate - known) * pow(weights[2], -1, PRIME) % PRIME
        joined = {1: shares[0], 2: shares[1], 3: third.to_bytes(SHARE_BYTES, "big")}
        assert join_shares(joined, 3) == candidate.to_bytes(32, "big")


def test_too_few_shares_are_refused() -> None:
    shares = split_secret(bytes(32), 3, [1, 2, 3], bytes(128))
    with pytest.raises(ProtocolViolation, match="2 shares"):
        join_shares(dict(enumerate(shares[:2], 1)), 3)


@pytest.mark.parametrize("share", [b"", bytes(32), b"\xff" * SHARE_BYTES])
def test_a_share_outside_of_the_field_is_refused(share: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="field"):
        join_shares({1: share}, 1)


def test_shares_that_join_to_no_secret_are_refused() -> None:
    with pytest.raises(ProtocolViolation, match="belong together"):
        join_shares({1: (PRIME - 1).to_bytes(SHARE_BYTES, "big")}, 1)
