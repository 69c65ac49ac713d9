"""``dpaudit audit --black-box``: models with and without one record, and their bounds."""

import json
import os
import shutil
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calling import Call

from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.workflow.audit.final_model import audit_final_model
from dpaudit.workflow.audit.final_model_trials import TrialFiles, complete_trials
from dpaudit.workflow.audit.trainer_data import digest_trainer_data

BLACK_BOX = ("--black-box", "--models", "4", "--records", "40", "--trainer")
TRAINER = """
import numpy as np


def train_one(with_record, seed):
    return np.random.default_rng(seed).normal(size=2) + 9.0 * with_record * np.array([1.0, 0.0])
"""


def revealing(with_record: bool, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=2) + 9.0 * with_record * np.array([1.0, 0.0])


def test_a_run_is_audited_by_its_own_trainer_and_the_gate_verifies_it(
    call: Call, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("audit", run_copy).code == 0
    without = (run_copy / "audit.json").read_text()
    monkeypatch.setattr("dpaudit.trainer.private.Private.record_by_record", ("0.weight",))
    done = call("audit", run_copy, *BLACK_BOX, "own")
    assert done.code == 0, done.err
    assert "no fast rule" not in done.err + done.out  # the run has warned already
    assert "4 models, half of them with the target record" in done.out
    report = json.loads((run_copy / "audit.json").read_text())
    names = [one["name"] for one in report["bounds"] if one["name"].startswith("final models")]
    assert len(names) == 3
    # A second audit trains nothing: the outputs are stored.
    before = (run_copy / "final-models.npz").read_bytes()
    assert call("audit", run_copy, *BLACK_BOX, "own").code == 0
    assert (run_copy / "final-models.npz").read_bytes() == before
    policy = run_copy.parent / "policy.toml"
    policy.write_text("[audit]\nconfidence = 0.95\n")
    assert call("gate", run_copy, "--policy", policy).code in {0, 3}
    # An audit without the option evaluates the same models again.
    assert call("audit", run_copy).code == 0
    again = json.loads((run_copy / "audit.json").read_text())
    assert again == report
    (run_copy / "audit.json").write_text(without)
    judged = call("gate", run_copy, "--policy", policy)
    assert judged.code == 3
    assert "the audit lacks final models" in judged.out
    # The plan is part of the audit.
    (run_copy / "audit.json").write_text(json.dumps(report))
    plan = (run_copy / "final-models.json").read_text()
    (run_copy / "final-models.json").write_text(plan.replace("blank", "crafted"))
    assert "is not the file" in call("gate", run_copy, "--policy", policy).err
    (run_copy / "final-models.json").write_text(plan)
    for altered, why in altered_audits(report):
        (run_copy / "audit.json").write_text(json.dumps(altered))
        refused = call("gate", run_copy, "--policy", policy)
        assert refused.code == 4
        assert why in refused.err


def altered_audits(report: dict) -> list[tuple[dict, str]]:
    """Return audits with another bound, with other counts and their bound, and without counts."""
    raised, recounted, uncounted = deepcopy(report), deepcopy(report), deepcopy(report)
    for one in raised["bounds"]:
        if one["name"].endswith("pair by pair"):
            one["epsilon_lower"] += 0.5
    for one in recounted["bounds"]:
        if one["name"].endswith("pair by pair"):  # all ranks equal: no leak at all
            one["estimator"] |= {"members": [0, 0], "nonmembers": [0, 0]}
            one["epsilon_lower"] = 0.0
    assert report != recounted
    for one in uncounted["bounds"]:
        if one["name"].endswith("pair by pair"):
            one["estimator"], one["epsilon_lower"] = None, 0.0
    others = "are not those of the outputs"
    return [(raised, "its counts give"), (recounted, others), (uncounted, others)]


def test_stacked_models_give_conditional_bounds(call: Call, run_copy: Path) -> None:
    done = call(
        "audit", run_copy, *BLACK_BOX, "stacked", "--target-record", "mislabelled",
        "--initial-weights", "worst-case", "--outputs", "labels", "--format", "json",
    )  # fmt: skip
    assert done.code == 0, done.err
    bounds = json.loads(done.out)["bounds"]
    of_models = [one for one in bounds if one["name"].startswith("final models")]
    assert {one["kind"] for one in of_models} == {"conditional"}


@pytest.mark.parametrize("kind", ["crafted", "optimized"])
def test_targets_can_be_optimized(call: Call, run_copy: Path, kind: str, monkeypatch) -> None:
    for name in ("dpaudit.attacks.final_model.target_records.ASCENT_STEPS",
                 "dpaudit.workflow.audit.final_model_runs.PILOT_PAIRS"):  # fmt: skip
        monkeypatch.setattr(name, 2)
    done = call("audit", run_copy, *BLACK_BOX, "own", "--target-record", kind)
    assert done.code == 0, done.err
    assert f"target record: {kind}" in done.out


def test_your_own_trainer_is_audited_and_stops_when_refuted(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_trainer.py").write_text(TRAINER)
    monkeypatch.chdir(tmp_path)
    done = call(
        "audit", "--black-box", "--trainer", "own_trainer:train_one", "--target-label", "0",
        "--folder", "trials", "--claim-epsilon", "0.5", "--models", "200", "--stop-when-refuted",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "valid at any stopping time" in done.out
    assert done.out.startswith("CONTRADICTED: the claimed epsilon of 0.5 ")
    assert done.err.count("dpaudit: warning: ") == 1
    with np.load(tmp_path / "trials" / "final-models.npz") as trials:
        assert len(trials["with_record"]) < 100


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--models", "10"), "--black-box"),
        (("--black-box", "--models", "5"), "--models"),
        (("--black-box", "--records", "9"), "--records"),
        (("--black-box", "--trainer", "a:b"), "a:b"),
        (("--black-box", "--stop-when-refuted"), "--claim-epsilon"),
        (("RUN", "--claim-epsilon", "1"), "--claim-epsilon: the RUN has a claim"),
        (("RUN", "--delta", "1e-5"), "--delta: the RUN's claim has a delta"),
        (("RUN", "--trust-model-code"), "--trust-model-code"),
        (("--black-box", "--trainer", "a:b", "--scores", "s.csv"), "--scores"),
        (("--black-box", "--trainer", "a:b", "--canaries", "c.npz"), "--canaries"),
        (("--black-box", "--trainer", "a:b", "--checkpoint", "m.pt"), "--checkpoint"),
        (("--black-box", "--trainer", "a:b", "--model", "a:b"), "--model"),
        (("--black-box", "--trainer", "a:b", "--language-model", "m"), "--language-model"),
        (("--black-box", "--trainer", "a:b", "--view", "final-iterate"), "--view"),
        (("--scores", "s.csv", "--view", "final-iterate"), "--view goes with a RUN"),
        (("--scores", "s.csv", "--model", "a:b"), "--model goes with --checkpoint"),
        (("--scores", "s.csv", "--tokenizer", "t"), "--tokenizer goes with --language-model"),
    ],
)
def test_options_without_effect_are_refused(
    call: Call, options: tuple[str, ...], named: str
) -> None:
    done = call("audit", *options)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert named in done.err


def test_an_interrupted_audit_resumes_with_the_same_models(tmp_path: Path) -> None:
    whole = audit_final_model(revealing, target_label=0, folder=tmp_path / "other", models=12)
    calls = []

    def interrupted(with_record: bool, seed: int) -> np.ndarray:
        calls.append(seed)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return revealing(with_record, seed)

    files = TrialFiles.within(tmp_path / "own")
    shutil.copy(TrialFiles.within(tmp_path / "other").plan, files.plan)
    with pytest.raises(KeyboardInterrupt):
        audit_final_model(interrupted, target_label=0, folder=tmp_path / "own", models=12)
    again = audit_final_model(revealing, target_label=0, folder=tmp_path / "own", models=12)
    assert again.bounds == whole.bounds
    assert len(set(calls)) == 6


def test_another_number_of_models_and_broken_files_are_refused(tmp_path: Path) -> None:
    audit_final_model(revealing, target_label=0, folder=tmp_path, models=6)
    with pytest.raises(InvalidArgument, match=r"models must be .*, got '8'"):
        audit_final_model(revealing, target_label=0, folder=tmp_path, models=8)
    trials = TrialFiles.within(tmp_path).trials
    trials.write_bytes(trials.read_bytes()[:40])
    with pytest.raises(IntegrityError):
        audit_final_model(revealing, target_label=0, folder=tmp_path, models=6)


class Began(Exception):
    """The first model is trained."""


def never_trained(with_record: bool, seed: int) -> np.ndarray:
    raise Began


@pytest.mark.parametrize(
    ("models", "claim", "warned"),
    [
        (8, None, "so they certify nothing: plan 16 models or more"),
        (100, None, None),
        (100, 2.1, None),
        (100, 2.2, "cannot refute the claimed epsilon of 2.2: plan 200 models or more"),
        (4, 99.0, "more than 8192 models are needed"),
    ],
)
def test_too_few_models_are_named_before_one_is_trained(
    tmp_path: Path, models: int, claim: float | None, warned: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Began):
            audit_final_model(
                never_trained, target_label=0, folder=tmp_path, models=models, claim_epsilon=claim
            )
    found = [str(one.message) for one in caught]
    assert [warned in one for one in found] == [True] if warned else found == []


def test_odd_numbers_of_models_are_refused(tmp_path: Path) -> None:
    for models in (7, 2):
        with pytest.raises(InvalidArgument, match="models"):
            audit_final_model(never_trained, target_label=0, folder=tmp_path, models=models)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("with_record", np.full((3, 2), "1")),
        ("without_record", np.ones((3, 2), complex)),
        ("label", np.array([0, 1])),
        ("label", np.array(np.nan)),
        ("label", np.array("a")),
        ("with_record", np.ones((4, 2))),
    ],
)
def test_outputs_of_other_kinds_are_broken(tmp_path: Path, name: str, value: np.ndarray) -> None:
    audit_final_model(revealing, target_label=0, folder=tmp_path, models=6)
    files = TrialFiles.within(tmp_path)
    with np.load(files.trials) as arrays:
        altered = {**arrays, name: value}
    np.savez(files.trials, **altered)
    with pytest.raises(IntegrityError, match="is broken"):
        complete_trials(files)


def test_more_models_than_planned_are_no_audit(tmp_path: Path) -> None:
    audit_final_model(revealing, target_label=0, folder=tmp_path, models=6)
    files = TrialFiles.within(tmp_path)
    plan = files.plan.read_text()
    fewer = json.loads(plan) | {"pairs": 2}
    files.plan.write_text(json.dumps(fewer))
    with pytest.raises(IntegrityError, match="fixed 2"):
        complete_trials(files)


def test_equal_scores_do_not_pass_the_gate_even_if_the_audit_hides_them(
    call: Call, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same(_: object, seeds: list[int], *, with_record: bool) -> np.ndarray:
        return np.zeros((len(seeds), 2))

    monkeypatch.setattr("dpaudit.workflow.audit.final_model_runs.RunPairs.outputs", same)
    assert call("audit", run_copy, "--black-box", "--models", "60").code == 0
    report = json.loads((run_copy / "audit.json").read_text())
    of_models = [one for one in report["bounds"] if one["name"].startswith("final models")]
    assert all(one.pop("inconclusive") for one in of_models)
    (run_copy / "audit.json").write_text(json.dumps(report))
    policy = run_copy.parent / "policy.toml"
    policy.write_text("[audit]\nconfidence = 0.95\n")
    judged = call("gate", run_copy, "--policy", policy)
    assert judged.out.count("all of its scores are equal") >= 3, judged.out + judged.err


def test_a_trainer_that_ignores_its_seed_is_not_accused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copies.py").write_text(TRAINER.replace("(seed)", "(0)"))
    monkeypatch.chdir(tmp_path)
    done = call(
        "audit", "--black-box", "--trainer", "copies:train_one", "--target-label", "0",
        "--folder", "trials", "--claim-epsilon", "0.5", "--models", "60",
    )  # fmt: skip
    assert "INCONCLUSIVE about the claimed epsilon" in done.out, done.err
    assert "randomness of the trainer from its seed" in done.out


def test_fewer_models_than_planned_are_no_finished_audit(tmp_path: Path) -> None:
    for stops_early in (False, True):
        folder = tmp_path / str(stops_early)
        audit_final_model(
            revealing, target_label=0, folder=folder, models=6, stop_when_refuted=stops_early,
            claim_epsilon=1.0,
        )  # fmt: skip
        files = TrialFiles.within(folder)
        assert complete_trials(files) is not None
        files.plan.write_text(files.plan.read_text().replace('"pairs": 3', '"pairs": 4'))
        assert (complete_trials(files) is not None) == stops_early


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ("a text", "str 'a text'"),
        (None, "NoneType"),
        ([[1.0], [2.0, 3.0]], "list"),
        ([1j, 2j], "list"),
        (["1", "2"], "list"),
        (0.5, "float 0.5"),
        ([1.0, np.nan], "finite logits: correct the training"),
    ],
)
def test_what_a_trainer_returns_is_named_with_its_seed(
    returned: object, named: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="with_record=False, seed=") as refused:
        audit_final_model(lambda *_: returned, target_label=0, folder=tmp_path, models=6)
    assert named in str(refused.value)


def test_models_with_other_classes_than_before_are_refused(tmp_path: Path) -> None:
    calls = iter(range(9))

    def growing(with_record: bool, seed: int) -> np.ndarray:
        return np.zeros(2 + next(calls) // 2)

    with pytest.raises(InvalidArgument, match="2, as of the models before"):
        audit_final_model(growing, target_label=0, folder=tmp_path, models=6)


def test_an_audit_does_not_resume_with_other_data(
    call: Call, run_copy: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fast(_: object, seeds: list[int], *, with_record: bool) -> np.ndarray:
        return np.random.default_rng(seeds).normal(size=(len(seeds), 2))

    monkeypatch.setattr("dpaudit.workflow.audit.final_model_runs.RunPairs.outputs", fast)
    audited = ("audit", run_copy, "--black-box", "--models", "6")
    assert call(*audited).code == 0
    assert call(*audited).code == 0
    plan = run_copy / "final-models.json"
    kept = json.loads(plan.read_text())
    for data in ("0" * 64, ""):  # of other records; of a plan whose data are not known
        plan.write_text(json.dumps({**kept, "data": data}))
        refused = call(*audited)
        assert refused.code == 2
        assert "records, target record or query" in refused.err


@pytest.mark.parametrize("part", range(5))
def test_the_digest_of_the_data_reads_every_part(part: int) -> None:
    pytest.importorskip("torch")
    from dpaudit.attacks.final_model.target_records import TargetRecord
    from dpaudit.workflow.audit.final_model_runs import AuditedRecords, _digest_of_data

    def digest(parts: list[np.ndarray]) -> str:
        target = TargetRecord(parts[2], int(parts[3]), parts[4])
        return _digest_of_data(AuditedRecords(parts[0], parts[1]), target)

    parts = [np.zeros((3, 2)), np.zeros(3, np.int64), np.zeros(2), np.array(0), np.zeros(2)]
    other = list(parts)
    other[part] = other[part] + 1
    assert digest(parts) == digest(list(parts)) != digest(other)


def changed_item(kind: str, folder: Path, content: int) -> object:
    """Return one item of a trainer's data, which holds ``content``."""
    path = folder / "data" / "records.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(str(content))
    return {"array": np.full(3, content), "file": path, "folder": path.parent}[kind]


@pytest.mark.parametrize("kind", ["array", "file", "folder"])
def test_an_own_trainer_does_not_resume_with_other_data(tmp_path: Path, kind: str) -> None:
    def audited(data: list) -> None:
        audit_final_model(
            revealing, target_label=0, folder=tmp_path / "trials", models=4, trainer_data=data
        )

    audited([changed_item(kind, tmp_path, 1)])
    audited([changed_item(kind, tmp_path, 1)])
    for other in ([changed_item(kind, tmp_path, 2)], [], [np.zeros(1)]):
        with pytest.raises(InvalidArgument, match="records, target record or query"):
            audited(other)


def test_data_of_a_trainer_are_arrays_or_existing_files(tmp_path: Path) -> None:
    for item in (tmp_path / "nowhere.csv", np.array([None])):
        with pytest.raises(InvalidArgument, match="data"):
            digest_trainer_data([item])
    assert digest_trainer_data([np.zeros((2, 3))]) != digest_trainer_data([np.zeros((3, 2))])
    assert digest_trainer_data([np.zeros(2), np.ones(2)]) != digest_trainer_data(
        [np.ones(2), np.zeros(2)]
    )


@pytest.mark.parametrize(
    "data",
    [
        "/",
        [[[1], [1, 2]]],
        [np.ma.array([1, 2], mask=[False, True])],
        [torch.ones(2, requires_grad=True)],
    ],
)
def test_data_that_have_no_digest_are_refused(data: Any) -> None:
    with pytest.raises(InvalidArgument, match="data"):
        digest_trainer_data(data)


def test_names_and_types_of_data_are_in_the_digest(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).write_text("")  # a name that is no Unicode
    digest = digest_trainer_data([tmp_path])
    (tmp_path / os.fsdecode(b"\xff")).rename(tmp_path / "a")
    assert digest_trainer_data([tmp_path]) != digest
    one, other = np.zeros(1, [("a", "f4")]), np.zeros(1, [("a", "i4")])
    assert digest_trainer_data([one]) != digest_trainer_data([other])


def test_outputs_within_the_data_are_refused_before_a_model_is_trained(tmp_path: Path) -> None:
    """Every model would change the data's digest, and an interrupted audit could not resume."""
    (tmp_path / "records.csv").write_text("1")
    for folder in (tmp_path, tmp_path / "some" / "trials"):
        with pytest.raises(InvalidArgument, match="could not resume"):
            audit_final_model(
                revealing, target_label=0, folder=folder, models=4, trainer_data=[tmp_path]
            )
    assert [path.name for path in tmp_path.iterdir()] == ["records.csv"]
    beside = tmp_path / "trials"
    audit_final_model(
        revealing, target_label=0, folder=beside, models=4, trainer_data=[tmp_path / "records.csv"]
    )


def test_the_data_of_an_own_trainer_are_named_on_the_command_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_data_trainer.py").write_text(TRAINER)
    records = tmp_path / "records.csv"
    monkeypatch.chdir(tmp_path)
    audited = (
        "audit", "--black-box", "--trainer", "named_data_trainer:train_one", "--target-label", "0",
        "--folder", "trials", "--models", "4", "--trainer-data", records,
    )  # fmt: skip
    for content, code in (("1", 0), ("1", 0), ("2", 2)):
        records.write_text(content)
        assert call(*audited).code == code
