"""DP-FedAvg over secure aggregation beyond one process: messages in, a noisy sum out.

The server holds masked inputs and the sum. It never holds a single update. Noise comes from the
participants, in shares. So a release is recorded before the participants are asked for their
inputs, and a round that then loses too many of them costs its epsilon without moving the model.

Who takes part is public, so no amplification by sampling is claimed: all participants are
invited to every round. No Flower: ``secure_strategy`` carries the messages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.flower.model_run import ModelRun
from dpaudit.trainer.federated.flower.run_ledger import library_versions
from dpaudit.trainer.federated.flower.secure_participant import Invitation
from dpaudit.trainer.federated.flower.secure_settings import SecureServerSettings
from dpaudit.trainer.federated.flower.server import ASSUMED_PUBLIC
from dpaudit.trainer.federated.secure_aggregation.messages import (
    AdvertisedKeys,
    MaskedInput,
    Message,
    SealedShares,
    UnmaskShares,
    decode_message,
    encode_message,
)
from dpaudit.trainer.federated.secure_aggregation.noisy_sum import NoisySum
from dpaudit.trainer.federated.secure_aggregation.server import Server
from dpaudit.trainer.federated.updates import Update
from dpaudit.trainer.noise.randomness import NotCopyable
from dpaudit.trainer.session.release_account import PrivacyBudget
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    ProtocolViolation,
    ReplayedRound,
)
from dpaudit.vocabulary.federation import FederationHeader
from dpaudit.vocabulary.ledger import LedgerHeader, Randomness, Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, Unit

STRATEGY = "secure-dp-fedavg"
SESSION_BYTES = 32

_Kind = TypeVar("_Kind", AdvertisedKeys, SealedShares, MaskedInput, UnmaskShares)
_Answer = AdvertisedKeys | SealedShares | MaskedInput | UnmaskShares

__all__ = ["SecureServer"]


class SecureServer(NotCopyable):
    """The server's side of one secure round after another. Make it with ``open``.

    Args:
        settings: The settings.
        run: Ledger and model.
        session: Public identifier of this process of the run, 32 bytes.

    Attributes:
        settings: The settings.
        noisy_sum: The noisy sum of a round.
        left_out: Why a participant is not in the sum of the round, by number.

    Example:
        >>> import tempfile
        >>> from dpaudit.vocabulary.federation import SecureAggregationSettings
        >>> settings = SecureServerSettings(
        ...     SecureAggregationSettings(dropouts=1), 4, 1.0, 2.0, delta=1e-5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     initial = {"w": np.zeros(3, np.float32)}
        ...     server = SecureServer.open(Path(folder) / "run", settings, initial)
        ...     invited = sorted(server.invite({0, 1, 2}))
        ...     server.close()
        >>> invited, server.left_out
        ([0, 1, 2], {3: 'it could not be reached'})
    """

    description = "a server of a federation"

    def __init__(self, settings: SecureServerSettings, run: ModelRun, session: bytes) -> None:
        self.settings, self._run = settings, run
        self.noisy_sum = settings.noisy_sum(_dimension(run.weights))
        self.left_out: dict[int, str] = {}
        self._parameters = self.noisy_sum.parameters(session)
        self._server = Server(self._parameters)

    @classmethod
    def open(
        cls, out: Path, settings: SecureServerSettings, initial: Mapping[str, NDArray[Any]]
    ) -> SecureServer:
        """Begin a run, or continue the one that is in the run directory.

        Args:
            out: The run directory.
            settings: The settings; those of a run that is continued must be equal.
            initial: The model before the first round: arrays of float32 by name.

        Returns:
            The server.

        Raises:
            InvalidArgument: If an array cannot be used, or the earlier run has other settings.
            IntegrityError: If a file of the earlier run is damaged, or of another model.
            RunExists: If the run is finished.
        """
        noisy_sum = settings.noisy_sum(_dimension(initial))
        releases = {mechanism for _, mechanism in noisy_sum.releases}
        header = _header(settings, noisy_sum)
        run = ModelRun.open(out, header, initial, releases, _budget(settings))
        return cls(settings, run, os.urandom(SESSION_BYTES))

    @property
    def weights(self) -> Update:
        """The global model, float32 arrays by name."""
        return self._run.weights

    @property
    def next_round(self) -> int:
        """Number of the next round, from 0."""
        return self._run.next_round

    @property
    def releases(self) -> int:
        """Number of recorded releases, those of earlier processes included."""
        return self._run.ledger.releases

    def epsilon(self) -> Bound:
        """Return certified bounds of epsilon for all releases so far, at the settings' delta."""
        return self._run.ledger.epsilon(self.settings.delta)

    def has_room(self) -> bool:
        """Return whether the budget has room for a further round.

        Returns:
            True if there is no budget, or all releases of the next round stay within it.
        """
        releases = tuple(mechanism for _, mechanism in self.noisy_sum.releases)
        return self._run.ledger.has_room_for(releases)

    def invite(self, present: Collection[int]) -> dict[int, bytes]:
        """Open the next round.

        Args:
            present: The participants that can be reached.

        Returns:
            The first message, by participant.
        """
        number = self.next_round
        everyone = range(self.settings.participants)
        self.left_out = dict.fromkeys(set(everyone) - set(present), "it could not be reached")
        self._server.open_round(number, sorted(present))
        session = self._parameters.session
        invitation = msgspec.msgpack.encode(Invitation.of(self.noisy_sum, number, session))
        return dict.fromkeys(sorted(present), invitation)

    def receive_keys(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """End the first phase.

        Args:
            answers: What participants sent, by number.

        Returns:
            The second message, by participant.

        Raises:
            TooFewParticipants: If fewer than the threshold are left.
        """
        self._receive(answers, AdvertisedKeys, self._server.receive_keys)
        key_list = self._server.key_list()
        return dict.fromkeys(key_list.keys, encode_message(key_list))

    def receive_shares(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """End the second phase, and record the release: the next message makes noise.

        Args:
            answers: What participants sent, by number.

        Returns:
            The third message, by participant.

        Raises:
            TooFewParticipants: If fewer than the threshold are left; nothing is recorded.
            IntegrityError: If the ledger cannot be written.
        """
        self._receive(answers, SealedShares, self._server.receive_shares)
        forwarded = self._server.forward_shares()
        for what, mechanism in self.noisy_sum.releases:
            self._run.ledger.record(what, mechanism, self.next_round)
        return _encoded(forwarded)

    def receive_masked_inputs(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """End the third phase.

        Args:
            answers: What participants sent, by number.

        Returns:
            The fourth message, by participant.

        Raises:
            TooFewParticipants: If fewer than the threshold are left.
        """
        self._receive(answers, MaskedInput, self._server.receive_masked_input)
        request = self._server.unmask_request()
        return dict.fromkeys(request.survivors, encode_message(request))

    def receive_unmask_shares(self, answers: Mapping[int, bytes]) -> tuple[int, ...]:
        """End the round: unmask the sum, move the model, and save it.

        Args:
            answers: What participants sent, by number.

        Returns:
            The participants whose updates are in the sum.

        Raises:
            TooFewParticipants: If fewer than the threshold are left.
            ProtocolViolation: If shares are wrong: the sum cannot be unmasked.
        """
        self._receive(answers, UnmaskShares, self._server.receive_unmask_shares)
        found = self._server.secure_sum()
        for number, phase in found.lost.items():
            self.left_out.setdefault(number, f"it was lost in the phase {phase.value!r}")
        for number in found.contributors:  # one that is lost while unmasking contributed before
            self.left_out.pop(number, None)
        flat = self.noisy_sum.decode(found.total) / self.settings.participants
        self._end_round(_by_parameter(flat, self.weights))
        return found.contributors

    def abandon(self, reason: str) -> None:
        """End a round that cannot be unmasked; the model stays as it was.

        Args:
            reason: Why, for the participants that are not named yet.
        """
        for number in range(self.settings.participants):
            self.left_out.setdefault(number, reason)
        self._end_round({})

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

    def _receive(
        self, answers: Mapping[int, bytes], kind: type[_Kind], receive: Callable[[_Kind], None]
    ) -> None:
        """Pass on the answers of a phase; leave out by name who sent a bad one."""
        for number in sorted(answers):
            try:
                message = decode_message(answers[number], kind, self._parameters)
                if message.sender != number:
                    raise ProtocolViolation(f"it sent a message of participant {message.sender}")
                receive(message)
            except (ProtocolViolation, ReplayedRound) as error:
                self.left_out[number] = str(error)

    def _end_round(self, average: Update) -> None:
        self._run.end_round(
            average,
            self.settings.learning_rate,
            self.left_out,
            denominator=float(self.settings.participants),
            clip_norm=self.settings.clip_norm,
        )


def _budget(settings: SecureServerSettings) -> PrivacyBudget | None:
    """Return the budget of the ledger; None if there is none."""
    if settings.max_epsilon is None:
        return None
    return PrivacyBudget(settings.max_epsilon, settings.delta)


def _dimension(weights: Mapping[str, NDArray[Any]]) -> int:
    """Return the number of coordinates of a model."""
    dimension = sum(part.size for part in weights.values())
    if dimension < 1:
        raise InvalidArgument("initial", "no coordinate", "at least one array of float32 by name")
    return dimension


def _encoded(messages: Mapping[int, Message]) -> dict[int, bytes]:
    return {number: encode_message(one) for number, one in messages.items()}


def _by_parameter(flat: NDArray[np.float64], weights: Update) -> Update:
    """Return a flat vector as one array per parameter."""
    found, start = {}, 0
    for name, part in weights.items():
        own = flat[start : start + part.size].reshape(part.shape)
        found[name], start = own.astype(np.float32), start + part.size
    return found


def _header(settings: SecureServerSettings, noisy_sum: NoisySum) -> LedgerHeader:
    """Return the header of a new ledger."""
    threat_model = noisy_sum.threat_model
    return LedgerHeader(
        adjacency=Adjacency.ZERO_OUT,
        sampling=Sampling.FULL_BATCH,
        randomness=Randomness.SECURE,  # each participant draws a fresh key of its own system
        schedule_fixed_in_advance=True,
        clip_norm=settings.clip_norm,
        versions=library_versions(),
        run=os.urandom(16).hex(),
        unaccounted=settings.unaccounted,
        assumed_public=(*ASSUMED_PUBLIC, *threat_model.assumptions),
        unit=Unit.PARTICIPANT,
        federation=FederationHeader(
            STRATEGY,
            settings.participants,
            threat_model.protects_against,
            threat_model=threat_model,
        ),
    )
