"""The server protocol: what a server of a federation must offer for the tests.

``make_server(seed)`` returns a server before its first round. The tests play the participants: they
plant updates, and read what the server releases. They require that the same seed and the same
calls give the same releases, and that the noise does not depend on the updates.

Attributes that every server must have:

- ``participants``: the public number of participants, at least two.
- ``reference``: an array for each parameter, by name, with the shape and the type of an update.
- ``aggregate(updates, expected)``: one round. ``updates`` has the reply of each participant that
  replied, by number; the other ``expected`` participants were lost. It returns the noisy sum of
  the clipped updates times the claim's ``update_scale``, by name; None if nothing is released.

Optional attributes allow further tests:

- ``draw()``: the participants that the server draws for the next round. Without it, the drawing of
  participants cannot be tested. It is called once before each round, or never.
- ``rejected``: the participants whose updates the last round rejected, by number, with a reason.
- ``clip_norm``: the public clip norm of the next round, for adaptive clipping.
- ``noisy_count``: the last round's noisy count of updates within the clip norm, minus half of the
  number of updates. ``count_noise`` is the accounted standard deviation of its noise.
- ``releases``: the number of releases that the server has recorded for its accountant.
- ``resumed()``: the server as it continues after a restart now. The next round is a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.trainer_protocol import Array, seed_global_generators
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Update = Mapping[str, NDArray[Any]]

ROUND_LABEL = 7
"""Keeps the global generators of rounds apart from those of trainers' steps."""


class FederatedServer(Protocol):
    """What every tested server must have. The module lists optional attributes.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks.conformance.federated import FederatedServer
        >>> class NoiseAlone:
        ...     participants, reference = 3, {"w": np.zeros(2, dtype=np.float32)}
        ...     def aggregate(self, updates, expected):
        ...         return {"w": np.random.default_rng(len(expected)).standard_normal(2)}
        >>> server: FederatedServer = NoiseAlone()
        >>> server.aggregate({}, range(3))["w"].shape
        (2,)
    """

    @property
    def participants(self) -> int:
        """Public number of participants."""

    @property
    def reference(self) -> Update:
        """An array for each parameter, with the shape and the type of an update."""

    def aggregate(self, updates: Mapping[int, Update], expected: Sequence[int]) -> Update | None:
        """Aggregate the replies of one round.

        Args:
            updates: The updates of the participants that replied, by number.
            expected: All participants of the round, in ascending order.

        Returns:
            The noisy sum times the claim's ``update_scale``, by name; None if nothing is released.
        """


MakeServer = Callable[[int], Any]
"""A function of a seed that returns a ``FederatedServer``."""


@dataclass(frozen=True)
class RoundResult:
    """What one round of a tested server gave.

    Attributes:
        noisy_sum: The noisy sum, shape ``(d,)``; None if nothing was released.
        error: The error that the round raised; None if it raised none.
        clip_norm: The public clip norm of the round.
        rejected: The numbers of the participants whose updates were rejected.
    """

    noisy_sum: Array | None
    error: Exception | None
    clip_norm: float
    rejected: tuple[int, ...] = ()

    @property
    def ending(self) -> str:
        """How the round ended, for the report."""
        if self.error is not None:
            return f"the round ended with {type(self.error).__name__}: {self.error}"
        return "nothing was released" if self.noisy_sum is None else "the round was released"


class ServerRun:
    """The rounds of one server, under seeded global generators.

    Attributes:
        server: The server, in the state after the last round.
        number: Number of rounds so far.
    """

    def __init__(
        self, make_server: MakeServer, claim: StepClaim, seed: int, *, salt: int | None = None
    ) -> None:
        """Make the server.

        Args:
            make_server: Makes the server.
            claim: The claim on each round.
            seed: Seed of the server, and of the global generators.
            salt: Seed of the global generators at the start of every round, the same for all
                rounds; None for another one in each round.
        """
        self._claim, self._seed, self._salt, self.number = claim, seed, salt, 0
        self._started = 0  # number of rounds before the last start of the process
        with seed_global_generators(*self._labels(0)):
            self.server: Any = make_server(seed)
        require_count("participants", getattr(self.server, "participants", 0), least=2)
        if not getattr(self.server, "reference", None):
            raise InvalidArgument("reference", None, "an array for each parameter, by name")

    def _labels(self, number: int) -> tuple[int, ...]:
        if self._salt is not None:
            return (self._salt, ROUND_LABEL)
        return (self._seed, ROUND_LABEL, number - self._started)

    @property
    def participants(self) -> range:
        """The numbers of all participants."""
        return range(self.server.participants)

    @property
    def dimension(self) -> int:
        """Number of coordinates of an update."""
        return sum(int(np.size(part)) for part in self.server.reference.values())

    @property
    def clip_norm(self) -> float:
        """The public clip norm of the next round."""
        return float(getattr(self.server, "clip_norm", None) or self._claim.clip_norm)

    @property
    def groups(self) -> dict[str, slice]:
        """Slices of the coordinates of each parameter, by name."""
        found, start = {}, 0
        for name, part in self.server.reference.items():
            if np.size(part):
                found[name] = slice(start, start + int(np.size(part)))
                start += int(np.size(part))
        return found

    def update_of(self, vector: Array) -> Update:
        """Convert a flat vector to an update.

        Args:
            vector: Coordinates, shape ``(d,)``.

        Returns:
            An array for each parameter, with the reference's shape and type.
        """
        found, start = {}, 0
        for name, like in self.server.reference.items():
            part = vector[start : start + int(np.size(like))]
            found[name] = part.reshape(np.shape(like)).astype(np.asarray(like).dtype)
            start += int(np.size(like))
        return found

    def draw(self) -> list[int] | None:
        """Draw the participants of the next round.

        Returns:
            Their numbers; None if the server has no method ``draw``.

        Raises:
            InvalidArgument: If a number is none of a participant.
        """
        if not hasattr(self.server, "draw"):
            return None
        with seed_global_generators(*self._labels(self.number), 1):
            drawn = [int(one) for one in self.server.draw()]
        if any(one not in self.participants for one in drawn):
            raise InvalidArgument("draw()", drawn, f"numbers below {self.server.participants}")
        return drawn

    def play(self, updates: Mapping[int, Update], expected: Sequence[int]) -> RoundResult:
        """Take the next round.

        Args:
            updates: The updates that are replied, by participant.
            expected: All participants of the round.

        Returns:
            What the round gave. An error that it raises is kept.
        """
        norm = self.clip_norm
        self.number += 1
        with seed_global_generators(*self._labels(self.number)), np.errstate(all="ignore"):
            try:
                released = self.server.aggregate(dict(updates), list(expected))
            except Exception as error:  # a server may fail in any way on what is planted
                return RoundResult(None, error, norm)
        total = None if released is None else self._flat(released)
        return RoundResult(total, None, norm, self._rejected())

    def resumed(self) -> ServerRun | None:
        """Return the run of the restarted server; None if it has no method ``resumed``."""
        if not hasattr(self.server, "resumed"):
            return None
        other = object.__new__(ServerRun)
        other.__dict__.update(self.__dict__)
        # A restarted process seeds its global generators as at the first start.
        other._started = self.number
        with seed_global_generators(*other._labels(self.number)):
            other.server = self.server.resumed()
        return other

    def _rejected(self) -> tuple[int, ...]:
        return tuple(sorted(int(one) for one in getattr(self.server, "rejected", None) or ()))

    def _flat(self, released: Update) -> Array:
        """Return the noisy sum as a flat vector; names and shapes must be the reference's."""
        parts = []
        for name, like in self.server.reference.items():
            part = np.asarray(released.get(name, ()), dtype=np.float64)
            if part.shape != np.shape(like):
                raise InvalidArgument(
                    f"aggregate()[{name!r}]", f"shape {part.shape}", f"shape {np.shape(like)}"
                )
            parts.append(part.ravel())
        return np.asarray(np.concatenate(parts) / self._claim.scale)


def planted_total(updates: Mapping[int, Array]) -> Array | float:
    """Return the sum of planted vectors; 0 if there is none.

    Args:
        updates: Vectors of norm at most the clip norm, by participant.

    Returns:
        Their sum, shape ``(d,)``.
    """
    return np.sum(list(updates.values()), axis=0) if updates else 0.0
