"""Flower's real strategies: conformance finds the faults of their privacy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'dpaudit[federated]'")

from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import NeighboringRelation, PrivacyConfig, SamplingMethod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from dpaudit.attacks.conformance import Effort
from dpaudit.attacks.conformance.federated import check_server
from dpaudit.attacks.conformance.federated.flower_strategies import FlowerStrategyFactory
from dpaudit.attacks.conformance.federated.malformed_updates import check_malformed_updates
from dpaudit.attacks.conformance.federated.planted_updates import check_planted_updates
from dpaudit.attacks.conformance.federated.server_noise import (
    check_global_generators,
    check_restart,
    check_server_noise,
    record_server_noise,
)
from dpaudit.trainer.federated.flower import LedgerAccountant
from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.verdict import Outcome

CLIENTS, NOISE, CLIP_NORM = 4, 1.0, 0.1
EFFORT = Effort(noise_samples=4_000)
REFERENCE = {"w": np.zeros((6, 5), np.float32), "b": np.zeros(6, np.float32)}


def average() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)


def server_side(accountant: Any = None) -> Any:
    return DifferentialPrivacyServerSideFixedClipping(
        average(), NOISE, CLIP_NORM, CLIENTS, accountant=accountant
    )


def client_side() -> Any:
    return DifferentialPrivacyClientSideFixedClipping(average(), NOISE, CLIP_NORM, CLIENTS)


def factory(make_strategy: Any, mods: Sequence[Any] = ()) -> FlowerStrategyFactory:
    return FlowerStrategyFactory(make_strategy, REFERENCE, CLIENTS, NOISE, CLIP_NORM, mods)


SERVER_SIDE = factory(server_side)
CLIENT_SIDE = factory(client_side, (fixedclipping_mod,))
CLAIM = SERVER_SIDE.claim(rounds=2)


def finding(findings: Sequence[ConformanceFinding], name: str) -> ConformanceFinding:
    return next(one for one in findings if one.name == name)


@pytest.mark.parametrize("tested", [SERVER_SIDE, CLIENT_SIDE], ids=["server", "client"])
def test_noise_is_too_small_after_a_dropout(tested: FlowerStrategyFactory) -> None:
    found = check_planted_updates(tested, CLAIM, seed=1)
    assert finding(found, "planted updates").outcome is Outcome.PASS
    dropouts = finding(found, "planted updates after dropouts")
    assert dropouts.outcome is Outcome.FAIL
    assert "divided by the number of replies: this needs 4 times the noise" in dropouts.why
    assert finding(found, "absent participants").outcome is Outcome.FAIL


def test_noise_has_the_deviation_of_all_clients_however_many_reply() -> None:
    found = check_server_noise(record_server_noise(SERVER_SIDE, CLAIM, EFFORT, 1), CLAIM)
    by_replies = finding(found, "scale by number of replies")
    assert by_replies.outcome is Outcome.PASS
    assert "nothing was released where every reply is lost" in by_replies.tested


def test_update_of_zero_ends_the_round() -> None:
    zero = finding(check_malformed_updates(SERVER_SIDE, CLAIM, 1), "zero updates")
    assert zero.outcome is Outcome.FAIL
    assert "ZeroDivisionError" in zero.why


def test_nan_reaches_the_global_model() -> None:
    malformed = finding(check_malformed_updates(SERVER_SIDE, CLAIM, 1), "malformed updates")
    assert malformed.outcome is Outcome.FAIL
    assert "a NaN: it makes the noisy sum NaN or infinite" in malformed.why


def test_noise_comes_from_a_global_generator() -> None:
    (found,) = check_global_generators(SERVER_SIDE, CLAIM, 1)
    assert found.outcome is Outcome.FAIL
    assert "noise is reused" in found.why


class ForgetfulAccountant:
    """An accountant whose state nobody saves, as Flower's own is used."""

    def __init__(self) -> None:
        self.config = PrivacyConfig(
            1e-5, CLIENTS, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
        )
        self.num_releases = 0

    def compose(self, event: Any, count: int = 1) -> None:
        self.num_releases += count

    def get_privacy_spent(self, delta: float | None = None) -> Any:
        return type("Spent", (), {"epsilon": 1.0, "delta": 1e-5, "num_releases": 1})()


def test_state_is_lost_on_a_restart() -> None:
    tested = factory(lambda: server_side(ForgetfulAccountant()))
    lost = finding(check_restart(tested, CLAIM, 1), "recorded releases")
    assert lost.outcome is Outcome.FAIL
    assert "4 releases are recorded before a restart, and 0 after it" in lost.why


def test_ledger_keeps_the_releases_over_a_restart(tmp_path: Path) -> None:
    config = ForgetfulAccountant().config
    opened: list[LedgerAccountant] = []

    def restarted() -> Any:
        if opened:
            opened[-1].close()
        opened.append(LedgerAccountant(config, tmp_path / "run", clip_norm=CLIP_NORM))
        return server_side(opened[-1])

    kept = finding(check_restart(factory(restarted), CLAIM, 1), "recorded releases")
    opened[-1].close()
    assert kept.outcome is Outcome.PASS, kept.why


def test_nothing_is_released_after_a_dropout_with_an_accountant() -> None:
    tested = factory(lambda: server_side(ForgetfulAccountant()))
    found = check_planted_updates(tested, CLAIM, seed=1)
    assert finding(found, "planted updates").outcome is Outcome.PASS
    dropouts = finding(found, "planted updates after dropouts")
    assert dropouts.outcome is Outcome.PASS
    assert "nothing is released" in dropouts.why


@pytest.mark.slow
@pytest.mark.parametrize("tested", [SERVER_SIDE, CLIENT_SIDE], ids=["server", "client"])
def test_whole_check_fails(tested: FlowerStrategyFactory) -> None:
    result = check_server(tested, tested.claim(rounds=8), effort=EFFORT)
    failed = {(one.check, one.name) for one in result.violations}
    assert failed >= {
        ("replay", "planted updates after dropouts"),
        ("replay", "absent participants"),
        ("replay", "malformed updates"),
        ("correlation", "global generators"),
        ("correlation", "resume"),
    }
