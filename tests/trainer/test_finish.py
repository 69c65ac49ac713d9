"""A loop of one's own ends as a run directory, which every command reads."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
import torch
from ranks import on_ranks
from safetensors.torch import load_file
from torch import Tensor, nn

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.cli.entry_point import _run
from dpaudit.gate.policy import ClaimPolicy, Policy
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.runs.file_io import read_json
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists
from dpaudit.vocabulary.verdict import Outcome
from dpaudit.workflow.gate.baselines import baseline_of_run
from dpaudit.workflow.gate.run_evaluation import GateSettings, evidence_of_run
from dpaudit.workflow.run_claims import claim_delta

DELTA, STEPS = 1e-5, 4
SCRIPT = Path(__file__).parent / "finish_script.py"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 4, generator=generator)
    return x, (x[:, 0] > 0).long()


def begun(ledger: Path | None, model: nn.Module | None = None, **options: object) -> Private:
    model = model or net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"noise_multiplier": 1.5, "sampling_rate": 0.2, "expected_batch_size": 8, **options}
    return make_private(model, optimizer, ledger=ledger, **given)  # type: ignore[arg-type]


def stepped(private: Private, steps: int = STEPS) -> Private:
    for batch in private.batches(data(), steps=steps):
        private.step(loss, batch)
    return private


def finished(out: Path) -> tuple[Private, RunDirectory]:
    private = stepped(begun(out / "ledger.jsonl"))
    return private, private.finish(delta=DELTA)


def test_what_is_left_is_a_finished_run(tmp_path: Path) -> None:
    private, run = finished(tmp_path / "runs" / "mine")  # neither folder is there
    assert run.path == tmp_path / "runs" / "mine"
    ledger = open_run(run.path).read_finished()
    assert [release.step for release in ledger.releases] == list(range(STEPS))
    assert ledger.seal is not None
    assert set(ledger.seal.files) == {"model.safetensors"}
    weights = load_file(run.model)
    for name, parameter in private.model.named_parameters():
        assert torch.equal(weights[name], parameter)
    assert not list(run.path.glob("*.partial"))


def test_the_claim_is_that_of_the_sealed_ledger(tmp_path: Path) -> None:
    private, run = finished(tmp_path)
    claim = read_json(run.claim, Claim)
    assert claim == claim_from_ledger(run.read_finished(), DELTA, "pld")
    assert claim.epsilon == private.epsilon(delta=DELTA)
    assert claim_delta(run) == DELTA


def test_the_gate_and_the_baseline_read_it(tmp_path: Path) -> None:
    private, run = finished(tmp_path / "mine")
    most = private.epsilon(delta=DELTA).upper
    for max_epsilon, outcome in ((most, Outcome.PASS), (most * 0.999, Outcome.FAIL)):
        policy = Policy(claim=ClaimPolicy(max_epsilon=max_epsilon, delta=DELTA))
        verdict = GateSettings(policy, today=date(2026, 1, 1)).verdict(evidence_of_run(run, policy))
        assert verdict.outcome is outcome
    assert baseline_of_run(run, None).run == "mine"


def test_the_accountants_price_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    private, run = finished(tmp_path)
    given = ["dpaudit", "epsilon", str(run.path), "--delta", str(DELTA), "--format", "json"]
    monkeypatch.setattr("sys.argv", [*given, "--accountant", "pld"])
    assert _run() == 0
    said = json.loads(capsys.readouterr().out)
    assert said["epsilon"]["upper"] == private.epsilon(delta=DELTA).upper


def test_weights_that_change_after_the_seal_are_noticed(tmp_path: Path) -> None:
    _, run = finished(tmp_path)
    content = bytearray(run.model.read_bytes())
    content[-1] ^= 1
    run.model.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors was altered"):
        run.read_finished()


def test_nothing_is_released_after_the_end(tmp_path: Path) -> None:
    private = stepped(begun(tmp_path / "ledger.jsonl"))
    batches = private.batches(data(), steps=2)
    batch = next(batches)
    run = private.finish(delta=DELTA)
    sealed = run.ledger.read_bytes()
    epsilon = private.epsilon(delta=DELTA)
    release = run.read_ledger().releases[0].mechanism
    for release_more in (
        lambda: private.step(loss, batch),
        lambda: next(private.batches(data(), steps=1)),
        lambda: private.also_released("accuracy", release),
        lambda: private.checkpoint(tmp_path / "checkpoints"),
        lambda: private.finish(delta=DELTA),
    ):
        with pytest.raises(InvalidArgument, match="a sealed ledger records nothing more"):
            release_more()
    assert run.ledger.read_bytes() == sealed
    assert private.epsilon(delta=DELTA) == epsilon  # looking is allowed


@pytest.mark.parametrize("ledger", [None, "books.jsonl"], ids=["in memory", "under another name"])
def test_without_a_ledger_of_the_right_name_there_is_no_run(
    tmp_path: Path, ledger: str | None
) -> None:
    private = stepped(begun(None if ledger is None else tmp_path / ledger))
    with pytest.raises(InvalidArgument, match=r"ledger must be runs/NAME/ledger\.jsonl"):
        private.finish(delta=DELTA)
    stepped(private, 1)  # it is not finished, and goes on
    assert not (tmp_path / "model.safetensors").exists()


def test_a_run_without_a_step_claims_nothing(tmp_path: Path) -> None:
    private = begun(tmp_path / "ledger.jsonl")
    with pytest.raises(InvalidArgument, match="steps must be at least 1"):
        private.finish(delta=DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, float("nan")])
def test_invalid_delta_is_refused_before_any_write(tmp_path: Path, delta: float) -> None:
    private = stepped(begun(tmp_path / "ledger.jsonl"))
    with pytest.raises(InvalidArgument, match="delta"):
        private.finish(delta=delta)
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.jsonl"]


def test_a_folder_with_files_of_an_earlier_run_is_refused(tmp_path: Path) -> None:
    _, run = finished(tmp_path)
    run.ledger.unlink()
    with pytest.raises(RunExists, match="is a file of an earlier run"):
        begun(run.ledger)
    assert not run.ledger.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="a folder that can be created"):
        begun(tmp_path / "file" / "ledger.jsonl")


def test_a_resumed_loop_ends_the_same_way(tmp_path: Path) -> None:
    ledger, checkpoints = tmp_path / "ledger.jsonl", tmp_path / "checkpoints"
    first = stepped(begun(ledger), 2)
    first.checkpoint(checkpoints)
    first._session._recorder._file.close()  # type: ignore[attr-defined]  # as when its process dies
    second = stepped(begun(ledger, resume=checkpoints), 2)
    run = second.finish(delta=DELTA)
    assert len(run.read_finished().releases) == STEPS
    assert read_json(run.claim, Claim).epsilon == second.epsilon(delta=DELTA)


def test_tied_parameters_are_written_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    run = stepped(begun(tmp_path / "ledger.jsonl", model)).finish(delta=DELTA)
    assert "2.weight" not in load_file(run.model)
    run.read_finished()


def test_the_folder_is_that_where_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    private = stepped(begun(Path("runs/a/ledger.jsonl")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert private.finish(delta=DELTA).path == tmp_path / "runs" / "a"
    assert (tmp_path / "runs" / "a" / "model.safetensors").exists()


def test_every_rank_finishes_and_shards_are_put_together(tmp_path: Path) -> None:
    on_ranks(SCRIPT, tmp_path, world=2, folder=tmp_path)
    run = open_run(tmp_path / "sharded")
    assert len(run.read_finished().releases) == 3
    shipped, held = load_file(run.model), load_file(tmp_path / "held.safetensors")
    assert shipped.keys() == held.keys()
    for name, tensor in held.items():
        assert torch.equal(shipped[name], tensor)
