"""dpaudit attack: slices, other columns, record risks, inference, queries, no labels."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from calling import Call, Called

from dpaudit.vocabulary.audit import AttackReport, AuditReport

QUICK = ("--references", 8, "--targets", 1, "--epochs", 20, "--batch-size", 32)


@pytest.fixture(scope="module")
def hard_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels without a rule: a model can only learn them by heart."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "hard.npz"
    np.savez(path, x=generator.standard_normal((300, 20)), y=generator.integers(0, 3, 300))
    return path


@pytest.fixture
def losses(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    member = np.arange(2000) % 2 == 0
    hospital = np.where(np.arange(2000) % 4 < 2, "north", "south")
    loss = generator.exponential(1, 2000) + 2 * ~member * (hospital == "north")
    loss[:2] = np.inf
    frame = pd.DataFrame(
        {"loss": loss, "split": np.where(member, "train", "test"), "hospital": hospital}
    )
    path = tmp_path / "losses.csv"
    frame.to_csv(path, index=False)
    return path


COLUMNS = ("--score-column", "loss", "--member-column", "split", "--smaller-means-member")


def report_of(result: Called) -> AttackReport:
    return msgspec.json.decode(result.out, type=AttackReport)


def test_a_file_of_losses_is_attacked_by_slices(call: Call, losses: Path) -> None:
    asked = ("attack", "--scores", losses, *COLUMNS, "--by", "hospital")
    result = call(*asked)
    assert (result.code, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines()]
    slices = {row[0]: float(row[4]) for row in rows if row and row[0] in ("north", "south")}
    assert slices["north"] > 0.85
    assert abs(slices["south"] - 0.5) < 0.1
    assert "in all slices together at confidence 0.95" in result.out
    report = report_of(call(*asked, "--format", "json"))
    assert [one.value for one in report.slices] == ["north", "south"]
    assert {one.result.tpr_at_fpr[0].confidence for one in report.slices} == {0.975}


def test_the_direction_is_checked_and_the_remedy_named(call: Call, losses: Path) -> None:
    result = call("attack", "--scores", losses, *COLUMNS[:4])
    assert result.code == 2
    assert "--smaller-means-member" in result.err


def test_a_file_of_losses_is_audited_as_the_file_of_scores(
    call: Call, losses: Path, tmp_path: Path
) -> None:
    frame = pd.read_csv(losses)
    scores = pd.DataFrame(
        {"score": -frame["loss"].clip(upper=1e9), "member": (frame["split"] == "train") * 1}
    )
    scores.to_csv(tmp_path / "scores.csv", index=False)
    ours, usual = (
        call("audit", "--scores", *given, "--claim-epsilon", 1, "--format", "json")
        for given in ((losses, *COLUMNS), (tmp_path / "scores.csv",))
    )
    assert ours.out == usual.out
    assert msgspec.json.decode(ours.out, type=AuditReport).bounds[0].epsilon_lower > 0.3


@pytest.mark.parametrize("command", ["attack", "audit"])
@pytest.mark.parametrize(
    "option", [("--score-column", "x"), ("--member-column", "x"), ("--smaller-means-member",)]
)
def test_column_options_go_with_scores(
    call: Call, command: str, option: tuple[str, ...], hard_data: Path
) -> None:
    source = ("--data", hard_data) if command == "attack" else ("--canaries", hard_data)
    result = call(command, *source, *option)
    assert result.code == 2
    assert f"{option[0]} goes with --scores" in result.err


def test_slices_of_the_memberships_or_of_no_column_are_refused(call: Call, losses: Path) -> None:
    result = call("attack", "--scores", losses, *COLUMNS, "--by", "split")
    assert result.code == 2
    assert "by must be a column other than" in result.err
    missing = call("attack", "--scores", losses, *COLUMNS, "--by", "ward")
    assert missing.code == 2
    assert "ward" in missing.err


def test_everything_about_one_model_at_once(call: Call, hard_data: Path, tmp_path: Path) -> None:
    risks = tmp_path / "risks.csv"
    result = call(
        *("attack", "--data", hard_data, *QUICK, "--attack", "loss", "--attack", "lira-online"),
        *("--by", "class", "--infer", "label", "--queries", 2, "--record-risk", risks),
        *("--format", "json"),
    )
    assert result.code == 0
    report = report_of(result)
    assert len(report.slices) == 6
    assert sum(one.result.members for one in report.slices[:3]) == report.membership[0].members
    assert report.inference[0].leaks
    assert any("an estimate, and no bound" in note for note in report.notes)
    frame = pd.read_csv(risks)
    assert len(frame) == 300
    assert ((frame["models"] == 2) & (frame["other_models"] == 2)).all()
    assert (np.diff(frame["lower"]) <= 0).all()
    assert ((frame["lower"] <= frame["detected"] / 2) & (frame["upper"] >= 0.5)).all()


def test_inference_is_printed_beside_the_baseline(call: Call, hard_data: Path) -> None:
    result = call(
        *("attack", "--data", hard_data, "--targets", 1, "--epochs", 20, "--batch-size", 32),
        *("--attack", "loss", "--infer", "label"),
    )
    assert result.code == 0
    assert "label inferred, of 3 values: " in result.out
    assert "without the model" in result.out
    assert "leakage: members are " in result.out


def test_further_queries_change_scores_and_nothing_else_does(call: Call, hard_data: Path) -> None:
    asked = ("attack", "--data", hard_data, *QUICK, "--attack", "rmia-offline", "--format", "json")
    one, again, three = (
        report_of(call(*asked, "--queries", queries)).membership[0].auc for queries in (1, 1, 3)
    )
    assert one == again != three
    assert three > 0.6


def test_without_labels_only_the_predictions_are_compared(call: Call, hard_data: Path) -> None:
    asked = ("attack", "--data", hard_data, *QUICK, "--format", "json", "--attack")
    known = report_of(call(*asked, "loss"))
    hidden = report_of(call(*asked, "loss", "--without-labels"))
    assert known.membership[0].auc > 0.65 > hidden.membership[0].auc
    assert known.notes
    assert not hidden.notes
    assert report_of(call(*asked, "lira-online", "--without-labels")).membership[0].auc > 0.6


def test_a_table_is_sliced_by_one_of_its_columns(call: Call, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.standard_normal((200, 5)), columns=list("abcde"))
    frame["group"] = np.where(frame["a"] > 0, "x", "y")
    frame["label"] = generator.integers(0, 2, 200)
    frame.to_csv(tmp_path / "table.csv", index=False)
    asked = ("--targets", 1, "--epochs", 3, "--attack", "loss", "--format", "json", "--seed", 3)
    result = call("attack", "--data", tmp_path / "table.csv", *asked, "--by", "group")
    slices = report_of(result).slices
    assert [one.value for one in slices] == ["x", "y"]
    counts = sum(one.result.members for one in slices)
    assert counts == report_of(result).membership[0].members
    for bad in ("nowhere", "score"):
        refused = call("attack", "--data", tmp_path / "table.csv", *asked, "--by", bad)
        assert refused.code == 2


@pytest.mark.parametrize("bad", ["nothing", "-1", "99", "0"])
def test_features_that_cannot_be_inferred_exit_2(call: Call, hard_data: Path, bad: str) -> None:
    asked = ("attack", "--data", hard_data, "--targets", 1, "--epochs", 1, "--attack", "loss")
    result = call(*asked, f"--infer={bad}")
    assert result.code == 2
    assert "infer" in result.err


def test_unusable_settings_are_refused_before_models_are_trained(
    call: Call, hard_data: Path, tmp_path: Path
) -> None:
    forever = ("attack", "--data", hard_data, "--epochs", 10**9, "--attack", "loss")
    for option, said in (
        (("--record-risk", tmp_path / "r.csv", "--references", 3), "references must be"),
        (("--record-risk", tmp_path / "r.pkl"), "record_risk must be"),
        (("--infer", "height"), "infer must be label, or the index"),
        (("--by", "height"), "by must be another one"),
        (("--queries", 0), "queries must be"),
    ):
        result = call(*forever, *option)
        assert result.code == 2
        assert said in result.err


def test_reports_with_slices_are_read_again(call: Call, run_copy: Path) -> None:
    result = call("attack", run_copy, "--attack", "loss", "--by", "class", "--infer", "label")
    assert result.code in (0, 3)
    stored = json.loads((run_copy / "attack.json").read_text())
    assert {one["column"] for one in stored["slices"]} == {"class"}
    assert call("attack", run_copy, "--attack", "loss", "--by", "pixel").code == 2


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a different price in each row."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.standard_normal((400, 8)), columns=list("abcdefgh"))
    frame["price"] = np.exp(frame["a"] / 2 + generator.standard_normal(400))
    path = tmp_path_factory.mktemp("prices") / "prices.csv"
    frame.to_csv(path, index=False)
    return path


REGRESSION = ("--task", "regression", "--label", "price", "--targets", 2, "--references", 4)


def test_regression_models_are_attacked_by_their_errors(
    call: Call, prices: Path, tmp_path: Path
) -> None:
    risks = tmp_path / "risks.csv"
    asked = ("attack", "--data", prices, *REGRESSION, "--epochs", 60, "--format", "json")
    result = call(*asked, "--record-risk", risks)
    aucs = {one.attack: one.auc for one in report_of(result).membership}
    assert len(aucs) == 6
    assert min(aucs["loss"], aucs["lira-online"]) > 0.7
    assert len(pd.read_csv(risks)) == 400
    some = ("--attack", "loss", "--attack", "quantile")
    one, again = (call(*asked, "--model", "linear", *some) for _ in range(2))
    assert one.out == again.out
    assert "0 references" in report_of(one).attacked


def test_a_linear_regression_leaks_little(call: Call, prices: Path) -> None:
    asked = ("attack", "--data", prices, *REGRESSION, "--model", "linear", "--format", "json")
    aucs = [one.auc for one in report_of(call(*asked, "--attack", "loss")).membership]
    assert 0.4 < aucs[0] < 0.65


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--attack", "label-only"), "attack must be for regression"),
        (("--model", "cnn"), "model must be linear or mlp"),
        (("--queries", 2), "queries must be left out for regression"),
        (("--infer", "label"), "infer must be left out for regression"),
        (("--without-labels",), "without_labels must be left out for regression"),
        (("--by", "class"), "by must be left out for regression"),
        (("--attack", "loss", "--learning-rate", 1e30), "learning_rate must be small enough"),
    ],
)
def test_what_regression_has_not_is_refused(
    call: Call, prices: Path, option: tuple[object, ...], said: str
) -> None:
    result = call("attack", "--data", prices, *REGRESSION, *option)
    assert result.code == 2
    assert said in result.err


def test_real_values_as_classes_name_the_remedy(call: Call, prices: Path) -> None:
    result = call("attack", "--data", prices, "--label", "price")
    assert result.code == 2
    assert "--task regression" in result.err


@pytest.mark.parametrize("label", ["text", "constant"])
def test_labels_that_are_no_values_are_refused(call: Call, tmp_path: Path, label: str) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).random((50, 3)), columns=list("abc"))
    frame["text"], frame["constant"] = list("ab") * 25, 1.5
    frame.to_csv(tmp_path / "table.csv", index=False)
    result = call(
        *("attack", "--data", tmp_path / "table.csv", "--task", "regression", "--label", label)
    )
    assert result.code == 2
    assert "labels" in result.err


def test_the_task_goes_with_data_alone(call: Call, losses: Path) -> None:
    result = call("attack", "--scores", losses, *COLUMNS, "--task", "regression")
    assert result.code == 2
    assert "leave out --task" in result.err
