"""The server of DP-FedAvg beyond one process: arrays in, arrays out, everything on disk.

It joins ``ParticipantAggregation`` and a ``ModelRun``: ledger, model and checkpoints. It knows no
Flower: ``strategy`` carries its arrays over messages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.aggregation import (
    AggregateResult,
    ParticipantAggregation,
    ParticipantClipping,
)
from dpaudit.trainer.federated.flower.model_run import ModelRun
from dpaudit.trainer.federated.flower.run_ledger import library_versions
from dpaudit.trainer.federated.ledgers import LOST_UPDATES
from dpaudit.trainer.federated.updates import Update
from dpaudit.trainer.noise.randomness import Keystream, NotCopyable
from dpaudit.trainer.session.release_account import PrivacyBudget
from dpaudit.vocabulary.errors import (
    require_count,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.federation import DP_FEDAVG, FederationHeader
from dpaudit.vocabulary.ledger import LedgerHeader, NoiseKind
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, Unit

PROTECTS_AGAINST = ("other participants", "readers of the final model")
"""The server sees every update, so nothing is claimed against it."""

ASSUMED_PUBLIC = (
    "number of participants",
    "names and shapes of parameters",
    "one node per participant",
    LOST_UPDATES,
    "hyper-parameters",
)

__all__ = ["ParticipantServer", "ServerSettings"]


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a participant-level server.

    Attributes:
        clipping: Clip norm, noise, participation rate and number of participants.
        delta: Delta of the claim, in [1e-300, 1).
        max_epsilon: Budget at ``delta``, in nats, above 0: the server ends before the round that
            would exceed it. None: no budget.
        learning_rate: Factor of the averaged update, above 0.
        seed: None for secure randomness; a number, at least 0, makes coins and noise
            reproducible.
        unaccounted: Other uses of the participants' records, which the claim does not cover.

    Raises:
        InvalidArgument: If a setting is out of its range.

    Example:
        >>> clipping = ParticipantClipping(0.5, 1.0, participation_rate=0.1, participants=200)
        >>> ServerSettings(clipping, delta=1e-5).learning_rate
        1.0
    """

    clipping: ParticipantClipping
    delta: float
    max_epsilon: float | None = None
    learning_rate: float = 1.0
    seed: int | None = None
    unaccounted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_delta("delta", self.delta)
        require_positive("learning_rate", self.learning_rate)
        if self.max_epsilon is not None:
            require_positive("max_epsilon", self.max_epsilon)
        if self.seed is not None:
            require_count("seed", self.seed, least=0)

    @property
    def budget(self) -> PrivacyBudget | None:
        """The budget of the ledger; None if there is none."""
        return None if self.max_epsilon is None else PrivacyBudget(self.max_epsilon, self.delta)


class ParticipantServer(NotCopyable):
    """DP-FedAvg on arrays: draws participants, releases noisy sums, keeps ledger and model.

    It belongs to the process that made it. Make it with ``open``.

    Args:
        settings: The settings.
        run: Ledger and model.
        stream: Keystream of coins and noise.

    Attributes:
        settings: The settings.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> settings = ServerSettings(
        ...     ParticipantClipping(1.0, 1e-3, participation_rate=1.0, participants=2),
        ...     delta=1e-5, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     initial = {"w": np.zeros(2, np.float32)}
        ...     server = ParticipantServer.open(Path(folder) / "run", settings, initial)
        ...     drawn = server.draw()
        ...     update = {"w": np.array([0.6, 0.8], np.float32)}
        ...     result = server.aggregate({0: update}, drawn)
        ...     server.close()
        >>> drawn, result.accepted, server.weights["w"].round(1)  # half of the update: q W = 2
        ((0, 1), (0,), array([0.3, 0.4], dtype=float32))
    """

    description = "a server of a federation"

    def __init__(self, settings: ServerSettings, run: ModelRun, stream: Keystream) -> None:
        self.settings, self._run = settings, run
        saved = None if run.progress is None else run.progress.clip_norm
        self._aggregation = ParticipantAggregation(
            replace(settings.clipping, clip_norm=saved or settings.clipping.clip_norm),
            run.weights,
            stream,
            run.ledger.record,
            first_round=run.next_round,
        )

    @classmethod
    def open(
        cls, out: Path, settings: ServerSettings, initial: Mapping[str, NDArray[Any]]
    ) -> ParticipantServer:
        """Begin a run, or continue the one that is in the run directory.

        Args:
            out: The run directory.
            settings: The settings; those of a run that is continued must be equal.
            initial: The model before the first round: arrays of float32 by name. A run that is
                continued has the model of its newest checkpoint instead, if it has one.

        Returns:
            The server.

        Raises:
            InvalidArgument: If an array is not of float32 or not finite, or the earlier run has
                other settings.
            IntegrityError: If a file of the earlier run is damaged, or of another model.
            RunExists: If the run is finished.
            RunLocked: If another process is writing it.
        """
        stream = Keystream.of(settings.seed)
        header = _header(settings, stream)
        run = ModelRun.open(out, header, initial, {settings.clipping.release}, settings.budget)
        try:
            return cls(settings, run, stream)
        except BaseException:
            run.close()
            raise

    @property
    def weights(self) -> Update:
        """The global model, float32 arrays by name."""
        return self._run.weights

    @property
    def next_round(self) -> int:
        """Number of the next round, from 0."""
        return self._run.next_round

    @property
    def clip_norm(self) -> float:
        """The clip norm of the next round."""
        return self._aggregation.settings.clip_norm

    @property
    def releases(self) -> int:
        """Number of recorded releases, those of earlier processes included."""
        return self._run.ledger.releases

    def epsilon(self, delta: float | None = None) -> Bound:
        """Return certified bounds of epsilon for all releases so far.

        Args:
            delta: Delta, in [1e-300, 1); None: that of the settings.

        Returns:
            Lower and upper bound of epsilon; both 0 if nothing was released.
        """
        return self._run.ledger.epsilon(self.settings.delta if delta is None else delta)

    def has_room(self) -> bool:
        """Return whether the budget has room for a further round.

        Returns:
            True if there is no budget, or the next release stays within it.
        """
        return self._run.ledger.has_room(self._aggregation.settings.release)

    def draw(self) -> tuple[int, ...]:
        """Return who joins the next round: each participant by one coin of the keystream.

        Returns:
            Numbers of participants, ascending; possibly none.
        """
        return tuple(int(one) for one in self._aggregation.draw_participants(self.next_round))

    def aggregate(
        self,
        updates: Mapping[int, Mapping[str, Any]],
        drawn: Sequence[int],
        left_out: Mapping[int, str] | None = None,
    ) -> AggregateResult:
        """Release the noisy sum of the next round, move the model, and save it.

        The release is on disk before its noise is drawn. A round without any update is a
        release like any other.

        Args:
            updates: What participants sent, by number; some may be missing.
            drawn: The participants that were drawn for the round.
            left_out: Why there is no update of some participants, for the ledger.

        Returns:
            The noisy sum, and why each update was left out.

        Raises:
            NoiseReused: If this round was aggregated before.
            IntegrityError: If another process wrote the ledger.
        """
        result = self._aggregation.aggregate(self.next_round, updates, drawn)
        result = replace(result, rejected={**(left_out or {}), **result.rejected})
        self._run.end_round(
            result.average,
            self.settings.learning_rate,
            result.rejected,
            denominator=self.settings.clipping.denominator,
            clip_norm=self.clip_norm,
        )
        return result

    def finish(self) -> RunDirectory:
        """Write model, claim and seal; nothing can be released afterwards.

        Returns:
            The finished run.

        Raises:
            IntegrityError: If nothing was released, or a file of the run was altered.
        """
        return self._run.finish(self.settings.delta)

    def close(self) -> None:
        """Release the ledger's lock, so that another process can continue the run."""
        self._run.close()


def _header(settings: ServerSettings, stream: Keystream) -> LedgerHeader:
    """Return the header of a new ledger."""
    clipping = settings.clipping
    return LedgerHeader(
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        sampling=clipping.sampling,
        randomness=stream.randomness,
        schedule_fixed_in_advance=True,
        clip_norm=clipping.clip_norm,
        versions=library_versions(),
        run=os.urandom(16).hex(),
        unaccounted=settings.unaccounted,
        assumed_public=ASSUMED_PUBLIC,
        unit=Unit.PARTICIPANT,
        federation=FederationHeader(DP_FEDAVG, clipping.participants, PROTECTS_AGAINST),
        noise=NoiseKind.GRID,
    )
