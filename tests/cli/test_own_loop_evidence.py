"""A loop of your own, its canaries and its attacks: evidence that the gate judges for its run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calling import Call
from torch import Tensor, nn

from dpaudit.trainer import (
    BallsInBins,
    FixedSize,
    GradientCanaries,
    Truncated,
    Users,
    make_private,
)
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument

MODULE = "import torch\n\n\ndef make(shape, classes):\n    return torch.nn.Linear(6, 2)\n"
POLICY = """
[claim]
max_epsilon = 3.0
delta = 1e-5
[audit]
count = ["certified", "conditional"]
"""
Columns = tuple[Tensor, Tensor]
Train = Callable[..., Path]


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Path:
    """Return a folder with canaries among training records, a model's module and a policy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.random((1500, 6)).astype("f4"), y=np.arange(1500) % 2)
    planted("canaries.npz", call, "--training-file", "train.npz")
    Path("net.py").write_text(MODULE)
    Path("p.toml").write_text(POLICY)
    return tmp_path


def planted(name: str, call: Call, *more: object) -> None:
    made = call(
        *("canaries", "make", "--kind", "mislabelled", "--data", "data.npz"),
        *("--count", 200, "-o", name, *more),
    )
    assert made.code == 0


def columns() -> Columns:
    with np.load("train.npz") as table:
        return torch.tensor(table["x"]), torch.tensor(table["y"]).long()


def train(data: Columns | None = None, **asked: Any) -> Path:
    model = nn.Linear(6, 2)
    private = make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=2.0,
        sampling_rate=0.05,
        expected_batch_size=60,
        ledger="run/ledger.jsonl",
        **asked,
    )
    for batch in private.batches(columns() if data is None else data, steps=40):
        private.step(loss, batch)
    return Path(private.finish(delta=1e-5).path)


def write_scores(leak: float = 0.0, canaries: str = "canaries") -> Path:
    with np.load(f"{canaries}.secret.npz") as secret:
        ids, included = secret["ids"], secret["included"]
    scores = leak * included + np.random.default_rng(1).standard_normal(len(ids))
    lines = [f"{name},{score}" for name, score in zip(ids, scores, strict=True)]
    Path("scores.csv").write_text("id,score\n" + "\n".join(lines) + "\n")
    return Path("scores.csv")


def judged(call: Call, policy: str = POLICY) -> tuple[int, dict[str, dict[str, str]]]:
    Path("p.toml").write_text(policy)
    result = call("gate", "run", "--policy", "p.toml", "--format", "json")
    assert result.out, result.err
    return result.code, {rule["rule"]: rule for rule in json.loads(result.out)["rules"]}


def test_recorded_canaries_are_evidence_for_the_run(call: Call) -> None:
    train(canary_file="canaries.npz")
    assert call("audit", "run", "--canaries", "canaries.npz", "--scores", write_scores()).code == 0
    report = json.loads(Path("run/audit.json").read_text())
    (bound,) = report["bounds"]
    assert (bound["kind"], bound["trials"], bound["confidence"]) == ("certified", 200, 0.95)
    assert set(report["files"]) == {"canaries", "scores"}
    assert report["ledger_head"]
    code, rules = judged(call)
    assert (code, rules["audit.lower_bound"]["outcome"]) == (0, "PASS")


def test_the_runs_own_model_scores_them(call: Call) -> None:
    train(canary_file="canaries.npz")
    told = ("audit", "run", "--canaries", "canaries.npz", "--model", "net:make")
    assert call(*told).code == 0
    report = json.loads(Path("run/audit.json").read_text())
    assert set(report["files"]) == {"canaries", "model"}
    assert judged(call)[0] == 0
    shutil.copy("run/model.safetensors", "copy.safetensors")
    assert call(*told, "--checkpoint", "copy.safetensors").code == 0
    content = Path("copy.safetensors").read_bytes()
    Path("copy.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = call(*told, "--checkpoint", "copy.safetensors")
    assert (result.code, "digest is in the run" in result.err) == (2, True)


def test_unrecorded_canaries_can_only_contradict(call: Call) -> None:
    train()
    audit = ("audit", "run", "--canaries", "canaries.npz", "--scores")
    assert call(*audit, write_scores()).code == 0
    code, rules = judged(call)
    assert (code, rules["audit.lower_bound"]["outcome"]) == (3, "INCONCLUSIVE")
    assert "make_private(canary_file=...)" in rules["audit.lower_bound"]["why"]
    assert call(*audit, write_scores(leak=50.0)).code == 0
    (bound,) = json.loads(Path("run/audit.json").read_text())["bounds"]
    assert bound["kind"] == "conditional"
    assert judged(call)[0] == 1


def test_a_leak_of_recorded_canaries_contradicts_the_claim(call: Call) -> None:
    train(canary_file="canaries.npz")
    scores = write_scores(leak=50.0)
    assert call("audit", "run", "--canaries", "canaries.npz", "--scores", scores).code == 0
    code, rules = judged(call)
    assert (code, rules["audit.lower_bound"]["outcome"]) == (1, "FAIL")


def test_other_canaries_than_the_recorded_ones_are_refused(call: Call) -> None:
    train(canary_file="canaries.npz")
    planted("others.npz", call)
    scores = write_scores(canaries="others")
    result = call("audit", "run", "--canaries", "others.npz", "--scores", scores)
    assert (result.code, "ledger holds the digest" in result.err) == (4, True)
    assert not Path("run/audit.json").exists()


@pytest.mark.parametrize("lost", ["bounds", "canaries"])
def test_the_recorded_canaries_must_be_among_the_bounds(call: Call, lost: str) -> None:
    train(canary_file="canaries.npz", canaries=GradientCanaries(50))
    audit = ("audit", "run", "--canaries", "canaries.npz", "--scores", write_scores())
    assert call(*audit).code == 0
    report = json.loads(Path("run/audit.json").read_text())
    assert len(report["bounds"]) == 6
    if lost == "bounds":
        report["bounds"].pop()
    else:
        report = {**report, "bounds": [], "files": {}}
    Path("run/audit.json").write_text(json.dumps(report))
    code, rules = judged(call)
    assert code == 3
    assert "canaries, one score each" in rules["audit.lower_bound"]["why"]


def test_run_with_recorded_canaries_requires_their_scores(call: Call) -> None:
    train(canary_file="canaries.npz")
    result = call("audit", "run")
    assert (result.code, "--canaries FILE" in result.err) == (2, True)


@pytest.mark.parametrize(
    "options",
    [
        ("--scores", "scores.csv"),
        ("--model", "net:make"),
        ("--canaries", "canaries.npz"),
        ("--canaries", "canaries.npz", "--scores", "scores.csv", "--model", "net:make"),
    ],
)
def test_canaries_of_a_run_go_with_scores_or_its_model(
    call: Call, options: tuple[str, ...]
) -> None:
    train()
    write_scores()
    assert call("audit", "run", *options).code == 2


def test_canaries_that_are_not_among_the_records_are_refused() -> None:
    x, y = columns()
    for data in ((x[:700], y[:700]), (x + 1, y), (x, 1 - y), (x[:, :3], y)):
        with pytest.raises(InvalidArgument, match="canar"):
            train(data, canary_file="canaries.npz")
        shutil.rmtree("run")
    with pytest.raises(InvalidArgument, match="canaries must be among them"):
        train(list(zip(x, y, strict=True)), canary_file="canaries.npz")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_records_of_another_precision_or_in_a_dict_hold_them(dtype: torch.dtype) -> None:
    from dpaudit.trainer.canaries.canary_file import CanaryFile

    x, y = columns()
    planted_file = CanaryFile.read(Path("canaries.npz"))
    planted_file.require_among({"features": x.to(dtype), "labels": y})
    planted_file.require_among(torch.utils.data.TensorDataset(x.to(dtype), y))
    planted_file.require_among((x.numpy(), y.numpy()))


@pytest.mark.parametrize("name", ["canaries.secret.npz", "data.npz", "missing.npz"])
def test_only_a_trainers_canary_file_is_taken(name: str) -> None:
    with pytest.raises((InvalidArgument, IntegrityError)):
        train(canary_file=name)


def test_a_run_is_resumed_with_its_own_canary_file(call: Call) -> None:
    def private(**asked: Any) -> Any:
        model = nn.Linear(6, 2)
        return make_private(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            noise_multiplier=2.0,
            sampling_rate=0.05,
            expected_batch_size=60,
            ledger="run/ledger.jsonl",
            **asked,
        )

    with private(canary_file="canaries.npz") as first:
        for batch in first.batches(columns(), steps=2):
            first.step(loss, batch)
        first.checkpoint("kept")
    planted("others.npz", call)
    for other in (None, "others.npz"):
        with pytest.raises(InvalidArgument, match="begun with"):
            private(canary_file=other, resume="kept")
    again = private(canary_file="canaries.npz", resume="kept")
    for batch in again.batches(columns(), steps=2):
        again.step(loss, batch)
    again.finish(delta=1e-5)
    assert call("audit", "run", "--canaries", "canaries.npz", "--scores", write_scores()).code == 0
    assert judged(call)[0] == 0


def test_a_canary_file_that_is_swapped_in_the_run_is_refused(call: Call) -> None:
    train(canary_file="canaries.npz")
    planted("others.npz", call)
    shutil.copy("others.npz", "run/planted-canaries.npz")
    assert call("gate", "run", "--policy", "p.toml").code == 4


@pytest.mark.parametrize(("recorded", "code"), [(True, 0), (False, 4)])
def test_only_a_recorded_bound_replaces_the_simulation_of_a_stated_power(
    call: Call, recorded: bool, code: int
) -> None:
    """Canaries that the ledger does not record have a greatest epsilon above the claim, too."""
    train(
        canary_file="canaries.npz" if recorded else None,
        canaries=GradientCanaries(6),  # too few to contradict the claim, whatever is guessed
    )
    assert call("audit", "run", "--canaries", "canaries.npz", "--scores", write_scores()).code == 0
    report = json.loads(Path("run/audit.json").read_text())
    claim = json.loads(Path("run/claim.json").read_text())["epsilon"]["upper"]
    greatest = {one["name"]: one["greatest_epsilon"] or 0.0 for one in report["bounds"]}
    assert [name for name, most in greatest.items() if most > claim] == ["canaries, one score each"]
    (ranks,) = (one for one in report["bounds"] if one["name"].startswith("ranks"))
    stated = [one["detectable_epsilon"] for one in report["bounds"] if one["detectable_epsilon"]]
    ranks["detectable_epsilon"] = min(stated) * 0.999  # the decisive power, which no simulation has
    Path("run/audit.json").write_text(json.dumps(report))
    result = call("gate", "run", "--policy", "p.toml")
    assert result.code == code, result.err
    assert ("its simulation gives" in result.err) is (code == 4)


def write_attack(members: int, nonmembers: int) -> Path:
    rng = np.random.default_rng(2)
    rows = [f"{rng.standard_normal()},{int(i < members)}" for i in range(members + nonmembers)]
    Path("attack.csv").write_text("score,member\n" + "\n".join(rows) + "\n")
    return Path("attack.csv")


@pytest.mark.parametrize(("size", "outcome"), [(3000, "PASS"), (40, "INCONCLUSIVE")])
def test_scores_of_an_attack_are_bound_to_the_run(call: Call, size: int, outcome: str) -> None:
    train()
    assert call("attack", "run", "--scores", write_attack(size, size)).code == 0
    report = json.loads(Path("run/attack.json").read_text())
    assert report["ledger_head"]
    assert set(report["files"]) == {"scores", "model"}
    policy = POLICY[: POLICY.index("[audit]")] + "[audit]\nmax_tpr_at_fpr = { '0.1' = 0.2 }\n"
    _, rules = judged(call, policy)
    assert rules["audit.max_tpr_at_fpr.0.1"]["outcome"] == outcome


EVERY_KEY = """
[claim]
max_epsilon = 3.0
delta = 1e-5
[audit]
confidence = 0.95
count = ["certified", "conditional"]
require_conformance = true
min_power_epsilon = 4.0
max_tpr_at_fpr = { "0.1" = 0.5 }
require_imitation = false  # scores of one's own attack do not say how references were trained
"""


def test_imitation_is_not_shown_by_scores(call: Call) -> None:
    train()
    assert call("attack", "run", "--scores", write_attack(40, 40)).code == 0
    policy = POLICY[: POLICY.index("[audit]")] + "[audit]\nrequire_imitation = true\n"
    _, rules = judged(call, policy)
    assert rules["audit.require_imitation"]["outcome"] == "INCONCLUSIVE"


def test_a_run_of_your_own_loop_satisfies_every_key_of_the_audit(call: Call) -> None:
    from dpaudit.gate.policy import AuditPolicy

    for key in AuditPolicy.__struct_fields__:
        assert key in EVERY_KEY  # a key more needs its evidence here
    run = train(canary_file="canaries.npz", canaries=GradientCanaries(1500))
    assert call("audit", run, "--canaries", "canaries.npz", "--model", "net:make").code == 0
    assert call("attack", run, "--scores", write_attack(4000, 4000)).code == 0
    conforming(run)
    code, rules = judged(call, EVERY_KEY)
    assert {name: rule["outcome"] for name, rule in rules.items()} == dict.fromkeys(rules, "PASS")
    assert code == 0


def conforming(run: Path) -> None:
    """Write the result of a test of the run's trainer, as ``dpaudit conformance --run`` does."""
    from dpaudit.runs.directory import open_run
    from dpaudit.runs.file_io import write_json
    from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult, StepClaim
    from dpaudit.vocabulary.verdict import Outcome

    directory = open_run(run)
    claim = StepClaim(
        noise_multiplier=2.0, clip_norm=1.0, sampling_rate=0.05, steps=8, update_scale=-1 / 600
    )
    finding = ConformanceFinding(
        check="replay", name="huge", outcome=Outcome.PASS, tested="t", why="w", power="p"
    )
    result = ConformanceResult(
        claim=claim,
        findings=(finding,),
        level=1e-4,
        verdict=Outcome.PASS,
        ledger_head=directory.read_finished().head,
    )
    write_json(directory.conformance, result)


@pytest.mark.parametrize(
    "sampler",
    [lambda n: FixedSize(60, n), lambda n: BallsInBins(4), lambda n: Truncated(0.05, n, 120)],
    ids=["fixed-size", "balls-in-bins", "truncated"],
)
def test_planted_canaries_need_no_sampled_gaussian(
    call: Call, sampler: Callable[[int], Any]
) -> None:
    data = columns()
    model = nn.Linear(6, 2)
    private = make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=3.0,
        sampler=sampler(len(data[1])),
        expected_batch_size=60,
        ledger="run/ledger.jsonl",
        canary_file="canaries.npz",
    )
    for batch in private.batches(data, steps=4):
        private.step(loss, batch)
    private.finish(delta=1e-5)
    audited = call("audit", "run", "--canaries", "canaries.npz", "--model", "net:make")
    assert (audited.code, audited.err) == (0, "")
    result = call("gate", "run", "--policy", "p.toml")
    assert result.code in (0, 1, 3)  # judged: no file is called altered
    assert "audit.lower_bound" in result.out


def test_canaries_of_users_certify_nothing(call: Call) -> None:
    data = columns()
    owners = Users(torch.arange(len(data[1])) // 2, rows=2)
    model = nn.Linear(6, 2)
    private = make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=2.0,
        sampling_rate=0.05,
        expected_batch_size=30,
        unit="user",
        ledger="run/ledger.jsonl",
        canary_file="canaries.npz",
    )
    for batch in private.batches(data, steps=4, users=owners):
        private.step(loss, batch)
    private.finish(delta=1e-5)
    assert call("audit", "run", "--canaries", "canaries.npz", "--model", "net:make").code == 0
    (bound,) = json.loads(Path("run/audit.json").read_text())["bounds"]
    assert bound["kind"] == "conditional"
    assert "each canary is a unit of the claim by itself" in bound["assumes"]
