"""Masked uploads of secure aggregation: the sum is exact, and masks are uniform and fresh.

``make_masked(seed)`` returns an object with

- ``participants`` and ``modulus_bits``: their number, and the k of the modulus 2^k, from 8 to 64;
- ``round(vectors)``: one round in which every participant sends its vector of integers. It returns
  the masked upload of each participant, as words below 2^k, and the sum that the server decodes.

All participants send zeros in most rounds, so that an upload is its mask. Under fresh uniform masks
every upload is uniform, and two uploads agree in a word with probability 2^-k. Uploads of one
round are not independent, as their sum is known, so only some of them are pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpaudit.attacks.conformance.statistical_tests import (
    Array,
    failed_finding,
    inconclusive_finding,
    statistical_finding,
    uniform_p_value,
)
from dpaudit.attacks.conformance.trainer_protocol import derive_seeds, seed_global_generators
from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.errors import InvalidArgument, require_count
from dpaudit.vocabulary.verdict import Outcome

CHECK = "masks"
MASK_SEEDS, ROUNDS, WORDS = 90, 4, 512
LEAST_BITS, MOST_BITS = 8, 64
LARGEST_INPUT = 20

Words = NDArray[np.uint64]


class MaskedUploads(Protocol):
    """A secure aggregation whose uploads can be read.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks.conformance.federated import MaskedUploads
        >>> class Unmasked:
        ...     participants, modulus_bits = 3, 32
        ...     def round(self, vectors):
        ...         return vectors, sum(vectors.values())
        >>> masked: MaskedUploads = Unmasked()
        >>> masked.round({k: np.array([k]) for k in range(3)})[1]
        array([3])
    """

    @property
    def participants(self) -> int:
        """Number of participants, at least three."""

    @property
    def modulus_bits(self) -> int:
        """The k of the modulus 2^k."""

    def round(self, vectors: Mapping[int, NDArray[np.int64]]) -> tuple[Mapping[int, Any], Any]:
        """Run the next round.

        Args:
            vectors: The input of each participant, int64, shape ``(d,)``.

        Returns:
            The masked upload of each participant, shape ``(d,)``, and the decoded sum.
        """


def check_masked_uploads(
    make_masked: Callable[[int], Any], *, words: int = WORDS, seed: int = 0
) -> list[ConformanceFinding]:
    """Test the sum and the masks of a secure aggregation.

    Args:
        make_masked: Makes the secure aggregation from a seed.
        words: Number of words of an upload.
        seed: Seed of the audit, at least 0.

    Returns:
        Findings on the sum, on the distribution of uploads, and on their reuse in other rounds,
        by other participants and under other seeds.

    Raises:
        InvalidArgument: If there are fewer than three participants, or the modulus is out of
            range.

    Example:
        >>> class Reused:  # masks that do not depend on the round
        ...     participants, modulus_bits = 3, 32
        ...     def __init__(self, seed):
        ...         self.rng = np.random.default_rng(seed)
        ...         self.masks = None
        ...     def round(self, vectors):
        ...         if self.masks is None:
        ...             size = (3, len(vectors[0]))
        ...             self.masks = self.rng.integers(2**32, size=size, dtype=np.uint64)
        ...             self.masks[2] = -(self.masks[0] + self.masks[1])
        ...         sent = {k: v.astype(np.uint64) + self.masks[k] for k, v in vectors.items()}
        ...         return {k: v % 2**32 for k, v in sent.items()}, sum(vectors.values())
        >>> [one.name for one in check_masked_uploads(Reused) if one.outcome.value == "FAIL"]
        ['reuse']
    """
    require_count("seed", seed, least=0)
    require_count("words", words, least=16)
    uploads: dict[str, Words] = {}
    wrong, bits = [], 0
    for run, one in enumerate(derive_seeds(seed, MASK_SEEDS, 2)):
        with seed_global_generators(one, 0):
            masked = make_masked(one)
        bits = _required_bits(masked)
        for number in range(ROUNDS):
            vectors = _inputs(masked.participants, words, number, one)
            with seed_global_generators(one, 1 + number):
                sent, total = masked.round(vectors)
            wrong += _wrong_sum(vectors, total, run, number)
            if number:  # the first round has other inputs than zeros, for the sum
                uploads |= {
                    f"participant {who}, round {number}, seed {one}": _words(upload, words, bits)
                    for who, upload in sent.items()
                }
    return [
        _sum_finding(wrong),
        _uniform_finding(uploads, bits, seed),
        _reuse_finding(uploads, bits),
    ]


def _required_bits(masked: MaskedUploads) -> int:
    """Return the modulus bits; refuse too few participants and a modulus out of range."""
    require_count("participants", masked.participants, least=3)
    bits = masked.modulus_bits
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise InvalidArgument("modulus_bits", bits, f"from {LEAST_BITS} to {MOST_BITS}")
    return bits


def _inputs(participants: int, words: int, number: int, seed: int) -> dict[int, NDArray[np.int64]]:
    """Return random small inputs in the first round, and zeros in the others."""
    rng = np.random.default_rng([seed, number])
    largest = LARGEST_INPUT // participants + 1 if number == 0 else 0
    return {
        who: rng.integers(-largest, largest, endpoint=True, size=words)
        for who in range(participants)
    }


def _words(upload: Any, words: int, bits: int) -> Words:
    found = np.asarray(upload).astype(np.uint64)
    if found.shape != (words,) or (bits < MOST_BITS and (found >> np.uint64(bits)).any()):
        raise InvalidArgument(
            "round()", f"an upload of shape {found.shape}", f"{words} words below 2^{bits}"
        )
    return found


def _wrong_sum(
    vectors: Mapping[int, NDArray[np.int64]], total: Any, run: int, number: int
) -> list[str]:
    expected = np.sum(list(vectors.values()), axis=0)
    if np.array_equal(np.asarray(total), expected):
        return []
    return [f"the decoded sum of round {number} in run {run} is not the sum of the inputs"]


def _sum_finding(wrong: Sequence[str]) -> ConformanceFinding:
    tested = f"the decoded sums of {2 * ROUNDS} rounds"
    if wrong:
        return failed_finding(CHECK, "sum", tested, wrong[0])
    return ConformanceFinding(
        check=CHECK, name="sum", outcome=Outcome.PASS, tested=tested,
        why="every sum is exact", power="exact for these rounds",
    )  # fmt: skip


def _uniform_finding(uploads: Mapping[str, Words], bits: int, seed: int) -> ConformanceFinding:
    """Test each upload for the uniform distribution; random lower digits make it continuous."""
    rng = np.random.default_rng([seed, MASK_SEEDS])
    tests = [
        (uniform_p_value(_as_fractions(words, bits, rng)), name) for name, words in uploads.items()
    ]
    (gap, p_value), worst = min(tests, key=lambda test: test[0][1])
    size = len(next(iter(uploads.values())))
    return statistical_finding(
        check=CHECK,
        name="uniform",
        tested=f"each of {len(uploads)} uploads of zeros against the uniform distribution",
        p_value=min(1.0, len(tests) * p_value),
        observed=f"the distribution functions differ by at most {gap:.3g} ({worst})",
        violation=f"an upload reveals its input: the distribution functions differ by {gap:.3g} "
        f"({worst})",
        power=f"a difference of about {np.sqrt(np.log(2e7) / (2 * size)):.3g} between the "
        "distribution functions is rejected",
        detectable=None,
    )


def _as_fractions(words: Words, bits: int, rng: np.random.Generator) -> Array:
    """Return words over 2^k, with a uniform digit below the last bit."""
    return np.asarray((words.astype(np.float64) + rng.random(len(words))) / 2.0**bits)


def _reuse_finding(uploads: Mapping[str, Words], bits: int) -> ConformanceFinding:
    """Count the words in which two uploads agree, or are each other's negative."""
    modulus = np.uint64((1 << bits) - 1)
    most, pair, kind = 0, "", ""
    tests = 0
    for one, other in combinations(uploads, 2):
        for sign, words in (("equal", uploads[other]), ("opposite", -uploads[other] & modulus)):
            tests += 1
            equal = int((uploads[one] == words).sum())
            if equal > most or not pair:
                most, pair, kind = equal, f"{one} and {other}", sign
    if not pair:
        return inconclusive_finding(CHECK, "reuse", "pairs of uploads", "there is one upload only")
    size = len(next(iter(uploads.values())))
    p_value = float(stats.binom.sf(most - 1, size, 2.0**-bits))
    return statistical_finding(
        check=CHECK,
        name="reuse",
        tested=f"words in which two uploads of zeros agree: {tests} exact binomial tests",
        p_value=min(1.0, tests * p_value),
        observed=f"at most {most} of {size} words are {kind}: {pair}",
        violation=f"a mask is reused, so a difference of two uploads reveals their inputs: {most} "
        f"of {size} words are {kind}: {pair}",
        power="masks that agree in a few words are detected",
        detectable=None,
    )
