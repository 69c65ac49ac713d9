"""dpaudit finish: it completes what has ended, and writes nothing anywhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from calling import Call
from ledgers import finished_run, header, step_release, unfinished_run, write_model
from places import ROOT

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json, sha256, write_json
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.runs.ledger_format import encode_line
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness, ResumeEntry


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def cut(run: RunDirectory, lines: int, more: int = 0) -> None:
    """Leave out the last lines, but for so many bytes of what follows."""
    whole = run.ledger.read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:-lines])
    run.ledger.write_bytes(whole[: len(kept) + more])


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return finished_run(tmp_path / "run")


def test_a_finished_run_stays_as_it_is(call: Call, run: RunDirectory) -> None:
    before = files_in(run.path)
    result = call("finish", run.path)
    assert (result.code, result.err) == (0, "")
    assert "finished already" in result.out
    assert files_in(run.path) == before


def test_a_sealed_run_gets_its_claim(call: Call, run: RunDirectory) -> None:
    before = files_in(run.path)
    run.claim.unlink()
    without = files_in(run.path)
    refused = call("finish", run.path)
    assert (refused.code, files_in(run.path)) == (2, without)
    assert "--delta" in refused.err
    assert call("epsilon", run.path, "--delta", "1e-5").code == 4
    result = call("finish", run.path, "--delta", "1e-5")
    assert result.code == 0
    assert "claim.json was written" in result.out
    assert files_in(run.path) == before


def test_delta_is_that_of_the_settings(call: Call, run_copy: Path) -> None:
    before = files_in(run_copy)
    (run_copy / "claim.json").unlink()
    assert call("finish", run_copy).code == 0
    assert files_in(run_copy) == before
    assert call("gate", run_copy, "--policy", _policy(run_copy.parent)).code == 0


def _policy(folder: Path) -> Path:
    (folder / "policy.toml").write_text("[claim]\nmax_epsilon = 100.0\ndelta = 1e-5\n")
    return folder / "policy.toml"


@pytest.mark.parametrize("more", [0, 1, 5, 11, 12, 40, 200, -1])
def test_a_claimed_run_gets_its_seal(call: Call, run: RunDirectory, more: int) -> None:
    before = files_in(run.path)
    seal = len(run.ledger.read_bytes().splitlines(keepends=True)[-1])
    cut(run, 1, more % seal)
    result = call("finish", run.path)
    assert (result.code, result.err) == (0, "")
    assert "the seal was written" in result.out
    assert files_in(run.path) == before


def test_run_with_only_its_model_gets_claim_and_seal(call: Call, run: RunDirectory) -> None:
    before = files_in(run.path)
    cut(run, 1)
    run.claim.unlink()
    result = call("finish", run.path, "--delta", "1e-5")
    assert result.code == 0
    assert "claim.json and the seal were written" in result.out
    assert files_in(run.path) == before


def test_the_torn_seal_of_an_older_version_is_completed(call: Call, tmp_path: Path) -> None:
    """Its model says nothing, and its claim was to be written after the seal."""
    run = unfinished_run(tmp_path / "run")
    run.model.write_bytes(b"weights")
    seal = b'{"entry":{"files":{"model.safetensors":"'
    whole = run.ledger.read_bytes()
    with LedgerWriter.resume(run.ledger, ResumeEntry(4, Randomness.SECURE)) as writer:
        from dpaudit.runs.consistency import expected_seal

        line, _ = encode_line(expected_seal(run, run.read_ledger()), writer._end.head)
    resumed = run.ledger.read_bytes()
    for end in (len(seal), len(seal) + 30):  # the digest is not all there
        run.ledger.write_bytes(resumed + line[:end])
        assert call("finish", run.path, "--delta", "1e-5").code == 2
        assert run.ledger.read_bytes() == resumed + line[:end]
    run.ledger.write_bytes(resumed + line[: len(seal) + 70])
    assert call("finish", run.path, "--delta", "1e-5").code == 0
    assert run.ledger.read_bytes() == resumed + line
    assert run.ledger.read_bytes().startswith(whole)
    assert call("epsilon", run.path).code == 0


# What goes on.


def _without_proof(run: RunDirectory) -> None:
    run.model.write_bytes(b"weights")


def _older_model(run: RunDirectory) -> None:
    write_model(run, 3)


def _no_observations(run: RunDirectory) -> None:
    """As dpaudit train leaves it, which always writes them."""
    run.observations.unlink()
    run.config.write_text("schema_version = '2.0'\n")


def _without_its_end(run: RunDirectory) -> None:
    """Nothing binds the model to the ledger: its metadata can be copied."""
    cut(run, 1)


def _a_further_release(run: RunDirectory) -> None:
    with LedgerWriter.resume(run.ledger, ResumeEntry(4, Randomness.SECURE)) as writer:
        writer.record_release(step_release(4))


def _a_torn_release(run: RunDirectory) -> None:
    line, _ = encode_line(step_release(4), run.read_ledger().head)
    run.ledger.write_bytes(run.ledger.read_bytes() + line[:-9])


@pytest.mark.parametrize("why", [_without_its_end, _a_further_release, _a_torn_release])
def test_a_run_that_has_steps_to_take_is_to_be_resumed(
    call: Call, run: RunDirectory, why: Callable[[RunDirectory], None]
) -> None:
    run.claim.unlink()
    cut(run, 1)
    why(run)
    before = files_in(run.path)
    result = call("finish", run.path, "--delta", "1e-5")
    assert result.code == 2
    assert "dpaudit train --resume" in result.err
    assert "make_private(resume=...)" in result.err
    assert files_in(run.path) == before


def test_a_run_that_is_being_written_is_left_alone(call: Call, tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    with LedgerWriter.resume(run.ledger, ResumeEntry(4, Randomness.SECURE)):
        result = call("finish", run.path)
    assert result.code == 2
    assert "another process" in result.err


def test_another_delta_than_the_claims_is_refused(call: Call, run: RunDirectory) -> None:
    before = files_in(run.path)
    assert call("finish", run.path, "--delta", "1e-6").code == 2
    assert call("finish", run.path, "--delta", "2").code == 2
    cut(run, 1)
    assert call("finish", run.path, "--delta", "1e-6").code == 2
    assert call("finish", run.path, "--delta", "1e-5").code == 0
    assert files_in(run.path) == before


# What disagrees.


def _altered_model(run: RunDirectory) -> None:
    write_model(run, 4)
    run.model.write_bytes(run.model.read_bytes() + b"\0")


def _other_epsilon(run: RunDirectory) -> None:
    claim = json.loads(run.claim.read_text())
    claim["epsilon"]["upper"] /= 2
    run.claim.write_text(json.dumps(claim))


def _other_claim(run: RunDirectory) -> None:
    claim = read_json(run.claim, Claim)
    write_json(run.claim, msgspec.structs.replace(claim, ledger_head="ab" * 32))


def _missing_observations(run: RunDirectory) -> None:
    run.observations.unlink()


def _fewer_lines(run: RunDirectory) -> None:
    cut(run, 1)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    "why", [_altered_model, _other_epsilon, _other_claim, _missing_observations, _fewer_lines]
)
def test_what_disagrees_exits_4_and_is_left_as_it_is(
    call: Call, run: RunDirectory, why: Callable[[RunDirectory], None], sealed: bool
) -> None:
    if not sealed or why is _fewer_lines:
        cut(run, 1)
    why(run)
    before = files_in(run.path)
    result = call("finish", run.path)
    assert result.code == 4, result.err
    assert result.err.count("\n") == 1
    assert files_in(run.path) == before


@pytest.mark.parametrize("why", [_without_proof, _older_model, _no_observations])
def test_model_that_is_not_the_one_that_ended_the_run_is_refused(
    call: Call, run: RunDirectory, why: Callable[[RunDirectory], None]
) -> None:
    run.claim.unlink()
    cut(run, 1)
    why(run)
    before = files_in(run.path)
    assert call("finish", run.path, "--delta", "1e-5").code == 4
    assert files_in(run.path) == before


@pytest.mark.parametrize("lines", [3, 4])
def test_a_cut_ledger_is_not_finished(call: Call, run: RunDirectory, lines: int) -> None:
    run.claim.unlink()
    cut(run, lines)
    before = files_in(run.path)
    assert call("finish", run.path, "--delta", "1e-5").code == 4
    assert files_in(run.path) == before


def test_a_sealed_run_with_an_altered_file_gets_no_claim(call: Call, run: RunDirectory) -> None:
    run.claim.unlink()
    _altered_model(run)
    assert call("finish", run.path, "--delta", "1e-5").code == 4
    assert not run.claim.exists()


def test_what_is_no_run_is_refused(call: Call, tmp_path: Path) -> None:
    assert call("finish", tmp_path / "nowhere").code == 2
    assert call("finish", tmp_path).code == 4


# Everywhere a run is opened.


@pytest.mark.parametrize(
    "command",
    [
        *(("epsilon",), ("report",), ("watch", "--once"), ("audit",), ("attack",), ("gate",)),
        *(("conformance",), ("init",), ("export", "tensorboard"), ("baseline", "write")),
        *(("delta", "--epsilon", "1"), ("tradeoff",)),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("damage", ["cut", "no claim"])
def test_every_command_refuses_what_contradicts_itself(
    call: Call, run_copy: Path, command: tuple[str, ...], damage: str
) -> None:
    run = RunDirectory(run_copy)
    if damage == "cut":
        cut(run, 10)
    else:
        run.claim.unlink()
    before = files_in(run_copy)
    where = ("--policy", _policy(run_copy.parent)) if command == ("gate",) else ()
    output = ("-o", run_copy.parent / "out") if command[0] in ("init", "baseline") else ()
    if command[0] == "export":
        pytest.importorskip("tensorboard")
    result = call(*command, run_copy, *where, *output)
    assert result.code == 4, result.err
    assert files_in(run_copy) == before


def test_a_cut_run_is_not_resumed_by_the_command(call: Call, run_copy: Path) -> None:
    cut(RunDirectory(run_copy), 10)
    before = files_in(run_copy)
    assert call("train", "--resume", "--out", run_copy).code == 4
    assert files_in(run_copy) == before


def test_finish_needs_no_torch(run: RunDirectory) -> None:
    run.claim.unlink()
    arguments = ["dpaudit", "finish", str(run.path), "--delta", "1e-5"]
    code = (
        f"import sys; sys.argv = {arguments!r}; sys.modules['torch'] = None\n"
        "sys.modules['safetensors'] = None\n"
        "from dpaudit.cli.entry_point import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(run.read_finished().releases) == 4


def test_what_was_declared_enters_the_claim(call: Call, tmp_path: Path) -> None:
    from dpaudit.vocabulary.ledger import ChangeEntry

    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    with LedgerWriter.create(run.ledger, header(unaccounted=("tuning",))) as writer:
        writer.record_release(step_release(0))
        writer.declare(ChangeEntry("pruned", 1))
        write_model(run, 1)
        writer.end({run.model.name: sha256(run.model)})
    assert call("finish", run.path, "--delta", "1e-5").code == 0
    changed = "model changed outside of the recorded steps at step 1: pruned"
    assert claim_from_ledger(run.read_finished(), 1e-5, "pld").unaccounted == ("tuning", changed)
    policy = tmp_path / "policy.toml"
    limit = '[claim]\nmax_epsilon = 100.0\ndelta = 1e-5\nmay_leave_out = ["tuning"{}]\n'
    policy.write_text(limit.format(""))
    assert call("gate", run.path, "--policy", policy).code == 1
    policy.write_text(limit.format(f', "{changed}"'))
    assert call("gate", run.path, "--policy", policy).code == 0
