"""Flower strategies as servers under test.

The strategy is the real one: ``configure_train`` makes a round's messages, and ``aggregate_train``
gets the replies, each through the client's mods. Participants are nodes that are all online; lost
replies do not arrive. Every round starts from the same global model, so that a release is the
change of it.

A strategy with a privacy accountant has ``releases``. A restart makes a new strategy, as a
restarted ServerApp does: state that the strategy does not save by itself is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.federated.flower_messages import (
    ARRAYS,
    METRICS,
    WEIGHT,
    arrays_of,
    context_of,
    delivered,
    flower,
    record_of,
    server_process,
)
from dpaudit.attacks.conformance.federated.server_protocol import Update
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import require_count, require_positive

FIRST_NODE = 100


@dataclass(frozen=True)
class FlowerStrategyFactory:
    """Makes servers of a Flower strategy, for ``check_server``.

    Attributes:
        make_strategy: Makes the strategy of one process, from the ServerApp's settings alone.
        reference: The model's parameters, by name; their shapes and types count.
        participants: Number of nodes, all of which are sampled in each round.
        noise_multiplier: The noise multiplier that the strategy is given.
        clip_norm: The clip norm that the strategy is given.
        mods: Mods of the client app, such as ``fixedclipping_mod``.

    Example:
        >>> from dpaudit.attacks.conformance.federated import check_server
        >>> def make_strategy():
        ...     from flwr.serverapp.strategy import (
        ...         DifferentialPrivacyServerSideFixedClipping, FedAvg)
        ...     return DifferentialPrivacyServerSideFixedClipping(
        ...         FedAvg(fraction_evaluate=0.0, min_train_nodes=4), 1.0, 0.1, 4)
        >>> factory = FlowerStrategyFactory(
        ...     make_strategy, {"w": np.zeros(8, np.float32)}, participants=4,
        ...     noise_multiplier=1.0, clip_norm=0.1)
        >>> check_server(factory, factory.claim(rounds=3)).verdict.value  # doctest: +SKIP
        'FAIL'
    """

    make_strategy: Callable[[], Any]
    reference: Mapping[str, NDArray[Any]]
    participants: int
    noise_multiplier: float
    clip_norm: float
    mods: Sequence[Any] = ()

    def __post_init__(self) -> None:
        require_count("participants", self.participants, least=2)
        require_positive("noise_multiplier", self.noise_multiplier)
        require_positive("clip_norm", self.clip_norm)

    def claim(self, rounds: int) -> StepClaim:
        """Return the claim of Flower's accounting without amplification.

        Args:
            rounds: Number of rounds.

        Returns:
            The claim that each round releases the sum of clipped updates with noise of deviation
            ``noise_multiplier * clip_norm``, over the number of participants.
        """
        return StepClaim(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=1.0,
            steps=rounds,
            update_scale=1 / self.participants,
        )

    def __call__(self, seed: int) -> FlowerStrategyServer:
        """Return a server before its first round.

        Args:
            seed: Not used: Flower's strategies take no seed. The global generators are seeded.

        Returns:
            The server.
        """
        del seed
        return FlowerStrategyServer(self)


class FlowerStrategyServer:
    """One Flower strategy in the form of the conformance tests.

    Args:
        factory: The factory that makes it.

    Attributes:
        participants: Number of nodes.
        reference: The parameters of an update.
        rejected: Participants whose update no message can carry, in the last round.
    """

    def __init__(self, factory: FlowerStrategyFactory) -> None:
        self._factory = factory
        self.participants, self.reference = factory.participants, dict(factory.reference)
        self.rejected: dict[int, str] = {}
        self._number = 0
        with server_process():
            self._strategy = factory.make_strategy()

    @property
    def releases(self) -> int | None:
        """Number of releases of the strategy's accountant; None if it has none."""
        accountant = getattr(self._strategy, "accountant", None)
        return None if accountant is None else int(accountant.num_releases)

    def aggregate(self, updates: Mapping[int, Update], expected: Sequence[int]) -> Update | None:
        """Run one round of the strategy.

        Args:
            updates: The updates of the participants that replied, by number.
            expected: Not used: the strategy samples its nodes.

        Returns:
            The change of the global model by name; None if the strategy released none.
        """
        del expected
        self._number += 1
        self.rejected = {}
        with server_process():
            current = record_of(self.reference)
            config = flower("app").ConfigRecord()
            messages = list(
                self._strategy.configure_train(self._number, current, config, _Nodes(self))
            )
            replies = [
                reply
                for number, message in enumerate(messages)
                if (reply := self._reply(message, number, updates)) is not None
            ]
            arrays, _ = self._strategy.aggregate_train(self._number, replies)
        if arrays is None:
            return None
        return {
            name: part - self.reference[name] if name in self.reference else part
            for name, part in arrays_of(arrays).items()
        }

    def resumed(self) -> FlowerStrategyServer:
        """Return the server of a restarted process, with a new strategy."""
        other = FlowerStrategyServer(self._factory)
        other._number = self._number
        return other

    def _reply(self, message: Any, number: int, updates: Mapping[int, Update]) -> Any:
        """Return the reply of the node that a message is for; None if it is lost."""
        node = message.metadata.dst_node_id
        participant = node - FIRST_NODE
        if participant not in updates:
            return None
        app = flower("clientapp").ClientApp(mods=list(self._factory.mods))

        @app.train()  # type: ignore[untyped-decorator]
        def train(received: Any, context: Any) -> Any:
            del context
            types = flower("app")
            content = types.RecordDict(
                {
                    ARRAYS: record_of(self._moved(updates[participant])),
                    METRICS: types.MetricRecord({WEIGHT: 1}),
                }
            )
            return types.Message(content, reply_to=received)

        context = context_of(node, {"partition-id": participant}, {})
        try:
            reply = app(delivered(message, number), context)
        except Exception as error:  # no message can carry the update, or a mod refuses it
            self.rejected[participant] = f"{type(error).__name__}: {error}"
            return None
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    def _moved(self, update: Update) -> dict[str, NDArray[Any]]:
        """Return the model that a participant sends: the global model plus its update."""
        return {
            name: np.asarray(self.reference[name] + part)
            if name in self.reference and np.shape(part) == np.shape(self.reference[name])
            and np.asarray(part).dtype.kind in "fc"
            else np.asarray(part)
            for name, part in update.items()
        }  # fmt: skip


class _Nodes:
    """The part of a grid that ``configure_train`` uses: the nodes that are online."""

    def __init__(self, server: FlowerStrategyServer) -> None:
        self._count = server.participants

    def get_node_ids(self) -> list[int]:
        """Return the identifiers of all nodes."""
        return [FIRST_NODE + number for number in range(self._count)]
