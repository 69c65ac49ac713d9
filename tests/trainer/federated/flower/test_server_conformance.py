"""The server of our Flower strategy conforms: also over a restart, with its ledger on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from dpaudit.attacks.conformance.federated.malformed_updates import check_malformed_updates
from dpaudit.attacks.conformance.federated.server_noise import (
    check_global_generators,
    check_restart,
)
from dpaudit.attacks.conformance.federated.server_protocol import MakeServer, Update
from dpaudit.trainer.federated.aggregation import ParticipantClipping
from dpaudit.trainer.federated.conformance_servers import AggregationServerFactory
from dpaudit.trainer.federated.flower.server import ParticipantServer, ServerSettings
from dpaudit.vocabulary.verdict import Outcome

CLIPPING = ParticipantClipping(0.5, 1.5, participation_rate=0.5, participants=4)
REFERENCE = {"w": np.zeros((8, 5), np.float32), "b": np.zeros(8, np.float32)}
CLAIM = AggregationServerFactory(CLIPPING, REFERENCE).claim(rounds=8)


class ServerInFolder:
    """A ``ParticipantServer``, which a restart opens again from its run directory."""

    participants, reference = CLIPPING.participants, REFERENCE

    def __init__(self, out: Path, seed: int, opened: ExitStack) -> None:
        self._out, self._seed, self._opened = out, seed, opened
        settings = ServerSettings(CLIPPING, delta=1e-5, seed=seed)
        self._server = ParticipantServer.open(out, settings, REFERENCE)
        opened.callback(self._server.close)
        self.rejected: Mapping[int, str] = {}

    @property
    def releases(self) -> int:
        return self._server.releases

    def draw(self) -> Sequence[int]:
        return self._server.draw()

    def aggregate(self, updates: Mapping[int, Update], expected: Sequence[int]) -> Update:
        result = self._server.aggregate(updates, expected)
        self.rejected = result.rejected
        return result.average

    def resumed(self) -> ServerInFolder:
        self._server.close()
        return ServerInFolder(self._out, self._seed, self._opened)


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    numbers = count()
    with ExitStack() as opened:
        yield lambda seed: ServerInFolder(tmp_path / str(next(numbers)), seed, opened)


def test_restart_keeps_releases_and_reuses_no_noise(make_server: MakeServer) -> None:
    found = check_restart(make_server, CLAIM, seed=1)
    assert {one.name: one.outcome for one in found} == {
        "resume": Outcome.PASS,
        "recorded releases": Outcome.PASS,
    }, found


def test_malformed_and_zero_updates_leave_the_round_whole(make_server: MakeServer) -> None:
    found = check_malformed_updates(make_server, CLAIM, seed=1)
    assert [one.outcome for one in found] == [Outcome.PASS, Outcome.PASS], found


def test_noise_does_not_come_from_a_global_generator(make_server: MakeServer) -> None:
    (found,) = check_global_generators(make_server, CLAIM, seed=1)
    assert found.outcome is Outcome.PASS, found
