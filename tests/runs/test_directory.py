"""Run directories: altered files are found, and nothing of a user's is ever overwritten."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from ledgers import claim

from dpaudit.runs.directory import (
    RunDirectory,
    create_run,
    open_run,
    remove_run,
    require_absent,
    seal_run,
)
from dpaudit.runs.file_io import write_arrays, write_toml
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.vocabulary.errors import DpauditError, IntegrityError, InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import LedgerHeader, Randomness, ReleaseEntry, Sampling
from dpaudit.vocabulary.mechanism import Gaussian
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)

CONFIG = RunConfig(
    DataSettings(),
    PrivacySettings(sampling_rate=0.1, noise_multiplier=1.0, clip_norm=0.5, steps=3, delta=1e-5),
    ModelSettings(),
    CanarySettings(),
    SpeedSettings(),
)
HEADER = LedgerHeader(
    adjacency=Adjacency.ADD_OR_REMOVE_ONE,
    sampling=Sampling.POISSON,
    randomness=Randomness.SECURE,
    schedule_fixed_in_advance=True,
    clip_norm=0.5,
    versions={},
    run="00",
)
SEALED = [
    "config.toml",
    "model.safetensors",
    "canaries.npz",
    "canaries.secret.npz",
    "observations.npz",
]


def make_run(path: Path, *, sealed: bool = True) -> RunDirectory:
    run = create_run(path)
    write_toml(run.config, CONFIG)
    for number, array in enumerate((run.canaries, run.secret_canaries, run.observations)):
        write_arrays(array, rows=np.full((1, 3), number))
    run.model.write_bytes(b"weights")
    with LedgerWriter.create(run.ledger, HEADER) as ledger:
        ledger.record_release(ReleaseEntry("gradient sum", Gaussian(1.0), 0))
        if sealed:
            seal_run(run, ledger, claim(1))
    return run


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What was sealed is what is there.


def test_a_finished_run_reads_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    ledger = run.read_finished()
    assert ledger.seal is not None
    assert sorted(ledger.seal.files) == sorted(SEALED)
    assert run.read_config() == CONFIG
    assert open_run(run.path) == run


@pytest.mark.parametrize("name", SEALED)
def test_an_altered_file_is_found(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    content = bytearray((run.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run.path / name).write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match="altered"):
        run.read_finished()


@pytest.mark.parametrize("name", SEALED)
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run.path / name).unlink()
    with pytest.raises(IntegrityError, match=name):
        run.read_finished()


@pytest.mark.parametrize("name", SEALED)
def test_a_file_of_another_run_is_found(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    donor = next(other for other in SEALED if other != name)
    (run.path / name).write_bytes((run.path / donor).read_bytes())
    with pytest.raises(IntegrityError, match="altered"):
        run.read_finished()


def test_a_run_without_its_seal_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="not finished"):
        make_run(tmp_path / "run", sealed=False).read_finished()
    run = make_run(tmp_path / "other")
    lines = run.ledger.read_bytes().splitlines(keepends=True)
    run.ledger.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(IntegrityError, match="not finished"):
        run.read_finished()


def test_what_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^run must be"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=r"^run must be"):
        open_run(tmp_path / "file")
    with pytest.raises(IntegrityError, match=r"no ledger\.jsonl"):
        open_run(tmp_path)


# Nothing is overwritten.


def test_a_run_is_created_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        require_absent(path)
        assert create_run(path).path.is_dir()


def test_a_run_is_never_created_over_something(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "note").write_text("mine")
    make_run(tmp_path / "run")
    before = files_in(tmp_path)
    for name in ("file", "folder", "run"):
        with pytest.raises(RunExists):
            create_run(tmp_path / name)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("place", ["link to nothing", "below a file"])
def test_a_place_that_cannot_be_a_folder_is_refused_in_words(tmp_path: Path, place: str) -> None:
    if place == "link to nothing":
        (tmp_path / "run").symlink_to(tmp_path / "nothing")
        path = tmp_path / "run"
    else:
        (tmp_path / "file").write_text("mine")
        path = tmp_path / "file" / "run"
    with pytest.raises(DpauditError):
        create_run(path)


# Only a run is removed, and only it.


def test_a_run_is_removed_finished_or_not(tmp_path: Path) -> None:
    for sealed in (True, False):
        run = make_run(tmp_path / "run", sealed=sealed)
        (run.checkpoints / "step-1").mkdir(parents=True)
        (run.checkpoints / "step-1" / "model.safetensors").write_bytes(b"weights")
        run.claim.write_text("{}")
        remove_run(run.path)
        assert not run.path.exists()


def test_where_nothing_is_there_is_nothing_to_remove(tmp_path: Path) -> None:
    remove_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    remove_run(tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_what_is_no_run_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "note").write_text("mine")
    (tmp_path / "odd" / "ledger.jsonl").mkdir(parents=True)
    before = files_in(tmp_path)
    for name in ("file", "folder", "odd"):
        with pytest.raises(RunExists):
            remove_run(tmp_path / name)
    assert files_in(tmp_path) == before


def test_a_folder_with_a_ledger_that_is_not_ours_is_never_removed(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "ledger.jsonl").write_text('{"account": "cash", "amount": 12}\n')
    (books / "receipt.pdf").write_bytes(b"mine")
    before = files_in(books)
    with pytest.raises(DpauditError):
        remove_run(books)
    assert files_in(books) == before


def test_a_users_own_file_in_a_run_directory_outlives_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "notes.md").write_text("mine")
    with contextlib.suppress(DpauditError):  # to refuse is allowed
        remove_run(run.path)
    assert (run.path / "notes.md").read_text() == "mine"


def test_a_run_that_is_being_written_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with LedgerWriter.create(path / "ledger.jsonl", HEADER) as ledger:
        with pytest.raises(RunExists):
            remove_run(path)
        ledger.record_release(ReleaseEntry("gradient sum", Gaussian(1.0), 0))
    assert len(RunDirectory(path).read_ledger().releases) == 1


def test_a_link_to_a_run_is_refused_and_the_run_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(RunExists):
        remove_run(tmp_path / "link")
    assert run.ledger.exists()
