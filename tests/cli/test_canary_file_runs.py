"""Runs of ``dpaudit train`` whose records include the canaries of a canary file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from calling import Call

from dpaudit.attacks.one_run.score_file_audit import SCORE_AUDIT_NAME
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json, sha256
from dpaudit.trainer import run as runs
from dpaudit.trainer.canaries.added_canaries import AddedCanaryFile
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.workflow.audit import run_canary_files
from dpaudit.workflow.audit.external_scores import AuditorCanaries

TEXT = ("--sequence-length", 40, "--expected-batch-size", 10)
SHORT = ("--noise-multiplier", 1, "--sampling-rate", 0.1, "--steps", 2)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.csv"
    path.write_text("text\n" + "".join(f"line number {row} of the play\n" for row in range(100)))
    return path


def make(call: Call, folder: Path, kind: str, *more: object) -> np.ndarray:
    """Make a canary file, and return its coins."""
    done = call("canaries", "make", "--kind", kind, "-o", folder / "c.npz", *more)
    assert done.code == 0, done.err
    with np.load(folder / "c.secret.npz") as arrays:
        return arrays["included"]


def make_secrets(call: Call, folder: Path, *more: object) -> np.ndarray:
    template = ("--template", "code {secret}")
    return make(call, folder, "secrets", "--count", 30, "--references", 5, *template, *more)


def train(call: Call, folder: Path, *more: object) -> None:
    done = call(
        "train", "--canary-file", folder / "c.npz", "--out", folder / "run", *SHORT, *more
    )  # fmt: skip
    assert done.code == 0, done.err


def of_canaries(run: Path) -> AuditResult:
    """Return the bound from the canaries of the file."""
    report = read_json(RunDirectory(run).audit, AuditReport)
    return next(one for one in report.bounds if one.name == SCORE_AUDIT_NAME)


def judged(call: Call, run: Path) -> str:
    policy = run.parent / "policy.toml"
    policy.write_text("[audit]\nconfidence = 0.95\n")
    done = call("gate", run, "--policy", policy)
    assert done.code in {0, 3}, done.err  # verified; too few canaries to be decisive
    return done.out


def test_secrets_in_a_run_give_a_certified_bound(call: Call, tmp_path: Path, lines: Path) -> None:
    included = make_secrets(call, tmp_path)
    train(call, tmp_path, "--data", lines, "--text", "text", *TEXT)
    run = tmp_path / "run"
    split = runs.prepare_run(RunDirectory(run).read_config()).split
    assert len(split.train) + len(split.heldout) == 100 + included.sum()
    assert call("audit", run).code == 0
    bound = of_canaries(run)
    assert (bound.trials, bound.kind) == (30, BoundKind.CERTIFIED)
    assert "does not record" not in bound.assumes
    assert "does not record" not in judged(call, run)


def test_without_the_auditors_file_the_canaries_are_inconclusive(
    call: Call, tmp_path: Path, lines: Path
) -> None:
    make_secrets(call, tmp_path)
    train(call, tmp_path, "--data", lines, "--text", "text", *TEXT)
    secret = tmp_path / "c.secret.npz"
    kept = secret.rename(tmp_path / "kept.secret.npz")
    done = call("audit", tmp_path / "run")
    assert done.code == 0, done.err
    assert "INCONCLUSIVE about the 30 canaries" in done.out
    assert "(with --canaries FILE)" in judged(call, tmp_path / "run")
    done = call("audit", tmp_path / "run", "--canaries", kept)
    assert done.code == 0, done.err
    assert of_canaries(tmp_path / "run").kind is BoundKind.CERTIFIED
    # Another file with other coins is not the one that the ledger records.
    with np.load(kept) as arrays:
        np.savez(secret, **{**arrays, "included": ~arrays["included"]})
    refused = call("audit", tmp_path / "run", "--canaries", secret)
    assert refused.code == 4
    assert "INCONCLUSIVE about the 30 canaries" in call("audit", tmp_path / "run").out


def test_records_in_a_run_give_a_certified_bound(
    call: Call, tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    included = make(call, tmp_path, "mislabelled", "--data", small_data, "--count", 40)
    train(call, tmp_path, "--data", small_data)
    assert call("audit", tmp_path / "run").code == 0
    bound = of_canaries(tmp_path / "run")
    assert (bound.trials, bound.kind) == (40, BoundKind.CERTIFIED)
    judged(call, tmp_path / "run")

    def leaking(auditor: AuditorCanaries, run: RunDirectory) -> dict[str, float]:
        return dict(zip(auditor.ids, included.astype(float).tolist(), strict=True))

    monkeypatch.setattr(run_canary_files, "record_scores_of_run", leaking)
    assert call("audit", tmp_path / "run").code == 0
    bound = of_canaries(tmp_path / "run")
    assert bound.correct == bound.guesses > 0
    assert bound.epsilon_lower > 0


def test_canaries_that_the_data_hold_already_are_refused(
    call: Call, tmp_path: Path, lines: Path, small_data: Path
) -> None:
    """One coin would stand for two records, and the bound would not be that of one."""
    (tmp_path / "records").mkdir()
    make(call, tmp_path / "records", "mislabelled", "--data", small_data, "--count", 40,
         "--training-file", tmp_path / "train.npz")  # fmt: skip
    make_secrets(call, tmp_path, "--text", lines, "--training-file", tmp_path / "train.csv")
    with np.load(tmp_path / "c.npz") as arrays:
        sentences = arrays["sentences"].tolist()
    (tmp_path / "blocks.txt").write_text("\n".join(["a line of the play"] * 40 + sentences))
    (tmp_path / "rows.csv").write_text(
        "text\n" + "".join(f"with {one} x\n" for one in sentences * 9)
    )
    for canaries, data in (
        ("records/c.npz", ("--data", tmp_path / "train.npz")),
        ("c.npz", ("--data", tmp_path / "train.csv", "--text", "text", *TEXT)),
        ("c.npz", ("--data", tmp_path / "blocks.txt", *TEXT)),
        ("c.npz", ("--data", tmp_path / "rows.csv", "--text", "text", *TEXT)),
    ):
        done = call("train", "--canary-file", tmp_path / canaries, "--out", tmp_path / "run",
                    *SHORT, *data)  # fmt: skip
        assert done.code == 2
        assert "hold an included canary already" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "more", "named"),
    [
        ("new-tokens", (), "--input-canaries adds new tokens"),
        ("dummy", (), "canary_file"),
        ("secrets", ("--sequence-length", 8), "canaries would be cut off"),
        ("mislabelled", (), "included canaries that are texts"),
    ],
)
def test_canaries_that_a_run_cannot_add_are_refused(
    call: Call, tmp_path: Path, lines: Path, small_data: Path, kind: str, more: tuple, named: str
) -> None:
    given = {"new-tokens": ("--text", lines), "mislabelled": ("--data", small_data)}.get(kind, ())
    make(call, tmp_path, kind, "--count", 30, *given)
    done = call("train", "--canary-file", tmp_path / "c.npz", "--out", tmp_path / "run", *SHORT,
                "--data", lines, "--text", "text", *TEXT, *more)  # fmt: skip
    assert done.code == 2
    assert named in done.err


def test_an_interrupted_run_resumes_from_its_own_copy(
    call: Call, tmp_path: Path, small_data: Path
) -> None:
    make(call, tmp_path, "mislabelled", "--data", small_data, "--count", 40)
    train(call, tmp_path, "--data", small_data, "--checkpoint-every", 1)
    config = RunDirectory(tmp_path / "run").read_config()
    out = tmp_path / "again"

    def interrupt(done: int, seen: object) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train_run(runs.prepare_run(config), out, interrupt)
    shutil.move(tmp_path / "c.npz", tmp_path / "moved.npz")
    run = runs.resume_run(runs.prepare_resume(out), out, lambda done, seen: None)
    assert run.read_config().canaries.file == str(tmp_path / "c.npz")


def altered(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """Return arrays of a trainer's file of two records, one of them altered."""
    whole = {
        "ids": np.array(["a", "b"]), "kind": np.array("mislabelled"), "count": np.array(4),
        "secret_sha256": np.array("0" * 64), "x": np.zeros((2, 6), np.float32),
        "y": np.zeros(2, np.int64),
    }  # fmt: skip
    return {**whole, name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", np.full((2, 6), "a")),
        ("x", np.full((2, 6), np.nan)),
        ("x", np.full((2, 6), 1e300)),
        ("x", np.zeros((3, 6))),
        ("y", np.zeros(1, np.int64)),
        ("y", np.zeros((2, 1), np.int64)),
        ("y", np.array([0.5, 1.0])),
        ("ids", np.array("a")),
        ("count", np.array([4, 4])),
        ("count", np.array(-4)),
        ("secret_sha256", np.array("abc")),
    ],
)
def test_a_broken_canary_file_is_refused(
    call: Call, tmp_path: Path, small_data: Path, name: str, value: np.ndarray
) -> None:
    np.savez(tmp_path / "c.npz", **altered(name, value))
    done = call("train", "--data", small_data, "--canary-file", tmp_path / "c.npz",
                "--out", tmp_path / "run", *SHORT)  # fmt: skip
    assert done.code == 4, done.err
    assert "is broken" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", [np.array("abc"), np.array(["", "b"]), np.array(["\ud800", "b"])])
def test_broken_texts_of_a_canary_file_are_refused(tmp_path: Path, text: np.ndarray) -> None:
    arrays = altered("sentences", text)
    np.savez(tmp_path / "c.npz", **{key: arrays[key] for key in arrays if key not in {"x", "y"}})
    with pytest.raises(IntegrityError, match="is broken"):
        AddedCanaryFile.read(tmp_path / "c.npz")


@pytest.mark.parametrize("rows", [slice(0), slice(None, None, -1)])
def test_a_run_without_the_included_canaries_shows_nothing(
    call: Call, tmp_path: Path, small_data: Path, rows: slice
) -> None:
    """The trainer left the canaries out, or others took their places."""
    make(call, tmp_path, "mislabelled", "--data", small_data, "--count", 40)
    with np.load(tmp_path / "c.npz") as arrays:
        changed = {**arrays, **{name: arrays[name][rows] for name in ("ids", "x", "y")}}
    np.savez(tmp_path / "c.npz", **changed)
    train(call, tmp_path, "--data", small_data)
    refused = call("audit", tmp_path / "run")
    assert refused.code == 4
    assert "does not hold the included canaries" in refused.err


def test_an_auditors_file_with_a_canary_less_is_refused(
    call: Call, tmp_path: Path, small_data: Path
) -> None:
    make(call, tmp_path, "mislabelled", "--data", small_data, "--count", 40)
    secret = tmp_path / "c.secret.npz"
    with np.load(secret) as arrays:
        np.savez(secret, **{**arrays, "x": arrays["x"][1:]})
    with np.load(tmp_path / "c.npz") as arrays:
        np.savez(tmp_path / "c.npz", **{**arrays, "secret_sha256": np.array(sha256(secret))})
    train(call, tmp_path, "--data", small_data)
    assert call("audit", tmp_path / "run").code == 4


@pytest.mark.parametrize("error", [PermissionError, IntegrityError])
def test_an_auditors_file_that_only_the_auditor_may_read_is_inconclusive(
    call: Call,
    tmp_path: Path,
    small_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    make(call, tmp_path, "mislabelled", "--data", small_data, "--count", 40)
    train(call, tmp_path, "--data", small_data)

    def refuse(path: Path) -> str:
        raise error(path)

    monkeypatch.setattr(run_canary_files, "sha256", refuse)
    done = call("audit", tmp_path / "run")
    assert done.code == 0, done.err
    assert "INCONCLUSIVE about the 40 canaries" in done.out
