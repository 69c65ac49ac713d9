"""Any Flower client app as a client under test.

``make_app(records, seed, participant)`` returns the app of one participant, on these records. A
round sends the global model to the app's train function, and the upload is what it sends back,
minus the global model: all arrays of the reply count.

An app that takes one local step per message needs nothing more: its upload is the step. For
several local steps, ``read_steps`` returns what the app noted of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.federated.flower_messages import (
    ARRAYS,
    WEIGHT,
    arrays_of,
    context_of,
    delivered,
    flower,
    record_of,
    server_process,
)
from dpaudit.attacks.conformance.trainer_protocol import Array, Record
from dpaudit.vocabulary.errors import InvalidArgument

CONFIG, FIRST_NODE = "config", 100


@dataclass(frozen=True)
class LocalSteps:
    """What an app noted of its local steps in one round.

    Attributes:
        noisy_sums: The noisy sum of each step, flat in the order of the sent arrays, shape
            ``(steps, d)``.
        sampled: The positions of the records of each step; None if they were not noted.

    Example:
        >>> LocalSteps(np.zeros((2, 3))).noisy_sums.shape
        (2, 3)
    """

    noisy_sums: Array
    sampled: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class FlowerClientFactory:
    """Makes clients of a Flower client app, for ``check_client``.

    Attributes:
        make_app: Makes the app of a participant, from records, a seed and a number.
        reference: The global model of the first round, by name.
        update_scale: The public factor from a noisy sum to what one local step adds to the
            parameters: minus the learning rate over the expected batch size under SGD.
        read_steps: Returns what the app noted in its last round. None: an app of one local step
            per round, whose noisy sum is the upload over ``update_scale``.
        recompute: The upload that noisy sums give, from the model and the sums. None: the sum of
            the noisy sums times ``update_scale``.
        run_config: The run's config.
        train_config: The config that the server sends with the model.
        node_config: The node's config beside ``partition-id``.
        weighted_by: Name of the metric that weights the upload.

    Example:
        >>> factory = FlowerClientFactory(
        ...     lambda records, seed, participant: None, {"w": np.zeros(3, np.float32)},
        ...     update_scale=-0.1)
        >>> factory.groups
        {'w': slice(0, 3, None)}
    """

    make_app: Callable[[Sequence[Record], int, int], Any]
    reference: Mapping[str, NDArray[Any]]
    update_scale: float
    read_steps: Callable[[Any], LocalSteps] | None = None
    recompute: Callable[[Array, Array], Array] | None = None
    run_config: Mapping[str, Any] = field(default_factory=dict)
    train_config: Mapping[str, Any] = field(default_factory=dict)
    node_config: Mapping[str, Any] = field(default_factory=dict)
    weighted_by: str = WEIGHT

    def __post_init__(self) -> None:
        if not 0 < abs(self.update_scale) < np.inf:
            raise InvalidArgument("update_scale", self.update_scale, "finite and not 0")

    @property
    def groups(self) -> dict[str, slice]:
        """The coordinates of each parameter, by name."""
        ends = np.cumsum([np.size(part) for part in self.reference.values()]).tolist()
        starts = [0, *ends[:-1]]
        places = (slice(*pair) for pair in zip(starts, ends, strict=True))
        return dict(zip(self.reference, places, strict=True))

    def __call__(self, records: Sequence[Record], seed: int, participant: int) -> FlowerClient:
        """Return a client before its first round.

        Args:
            records: The records of the participant.
            seed: Seed of the run.
            participant: Number of the participant, which is its partition.

        Returns:
            The client.
        """
        return FlowerClient(self, records, seed, participant)


class FlowerClient:
    """One Flower client app in the form of the conformance tests.

    Args:
        factory: The factory that makes it.
        records: The records of the participant.
        seed: Seed of the run.
        participant: Number of the participant.

    Attributes:
        global_model: The parameters of the first round, shape ``(d,)``.
        groups: The slice of an update for each parameter name.
        noisy_sums: The noisy sums of the last round, shape ``(steps, d)``.
        sampled: The positions of the records of each step; None if they are not known.
        weight: The weight of the last upload; None if the reply has none.
        metrics: The other metrics of the last reply.
    """

    def __init__(
        self,
        factory: FlowerClientFactory,
        records: Sequence[Record],
        seed: int,
        participant: int,
    ) -> None:
        self._factory, self._number = factory, 0
        with server_process():
            self._app = factory.make_app(records, seed, participant)
            config = {"partition-id": participant, **factory.node_config}
            self._context = context_of(FIRST_NODE + participant, config, factory.run_config)
        self.global_model = _flat(factory.reference)
        self.groups = factory.groups
        self.noisy_sums: Array = np.zeros((0, self.global_model.size))
        self.sampled: Sequence[Sequence[int]] | None = None
        self.weight: float | None = None
        self.metrics: dict[str, Any] = {}

    def local_update(self, model: Array) -> Array:
        """Send a global model to the app, and return its upload.

        Args:
            model: The global model, shape ``(d,)``.

        Returns:
            What the reply changes of it, shape ``(d,)``.

        Raises:
            InvalidArgument: If the reply has other arrays than the model.
        """
        factory = self._factory
        self._number += 1
        sent = {
            name: model[own].reshape(np.shape(like)).astype(np.asarray(like).dtype)
            for (name, own), like in zip(
                self.groups.items(), factory.reference.values(), strict=True
            )
        }
        with server_process():
            content = self._reply(sent).content
        (arrays,) = (arrays_of(record) for record in content.array_records.values())
        if {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in sent.items()}:
            raise InvalidArgument("the reply's arrays", list(arrays), "those of the model")
        upload = _flat({name: arrays[name] for name in sent}) - _flat(sent)
        metrics = {
            name: value for record in content.metric_records.values()
            for name, value in record.items()
        }  # fmt: skip
        weight = metrics.pop(factory.weighted_by, None)
        self.weight, self.metrics = None if weight is None else float(weight), metrics
        self._note(upload)
        return upload

    def recompute(self, model: Array, noisy_sums: Array) -> Array:
        """Return the upload that noisy sums give, from public settings.

        Args:
            model: The global model, shape ``(d,)``.
            noisy_sums: The noisy sums of the local steps, shape ``(steps, d)``.

        Returns:
            The upload, shape ``(d,)``.
        """
        if self._factory.recompute is not None:
            return self._factory.recompute(model, noisy_sums)
        return np.asarray(self._factory.update_scale * np.sum(noisy_sums, axis=0))

    def _note(self, upload: Array) -> None:
        """Take over the app's notes of its local steps, or take the upload for one step."""
        if self._factory.read_steps is None:
            self.noisy_sums = upload[None] / self._factory.update_scale
            return
        steps = self._factory.read_steps(self._app)
        self.noisy_sums, self.sampled = steps.noisy_sums, steps.sampled

    def _reply(self, sent: Mapping[str, NDArray[Any]]) -> Any:
        """Return the app's reply to a train message."""
        types = flower("app")
        content = types.RecordDict(
            {
                ARRAYS: record_of(sent),
                CONFIG: types.ConfigRecord(
                    {"server-round": self._number, **self._factory.train_config}
                ),
            }
        )
        message = types.Message(
            content, dst_node_id=self._context.node_id, message_type=types.MessageType.TRAIN
        )
        return self._app(delivered(message, self._number), self._context)


def _flat(arrays: Mapping[str, NDArray[Any]]) -> Array:
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in arrays.values()])
