"""``dpaudit canaries make``, and ``dpaudit audit`` of what another framework made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from calling import Call
from safetensors.torch import save_file
from torch import nn

from dpaudit.vocabulary.errors import ExitCode

COUNT = 60
Make = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def make(call: Call, tmp_path: Path) -> Make:
    """Makes canaries at c.npz and returns what the auditor's file holds."""

    def made(kind: str, *further: object) -> dict[str, np.ndarray]:
        where = ("--count", COUNT, "-o", tmp_path / "c.npz")
        result = call("canaries", "make", "--kind", kind, *where, *further)
        assert (result.code, result.err) == (0, "")
        with np.load(tmp_path / "c.secret.npz") as archive:
            return dict(archive)

    return made


def write_scores(folder: Path, secret: dict[str, np.ndarray], leak: float = 3.0) -> Path:
    rng = np.random.default_rng(0)
    scores = leak * secret["included"] + rng.standard_normal(len(secret["ids"]))
    path = folder / "scores.csv"
    pd.DataFrame({"id": secret["ids"], "score": scores}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["mislabelled", "blank", "out-of-distribution"])
def test_trainer_file_holds_only_included_canaries(make: Make, tmp_path: Path, kind: str) -> None:
    secret = make(kind, "--training-file", tmp_path / "train.npz")
    with np.load(tmp_path / "c.npz") as archive:
        trained = dict(archive)
    included = secret["included"]
    assert "included" not in trained
    assert np.array_equal(trained["x"], secret["x"][included])
    assert trained["ids"].tolist() == secret["ids"][included].tolist()
    with np.load(tmp_path / "train.npz") as archive:
        rows = {row.tobytes() for row in archive["x"]}
    assert all(row.tobytes() in rows for row in secret["x"][included])
    out = [row.tobytes() in rows for row in secret["x"][~included]]
    assert not any(out)


@pytest.mark.parametrize("records", [50, 400])
def test_default_count_fits_the_held_out_records(call: Call, tmp_path: Path, records: int) -> None:
    x = np.random.default_rng(0).random((records, 3))
    np.savez(tmp_path / "small.npz", x=x, y=np.arange(records) % 2)
    asked = ("canaries", "make", "--data", tmp_path / "small.npz", "-o", tmp_path / "c.npz")
    result = call(*asked)
    assert result.code == 0
    with np.load(tmp_path / "c.secret.npz") as archive:
        made = len(archive["ids"])
    assert 0 < made < records
    assert f"{made} canaries, not 1000: the data have no more held-out records" in result.err
    asked_for_more = call(*asked, "-o", tmp_path / "more.npz", "--count", made + 1)
    assert (asked_for_more.code, f"at most the {made} held-out" in asked_for_more.err) == (2, True)


@pytest.mark.parametrize("kind", ["dummy", "secrets"])
def test_default_count_without_data_is_1000(call: Call, tmp_path: Path, kind: str) -> None:
    result = call("canaries", "make", "--kind", kind, "-o", tmp_path / "c.npz")
    assert (result.code, result.err) == (0, "")
    assert f"of 1000 {kind} canaries" in result.out


def test_existing_files_are_not_overwritten(call: Call, make: Make, tmp_path: Path) -> None:
    make("dummy")
    result = call("canaries", "make", "--kind", "dummy", "-o", tmp_path / "c.npz")
    assert result.code == ExitCode.USAGE
    assert "does not exist yet" in result.err


def test_a_training_file_is_not_overwritten_and_is_no_canary_file(
    call: Call, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.npz"
    mine.write_text("precious")
    where = ("canaries", "make", "--count", 9, "-o", tmp_path / "c.npz", "--training-file")
    assert call(*where, mine).code == ExitCode.USAGE
    assert mine.read_text() == "precious"
    assert call(*where, tmp_path / "c.secret.npz").code == ExitCode.USAGE
    assert not (tmp_path / "c.npz").exists()


def test_inclusion_bits_are_readable_by_their_owner_only(make: Make, tmp_path: Path) -> None:
    make("dummy")
    assert (tmp_path / "c.secret.npz").stat().st_mode & 0o077 == 0


def test_a_full_batch_run_is_claimed_and_audited(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ("--sampling-rate", 1, "--steps", 3, "--noise-multiplier", 3, "--canaries", 60)
    assert call("train", *asked, "--out", run).code == 0
    result = call("audit", run)
    assert result.code == 0
    assert "Gaussian pivot" in result.out
    assert (run / "observations.npz").stat().st_mode & 0o077 == 0


def test_coins_of_a_seed_certify_nothing(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ("--steps", 40, "--noise-multiplier", 3, "--canaries", 60, "--seed", 7)
    assert call("train", *asked, "--out", run).code == 0
    result = call("audit", run)
    assert "certified" not in result.out
    assert "which are not secret" in result.out


def test_scores_of_every_canary_make_a_certified_bound(
    call: Call, make: Make, tmp_path: Path
) -> None:
    scores = write_scores(tmp_path, make("mislabelled"))
    asked = ("--canaries", tmp_path / "c.npz", "--scores", scores, "--claim-epsilon", 0.5)
    result = call("audit", *asked, "--plot", tmp_path / "p.svg")
    assert result.code == 0
    assert "certified" in result.out
    assert "the claimed epsilon of 0.5 is contradicted" in result.out
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    as_json = json.loads(call("audit", *asked, "--format", "json").out)
    assert as_json["bounds"][0]["kind"] == "certified"
    assert as_json["bounds"][0]["registered"]


def test_scores_alone_are_conditional_on_a_random_split(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    member = (rng.random(200) < 0.5).astype(int)
    scores = 3 * member + rng.standard_normal(200)
    path = tmp_path / "s.csv"
    pd.DataFrame({"score": scores, "member": member}).to_csv(path, index=False)
    result = call("audit", "--scores", path, "--claim-epsilon", 4, "--delta", "1e-5")
    assert result.code == 0
    assert "conditional" in result.out
    assert "uniformly random choice" in result.out
    assert "not contradicted; this is no proof" in result.out


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda f: f.iloc[1:], "no score of canary-00"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "twice"),
        (lambda f: f.assign(score=0.0), "one value for all"),
        (lambda f: f.assign(score=np.nan), "finite"),
        (lambda f: f.assign(score="high"), "numbers"),
        (lambda f: f.assign(member=0), "bits"),
        (lambda f: f.drop(columns="id"), "id and score"),
    ],
)
def test_scores_that_do_not_fit_their_canaries_are_refused(
    call: Call,
    make: Make,
    tmp_path: Path,
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    why: str,
) -> None:
    path = write_scores(tmp_path, make("dummy"))
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    result = call("audit", "--canaries", tmp_path / "c.npz", "--scores", path)
    assert result.code == ExitCode.USAGE
    assert why in result.err
    assert result.out == ""


def test_the_trainers_file_alone_is_no_evidence(call: Call, make: Make, tmp_path: Path) -> None:
    scores = write_scores(tmp_path, make("dummy"))
    (tmp_path / "c.secret.npz").unlink()
    result = call("audit", "--canaries", tmp_path / "c.npz", "--scores", scores)
    assert result.code == ExitCode.INTEGRITY


def test_secrets_are_mixed_into_text_and_their_exposure_is_told(
    call: Call, make: Make, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one line\nanother line\n")
    secret = make("secrets", "--text", text, "--training-file", tmp_path / "train.txt")
    lines = (tmp_path / "train.txt").read_text().splitlines()
    assert {"one line", "another line"} < set(lines)
    included = set(secret["sentences"][secret["included"]].tolist())
    assert set(lines) - {"one line", "another line"} == included
    with np.load(tmp_path / "c.npz") as archive:
        assert "references" not in archive.files
    rng = np.random.default_rng(2)
    ids = [*secret["ids"], *(f"reference-{n}" for n in range(len(secret["references"])))]
    leak = np.concatenate([4.0 * secret["included"], np.zeros(len(secret["references"]))])
    frame = pd.DataFrame({"id": ids, "score": leak + rng.standard_normal(len(ids))})
    frame.to_csv(tmp_path / "s.csv", index=False)
    result = call("audit", "--canaries", tmp_path / "c.npz", "--scores", tmp_path / "s.csv")
    assert result.code == 0
    assert "exposure of the included secrets: 9." in result.out


def factory(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))


def test_a_model_is_audited_and_canaries_are_crafted_against_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(
        "from torch import nn\nimport math\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    save_file(factory((64,), 10).state_dict(), tmp_path / "m.safetensors")
    model = ("--checkpoint", "m.safetensors", "--model", "net:make")
    made = call("canaries", "make", "--kind", "crafted", "--count", COUNT, "-o", "c.npz", *model)
    assert (made.code, made.err) == (0, "")
    # The coins are random: at 95% one run in twenty has a lower bound above 0.
    sure = ("--confidence", 1 - 1e-9)
    result = call("audit", "--canaries", "c.npz", *model, "--claim-epsilon", 1, *sure)
    assert result.code == 0  # the model was never trained on the canaries
    assert "lower bound on epsilon 0 " in result.out


@pytest.mark.parametrize(
    "arguments",
    [(), ("--canaries", "c.npz"), ("run", "--scores", "s.csv"), ("--checkpoint", "m.pt")],
)
def test_what_is_to_be_audited_must_be_clear(call: Call, arguments: tuple[str, ...]) -> None:
    assert call("audit", *arguments).code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("-o", "nofolder/c.npz"), "output"),
        (("--text", "missing.txt", "--training-file", "t.txt"), "text"),
    ],
)
def test_what_cannot_be_read_or_written_is_said_before_a_coin_is_tossed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = () if "-o" in more else ("-o", "c.npz")
    result = call("canaries", "make", "--kind", "secrets", "--count", "5", *place, *more)
    assert result.code == 2
    assert named in result.err
    assert not any(tmp_path.iterdir())


def test_empty_score_file_is_refused(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("score,member\n")
    for command in (("gate", "--claim-epsilon", "4"), ("attack",), ("audit",)):
        result = call(*command, "--scores", path)
        assert result.code == 2
        assert "one row per record" in result.err


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("secrets", ("--data", "digits")),
        ("secrets", ("--checkpoint", "m.pt")),
        ("secrets", ("--language-model", "m")),
        ("secrets", ("--temperature", "1")),
        ("new-tokens", ("--template", "{secret}")),
        ("synthetic", ("--references", "9")),
        ("mislabelled", ("--text", "t.csv")),
        ("blank", ("--trust-model-code",)),
        ("dummy", ("--training-file", "t.npz")),
    ],
)
def test_options_of_another_kind_are_refused(
    call: Call, tmp_path: Path, kind: str, option: tuple[str, ...]
) -> None:
    place = ("-o", tmp_path / "c.npz")
    result = call("canaries", "make", "--kind", kind, *place, *option)
    assert result.code == ExitCode.USAGE
    assert f"leave out {option[0]}: it has no effect on canaries of kind {kind}" in result.err
    assert not any(tmp_path.iterdir())
