"""Text canaries by command: made, trained on elsewhere or by a run, and audited."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from calling import Call
from tiny_language_models import save_tiny_gpt2

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json
from dpaudit.vocabulary.audit import AuditReport


def make(call: Call, folder: Path, kind: str, *more: object) -> dict[str, np.ndarray]:
    done = call("canaries", "make", "--kind", kind, "-o", folder / "c.npz", *more)
    assert done.code == 0, done.err
    with np.load(folder / "c.secret.npz") as arrays:
        return dict(arrays)


def write_logprobs(path: Path, secret: dict[str, np.ndarray], leak: float) -> Path:
    """Log-probabilities that are larger by ``leak`` for the last token of included canaries."""
    rng = np.random.default_rng(0)
    ids = [
        *secret["ids"],
        *(f"reference-{row}" for row in range(len(secret.get("references", [])))),
    ]
    included = [*secret["included"], *[False] * (len(ids) - len(secret["ids"]))]
    lines = [
        {"id": str(name), "logprobs": [-3.0, -8.0 + leak * bit - 0.01 * rng.random()]}
        for name, bit in zip(ids, included, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line number {row} of the play, said aloud\n" for row in range(100)))
    return path


def test_new_tokens_are_made_trained_on_elsewhere_and_audited(
    call: Call, tmp_path: Path, lines: Path
) -> None:
    secret = make(call, tmp_path, "new-tokens", "--count", 40, "--text", lines,
                  "--training-file", tmp_path / "train.csv")  # fmt: skip
    with np.load(tmp_path / "c.npz") as trained:
        assert len(trained["token_names"]) == 40  # of excluded canaries, too
        assert len(trained["sentences"]) == int(secret["included"].sum())
    with open(tmp_path / "train.csv", newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file)]
    assert len(rows) == 60 + int(secret["included"].sum())
    assert all(("<|canary-" in text) == (text in secret["sentences"]) for text in rows)
    leaked = write_logprobs(tmp_path / "l.jsonl", secret, leak=5)
    done = call("audit", "--canaries", tmp_path / "c.npz", "--token-logprobs", leaked,
                "--claim-epsilon", 0.5)  # fmt: skip
    assert done.code == 0, done.err
    assert "[certified" in done.out
    assert done.out.startswith("CONTRADICTED: the claimed epsilon of 0.5 is contradicted by the ")
    assert "dpaudit: warning: the claimed epsilon of 0.5 is contradicted" in done.err


def test_secrets_are_scored_by_a_model_folder_with_their_exposure(
    call: Call, tmp_path: Path
) -> None:
    make(call, tmp_path, "secrets", "--count", 20, "--references", 15, "--template",
         "code {secret}")  # fmt: skip
    model = save_tiny_gpt2(tmp_path / "model")
    done = call("audit", "--canaries", tmp_path / "c.npz", "--language-model", model,
                "--tokenizer", "bytes")  # fmt: skip
    assert done.code == 0, done.err
    assert "exposure of the included secrets: " in done.out
    assert "20 canaries" in done.out


def test_synthetic_sentences_are_drawn_and_audited_in_a_run(
    call: Call, tmp_path: Path, lines: Path
) -> None:
    model = save_tiny_gpt2(tmp_path / "model")
    secret = make(call, tmp_path, "synthetic", "--count", 12, "--language-model", model,
                  "--tokenizer", "bytes", "--prompt", "line ", "--tokens", 8, "--text", lines,
                  "--training-file", tmp_path / "train.csv")  # fmt: skip
    assert len(set(secret["sentences"])) == 12
    assert all(str(one).startswith("line ") for one in secret["sentences"])
    done = call("train", "--data", tmp_path / "train.csv", "--text", "text", "--sequence-length",
                16, "--sampling-rate", 0.1, "--expected-batch-size", 10, "--noise-multiplier", 1,
                "--steps", 2, "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 0, done.err
    done = call("audit", tmp_path / "run", "--canaries", tmp_path / "c.npz")
    assert done.code == 0, done.err
    (bound,) = read_json(RunDirectory(tmp_path / "run").audit, AuditReport).bounds
    assert bound.trials == 12
    assert "the run's ledger does not record" in bound.assumes  # the coins were tossed elsewhere


def test_a_token_of_an_excluded_canary_is_found_in_its_sentence(
    call: Call, tmp_path: Path, lines: Path
) -> None:
    make(call, tmp_path, "new-tokens", "--count", 5, "--text", lines)
    model = save_tiny_gpt2(tmp_path / "model", positions=64)
    done = call("audit", "--canaries", tmp_path / "c.npz", "--language-model", model,
                "--tokenizer", "bytes")  # fmt: skip
    assert done.code in {0, 2}  # five coins may all fall on one side
    assert "own token" not in done.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("canaries", "make", "--kind", "new-tokens"), "text"),
        (
            ("canaries", "make", "--kind", "new-tokens", "--text", "lines.txt", "--count", 51),
            "half",
        ),
        (("canaries", "make", "--kind", "synthetic", "--prompt", "a"), "--language-model"),
        (("audit", "--language-model", "m"), "--canaries goes with"),
        (
            ("audit", "--token-logprobs", "l", "--canaries", "c.npz", "--scores", "s"),
            "--canaries goes with",
        ),
        (
            ("audit", "--token-logprobs", "l", "--canaries", "c.npz", "--tokenizer", "bytes"),
            "c.secret",
        ),
        (("audit", "run", "--canaries", "c.npz", "--language-model", "m"), "without a RUN"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    call: Call, tmp_path: Path, lines: Path, options: tuple[object, ...], text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    done = call(*options)
    assert done.code != 0
    assert text in done.err


def test_a_text_of_several_lines_needs_a_table(call: Call, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "one\\ntwo"}\n' * 4)
    done = call("canaries", "make", "--kind", "secrets", "--count", 2, "-o", tmp_path / "c.npz",
                "--text", tmp_path / "t.jsonl", "--training-file", tmp_path / "t.txt")  # fmt: skip
    assert done.code == 2
    assert "several lines" in done.err
