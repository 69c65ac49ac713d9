"""The tests of masked uploads pass uniform fresh masks, and detect reuse and bias."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from dpaudit.attacks.conformance.federated import check_masked_uploads
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.verdict import Outcome


class Masked:
    """Masks that sum to zero, fresh in each round."""

    participants, modulus_bits = 4, 20

    def __init__(self, seed: int) -> None:
        self.seed, self.number = seed, 0

    def masks(self, words: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.number])
        masks = rng.integers(2**self.modulus_bits, size=(4, words), dtype=np.uint64)
        masks[3] = -masks[:3].sum(axis=0, dtype=np.uint64)
        return masks

    def round(self, vectors: Mapping[int, np.ndarray]) -> tuple[dict[int, np.ndarray], np.ndarray]:
        self.number += 1
        modulus = np.uint64(2**self.modulus_bits)
        masks = self.masks(len(vectors[0]))
        sent = {k: (v.astype(np.uint64) + masks[k]) % modulus for k, v in vectors.items()}
        return sent, np.sum(list(vectors.values()), axis=0)


def outcomes(kind: type[Masked], seed: int = 0) -> dict[str, Outcome]:
    return {one.name: one.outcome for one in check_masked_uploads(kind, seed=seed)}


@pytest.mark.parametrize("seed", range(5))
def test_fresh_masks_pass(seed: int) -> None:
    assert set(outcomes(Masked, seed).values()) == {Outcome.PASS}


class ReusedAcrossRounds(Masked):
    def masks(self, words: int) -> np.ndarray:
        self.number = 0
        return super().masks(words)


class SeedIgnored(Masked):
    def masks(self, words: int) -> np.ndarray:
        self.seed = 3
        return super().masks(words)


class ReusedInOneWordOfTen(Masked):
    def masks(self, words: int) -> np.ndarray:
        masks = super().masks(words)
        masks[:, ::10] = 7
        return masks


class TwoShareAMask(Masked):
    """A pairwise mask without a self mask: two uploads are each other's negative."""

    def masks(self, words: int) -> np.ndarray:
        masks = super().masks(words)
        masks[1], masks[3] = -masks[0], -masks[2]
        return masks


@pytest.mark.parametrize(
    "kind", [ReusedAcrossRounds, SeedIgnored, ReusedInOneWordOfTen, TwoShareAMask]
)
def test_reused_mask_is_detected(kind: type[Masked]) -> None:
    assert outcomes(kind)["reuse"] is Outcome.FAIL


class HalfOfTheRange(Masked):
    def masks(self, words: int) -> np.ndarray:
        return super().masks(words) // np.uint64(2)


def test_masks_that_are_not_uniform_are_detected() -> None:
    assert outcomes(HalfOfTheRange)["uniform"] is Outcome.FAIL


class SumIsOff(Masked):
    def round(self, vectors: Mapping[int, np.ndarray]) -> tuple[dict[int, np.ndarray], np.ndarray]:
        sent, total = super().round(vectors)
        return sent, total + 1


def test_wrong_sum_is_detected() -> None:
    assert outcomes(SumIsOff)["sum"] is Outcome.FAIL


class TwoParticipants(Masked):
    participants = 2


class WideModulus(Masked):
    modulus_bits = 65


@pytest.mark.parametrize("kind", [TwoParticipants, WideModulus])
def test_settings_out_of_range_are_refused(kind: type[Masked]) -> None:
    with pytest.raises(InvalidArgument):
        check_masked_uploads(kind)
