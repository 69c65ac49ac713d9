"""The server beyond one process: released once, saved each round, continued after a crash."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit.accountants import Gaussian, PoissonSampled
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.aggregation import (
    AdaptiveClipping,
    ParticipantAggregation,
    ParticipantClipping,
)
from dpaudit.trainer.federated.flower.model_run import ModelRun
from dpaudit.trainer.federated.flower.server import ParticipantServer, ServerSettings
from dpaudit.vocabulary.errors import (
    ForkedSession,
    IntegrityError,
    InvalidArgument,
    RunExists,
    RunLocked,
)
from dpaudit.vocabulary.ledger import UPDATE_SUM, Randomness
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit

Model = dict[str, NDArray[np.float32]]

INITIAL: Model = {"w": np.zeros((3, 2), np.float32), "b": np.ones(2, np.float32)}
CLIPPING = ParticipantClipping(1.0, 2.0, participation_rate=1.0, participants=4)
SETTINGS = ServerSettings(CLIPPING, delta=1e-5, seed=5)
EVERYONE = (0, 1, 2, 3)


def update(size: float = 0.1) -> Model:
    return {name: np.full(part.shape, size, np.float32) for name, part in INITIAL.items()}


def updates(*numbers: int) -> dict[int, Model]:
    return {number: update() for number in numbers}


@contextmanager
def serving(
    out: Path, settings: ServerSettings = SETTINGS, initial: Model = INITIAL
) -> Iterator[ParticipantServer]:
    server = ParticipantServer.open(out, settings, initial)
    try:
        yield server
    finally:
        server.close()


def equal(one: Model, other: Model) -> bool:
    return list(one) == list(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_finished_run_has_model_claim_and_participant_level_header(out: Path) -> None:
    with serving(out) as server:
        for _ in range(3):
            server.aggregate(updates(*EVERYONE), server.draw())
        epsilon = server.epsilon()
        run = server.finish()
    ledger = run.read_finished()
    assert [(one.what, one.mechanism, one.step) for one in ledger.releases] == [
        (UPDATE_SUM, Gaussian(2.0), number) for number in range(3)
    ]
    assert [one.number for one in ledger.rounds] == [0, 1, 2]
    header = ledger.header
    assert (header.unit, header.adjacency) == (Unit.PARTICIPANT, Adjacency.ADD_OR_REMOVE_ONE)
    assert (header.clip_norm, header.randomness) == (1.0, Randomness.SEEDED)
    assert header.federation is not None
    assert (header.federation.strategy, header.federation.participants) == ("dp-fedavg", 4)
    assert epsilon.upper == pytest.approx(3.7086349, abs=5e-8)
    assert run.model.exists()
    assert not run.checkpoints.exists()


def test_a_release_is_on_disk_before_its_noise(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    original = ParticipantAggregation._with_noise

    def with_noise(self: ParticipantAggregation, number: int, *rest: object) -> object:
        recorded.append(len(RunDirectory(out).read_unfinished().releases))
        return original(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ParticipantAggregation, "_with_noise", with_noise)
    with serving(out) as server:
        server.aggregate(updates(0), EVERYONE)
        server.aggregate(updates(0), EVERYONE)
    assert recorded == [1, 2]


def test_a_lost_participant_makes_the_sum_smaller_and_not_the_noise(tmp_path: Path) -> None:
    found = {}
    for sent in (EVERYONE, (0, 2), ()):
        with serving(tmp_path / f"run-{len(sent)}") as server:
            found[len(sent)] = server.aggregate(updates(*sent), server.draw())
    assert {one.deviation for one in found.values()} == {2.0}
    noise = found[0].noisy_sum
    assert max(np.abs(part).max() for part in noise.values()) > 0.1
    for count, one in found.items():
        for name, part in one.noisy_sum.items():
            assert part - noise[name] == pytest.approx(np.full(part.shape, 0.1 * count), abs=1e-6)
            # The denominator is q W, however many replied.
            assert one.average[name] == pytest.approx(part / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"w": np.full((3, 2), math.nan, np.float32), "b": update()["b"]}, "NaN"),
        ({"w": np.full((3, 2), math.inf, np.float32), "b": update()["b"]}, "infinity"),
        ({"w": update()["w"].T, "b": update()["b"]}, "shape"),
        ({"w": update()["w"].astype(np.float64), "b": update()["b"]}, "float64"),
        ({"w": update()["w"]}, "lacks b"),
        (update() | {"c": np.ones(1, np.float32)}, "'c'"),
        ({"w": [[0.0]], "b": [0.0]}, "list"),
    ],
)
def test_a_bad_update_is_named_and_the_round_ends(
    out: Path, bad: dict[str, object], named: str
) -> None:
    with serving(out) as server, serving(out.with_name("other")) as without:
        result = server.aggregate({**updates(0, 2), 1: bad}, server.draw(), {3: "it is lost"})
        kept = without.aggregate(updates(0, 2), without.draw())
        assert equal(server.weights, without.weights)
    assert (result.accepted, kept.accepted) == ((0, 2), (0, 2))
    assert named in result.rejected[1]
    (round_,) = RunDirectory(out).read_unfinished().rounds
    assert round_.rejected == {"001": result.rejected[1], "003": "it is lost"}


def test_the_budget_ends_the_run_and_the_last_model_is_kept(out: Path) -> None:
    with serving(out, replace(SETTINGS, max_epsilon=3.0)) as server:
        rounds = 0
        while server.has_room():
            server.aggregate(updates(*EVERYONE), server.draw())
            rounds += 1
        last = server.weights
        run = server.finish()
    assert rounds == 2  # 2.943225; a third round would give 3.7086349
    from safetensors.numpy import load_file

    assert equal(last, {name: load_file(run.model)[name] for name in last})


def test_participants_are_drawn_by_coins_of_the_keystream(out: Path) -> None:
    clipping = replace(CLIPPING, participation_rate=0.5, participants=1000)
    drawn = []
    with serving(out, ServerSettings(clipping, delta=1e-5, seed=1)) as server:
        for _ in range(3):
            drawn.append(server.draw())
            server.aggregate({}, drawn[-1])
    assert len(set(drawn)) == 3
    # Eight standard deviations of a binomial count: wrong less than once in 1e14.
    assert all(abs(len(one) - 500) < 127 for one in drawn)
    ledger = RunDirectory(out).read_unfinished()
    assert {one.mechanism for one in ledger.releases} == {PoissonSampled(Gaussian(2.0), 0.5)}


# --- Restart


def test_a_restarted_server_has_the_newest_model_and_the_next_round(out: Path) -> None:
    with serving(out) as server:
        server.aggregate(updates(*EVERYONE), server.draw())
        server.aggregate(updates(0, 1), server.draw())
        kept = server.weights
    with serving(out) as server:
        assert equal(server.weights, kept)
        assert (server.next_round, server.releases) == (2, 2)
        server.aggregate(updates(*EVERYONE), server.draw())
        last = server.weights
        server.finish()
    with serving(out.with_name("whole")) as server:  # as if nothing had happened
        for sent in (EVERYONE, (0, 1), EVERYONE):
            server.aggregate(updates(*sent), server.draw())
        assert equal(server.weights, last)


class _Killed(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("method", ["_with_noise", "_noisy_share"])
def test_a_round_that_was_recorded_is_not_released_again(
    out: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    with serving(out) as server:
        server.aggregate(updates(*EVERYONE), server.draw())
        kept = server.weights

        def killed(*_: object) -> None:
            raise _Killed

        with monkeypatch.context() as patched:
            patched.setattr(ParticipantAggregation, method, killed)
            with pytest.raises(_Killed):
                server.aggregate(updates(*EVERYONE), server.draw())
    with serving(out) as server:
        # Round 1 counts, its noise is used up, and the model is that of round 0.
        assert (server.next_round, server.releases) == (2, 2)
        assert equal(server.weights, kept)
        server.aggregate(updates(*EVERYONE), server.draw())
    ledger = RunDirectory(out).read_unfinished()
    assert [one.step for one in ledger.releases] == [0, 1, 2]


def test_a_crash_before_the_checkpoint_costs_one_round(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise _Killed

    with serving(out) as server, monkeypatch.context() as patched:
        patched.setattr(ModelRun, "_write_checkpoint", killed)
        with pytest.raises(_Killed):
            server.aggregate(updates(*EVERYONE), server.draw())
    with serving(out) as server:
        assert (server.next_round, server.releases) == (1, 1)
        assert equal(server.weights, INITIAL)


def test_the_budget_counts_what_was_spent_before_a_restart(out: Path) -> None:
    settings = replace(SETTINGS, max_epsilon=3.0)
    with serving(out, settings) as server:
        server.aggregate({}, server.draw())
    with serving(out, settings) as server:
        assert server.has_room()
        server.aggregate({}, server.draw())
        assert not server.has_room()


def test_an_adaptive_clip_norm_survives_a_restart(out: Path) -> None:
    adaptive = AdaptiveClipping(count_noise=2.0, target=0.9)
    settings = replace(SETTINGS, clipping=replace(CLIPPING, adaptive=adaptive))
    with serving(out, settings) as server:
        server.aggregate(updates(*EVERYONE), server.draw())
        clip_norm = server.clip_norm
    assert clip_norm != 1.0
    with serving(out, settings) as server:
        assert server.clip_norm == clip_norm


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"noise_multiplier": 1.0}, "noise_multiplier"),
        ({"participation_rate": 0.5}, "participation_rate"),
        ({"clip_norm": 2.0}, "clip_norm"),
        ({"participants": 5}, "federation"),
    ],
)
def test_a_run_of_other_settings_is_not_continued(
    out: Path, changes: dict[str, float], named: str
) -> None:
    with serving(out) as server:
        server.aggregate(updates(0), server.draw())
    other = replace(SETTINGS, clipping=replace(CLIPPING, **changes))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=named):
        ParticipantServer.open(out, other, INITIAL)
    with serving(out) as server:
        assert server.releases == 1


def test_a_run_of_another_model_is_not_continued(out: Path) -> None:
    with serving(out) as server:
        server.aggregate(updates(0), server.draw())
    with pytest.raises(IntegrityError, match="another model"):
        ParticipantServer.open(out, SETTINGS, {"w": INITIAL["w"]})


def test_an_altered_or_missing_checkpoint_is_refused(out: Path) -> None:
    with serving(out) as server:
        server.aggregate(updates(0), server.draw())
    (model,) = RunDirectory(out).checkpoints.glob("*/model.safetensors")
    content = model.read_bytes()
    model.write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(IntegrityError):
        ParticipantServer.open(out, SETTINGS, INITIAL)
    for one in model.parent.iterdir():
        one.unlink()
    with pytest.raises(IntegrityError):
        ParticipantServer.open(out, SETTINGS, INITIAL)


def test_a_finished_or_running_run_is_not_continued(out: Path) -> None:
    with serving(out) as server:
        server.aggregate(updates(0), server.draw())
        with pytest.raises(RunLocked):
            ParticipantServer.open(out, SETTINGS, INITIAL)
        server.finish()
    with pytest.raises(RunExists):
        ParticipantServer.open(out, SETTINGS, INITIAL)


# --- Refusals


@pytest.mark.parametrize(
    "initial",
    [
        {},
        {"w": np.zeros(2)},
        {"w": np.zeros(2, np.int64)},
        {"w": np.array([math.nan], np.float32)},
    ],
)
def test_a_model_that_cannot_be_averaged_is_refused(out: Path, initial: Model) -> None:
    with pytest.raises(InvalidArgument):
        ParticipantServer.open(out, SETTINGS, initial)
    assert not out.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"delta": 0.0},
        {"delta": math.nan},
        {"max_epsilon": 0.0},
        {"max_epsilon": math.nan},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"seed": -1},
    ],
)
def test_a_setting_out_of_range_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        replace(SETTINGS, **changes)  # type: ignore[arg-type]


def test_a_server_cannot_be_copied(out: Path) -> None:
    import copy

    with serving(out) as server, pytest.raises(ForkedSession):
        copy.copy(server)
