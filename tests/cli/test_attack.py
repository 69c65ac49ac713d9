"""dpaudit attack on small data, on a run, on a model file and on scores from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from calling import Call, Called
from torch import nn

from dpaudit.cli.attack import ATTACKS, DEFAULT_ATTACKS, REFERENCE_FREE_ATTACKS
from dpaudit.vocabulary.audit import REFERENCE_ATTACKS, AttackReport

QUICK = ("--references", 4, "--targets", 2, "--epochs", 20, "--batch-size", 32)
DP_SGD = ("--reference-training", "dp-sgd")


@pytest.fixture(scope="module")
def hard_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels without a rule: a model can only learn them by heart."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "hard.npz"
    np.savez(path, x=generator.standard_normal((300, 20)), y=generator.integers(0, 4, 300))
    return path


def report_of(result: Called) -> AttackReport:
    import msgspec

    return msgspec.json.decode(result.out, type=AttackReport)


def test_the_command_knows_every_attack_that_there_is() -> None:
    from dpaudit.attacks.membership import attack_registry

    assert tuple(attack_registry.ATTACKS) == ATTACKS
    assert set(ATTACKS) - attack_registry.REFERENCE_FREE_ATTACKS == REFERENCE_ATTACKS
    assert attack_registry.REFERENCE_FREE_ATTACKS == REFERENCE_FREE_ATTACKS


def test_every_attack_in_one_table_with_pictures_and_scores(
    call: Call, hard_data: Path, tmp_path: Path
) -> None:
    roc, scores, pictured = (tmp_path / name for name in ("roc.png", "s.csv", "h.svg"))
    result = call(
        *("attack", "--data", hard_data, *QUICK, "--attack", "all"),
        *("--plot", roc, "--histograms", pictured, "-o", scores),
    )
    written = "".join(f"dpaudit: wrote {path}\n" for path in (scores, roc, pictured))
    assert (result.code, result.err) == (0, written)
    rows = [line.split()[0] for line in result.out.splitlines() if line]
    assert set(ATTACKS) < set(rows)
    assert "an FPR of 0.01% (10000 needed), 0.1% (1000 needed)" in result.out
    assert roc.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in pictured.read_text()
    frame = pd.read_csv(scores)
    assert len(frame) == len(ATTACKS) * 2 * 270  # 30 non-members a target are known to it
    again = call("attack", "--scores", scores)
    table = result.out.splitlines()[2 : 3 + len(ATTACKS)]
    assert again.out.splitlines()[2 : 3 + len(ATTACKS)] == table


def test_memorizing_models_are_attacked_successfully(call: Call, hard_data: Path) -> None:
    result = call("attack", "--data", hard_data, *QUICK, "--format", "json")
    found = {one.attack: one for one in report_of(result).membership}
    assert tuple(found) == DEFAULT_ATTACKS
    assert min(one.auc for one in found.values()) > 0.65  # 4 standard errors above one half
    assert all(one.assumes.startswith("given the models") for one in found.values())


def test_the_same_seed_gives_the_same_scores(call: Call, hard_data: Path, tmp_path: Path) -> None:
    plan = ("attack", "--data", hard_data, *QUICK, "--attack", "lira-online")
    paths = [tmp_path / f"{name}.npz" for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        assert call(*plan, "--seed", seed, "-o", path).code == 0
    first, second, third = (np.load(path)["score"] for path in paths)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_a_run_is_attacked_with_references_of_its_own_kind(call: Call, run_copy: Path) -> None:
    before = contents(run_copy)
    plan = ("--references", 2, "--epochs", 2, "--attack", "lira-online")
    result = call("attack", run_copy, *plan)
    assert result.code == 0
    assert "with 2 references (auto) trained without noise" in result.out
    after = contents(run_copy)
    written = json.loads(after.pop("attack.json"))
    assert after == before
    last = json.loads(before["ledger.jsonl"].splitlines()[-1])
    assert written["ledger_head"] == last["hash"]
    assert [one["attack"] for one in written["membership"]] == ["lira-online"]


def test_fewer_records_are_taken(call: Call, hard_data: Path, tmp_path: Path) -> None:
    plan = ("attack", "--data", hard_data, *QUICK, "--attack", "loss", "--records", 100)
    assert call(*plan, "-o", tmp_path / "scores.parquet").code == 0
    assert len(pd.read_parquet(tmp_path / "scores.parquet")) == 2 * 90


@pytest.mark.slow
def test_workers_change_nothing(call: Call, hard_data: Path, tmp_path: Path) -> None:
    plan = ("attack", "--data", hard_data, *QUICK, "--attack", "lira-offline")
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for path, workers in zip(paths, (1, 2), strict=True):
        assert call(*plan, "--workers", workers, "-o", path).code == 0
    one, two = (pd.read_parquet(path)["score"].to_numpy() for path in paths)
    assert one == pytest.approx(two, abs=1e-3)


def test_attacks_that_need_no_references_train_none(call: Call, run_copy: Path) -> None:
    plan = ("--attack", "loss", "--attack", "label-only", "--attack", "quantile")
    result = call("attack", run_copy, *plan, "--references", 0)
    # By its labels alone, a model that is right on every record says nothing.
    assert result.code == (3 if "INCONCLUSIVE: label-only" in result.out else 0)
    assert "references" not in result.out
    refused = call("attack", run_copy, "--attack", "calibrated", "--references", 0)
    assert refused.code == 2
    assert "references" in refused.err


class Halved(nn.Module):
    """The label is the sign of the first feature."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        first = features[:, :1]
        return torch.cat([-first, first], dim=1)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.jit.trace(Halved(), torch.zeros(2, 3)).save(str(path))
    return path


def write_split(path: Path, own_test_set: bool) -> Path:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((400, 3))
    y = (x[:, 0] + generator.standard_normal(400) > 0).astype(int)
    parts = {"x_train": x[:200], "y_train": y[:200], "x_test": x[200:], "y_test": y[200:]}
    np.savez(path, **(parts if own_test_set else {"x": x, "y": y}))
    return path


def test_a_model_file_is_attacked_on_the_records_that_it_knew(
    call: Call, program: Path, tmp_path: Path
) -> None:
    data = write_split(tmp_path / "split.npz", own_test_set=True)
    plan = ("attack", "--data", data, "--checkpoint", program, "--attack", "loss")
    refused = call(*plan)
    assert refused.code == 2
    assert "--trust-model-code" in refused.err
    plan = (*plan, "--trust-model-code")
    result = call(*plan, "--format", "json")
    assert result.code == 0
    (one,) = report_of(result).membership
    assert (one.members, one.nonmembers) == (200, 160)
    assert 0.4 < one.auc < 0.6


def test_a_model_file_with_records_that_we_would_split_is_refused(
    call: Call, program: Path, tmp_path: Path
) -> None:
    """Held out by our coins, records of a foreign model's own would count as non-members."""
    data = write_split(tmp_path / "whole.npz", own_test_set=False)
    result = call("attack", "--data", data, "--checkpoint", program, "--attack", "loss")
    assert result.code == 2
    assert "a test set of their own" in result.err


def test_a_model_of_other_classes_is_refused(
    call: Call, program: Path, hard_data: Path, tmp_path: Path
) -> None:
    arrays = dict(np.load(write_split(tmp_path / "split.npz", own_test_set=True)))
    arrays["y_train"] = np.arange(200) % 5
    np.savez(tmp_path / "five.npz", **arrays)
    plan = ("attack", "--data", tmp_path / "five.npz", "--checkpoint", program)
    plan = (*plan, "--trust-model-code")
    result = call(*plan, "--attack", "loss")
    assert result.code == 2
    assert "5 classes" in result.err


def scores(tmp_path: Path, **columns: object) -> Path:
    path = tmp_path / "scores.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_constant_scores_are_inconclusive_and_exit_3(call: Call, tmp_path: Path) -> None:
    result = call("attack", "--scores", scores(tmp_path, score=[1.0] * 40, member=[0, 1] * 20))
    assert result.code == 3
    assert "INCONCLUSIVE: scores: every score is the same" in result.out


def test_each_rate_without_enough_nonmembers_tells_how_many_it_needs(
    call: Call, tmp_path: Path
) -> None:
    path = scores(tmp_path, score=range(10), member=[0] * 5 + [1] * 5)
    result = call("attack", "--scores", path)
    needed = "0.01% (10000 needed), 0.1% (1000 needed), 1% (100 needed), 10% (10 needed)"
    assert f"too few non-members for an FPR of {needed}" in result.out


def test_inverted_scores_exit_2_and_say_so(call: Call, tmp_path: Path) -> None:
    path = scores(tmp_path, score=range(100), member=[1] * 50 + [0] * 50)
    result = call("attack", "--scores", path)
    assert result.code == 2
    assert "the sign looks inverted" in result.err


@pytest.mark.parametrize(
    "bad",
    [
        {"score": [1, None, 3], "member": [0, 1, 1]},
        {"score": [1, 2, 3], "member": [0, 1, 2]},
        {"score": [1, 2, 3], "member": [1, 1, 1]},
        {"score": [1, 2, 3], "member": [0, 1, 1], "id": [7, 7, 8]},
        {"score": [1, 2, 3]},
    ],
)
def test_broken_scores_exit_2_with_one_line(
    call: Call, tmp_path: Path, bad: dict[str, object]
) -> None:
    result = call("attack", "--scores", scores(tmp_path, **bad))
    assert (result.code, result.err.count("\n"), result.out) == (2, 1, "")


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ((), "RUN, --data or --scores"),
        (("RUN", "--data", "x.npz"), "RUN, --data or --scores"),
        (("--scores", "x.csv", "--checkpoint", "x.pt"), "--checkpoint"),
        (("RUN", "--model", "cnn"), "--model"),
        (("--scores", "x.csv", "--attack", "loss"), "--attack"),
        (("--data", "x.npz", "--checkpoint", "x.pt", "--targets", "3"), "--targets"),
        (("--data", "nowhere.npz"), "data"),
        (("--scores", "nowhere.csv"), "scores"),
        (("--data", "x.npz", "--plot", "roc.txt"), "plot"),
        (("--data", "x.npz", "-o", "scores.pkl"), "output"),
        (("--data", "x.npz", "-o", "nowhere/scores.csv"), "output"),
        (("--data", "x.npz", "-o", "s.csv", "--record-risk", "./s.csv"), "--record-risk and"),
        (("--data", "x.npz", "--plot", "p.svg", "--histograms", "p.svg"), "--histograms and"),
        (("RUN", *DP_SGD, "--epochs", "3"), "leave out --epochs"),
        (("RUN", *DP_SGD, "--batch-size", "3"), "leave out --batch-size"),
        (("RUN", *DP_SGD, "--learning-rate", "3"), "leave out --learning-rate"),
        (("RUN", *DP_SGD, "--attack", "loss"), "loss needs no references"),
        (("--data", "x.npz", "--attack", "guess"), "--attack"),
        (("--data", "x.npz", "--targets", "0"), "targets"),
        (("--data", "x.npz", "--confidence", "nan"), "confidence"),
    ],
)
def test_bad_arguments_are_named_in_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("attack", *plan)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert named in result.err


def test_the_json_is_that_of_the_table(call: Call, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    member = [0, 1] * 200
    path = scores(tmp_path, score=generator.standard_normal(400) + member, member=member)
    found = json.loads(call("attack", "--scores", path, "--format", "json").out)
    (one,) = found["membership"]
    assert f"{one['auc']:.3f}" in call("attack", "--scores", path).out
    assert one["unresolved"] == [0.0001, 0.001]


@pytest.mark.slow
def test_location30_in_one_table(call: Call, data_folder: Path) -> None:
    """LiRA with 32 references at least 12% at 0.1% FPR, RMIA with one at least 3%."""
    data = data_folder / "location30.npz"
    plan = ("attack", "--data", data, "--targets", 8, "--format", "json")
    many = report_of(call(*plan, "--references", 32)).membership
    found = {(one.attack, rate.fpr): rate.tpr for one in many for rate in one.tpr_at_fpr}
    assert found["lira-online", 0.001] >= 0.12
    one = report_of(call(*plan, "--references", 1, "--attack", "rmia-online")).membership[0]
    assert next(rate.tpr for rate in one.tpr_at_fpr if rate.fpr == 0.001) >= 0.03


def test_references_can_imitate_a_run(call: Call, run_copy: Path) -> None:
    found = call(
        "attack", run_copy, "--attack", "rmia-offline", "--references", 2,
        "--reference-training", "dp-sgd", "--format", "json",
    )  # fmt: skip
    assert found.code in {0, 3}, found.err
    report = report_of(found)
    assert report.reference_training == "dp-sgd"
    assert "by DP-SGD with the run's settings" in report.attacked
    refused = call("attack", "--data", "digits", "--reference-training", "dp-sgd")
    assert refused.code == 2
