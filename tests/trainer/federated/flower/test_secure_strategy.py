"""Secure aggregation over Flower's messages: the sum, who is lost, and what the server sees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'dpaudit[federated]'")

from flower_grid import Hook, InProcessGrid, as_server_app, everything_arrives
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.flower import (
    SecureDPFedAvg,
    SecureServerSettings,
    join_secure_sum,
)
from dpaudit.trainer.federated.flower.secure_client import ACTIONS, ENVELOPE, MESSAGE, STATE
from dpaudit.trainer.federated.flower.secure_server import SecureServer
from dpaudit.trainer.federated.secure_aggregation.messages import Phase
from dpaudit.trainer.federated.updates import Update
from dpaudit.vocabulary.errors import TooFewParticipants
from dpaudit.vocabulary.federation import SecureAggregationSettings
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit
from dpaudit.workflow.account import epsilon_answers, request_for_run

PARAMETERS, PARTICIPANTS = 300, 5
SETTINGS = SecureServerSettings(
    SecureAggregationSettings(dropouts=2, colluders=1),
    PARTICIPANTS,
    clip_norm=1.0,
    noise_multiplier=0.001,
    delta=1e-5,
)
LARGEST_ERROR = 10 * 0.001 * (5 / 2) ** 0.5 / PARTICIPANTS
"""Ten standard deviations of the noise of five shares, of which two have the accounted noise."""


@pytest.fixture(autouse=True)
def _server_app() -> Iterator[None]:
    with as_server_app():
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def step_of(number: int) -> float:
    return 0.01 * (1 + number)  # of norm at most 0.05 * sqrt(300) = 0.87: nothing is clipped


def moved(weights: Update, message: Message, context: Context) -> Update:
    step = np.float32(step_of(int(str(context.node_config["partition-id"]))))
    return {name: part + step for name, part in weights.items()}


def grid_of(
    hook: Hook = everything_arrives,
    settings: SecureServerSettings = SETTINGS,
    train: Callable[[Update, Message, Context], Update] = moved,
) -> InProcessGrid:
    return InProcessGrid(join_secure_sum(ClientApp(), settings, train), PARTICIPANTS, hook)


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros((PARAMETERS // 2, 2), np.float32))})


def strategy(out: Path, settings: SecureServerSettings = SETTINGS) -> SecureDPFedAvg:
    return SecureDPFedAvg(settings, out, node_timeout=0.5)


def expected(*rounds: set[int]) -> float:
    return sum(step_of(number) for one in rounds for number in one) / PARTICIPANTS


def weights(record: ArrayRecord) -> Any:
    return record["w"].numpy()


EVERYONE = set(range(PARTICIPANTS))


def test_the_model_moves_by_the_average_and_the_noise_is_in_it(out: Path) -> None:
    one = strategy(out)
    result = one.start(grid_of(), initial(), 2)
    found = weights(result.arrays)
    assert np.abs(found - expected(EVERYONE, EVERYONE)).max() < 2 * LARGEST_ERROR
    # At least the noise of the honest survivors: the bound is 12 standard errors below it.
    assert found.std() > 0.5 * 0.001 * 2**0.5 / PARTICIPANTS
    assert one.run is not None
    ledger = one.run.read_finished()
    assert [release.step for release in ledger.releases] == [0, 0, 1, 1]
    assert [release.rejected for release in ledger.rounds] == [{}, {}]


def test_the_ledger_names_the_threat_model_and_costs_what_it_claims(out: Path) -> None:
    settings = replace(SETTINGS, noise_multiplier=2.0)
    one = strategy(out, settings)
    result = one.start(grid_of(settings=settings), initial(), 3)
    assert one.run is not None
    header = one.run.read_finished().header
    assert (header.unit, header.adjacency) == (Unit.PARTICIPANT, Adjacency.ZERO_OUT)
    assert header.randomness is Randomness.SECURE
    assert header.federation is not None
    assert "server" in header.federation.protects_against
    assert header.federation.threat_model is not None
    assert header.federation.threat_model.honest_shares == 2
    assert any("different dropouts" in told for told in header.assumed_public)
    (answer,) = epsilon_answers(request_for_run(out, None), "pld")
    # Rounding enlarges the sensitivity: slightly above the Gaussian mechanism's 3.7086349.
    assert 3.7086 < answer.epsilon.upper < 3.72
    assert result.train_metrics_clientapp[3]["epsilon"] == answer.epsilon.upper


PHASES = {action: phase for phase, action in ACTIONS.items()}


def losing(phase: Phase, *lost: int) -> Hook:
    def hook(reply: Message, partition: int) -> Message | None:
        at = PHASES.get(reply.metadata.message_type)
        return None if at is phase and partition in lost else reply

    return hook


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("lost", [(4,), (1, 3)])
def test_lost_clients_cost_their_own_updates_only(
    out: Path, phase: Phase, lost: tuple[int, ...]
) -> None:
    one = strategy(out)
    result = one.start(grid_of(losing(phase, *lost)), initial(), 1)
    # Who is lost while unmasking has sent its input before.
    left = EVERYONE if phase is Phase.UNMASKING else EVERYONE - set(lost)
    assert np.abs(weights(result.arrays) - expected(left)).max() < LARGEST_ERROR
    assert one.run is not None
    (told,) = one.run.read_finished().rounds
    assert set(told.rejected) == {f"{number:03}" for number in EVERYONE - left}
    assert all(phase.value in reason for reason in told.rejected.values())


@pytest.mark.parametrize("phase", list(Phase))
def test_more_lost_clients_than_allowed_end_the_round_without_a_sum(
    out: Path, phase: Phase
) -> None:
    hook = losing(phase, 0, 1, 2)

    def once(reply: Message, partition: int) -> Message | None:
        return hook(reply, partition) if not done else reply

    done: list[int] = []
    one, grid = strategy(out), grid_of(once)
    one.begin(initial())

    def run_round(number: int) -> Any:
        messages = one.configure_train(number, one.arrays, ConfigRecord(), grid)
        return one.aggregate_train(number, grid.send_and_receive(messages))[0]

    run_round(1)
    assert not weights(one.arrays).any()
    ledger = RunDirectory(out).read_unfinished()
    # Before the third message nothing was asked for that holds data or noise.
    asked = phase in {Phase.MASKED_INPUT, Phase.UNMASKING}
    assert len(ledger.releases) == (2 if asked else 0)
    assert all("at least 3" in reason for reason in ledger.rounds[0].rejected.values())
    done.append(1)
    assert np.abs(weights(run_round(2)) - expected(EVERYONE)).max() < LARGEST_ERROR
    one.close()


def test_the_server_gets_no_update_in_the_clear(out: Path) -> None:
    replies: list[tuple[int, Message]] = []

    def watched(reply: Message, partition: int) -> Message:
        replies.append((partition, reply))
        return reply

    strategy(out).start(grid_of(watched), initial(), 1)
    masked = {}
    for partition, reply in replies:
        assert not reply.content.array_records
        assert not reply.content.metric_records
        if PHASES.get(reply.metadata.message_type) is Phase.MASKED_INPUT:
            masked[partition] = bytes(reply.content.config_records[ENVELOPE][MESSAGE])  # type: ignore[arg-type]
    assert set(masked) == EVERYONE
    # An update in the clear is one number 300 times, with noise that changes its two low bytes.
    # Under masks all 256 values of a byte are equally likely: of 300 draws, about 177 values are
    # expected, and 120 or less happen less than once in 1e20.
    for data in masked.values():
        words = np.frombuffer(data[-4 * PARAMETERS :], dtype=np.uint8).reshape(-1, 4)
        assert all(len(set(words[:, byte].tolist())) > 120 for byte in range(4))
    assert len({data[-4 * PARAMETERS :] for data in masked.values()}) == PARTICIPANTS


def test_the_state_of_a_node_has_no_key_after_a_round(out: Path) -> None:
    grid = grid_of()
    strategy(out).start(grid, initial(), 1)
    for context in grid.contexts.values():
        assert set(context.state.config_records[STATE]) == {"round", "answered"}


def altered(kind: str) -> Hook:
    def hook(reply: Message, partition: int) -> Message | None:
        phase = PHASES.get(reply.metadata.message_type)
        if partition != 2 or phase is not Phase.MASKED_INPUT or not reply.has_content():
            return reply
        record = reply.content.config_records[ENVELOPE]
        data = bytes(record[MESSAGE])  # type: ignore[arg-type]
        match kind:
            case "cut":
                record[MESSAGE] = data[:-1]
            case "oversized":
                record[MESSAGE] = data + bytes(10**6)
            case "garbage":
                record[MESSAGE] = b"garbage"
            case "text":
                record[MESSAGE] = "text"
            case "empty":
                reply.content = RecordDict()
        return reply

    return hook


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("cut", "is no MaskedInput"),
        ("oversized", "more than the"),
        ("garbage", "is no MaskedInput"),
        ("text", "holds no message"),
        ("empty", "holds no message"),
    ],
)
def test_a_bad_message_is_named_and_costs_that_client_only(
    out: Path, kind: str, named: str
) -> None:
    one = strategy(out)
    result = one.start(grid_of(altered(kind)), initial(), 1)
    assert np.abs(weights(result.arrays) - expected(EVERYONE - {2})).max() < LARGEST_ERROR
    (told,) = one.run.read_finished().rounds  # type: ignore[union-attr]
    assert list(told.rejected) == ["002"]
    assert named in told.rejected["002"]


def test_a_client_with_nan_or_an_error_sends_nothing(out: Path) -> None:
    def broken(own: Update, message: Message, context: Context) -> Update:
        match context.node_config["partition-id"]:
            case 0:
                return {"w": np.full_like(own["w"], np.nan)}
            case 1:
                raise RuntimeError("secret")
        return moved(own, message, context)

    one = strategy(out)
    result = one.start(grid_of(train=broken), initial(), 1)
    assert np.abs(weights(result.arrays) - expected({2, 3, 4})).max() < LARGEST_ERROR
    (told,) = one.run.read_finished().rounds  # type: ignore[union-attr]
    assert told.rejected == dict.fromkeys(("000", "001"), "its client app failed")


def test_an_update_is_clipped_by_its_client(out: Path) -> None:
    def large(own: Update, message: Message, context: Context) -> Update:
        far = context.node_config["partition-id"] == 3
        return {name: part + np.float32(100 if far else 0) for name, part in own.items()}

    result = strategy(out).start(grid_of(train=large), initial(), 1)
    norm = float(np.linalg.norm(weights(result.arrays))) * PARTICIPANTS
    assert norm == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.002},
        {"clip_norm": 2.0},
        {"secure": SecureAggregationSettings(dropouts=2, colluders=1, modulus_bits=40)},
        {"secure": SecureAggregationSettings(dropouts=1, colluders=1)},
    ],
)
def test_clients_of_other_settings_than_the_servers_send_nothing(
    out: Path, change: dict[str, Any]
) -> None:
    one, grid = strategy(out), grid_of(settings=replace(SETTINGS, **change))
    one.start(grid, initial(), 1)
    assert one.run is None
    assert RunDirectory(out).read_unfinished().releases == ()
    for context in grid.contexts.values():
        assert not context.state.config_records.get(STATE)


def test_the_budget_ends_the_run(out: Path) -> None:
    settings = replace(SETTINGS, noise_multiplier=2.0, max_epsilon=3.0)
    one = strategy(out, settings)
    result = one.start(grid_of(settings=settings), initial(), 10)
    assert list(result.train_metrics_clientapp) == [1, 2]
    assert one.run is not None
    assert len(one.run.read_finished().releases) == 4


class _Killed(BaseException):
    """The end of the ServerApp."""


def test_a_restarted_server_continues_with_new_keys_and_a_new_session(out: Path) -> None:
    def killed(reply: Message, partition: int) -> Message | None:
        if killing and PHASES.get(reply.metadata.message_type) is Phase.UNMASKING and rounds:
            raise _Killed
        if PHASES.get(reply.metadata.message_type) is Phase.UNMASKING and partition == 0:
            rounds.append(1)
        return reply

    rounds: list[int] = []
    killing = [1]
    grid = grid_of(killed)
    with pytest.raises(_Killed):
        strategy(out).start(grid, initial(), 4)
    killing.clear()
    one = strategy(out)
    result = one.start(grid, initial(), 4)
    ledger = one.run.read_finished()  # type: ignore[union-attr]
    assert [release.step for release in ledger.releases] == [0, 0, 1, 1, 2, 2, 3, 3]
    # Round 1 was recorded and lost: its number is used up.
    three = expected(EVERYONE, EVERYONE, EVERYONE)
    assert np.abs(weights(result.arrays) - three).max() < 3 * LARGEST_ERROR


def test_a_restarted_server_does_not_repeat_a_round_that_was_abandoned(out: Path) -> None:
    model = {"w": np.zeros((PARAMETERS // 2, 2), np.float32)}
    server = SecureServer.open(out, SETTINGS, model)
    server.invite(EVERYONE)
    with pytest.raises(TooFewParticipants):
        server.receive_keys({})
    server.abandon("too few")
    server.close()
    again = SecureServer.open(out, SETTINGS, model)
    # Participants refuse a number that they have seen, so that no mask is used twice.
    assert (again.next_round, again.releases) == (1, 0)
    again.close()


def test_a_secure_client_imports_no_accountant(tmp_path: Path) -> None:
    """Flower starts a process of the client app for each message."""
    code = (
        "import sys\n"
        "from dpaudit.trainer.federated.flower import SecureServerSettings, join_secure_sum\n"
        "slow = {'dpaudit.accountants', 'dpaudit.runs', 'scipy.special', 'torch'}\n"
        "found = slow & sys.modules.keys()\n"
        "raise SystemExit(str(found) if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
