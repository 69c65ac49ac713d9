"""dpaudit attack on language models: a folder, token log-probabilities, and a run on text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from calling import Call
from tiny_language_models import save_tiny_gpt2

from dpaudit.attacks.language_models.likelihood_attacks import LIKELIHOOD_ATTACKS
from dpaudit.cli.language_models import TEXT_ATTACKS


def test_the_command_knows_every_attack_on_texts() -> None:
    assert tuple(LIKELIHOOD_ATTACKS) == TEXT_ATTACKS


def write_logprobs(path: Path, *, leak: float, shift: str = "") -> Path:
    """200 members, whose log-probabilities are larger by ``leak``, and 200 non-members."""
    rng = np.random.default_rng(0)
    lines = []
    for row, member in enumerate(rng.permutation(400) < 200):
        words = " ".join(f"word{number}" for number in rng.integers(0, 50, 12))
        lines.append({
            "id": f"t{row}", "member": int(member),
            "text": words + (shift if member else ""),
            "logprobs": (-rng.exponential(2 - leak * member, 12)).tolist(),
            "greedy": (rng.random(12) < 0.3 + 0.5 * abs(leak) * member).tolist(),
        })  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_token_logprobs_are_attacked_and_extraction_is_counted(call: Call, tmp_path: Path) -> None:
    path = write_logprobs(tmp_path / "l.jsonl", leak=1.0)
    done = call("attack", "--token-logprobs", path, "--suffix-tokens", 2, "-o", tmp_path / "s.csv")
    assert (done.code, done.err) == (0, f"dpaudit: wrote {tmp_path / 's.csv'}\n")
    for line in ("loss", "zlib", "min-k"):
        assert f"\n{line} " in done.out
    assert "min-k++" not in done.out  # the file lacks its signals
    assert "without the model: length, AUC" in done.out
    assert "verbatim extraction of the last 2 tokens: " in done.out
    assert "probabilistic extraction of the last 2 tokens, n = 100, p = 0.5" in done.out
    assert set(pd.read_csv(tmp_path / "s.csv")["attack"]) == {"loss", "zlib", "min-k"}
    report = json.loads(call("attack", "--token-logprobs", path, "--format", "json").out)
    assert {one["attack"]: one["auc"] > 0.8 for one in report["membership"]}["loss"]
    assert report["files"].keys() == {"token_logprobs"}


def test_a_shift_of_distribution_makes_every_attack_inconclusive(
    call: Call, tmp_path: Path
) -> None:
    path = write_logprobs(tmp_path / "l.jsonl", leak=0.5, shift=" 2023")
    done = call("attack", "--token-logprobs", path, "--attack", "loss")
    assert done.code == 3
    assert "INCONCLUSIVE: loss: " in done.out
    assert "alone, without any model, tells members from non-members" in done.out


def test_a_shift_that_turns_the_scores_around_is_named_as_the_reason(
    call: Call, tmp_path: Path
) -> None:
    path = write_logprobs(tmp_path / "l.jsonl", leak=-1.5, shift=" 2023")
    done = call("attack", "--token-logprobs", path, "--attack", "loss")
    assert done.code == 2
    assert "alone, without any model, tells members from non-members" in done.err


def test_a_model_folder_is_attacked_with_a_reference(call: Call, tmp_path: Path) -> None:
    target = save_tiny_gpt2(tmp_path / "target")
    other = save_tiny_gpt2(tmp_path / "other", seed=1)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "text": [" ".join(rng.choice(["to", "be", "or", "not"], 6)) for _ in range(40)],
        "member": np.arange(40) % 2,
    })  # fmt: skip
    frame.to_csv(tmp_path / "texts.csv", index=False)
    done = call("attack", "--language-model", target, "--reference-model", other, "--tokenizer",
                "bytes", "--data", tmp_path / "texts.csv", "--suffix-tokens", 4, "--top-k", 5,
                "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert [one["attack"] for one in report["membership"]] == list(TEXT_ATTACKS)
    assert [one["name"] for one in report["extraction"]] == ["verbatim", "probabilistic"]
    assert report["extraction"][1]["scheme"] == "temperature 1, the 5 most probable tokens"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--language-model", "m"), "goes with --data"),
        (("--token-logprobs", "l.jsonl", "--data", "t.csv"), "leave out --data"),
        (("--token-logprobs", "l.jsonl", "--tokenizer", "bytes"), "leave out --tokenizer"),
        (("--token-logprobs", "l.jsonl", "--epochs", 3), "no effect on texts"),
        (("--token-logprobs", "l.jsonl", "--attempts", 3), "--suffix-tokens"),
        (("--scores", "s.csv", "--suffix-tokens", 3), "goes with a language model"),
        (("--token-logprobs", "l.jsonl", "--attack", "rmia-online"), "for a language model"),
        (("--token-logprobs", "missing.jsonl"), "missing.jsonl"),
        (("--language-model", "missing", "--data", "t.csv"), "missing"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    call: Call, tmp_path: Path, options: tuple[object, ...], text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_logprobs(tmp_path / "l.jsonl", leak=0.5)
    (tmp_path / "t.csv").write_text("text,member\nto be,1\nor not,0\n")
    done = call("attack", *options)
    assert done.code == 2
    assert text in done.err
