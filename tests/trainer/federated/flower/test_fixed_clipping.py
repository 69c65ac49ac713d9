"""Flower's own fixed-clipping strategies with our accountant, from the first round to the claim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'dpaudit[federated]'")

from flower_grid import Hook, InProcessGrid, as_server_app, everything_arrives
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyAccountant,
    PrivacyConfig,
    SamplingMethod,
)
from flwr.serverapp.exception import PrivacyBudgetExhausted
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Result,
)

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.flower import LedgerAccountant
from dpaudit.workflow.account import epsilon_answers, request_for_run

SPENT = (1.993091, 2.943225, 3.7086349)
STRATEGIES = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyClientSideFixedClipping,
)
Wrapper = (
    type[DifferentialPrivacyServerSideFixedClipping]
    | type[DifferentialPrivacyClientSideFixedClipping]
)


@pytest.fixture(autouse=True)
def _server_app() -> Iterator[None]:
    with as_server_app():
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def config(max_epsilon: float | None = None) -> PrivacyConfig:
    return PrivacyConfig(
        1e-5,
        4,
        NeighboringRelation.ADD_OR_REMOVE_ONE,
        SamplingMethod.NO_AMPLIFICATION,
        max_epsilon,
    )


def app(clips: bool) -> ClientApp:
    made = ClientApp(mods=[fixedclipping_mod] if clips else [])

    @made.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        trained = ArrayRecord(
            {name: Array(one.numpy() + np.float32(0.01)) for name, one in arrays.items()}
        )
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)

    return made


def run(
    accountant: PrivacyAccountant, wrapper: Wrapper, rounds: int = 3, hook: Hook | None = None
) -> Result:
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=4, min_available_nodes=4)
    strategy = wrapper(inner, 2.0, 0.1, 4, accountant=accountant)
    clips = wrapper is DifferentialPrivacyClientSideFixedClipping
    grid = InProcessGrid(app(clips), 4, hook or everything_arrives)
    initial = ArrayRecord({"w": Array(np.zeros(50, np.float32))})
    return strategy.start(grid, initial, rounds)


@pytest.mark.parametrize("wrapper", STRATEGIES)
def test_three_rounds_cost_what_their_ledger_claims(out: Path, wrapper: Wrapper) -> None:
    accountant: PrivacyAccountant = LedgerAccountant(config(), out, clip_norm=0.1)
    result = run(accountant, wrapper)
    assert np.abs(result.arrays["w"].numpy()).max() > 0
    assert accountant.get_privacy_spent().epsilon == pytest.approx(SPENT[2], abs=5e-7)
    assert isinstance(accountant, LedgerAccountant)
    accountant.finish()
    (answer,) = epsilon_answers(request_for_run(out, None), "pld")
    assert answer.epsilon.upper == accountant.get_privacy_spent().epsilon
    assert len(RunDirectory(out).read_finished().releases) == 3


@pytest.mark.parametrize("wrapper", STRATEGIES)
def test_flower_stops_at_the_budget_and_the_ledger_stays_within_it(
    out: Path, wrapper: Wrapper
) -> None:
    accountant = LedgerAccountant(config(max_epsilon=3.0), out, clip_norm=0.1)
    with pytest.raises(PrivacyBudgetExhausted):
        run(accountant, wrapper)
    assert accountant.num_releases == 2
    assert accountant.get_privacy_spent().epsilon == pytest.approx(SPENT[1], abs=5e-7)
    accountant.close()


def test_a_round_that_flower_skips_is_not_recorded(out: Path) -> None:
    def lost(reply: Message, partition: int) -> Message | None:
        return None if partition == 2 else reply

    accountant = LedgerAccountant(config(), out, clip_norm=0.1)
    run(accountant, STRATEGIES[0], rounds=2, hook=lost)
    assert accountant.num_releases == 0  # with an accountant, Flower releases full rounds alone
    accountant.close()


def test_a_restarted_server_app_goes_on_from_its_ledger(out: Path) -> None:
    for total in (2, 3):
        accountant = LedgerAccountant(config(max_epsilon=3.8), out, clip_norm=0.1)
        run(accountant, STRATEGIES[0], rounds=total - accountant.num_releases)
        assert accountant.get_privacy_spent().epsilon == pytest.approx(SPENT[total - 1], abs=5e-7)
        accountant.close()


def test_flowers_types_are_understood_and_its_protocol_is_complete(out: Path) -> None:
    accountant: PrivacyAccountant = LedgerAccountant(config(), out, clip_norm=0.1)
    event = GaussianPrivacyEvent(noise_multiplier=2.0, sample_size=4, population_size=4)
    accountant.compose(event, count=2)
    state = accountant.state_dict()
    accountant.load_state_dict(state)
    assert accountant.num_releases == 2
    assert accountant.would_exceed(event, max_epsilon=3.7)
    assert accountant.get_delta(accountant.get_epsilon(1e-5)) == pytest.approx(1e-5, rel=1e-6)
    protocol = {name for name in vars(PrivacyAccountant) if not name.startswith("_")}
    assert {name for name in protocol if not hasattr(LedgerAccountant, name)} == set()
    assert isinstance(accountant, LedgerAccountant)
    accountant.close()
