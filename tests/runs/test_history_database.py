"""The history of many runs: what was said once is there for good, whoever else writes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from dpaudit.runs import history_database
from dpaudit.runs.history_database import (
    DATABASE_NAME,
    insert_verdict,
    read_history,
    read_verdict_keys,
)
from dpaudit.vocabulary.errors import DpauditError, IntegrityError, InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome, PastRun

PAST = PastRun(
    run="mnist",
    ledger_head="ab" * 32,
    judged=datetime(2026, 3, 1, 12, tzinfo=UTC),
    outcome=Outcome.PASS,
    epsilon_upper=2.9,
    delta=1e-5,
    steps=100,
    accountant="pld",
    adjacency=Adjacency.ADD_OR_REMOVE_ONE,
    dpaudit_version="0.1.0",
)

instants = st.datetimes(
    datetime(1970, 1, 2),
    datetime(2100, 1, 1),
    timezones=st.integers(-14, 14).map(lambda hours: timezone(timedelta(hours=hours))),
)
unit = st.floats(0, 1)
attacks = st.none() | st.tuples(st.floats(1e-6, 0.5), unit)


@st.composite
def past_runs(draw: st.DrawFn) -> PastRun:
    fpr, tpr = draw(attacks) or (None, None)
    return PastRun(
        run=draw(st.text(max_size=20)),
        ledger_head=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        judged=draw(instants),
        outcome=draw(st.sampled_from(Outcome)),
        epsilon_upper=draw(st.floats(0, 1e6)),
        delta=draw(st.floats(1e-12, 0.5)),
        steps=draw(st.integers(0, 10**9)),
        accountant=draw(st.sampled_from(["pld", "rdp", "naive"])),
        adjacency=draw(st.sampled_from(Adjacency)),
        dpaudit_version="0.1.0",
        epsilon_lower=draw(st.none() | st.floats(0, 1e6)),
        fpr=fpr,
        tpr=tpr,
        accuracy=draw(st.none() | unit),
    )


@settings(max_examples=25)
@given(st.lists(past_runs(), min_size=1, max_size=5))
def test_what_is_remembered_is_read_back_in_the_order_of_time(past: list[PastRun]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(past):
            insert_verdict(Path(folder), one, evidence=str(number))
        assert read_history(Path(folder)) == tuple(sorted(past, key=lambda one: one.judged))


def test_the_same_verdict_on_the_same_evidence_is_one_line(tmp_path: Path) -> None:
    later = msgspec.structs.replace(PAST, judged=PAST.judged + timedelta(days=1))
    insert_verdict(tmp_path, PAST, evidence="a")
    insert_verdict(tmp_path, later, evidence="a")
    assert read_history(tmp_path) == (PAST,)
    insert_verdict(tmp_path, later, evidence="b")
    assert read_history(tmp_path) == (PAST, later)
    assert {key.evidence for key in read_verdict_keys(tmp_path)} == {"a", "b"}


def test_a_folder_and_its_file_are_one_place_whatever_its_name(tmp_path: Path) -> None:
    odd = tmp_path / "50% of #1?mode=memory"
    odd.mkdir()
    insert_verdict(odd / DATABASE_NAME, PAST, evidence="a")
    assert read_history(odd) == read_history(odd / DATABASE_NAME) == (PAST,)
    assert DATABASE_NAME in {path.name for path in odd.iterdir()}


def test_it_is_logged_ahead_and_says_its_version(tmp_path: Path) -> None:
    insert_verdict(tmp_path, PAST, evidence="a")
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() == (
            history_database.DATABASE_SCHEMA,
        )


WRITERS, PLACES, VERDICTS = ("one", "two", "three"), 10, 4
WRITER = """
import sys
import time
from pathlib import Path
sys.path.insert(0, "tests/runs")
from test_history_database import PAST, PLACES, VERDICTS, WRITERS
from dpaudit.runs.history_database import insert_verdict
folder, who = Path(sys.argv[1]), sys.argv[2]
for number in range(PLACES):
    place = folder / str(number)
    place.mkdir(exist_ok=True)
    (place / who).touch()
    while not all((place / other).exists() for other in WRITERS):
        time.sleep(0)
    for verdict in range(VERDICTS):
        insert_verdict(place, PAST, evidence=f"{who} {verdict}")
        insert_verdict(place, PAST, evidence=f"all {verdict}")
"""


def test_processes_that_begin_at_once_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), who],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            stderr=subprocess.PIPE,
        )
        for who in WRITERS
    ]
    try:
        assert [writer.communicate(timeout=60)[1] for writer in writers] == [b""] * len(WRITERS)
    finally:
        for writer in writers:  # one that failed is waited for by the others
            writer.kill()
    for number in range(PLACES):
        assert len(read_history(tmp_path / str(number))) == VERDICTS * (len(WRITERS) + 1)


def test_a_lock_of_a_process_that_died_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os, sys; from filelock import FileLock\n"
        "FileLock(sys.argv[1]).acquire(); os._exit(9)\n"
    )
    lock = tmp_path / f"{DATABASE_NAME}.lock"
    subprocess.run([sys.executable, "-c", program, str(lock)], check=False)
    assert lock.exists()
    monkeypatch.setattr(history_database, "LOCK_TIMEOUT_SECONDS", 0.0)
    insert_verdict(tmp_path, PAST, evidence="a")
    assert len(read_history(tmp_path)) == 1


def test_a_history_that_another_process_makes_for_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_database, "LOCK_TIMEOUT_SECONDS", 0.0)
    with FileLock(tmp_path / f"{DATABASE_NAME}.lock"), pytest.raises(InvalidArgument, match="lock"):
        insert_verdict(tmp_path, PAST, evidence="a")
    assert not (tmp_path / DATABASE_NAME).exists()


def test_a_history_and_its_lock_are_private(tmp_path: Path) -> None:
    insert_verdict(tmp_path, PAST, evidence="a")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_file_that_is_busy_is_waited_for(tmp_path: Path) -> None:
    insert_verdict(tmp_path, PAST, evidence="a")
    with closing(
        sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        assert read_history(tmp_path) == (PAST,)  # readers do not wait at all
        leaving = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        leaving.start()
        insert_verdict(tmp_path, PAST, evidence="b")
        leaving.join()
    assert len(read_history(tmp_path)) == 2


def test_a_file_that_stays_busy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_database, "LOCK_TIMEOUT_SECONDS", 0.05)
    insert_verdict(tmp_path, PAST, evidence="a")
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InvalidArgument, match="locked"):
            insert_verdict(tmp_path, PAST, evidence="b")


@pytest.mark.parametrize(
    "damage",
    [
        "PRAGMA user_version = 2",
        "PRAGMA user_version = 0",
        "DROP TABLE verdicts",
        "UPDATE verdicts SET outcome = 'fine'",
        "UPDATE verdicts SET epsilon_upper = 'small'",
        "UPDATE verdicts SET epsilon_upper = -1",
        "UPDATE verdicts SET tpr = 2, fpr = 0.1",
        "UPDATE verdicts SET judged = 'yesterday'",
        "UPDATE verdicts SET judged = '2026-03-01T12:00:00'",
    ],
)
def test_what_is_no_history_of_ours_is_refused(tmp_path: Path, damage: str) -> None:
    insert_verdict(tmp_path, PAST, evidence="a")
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection, connection:
        connection.execute(damage)
    with pytest.raises(IntegrityError, match=DATABASE_NAME):
        read_history(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, None])
def test_a_broken_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes | None) -> None:
    insert_verdict(tmp_path, PAST, evidence="a")
    file = tmp_path / DATABASE_NAME
    file.write_bytes(file.read_bytes()[:5000] if content is None else content)
    for beside in (tmp_path / f"{DATABASE_NAME}-wal", tmp_path / f"{DATABASE_NAME}-shm"):
        beside.unlink(missing_ok=True)
    before = file.read_bytes()
    with pytest.raises(IntegrityError, match=DATABASE_NAME):
        insert_verdict(tmp_path, PAST, evidence="b")
    with pytest.raises(IntegrityError, match=DATABASE_NAME):
        read_history(tmp_path)
    assert file.read_bytes() == before


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert read_verdict_keys(tmp_path) == frozenset()
    with pytest.raises(InvalidArgument, match="history"):
        read_history(tmp_path)
    with pytest.raises(InvalidArgument, match="history"):
        insert_verdict(tmp_path / "nowhere" / DATABASE_NAME, PAST, evidence="a")
    with pytest.raises(InvalidArgument, match="folder"):  # mistyped, or not made yet
        insert_verdict(tmp_path / "runs", PAST, evidence="a")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / DATABASE_NAME).mkdir()
    with pytest.raises(DpauditError, match="history"):
        insert_verdict(tmp_path, PAST, evidence="a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"judged": datetime(2026, 3, 1)},
        {"epsilon_upper": float("nan")},
        {"epsilon_upper": float("inf")},
        {"epsilon_lower": float("nan")},
        {"delta": 0.0},
        {"steps": -1},
        {"tpr": 0.5},
        {"fpr": 0.1},
        {"tpr": float("nan"), "fpr": 0.1},
        {"accuracy": 1.5},
    ],
)
def test_invalid_figures_are_never_stored(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))[:3]):
        PastRun(**{**msgspec.structs.asdict(PAST), **wrong})
