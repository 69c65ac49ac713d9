"""Ledgers of participants: verified against the server's, in every reader."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from federations import (
    LOCAL_STEP,
    Federation,
    begin,
    config_of,
    header_of,
    participant_level_run,
    record_level_run,
    run_round,
    unfinished_federation,
)
from ledgers import finished_run
from msgspec.structs import replace

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.directory import (
    RunDirectory,
    create_run,
    open_run,
    remove_run,
    require_absent,
    seal_run,
)
from dpaudit.runs.ledger_file import LedgerWriter, has_no_release
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists, RunLocked
from dpaudit.vocabulary.federation import DP_FEDAVG, FEDAVG
from dpaudit.vocabulary.ledger import Randomness, ReleaseEntry, ResumeEntry, RoundEntry
from dpaudit.vocabulary.privacy_terms import Adjacency


def ledger_of(run: RunDirectory, name: str) -> Path:
    return run.participants / name / "ledger.jsonl"


def cut(path: Path, lines: int = 1) -> None:
    """Cut a ledger at the end of a line, which leaves an intact hash chain."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))


def exchange(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def test_participants_of_a_finished_run_are_read_and_verified(tmp_path: Path) -> None:
    ledger = record_level_run(tmp_path / "run").read_finished()
    assert list(ledger.participants) == ["000", "001", "002"]
    assert [len(one.releases) for one in ledger.participants.values()] == [6, 12, 6]
    assert (len(ledger.releases), ledger.release_count, len(ledger.rounds)) == (0, 24, 3)
    assert all(one.seal is not None for one in ledger.participants.values())
    assert ledger.seal is not None
    assert "participants/001/ledger.jsonl" in ledger.seal.files


def test_every_participant_repeats_the_releases_of_a_participant_level_run(tmp_path: Path) -> None:
    ledger = participant_level_run(tmp_path / "run").read_finished()
    assert {len(one.releases) for one in ledger.participants.values()} == {3}
    assert ledger.release_count == 3


@pytest.mark.parametrize("name", ["000", "001", "002"])
@pytest.mark.parametrize("lines", [1, 2, 5])
def test_cut_ledger_of_a_participant_is_refused(tmp_path: Path, name: str, lines: int) -> None:
    run = record_level_run(tmp_path / "run")
    cut(ledger_of(run, name), lines)
    for read in (run.read_finished, run.read_ledger, run.read_unfinished):
        with pytest.raises(IntegrityError, match=name):
            read()


def test_cut_ledger_of_a_participant_of_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    cut(ledger_of(run, "001"))
    with pytest.raises(IntegrityError, match="round 1"):
        run.read_unfinished()


def test_empty_ledger_of_a_participant_is_refused(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    ledger_of(run, "001").write_bytes(b"")
    with pytest.raises(IntegrityError, match="header"):
        run.read_unfinished()


@pytest.mark.parametrize("make", [record_level_run, participant_level_run, unfinished_federation])
def test_exchanged_ledgers_of_participants_are_refused(tmp_path: Path, make: object) -> None:
    run = make(tmp_path / "run")  # type: ignore[operator]
    exchange(ledger_of(run, "000"), ledger_of(run, "002"))
    with pytest.raises(IntegrityError, match="not the ledger of participant 0"):
        run.read_unfinished()


def test_ledger_of_the_same_participant_of_another_run_is_refused(tmp_path: Path) -> None:
    run, other = unfinished_federation(tmp_path / "run"), begin(tmp_path / "other")
    run_round(other, 0, {"001": 1})
    other.close()
    shutil.copy(ledger_of(other.run, "001"), ledger_of(run, "001"))
    with pytest.raises(IntegrityError, match="cut or exchanged"):
        run.read_unfinished()


def test_ledger_of_another_unit_is_refused(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run", rounds=0)
    other = begin(tmp_path / "other", adjacency=Adjacency.REPLACE_ONE)
    other.close()
    shutil.copy(ledger_of(other.run, "001"), ledger_of(run, "001"))
    with pytest.raises(IntegrityError, match="replace"):
        run.read_unfinished()


@pytest.mark.parametrize("make", [record_level_run, unfinished_federation])
def test_removed_round_of_the_server_is_refused(tmp_path: Path, make: object) -> None:
    run = make(tmp_path / "run")  # type: ignore[operator]
    lines = run.ledger.read_bytes().splitlines(keepends=True)
    rounds = [n for n, line in enumerate(lines) if b'"kind":"round"' in line]
    del lines[rounds[0]]
    run.ledger.write_bytes(b"".join(lines))
    with pytest.raises(IntegrityError, match="hash does not match"):
        run.read_unfinished()


def test_server_ledger_cut_before_its_last_round_counts_all_releases(tmp_path: Path) -> None:
    # Nothing proves the round of an unfinished run; what participants recorded counts anyway.
    run = unfinished_federation(tmp_path / "run")
    before = run.read_unfinished().release_count
    cut(run.ledger)
    assert run.read_unfinished().release_count == before


@pytest.mark.parametrize("participants", [10**12, 10**18])
def test_a_header_with_too_many_participants_to_list_is_read(
    tmp_path: Path, participants: int
) -> None:
    run = create_run(tmp_path / "run")
    server = LedgerWriter.create(run.ledger, header_of(DP_FEDAVG, participants, None))
    server.record_release(ReleaseEntry("update sum", LOCAL_STEP, 0))
    server.record_round(RoundEntry(0))
    server.close()
    assert run.read_unfinished().release_count == 1
    files = run.participant(1)
    files.path.mkdir(parents=True)
    LedgerWriter.create(files.ledger, header_of(DP_FEDAVG, participants, 1)).close()
    with pytest.raises(IntegrityError, match=r"000/ledger\.jsonl is missing"):
        run.read_unfinished()


def test_cut_ledger_of_the_server_of_a_finished_run_is_refused(tmp_path: Path) -> None:
    run = record_level_run(tmp_path / "run")
    cut(run.ledger)
    assert run.read_ledger().seal is None  # the claim proves the seal: dpaudit finish writes it
    for _ in range(3):
        cut(run.ledger)
        with pytest.raises(IntegrityError, match="no seal that fits"):
            run.read_ledger()


def test_participant_cut_together_with_the_seal_is_refused(tmp_path: Path) -> None:
    run = record_level_run(tmp_path / "run")
    cut(run.ledger)
    cut(ledger_of(run, "001"))  # its own seal
    with pytest.raises(IntegrityError, match="no seal that fits"):
        run.read_unfinished()


def test_missing_ledger_of_a_participant_is_refused(tmp_path: Path) -> None:
    for name, make in (("finished", record_level_run), ("open", unfinished_federation)):
        run = make(tmp_path / name)
        ledger_of(run, "002").unlink()
        with pytest.raises(IntegrityError, match="missing"):
            run.read_unfinished()


def test_missing_folder_of_participants_is_refused(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    shutil.rmtree(run.participants)
    with pytest.raises(IntegrityError, match="missing"):
        run.read_unfinished()


def test_participants_that_the_seal_alone_records_are_missed(tmp_path: Path) -> None:
    federation = begin(tmp_path / "run", DP_FEDAVG)
    run_round(federation, 0, {})  # no head: nobody's ledger changed
    federation.server.record_release(ReleaseEntry("update sum", LOCAL_STEP, 0))
    run = federation.finish()
    assert len(run.read_ledger().participants) == 3
    shutil.rmtree(run.participants)
    with pytest.raises(IntegrityError, match="missing"):
        run.read_ledger()


@pytest.mark.parametrize("name", ["003", "0000", "1", "backup", ".hidden"])
def test_unknown_folder_among_participants_is_refused(tmp_path: Path, name: str) -> None:
    run = record_level_run(tmp_path / "run")
    (run.participants / name).mkdir()
    with pytest.raises(IntegrityError, match="not a participant of its federation"):
        run.read_finished()


def test_participants_beside_a_run_of_one_trainer_are_refused(tmp_path: Path) -> None:
    run, federation = finished_run(tmp_path / "run"), record_level_run(tmp_path / "federation")
    shutil.copytree(federation.participants, run.participants)
    with pytest.raises(IntegrityError, match="no federation"):
        run.read_ledger()


def test_ledger_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    path = ledger_of(run, "001")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(IntegrityError, match="not a regular file"):
        run.read_unfinished()


def test_release_after_the_last_round_counts(tmp_path: Path) -> None:
    federation = begin(tmp_path / "run")
    run_round(federation, 0)
    federation.participants["002"].record_release(ReleaseEntry("gradient sum", LOCAL_STEP, 9))
    federation.close()
    assert federation.run.read_unfinished().release_count == 7


def test_incomplete_line_of_a_killed_participant_counts(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    path = ledger_of(run, "001")
    before = run.read_unfinished()
    path.write_bytes(path.read_bytes() + b'{"entry":{"kind":"release","mech')
    after = run.read_unfinished()
    assert after.release_count == before.release_count + 1
    assert len(after.participants["001"].releases) == len(before.participants["001"].releases) + 1
    with pytest.raises(IntegrityError, match="middle of a line"):
        run.read_ledger()


def test_resumed_participant_keeps_the_recorded_heads(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    path = ledger_of(run, "001")
    path.write_bytes(path.read_bytes() + b'{"entry":{"kind":"release","mech')
    with LedgerWriter.resume(path, ResumeEntry(4, Randomness.SECURE)):
        pass
    assert len(run.read_ledger().participants["001"].releases) == 9


def test_server_can_be_resumed(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    with LedgerWriter.resume(run.ledger, ResumeEntry(2, Randomness.SEEDED)):
        pass
    assert run.read_ledger().is_seeded
    finished = record_level_run(tmp_path / "finished")
    with pytest.raises(RunExists, match="finished"):
        LedgerWriter.resume(finished.ledger, ResumeEntry(2, Randomness.SECURE))


def test_run_with_releases_of_participants_alone_is_not_overwritten(tmp_path: Path) -> None:
    federation = begin(tmp_path / "run")
    federation.participants["001"].record_release(ReleaseEntry("gradient sum", LOCAL_STEP, 0))
    federation.close()
    assert not has_no_release(federation.run.ledger)
    with pytest.raises(RunExists):
        require_absent(federation.run.path)
    with pytest.raises(RunExists):
        LedgerWriter.create(federation.run.ledger, federation.run.read_ledger().header)


def test_run_without_any_release_is_replaced(tmp_path: Path) -> None:
    begun = begin(tmp_path / "run")
    with pytest.raises(RunExists):  # while a process writes it
        create_run(begun.run.path)
    begun.close()
    again = begin_again(tmp_path / "run")
    assert has_no_release(again.run.ledger) is False  # it is being written
    again.close()
    assert list(again.run.read_ledger().participants) == ["000"]


def begin_again(path: Path) -> Federation:
    run = create_run(path)
    server = LedgerWriter.create(run.ledger, header_of(FEDAVG, 1, None))
    assert not run.participants.exists()
    run.participant(0).path.mkdir(parents=True)
    one = LedgerWriter.create(run.participant(0).ledger, header_of(FEDAVG, 1, 0))
    return Federation(run, server, {"000": one})


def test_foreign_file_in_the_folder_of_participants_protects_the_run(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run", rounds=0)
    (run.participants / "000" / "notes.txt").write_text("mine")
    with pytest.raises(RunExists):
        require_absent(run.path)
    with pytest.raises(RunExists, match=r"notes.txt"):
        remove_run(run.path)
    assert (run.participants / "000" / "notes.txt").exists()


def test_symlink_among_participants_is_never_removed(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    outside = tmp_path / "outside"
    shutil.move(run.participants / "000", outside)
    (run.participants / "000").symlink_to(outside)
    with pytest.raises(RunExists):
        remove_run(run.path)
    assert (outside / "ledger.jsonl").exists()


def test_federation_is_removed_as_a_whole(tmp_path: Path) -> None:
    run = record_level_run(tmp_path / "run")
    remove_run(run.path)
    assert not run.path.exists()


def test_federation_with_a_running_participant_is_not_removed(tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "run")
    resumed = ResumeEntry(4, Randomness.SECURE)
    with LedgerWriter.resume(ledger_of(run, "002"), resumed), pytest.raises(RunLocked):
        remove_run(run.path)
    assert ledger_of(run, "000").exists()


def test_claim_that_leaves_out_a_participant_is_not_sealed(tmp_path: Path) -> None:
    federation = begin(tmp_path / "run")
    run_round(federation, 0)
    claim = claim_from_ledger(federation.run.read_ledger(), 1e-5, "pld")
    with pytest.raises(IntegrityError, match="covers 4 releases"):
        seal_run(federation.run, federation.server, replace(claim, releases=4))


def test_settings_are_read_as_what_they_are(tmp_path: Path) -> None:
    run = record_level_run(tmp_path / "run")
    assert open_run(run.path).read_federated_config() == config_of(FEDAVG, 3, 3)
    with pytest.raises(InvalidArgument, match="one trainer"):
        run.read_config()
