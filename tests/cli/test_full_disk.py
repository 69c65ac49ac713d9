"""A disk that is full while a run is trained: one line, exit 5, and the run can be resumed."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from calling import Call

from dpaudit.runs.directory import open_run
from dpaudit.vocabulary.errors import ExitCode
from tests.cli.installed import script

PLAN = (
    "--noise-multiplier 4 --steps 40 --sampling-rate 0.05 --expected-batch-size 20 "
    "--checkpoint-every 5 --out run --model linear"
)


def small_files(size: int) -> object:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return limit


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    "size", [6000, *(pytest.param(size, marks=pytest.mark.slow) for size in (3000, 7500))]
)
def test_a_run_that_ran_out_of_space_is_resumed(
    call: Call, tmp_path: Path, small_data: Path, size: int
) -> None:
    command = [script(), "train", "--data", str(small_data), *PLAN.split()]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, preexec_fn=small_files(size), check=False
    )
    assert done.returncode == ExitCode.IO, done.stderr
    assert done.stderr.count(b"\n") == 1
    assert b"File too large" in done.stderr
    before = open_run(tmp_path / "run").read_unfinished()
    resumed = call("train", "--resume", "--out", tmp_path / "run")
    assert resumed.code == 0, resumed.err
    after = open_run(tmp_path / "run").read_finished()
    assert after.lines[: len(before.lines)] == before.lines
    assert len({release.step for release in after.releases if release.step is not None}) == 40


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 7])
def test_a_failing_disk_is_5(
    call: Call,
    tmp_path: Path,
    small_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    after: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    sync, calls = os.fsync, []

    def fail(handle: int) -> None:
        calls.append(handle)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    done = call("train", "--data", small_data, *PLAN.split())
    assert done.code == ExitCode.IO
    assert done.err.count("\n") == 1
    assert os.strerror(code) in done.err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_verdict_that_cannot_be_written_leaves_the_old_one(
    call: Call, run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "p.toml").write_text("[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n")
    assert call("gate", run_copy, "--policy", tmp_path / "p.toml").code == 0
    old = (run_copy / "verdict.json").read_bytes()

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    assert call("gate", run_copy, "--policy", tmp_path / "p.toml").code == ExitCode.IO
    assert (run_copy / "verdict.json").read_bytes() == old
