"""Our secure aggregation as subject of the tests of masked uploads.

It runs the protocol of ``secure_aggregation`` in one process. Only the keys come from a seed, and
the masked inputs are noted as the server receives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.federation import participant_stream
from dpaudit.trainer.federated.secure_aggregation.masks import Words, word_type
from dpaudit.trainer.federated.secure_aggregation.messages import (
    MaskedInput,
    SecureSumParameters,
)
from dpaudit.trainer.federated.secure_aggregation.protocol import SecureAggregation
from dpaudit.trainer.noise.randomness import Keystream

__all__ = ["ObservedSecureSums"]


class ObservedSecureSums:
    """Secure sums in one process, with the masked inputs that the server receives.

    Args:
        seed: Seed of the keystream that those of all participants are derived from.
        participants: Number of participants.
        threshold: Smallest number of participants whose sum is unmasked.
        modulus_bits: The k of the modulus 2^k.

    Attributes:
        participants: Number of participants.
        modulus_bits: The k of the modulus 2^k.

    Example:
        >>> sums = ObservedSecureSums(0)
        >>> sent, total = sums.round({k: np.array([k, -k]) for k in range(4)})
        >>> total, sorted(sent)
        (array([ 6, -6]), [0, 1, 2, 3])
    """

    def __init__(
        self, seed: int, *, participants: int = 4, threshold: int = 3, modulus_bits: int = 32
    ) -> None:
        self.participants, self.modulus_bits = participants, modulus_bits
        self._seed, self._threshold, self._number = seed, threshold, 0
        self._sums: _Observed | None = None

    def round(
        self, vectors: Mapping[int, NDArray[np.int64]]
    ) -> tuple[dict[int, Words], NDArray[np.int64]]:
        """Run the next round.

        Args:
            vectors: The input of each participant, int64, shape ``(d,)``; the same d in all rounds.

        Returns:
            The masked input of each participant, shape ``(d,)``, and the sum.
        """
        if self._sums is None:
            self._sums = self._begun(len(next(iter(vectors.values()))))
        self._sums.masked = {}
        found = self._sums.aggregate(self._number, vectors)
        self._number += 1
        return self._sums.masked, found.total

    def _begun(self, dimension: int) -> _Observed:
        """Return the protocol before its first round."""
        parameters = SecureSumParameters(
            self.participants, self._threshold, self.modulus_bits, dimension, bytes(32)
        )
        server = Keystream.seeded(self._seed)
        streams = {one: participant_stream(server, one) for one in range(self.participants)}
        return _Observed(parameters, streams)


class _Observed(SecureAggregation):
    """Notes each masked input as it arrives."""

    masked: dict[int, Words]

    def _sent(self, message: Any, kind: Any) -> Any:
        arrived = super()._sent(message, kind)
        if isinstance(arrived, MaskedInput):
            words = np.frombuffer(arrived.vector, word_type(self.parameters.modulus_bits))
            self.masked[arrived.sender] = words
        return arrived
