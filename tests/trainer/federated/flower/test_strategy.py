"""DP-FedAvg on a grid in this process: drawn, lost, failed and malicious clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'dpaudit[federated]'")

from flower_grid import InProcessGrid, as_server_app, config_of
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.aggregation import ParticipantClipping
from dpaudit.trainer.federated.flower import DPFedAvg, ServerSettings, answer_participant
from dpaudit.trainer.federated.flower.client import ACTION, NUMBER, RECORD
from dpaudit.trainer.federated.flower.server import ParticipantServer
from dpaudit.vocabulary.errors import InvalidArgument, RunExists

CLIPPING = ParticipantClipping(1.0, 2.0, participation_rate=1.0, participants=4)
SETTINGS = ServerSettings(CLIPPING, delta=1e-5, seed=5)
PARAMETERS = 200


@pytest.fixture(autouse=True)
def _server_app() -> Iterator[None]:
    with as_server_app():
        yield


def moved(message: Message, context: Context) -> Message:
    """Return the model moved by an amount that depends on the partition."""
    step = np.float32(0.01 * (1 + int(str(context.node_config["partition-id"]))))
    arrays = message.content.array_records["arrays"]
    trained = ArrayRecord({name: Array(one.numpy() + step) for name, one in arrays.items()})
    return Message(RecordDict({"arrays": trained}), reply_to=message)


def app_of(train: Callable[[Message, Context], Message] = moved) -> ClientApp:
    app = answer_participant(ClientApp())
    app.train()(train)
    return app


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(PARAMETERS, np.float32))})


def strategy(out: Path, settings: ServerSettings = SETTINGS) -> DPFedAvg:
    return DPFedAvg(settings, out, node_timeout=0.5)


def weights(record: ArrayRecord) -> Any:
    return record["w"].numpy()


def last_rejected(out: Path) -> dict[str, str]:
    return RunDirectory(out).read_unfinished().rounds[-1].rejected


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_three_rounds_end_with_a_finished_run(out: Path) -> None:
    grid = InProcessGrid(app_of(), 4)
    one = strategy(out)
    result = one.start(grid, initial())
    assert one.run is not None
    ledger = one.run.read_finished()
    assert [release.step for release in ledger.releases] == [0, 1, 2]
    spent = [result.train_metrics_clientapp[number]["epsilon"] for number in (1, 2, 3)]
    assert spent == pytest.approx([1.993091, 2.943225, 3.7086349], abs=5e-7)
    assert ledger.rounds[-1].rejected == {}
    rounds = [config_of(one)["server-round"] for one in grid.sent if one.content.config_records]
    assert rounds == [number for number in (1, 2, 3) for _ in range(4)]


def test_the_model_depends_on_neither_node_identifiers_nor_order(tmp_path: Path) -> None:
    found = []
    for name, ids in (("a", (11, 12, 13, 14)), ("b", (40, 7, 99, 3))):
        grid = InProcessGrid(app_of(), 4, node_ids=ids)
        found.append(weights(strategy(tmp_path / name).start(grid, initial()).arrays))
    assert np.array_equal(*found)


def test_the_strategy_gives_what_its_server_gives(tmp_path: Path) -> None:
    result = strategy(tmp_path / "flower").start(InProcessGrid(app_of(), 4), initial(), 2)
    server = ParticipantServer.open(
        tmp_path / "plain", SETTINGS, {"w": np.zeros(PARAMETERS, np.float32)}
    )
    for _ in range(2):
        before = server.weights["w"]
        updates = {
            number: {"w": (before + np.float32(0.01 * (1 + number))) - before}
            for number in range(4)
        }
        server.aggregate(updates, server.draw())
    server.close()
    assert np.array_equal(weights(result.arrays), server.weights["w"])


def test_a_client_killed_in_mid_round_costs_that_client_only(tmp_path: Path) -> None:
    def killed(reply: Message, partition: int) -> Message | None:
        lost = partition == 2 and reply.metadata.group_id == "2"
        return None if lost else reply

    def reference(reply: Message, partition: int) -> Message | None:
        return reply

    grids = {"killed": killed, "whole": reference}
    found = {}
    for name, hook in grids.items():
        one = strategy(tmp_path / name)
        result = one.start(InProcessGrid(app_of(), 4, hook), initial())
        found[name] = weights(result.arrays)
        assert one.run is not None
        ledger = one.run.read_finished()
        assert [release.step for release in ledger.releases] == [0, 1, 2]
        told = [round_.rejected for round_ in ledger.rounds]
        lost = {"002": "it sent no reply in time"} if name == "killed" else {}
        assert told == [{}, lost, {}]
    # Its update of 0.03 (norm 0.42, below the clip norm) is missing once; denominator and noise
    # are the same.
    assert found["whole"] - found["killed"] == pytest.approx(
        np.full(PARAMETERS, 0.03 / 4), abs=1e-6
    )


def broken(kind: str) -> Callable[[Message, Context], Message]:
    def train(message: Message, context: Context) -> Message:
        reply = moved(message, context)
        if context.node_config["partition-id"] != 1:
            return reply
        content: RecordDict = reply.content
        match kind:
            case "raises":
                raise RuntimeError("secret 123")
            case "NaN":
                content["arrays"] = ArrayRecord(
                    {"w": Array(np.full(PARAMETERS, np.nan, np.float32))}
                )
            case "shape":
                content["arrays"] = ArrayRecord({"w": Array(np.zeros((2, 2), np.float32))})
            case "oversized":
                content["arrays"] = ArrayRecord({"w": Array(np.zeros(10**6, np.float32))})
            case "float64":
                content["arrays"] = ArrayRecord({"w": Array(np.zeros(PARAMETERS - 1))})
            case "malformed":
                record = content.array_records["arrays"]
                record["w"] = Array("float32", (PARAMETERS,), "numpy.ndarray", b"no array")
            case "renamed":
                record = content.array_records["arrays"]
                content["arrays"] = ArrayRecord({"v": record["w"]})
            case "no arrays":
                return Message(RecordDict(), reply_to=message)
            case "two records":
                content["more"] = content.array_records["arrays"]
        return reply

    return train


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("raises", "its client app failed"),
        ("NaN", "w holds NaN or infinity"),
        ("shape", "w has shape (2, 2)"),
        ("oversized", "w is oversized"),
        ("float64", "float64"),
        ("malformed", "w has a broken header"),
        ("renamed", "'v', which is no parameter"),
        ("no arrays", "not exactly one record"),
        ("two records", "not exactly one record"),
    ],
)
def test_a_bad_reply_is_named_left_out_and_the_round_ends(out: Path, kind: str, named: str) -> None:
    one = strategy(out)
    result = one.start(InProcessGrid(app_of(broken(kind)), 4), initial(), 1)
    (told,) = one.run.read_finished().rounds  # type: ignore[union-attr]
    assert list(told.rejected) == ["001"]
    assert named in told.rejected["001"]
    assert "secret" not in told.rejected["001"]  # no text of a client is recorded
    kept = strategy(out.with_name("kept"))

    def lost(reply: Message, partition: int) -> Message | None:
        return None if partition == 1 and reply.metadata.message_type == "train" else reply

    others = kept.start(InProcessGrid(app_of(), 4, lost), initial(), 1)
    assert np.array_equal(weights(result.arrays), weights(others.arrays))


def test_two_replies_of_one_client_are_left_out(out: Path) -> None:
    one = strategy(out)
    grid = InProcessGrid(app_of(), 4)
    one.begin(initial())
    messages = list(one.configure_train(1, one.arrays, ConfigRecord(), grid))
    replies = list(grid.send_and_receive([*messages, messages[3]]))
    one.aggregate_train(1, replies)
    assert last_rejected(out) == {"003": "it sent two replies"}
    one.close()


def test_a_reply_of_a_node_that_was_not_asked_is_ignored(out: Path) -> None:
    settings = replace(SETTINGS, clipping=replace(CLIPPING, participation_rate=0.5))
    grid, one = InProcessGrid(app_of(), 4), strategy(out, settings)
    one.begin(initial())
    messages = list(one.configure_train(1, one.arrays, ConfigRecord(), grid))
    assert 0 < len(messages) < 4  # by the seed
    asked = {message.metadata.dst_node_id for message in messages}
    other = next(node for node in grid.contexts if node not in asked)
    uninvited = Message(messages[0].content, dst_node_id=other, message_type="train")
    replies = list(grid.send_and_receive([*messages, uninvited]))
    assert len(replies) == len(messages) + 1
    one.aggregate_train(1, replies)
    assert last_rejected(out) == {}
    one.close()


def test_metrics_and_evaluations_of_clients_are_not_used(out: Path) -> None:
    def with_metrics(message: Message, context: Context) -> Message:
        reply = moved(message, context)
        reply.content["metrics"] = MetricRecord({"loss": 0.25, "num-examples": 3})
        return reply

    seen = []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append((number, weights(arrays).copy()))
        return MetricRecord({"number": number})

    one = strategy(out)
    grid = InProcessGrid(app_of(with_metrics), 4)
    result = one.start(grid, initial(), 2, evaluate_fn=evaluate)
    assert all(
        set(found) == {"epsilon", "delta", "clip-norm"}
        for found in result.train_metrics_clientapp.values()
    )
    assert result.evaluate_metrics_clientapp == {}
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert [number for number, _ in seen] == [0, 1, 2]
    assert np.array_equal(seen[-1][1], weights(result.arrays))
    assert not any("evaluate" in message.metadata.message_type for message in grid.sent)


def test_the_budget_ends_the_run_with_its_last_model(out: Path) -> None:
    one = strategy(out, replace(SETTINGS, max_epsilon=3.0))
    grid = InProcessGrid(app_of(), 4)
    result = one.start(grid, initial(), 10)
    assert one.run is not None
    assert len(one.run.read_finished().releases) == 2
    assert list(result.train_metrics_clientapp) == [1, 2]
    trained = [message for message in grid.sent if message.metadata.message_type == "train"]
    assert len(trained) == 8  # nobody is asked for a round that is not released
    two = strategy(out.with_name("two")).start(InProcessGrid(app_of(), 4), initial(), 2)
    assert np.array_equal(weights(result.arrays), weights(two.arrays))


def test_a_budget_without_room_for_one_round_returns_the_initial_model(out: Path) -> None:
    one = strategy(out, replace(SETTINGS, max_epsilon=0.5))
    result = one.start(InProcessGrid(app_of(), 4), initial())
    assert one.run is None
    assert not weights(result.arrays).any()
    assert RunDirectory(out).read_unfinished().releases == ()


class _Killed(BaseException):
    """The end of the ServerApp."""


def test_a_restarted_server_app_continues_where_it_was(out: Path) -> None:
    def killed(reply: Message, partition: int) -> Message | None:
        if reply.metadata.group_id == "3":
            raise _Killed
        return reply

    with pytest.raises(_Killed):
        strategy(out).start(InProcessGrid(app_of(), 4, killed), initial(), 4)
    one = strategy(out)
    result = one.start(InProcessGrid(app_of(), 4), initial(), 4)
    assert list(result.train_metrics_clientapp) == [3, 4]
    assert [release.step for release in one.run.read_finished().releases] == [0, 1, 2, 3]  # type: ignore[union-attr]
    whole = strategy(out.with_name("whole")).start(InProcessGrid(app_of(), 4), initial(), 4)
    assert np.array_equal(weights(result.arrays), weights(whole.arrays))
    with pytest.raises(RunExists):
        strategy(out).start(InProcessGrid(app_of(), 4), initial(), 4)


# --- Who is which participant


def claiming(answers: dict[int, object]) -> ClientApp:
    app = ClientApp()
    app.train()(moved)

    @app.query(ACTION)
    def answer(message: Message, context: Context) -> Message:
        said = answers[int(str(context.node_config["partition-id"]))]
        if said is None:
            raise RuntimeError
        record = ConfigRecord({NUMBER: said})  # type: ignore[dict-item]
        return Message(RecordDict({RECORD: record}), reply_to=message)

    return app


@pytest.mark.parametrize(
    ("answers", "lost"),
    [
        ({0: 0, 1: 1, 2: 2, 3: None}, ["003"]),
        ({0: 0, 1: 1, 2: 2, 3: 4}, ["003"]),
        ({0: 0, 1: 1, 2: 2, 3: -1}, ["003"]),
        ({0: 0, 1: 1, 2: 2, 3: "3"}, ["003"]),
        ({0: 0, 1: 1, 2: 2, 3: True}, ["003"]),
        ({0: 0, 1: 1, 2: 2, 3: 2}, ["002", "003"]),  # neither of two is believed
        ({0: 3, 1: 2, 2: 1, 3: 0}, []),
    ],
)
def test_a_node_without_a_number_of_its_own_takes_no_part(
    out: Path, answers: dict[int, object], lost: list[str]
) -> None:
    one = strategy(out)
    one.start(InProcessGrid(claiming(answers), 4), initial(), 1)
    (told,) = one.run.read_finished().rounds  # type: ignore[union-attr]
    assert told.rejected == dict.fromkeys(lost, "no node answered for it")


def test_a_restarted_node_is_asked_again(out: Path) -> None:
    one, grid = strategy(out), InProcessGrid(app_of(), 4)
    one.begin(initial())

    def run_round(number: int) -> dict[str, str]:
        messages = one.configure_train(number, one.arrays, ConfigRecord(), grid)
        one.aggregate_train(number, grid.send_and_receive(messages))
        return last_rejected(out)

    assert run_round(1) == {}
    node = next(iter(grid.contexts))
    context = grid.contexts.pop(node)
    assert run_round(2) == {"000": "no node answered for it"}
    grid.contexts[424242] = context
    assert run_round(3) == {}
    one.close()


# --- Refusals


def test_rounds_follow_each_other(out: Path) -> None:
    one, grid = strategy(out), InProcessGrid(app_of(), 4)
    with pytest.raises(InvalidArgument):
        one.configure_train(1, initial(), ConfigRecord(), grid)
    one.begin(initial())
    for number in (0, 2):
        with pytest.raises(InvalidArgument, match="server_round"):
            one.configure_train(number, one.arrays, ConfigRecord(), grid)
        with pytest.raises(InvalidArgument, match="server_round"):
            one.aggregate_train(number, [])
    one.close()


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros(3, np.int64)])
def test_arrays_of_another_type_than_float32_are_refused(out: Path, array: Any) -> None:
    with pytest.raises(InvalidArgument, match="float32"):
        strategy(out).start(InProcessGrid(app_of(), 4), ArrayRecord({"w": Array(array)}))
    assert not out.exists()
