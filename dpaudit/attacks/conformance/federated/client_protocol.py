"""The client protocol: what a participant that trains locally must offer for the tests.

``make_client(records, seed, participant)`` returns the client of one participant before its first
round. ``seed`` is that of the whole run, which several clients share. The tests play the server.

Attributes that every client must have:

- ``global_model``: the parameters of the first round, flat, shape ``(d,)``. They are public.
- ``local_update(model)``: one round from these parameters. It returns the upload: the change of the
  parameters, shape ``(d,)``.
- ``noisy_sums``: the noisy sums of the last round's local steps, shape ``(steps, d)``.

Optional attributes allow further tests:

- ``sampled``: for each local step of the last round, the indices of its records.
- ``recompute(model, noisy_sums)``: the upload that these noisy sums give, from public settings
  alone. Without it, the upload cannot be tested.
- ``weight``: the weight that the last upload asks the server for, such as a number of records.
- ``metrics``: further numbers that the last reply holds, by name.
- ``groups``, ``constants``, ``input_directions``: as of a trainer, see ``trainer_protocol``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dpaudit.attacks.conformance.trainer_protocol import Array, Record
from dpaudit.vocabulary.errors import InvalidArgument

WEIGHT_CONSTANT = "the weight of the upload"


class FederatedClient(Protocol):
    """What every tested client must have. The module lists optional attributes.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks.conformance.federated import FederatedClient
        >>> class OneStep:
        ...     global_model = np.zeros(2)
        ...     def __init__(self, records, seed, participant):
        ...         self.rng = np.random.default_rng([seed, participant])
        ...     def local_update(self, model):
        ...         self.noisy_sums = self.rng.standard_normal((1, 2))
        ...         return -0.1 * self.noisy_sums[0]
        >>> client: FederatedClient = OneStep(records=[], seed=0, participant=3)
        >>> client.local_update(client.global_model).shape
        (2,)
    """

    @property
    def global_model(self) -> Array:
        """Parameters of the first round, shape ``(d,)``."""

    @property
    def noisy_sums(self) -> Array:
        """Noisy sums of the last round's local steps, shape ``(steps, d)``."""

    def local_update(self, model: Array) -> Array:
        """Take the local steps of one round.

        Args:
            model: The parameters that the server sent, shape ``(d,)``.

        Returns:
            The upload: the change of the parameters, shape ``(d,)``.
        """


MakeClient = Callable[[Sequence[Record], int, int], Any]
"""A function of records, a seed and a participant's number that returns a ``FederatedClient``."""


class ClientTrainer:
    """A client as a trainer: each step is a local step, across the rounds of one participant.

    The next round starts from the last one's parameters plus its upload, as in a federation of one
    participant.

    Attributes:
        sampled: Indices of the records of the last step; None if the client does not report them.
    """

    def __init__(self, client: Any) -> None:
        """Wrap a client before its first round.

        Args:
            client: The client.
        """
        self._client, self._model = client, np.array(client.global_model, dtype=np.float64)
        self._left: list[tuple[Array, Any]] = []
        self.sampled: Any = None

    @property
    def groups(self) -> Mapping[str, slice] | None:
        """Slices of the parameters, by name; None if the client lists none."""
        return getattr(self._client, "groups", None)

    @property
    def input_directions(self) -> Any:
        """Feature directions of the client; None if it lists none."""
        return getattr(self._client, "input_directions", None)

    @property
    def constants(self) -> dict[str, float]:
        """The client's public constants, with the weight of its first upload."""
        found = dict(getattr(self._client, "constants", None) or {})
        if not self._left and self.sampled is None and hasattr(self._client, "local_update"):
            self._play()
        weight = getattr(self._client, "weight", None)
        return found if weight is None else {**found, WEIGHT_CONSTANT: float(weight)}

    def step(self) -> Array:
        """Return the noisy sum of the next local step, playing a round if necessary."""
        if not self._left:
            self._play()
        noisy_sum, self.sampled = self._left.pop(0)
        return noisy_sum

    def _play(self) -> None:
        upload = np.asarray(self._client.local_update(self._model.copy()), dtype=np.float64)
        noisy_sums = recorded_sums(self._client, upload.size)
        sampled = getattr(self._client, "sampled", None)
        each = [None] * len(noisy_sums) if sampled is None else list(sampled)
        self._left = list(zip(noisy_sums, each, strict=True))
        self._model = self._model + upload


def recorded_sums(client: FederatedClient, dimension: int) -> Array:
    """Return the noisy sums of a client's last round.

    Args:
        client: The client, after a round.
        dimension: Number of coordinates of an upload.

    Returns:
        The sums, shape ``(steps, d)``, with at least one step.

    Raises:
        InvalidArgument: If the shape is another one.
    """
    sums = np.asarray(client.noisy_sums, dtype=np.float64)
    if sums.ndim != 2 or len(sums) == 0 or sums.shape[1] != dimension:
        raise InvalidArgument(
            "noisy_sums", f"shape {sums.shape}", f"shape (steps, {dimension}), at least one step"
        )
    return sums
