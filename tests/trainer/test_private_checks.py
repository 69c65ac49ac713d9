"""What a private step checks and reports: spot checks, slow parameters, transforms of batches."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.report.text import audit_text
from dpaudit.report.verdicts.text import run_overview_text
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import read_unfinished
from dpaudit.trainer import private as private_module
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.grouped_records import RecordGroups
from dpaudit.trainer.canaries.run_canaries import GradientCanaries
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.engine.gradient_forms import OuterProducts
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import GradientsDisagree, InvalidArgument
from dpaudit.vocabulary.ledger import SpotCheckEntry
from dpaudit.workflow.audit.run_audit import audit_run
from dpaudit.workflow.report.run_overview import describe_run

RECORDS = 12


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(RECORDS, 5), torch.arange(RECORDS) % 3


def trainer(model: nn.Module | None = None, ledger: Path | None = None, **options: Any) -> Private:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    own = [p for p in model.parameters() if p.requires_grad]
    return make_private(
        model, torch.optim.SGD(own, lr=0.1), noise_multiplier=2.0, clip_norm=0.5,
        expected_batch_size=RECORDS, seed=0, ledger=ledger, **{"sampling_rate": 1.0, **options},
    )  # fmt: skip


def take(private: Private, steps: int) -> None:
    for batch in private.batches(data(), steps=steps):
        private.step(losses, batch)


def test_spot_checks_are_recorded_before_the_release_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_module, "SEEDED_CHECK_RATE", 0.5)
    canaries = GradientCanaries(20)
    private = trainer(ledger=tmp_path / "run" / "ledger.jsonl", canaries=canaries)
    take(private, 40)
    private.finish(delta=1e-5)
    run = RunDirectory(tmp_path / "run")
    ledger = run.read_finished()
    checks = [n for n, line in enumerate(ledger.lines) if isinstance(line, SpotCheckEntry)]
    # Binomial of 40 and 1/2: outside of this range with probability 4e-8, and fixed by the seed.
    assert 4 < len(checks) < 36
    assert len(ledger.checked_steps) == len(checks)
    for n in checks:
        check, release = ledger.lines[n : n + 2]
        assert release.step == check.step
    words = f"checked at {len(checks)} of 40 steps"
    assert ledger.spot_checks == words
    assert words in audit_text(audit_run(run, confidence=0.95))
    assert words in run_overview_text(describe_run(run))
    assert ledger.unaccounted == ()


def test_the_line_of_a_spot_check_tells_nothing_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_module, "SEEDED_CHECK_RATE", 1.0)
    private = trainer(ledger=tmp_path / "ledger.jsonl", sampling_rate=0.1)
    x, y = data()
    x[0] = torch.inf  # a record that is left out
    sizes = []
    for batch in private.batches((x, y), steps=40):
        sizes.append(len(batch[0]))
        private.step(losses, batch)
    private.close()
    assert {0, 1, 2} < set(sizes)
    lines = read_unfinished(tmp_path / "ledger.jsonl").lines
    checks = [line for line in lines if isinstance(line, SpotCheckEntry)]
    assert checks == [SpotCheckEntry(step) for step in range(40)]
    assert '"records"' not in (tmp_path / "ledger.jsonl").read_text()


def test_a_disagreement_ends_the_run_before_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_module, "SEEDED_CHECK_RATE", 1.0)
    path = tmp_path / "ledger.jsonl"
    private = trainer(ledger=path)
    take(private, 2)
    before = [p.clone() for p in private.model.parameters()]
    right = OuterProducts.norms_in_float32

    def too_small(form: OuterProducts) -> torch.Tensor:
        norms = right(form)
        assert norms is not None
        return norms / 3

    monkeypatch.setattr(OuterProducts, "norms_in_float32", too_small)
    for _ in range(2):
        with pytest.raises(GradientsDisagree, match="a norm is"):
            take(private, 1)
    private.close()
    ledger = read_unfinished(path)
    assert len(ledger.releases) == 2
    assert [line.step for line in ledger.lines if isinstance(line, SpotCheckEntry)] == [0, 1, 2]
    assert ledger.checked_steps == {0, 1}
    (left_out,) = ledger.unaccounted
    assert left_out.startswith("spot check failed at step 2")
    assert all(map(torch.equal, before, private.model.parameters()))


def test_secure_runs_follow_their_costs_and_seeded_ones_do_not() -> None:
    seeded = trainer()._engine._schedule
    assert seeded is not None
    assert seeded.probability == private_module.SEEDED_CHECK_RATE
    model = nn.Linear(5, 3)
    secure = make_private(
        model, torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=2.0, clip_norm=0.5,
        sampling_rate=1.0, expected_batch_size=RECORDS,
    )  # fmt: skip
    take(secure, 2)
    assert secure._engine._schedule is not None
    assert secure._engine._schedule.step_seconds > 0
    assert 0 < secure._engine._schedule.probability < 0.01


class Cubed(nn.Module):
    """A parameter in an operation without a rule, beside a layer with one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.own = nn.Linear(5, 3), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.einsum("bi,ij,ij->bj", x, self.own, self.own)


def test_slow_parameters_are_listed_and_named_in_one_warning() -> None:
    private = trainer(Cubed())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        take(private, 8)
    if private.record_by_record:
        assert private.record_by_record == ("own",)
        (one,) = [each for each in found if "no fast rule" in str(each.message)]
        assert "% of the CPU time" in str(one.message)
        assert "own" in str(one.message)
    fast = trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(fast, 8)
    assert fast.record_by_record == ()


def test_transforms_that_mix_records_are_refused() -> None:
    private = trainer()
    mixed = private.batches(
        data(), steps=1, transform=lambda batch: (batch[0] - batch[0].mean(0), batch[1])
    )
    with pytest.raises(InvalidArgument, match="changes a record's result with other records"):
        next(mixed)


def test_transformed_batches_are_trained_on() -> None:
    def views(batch: tuple[Tensor, Tensor]) -> RecordGroups:
        x, y = batch
        rows = x[:, None] + 0.1 * torch.randn(len(x), 3, 5)
        return RecordGroups((rows, y[:, None].expand(-1, 3)), torch.full((len(x), 3), 1 / 3))

    private = trainer()
    for batch in private.batches(data(), steps=3, transform=views):
        assert isinstance(batch, RecordGroups)
        private.step(losses, batch)
    assert private.steps == 3


def test_an_empty_batch_need_not_run_through_a_transform() -> None:
    def scaled(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not len(batch[0]):
            raise ValueError("no records")
        return batch[0] * 2, batch[1]

    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    private = make_private(
        model, torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=2.0, clip_norm=0.5,
        sampling_rate=1e-9, expected_batch_size=RECORDS, seed=0,
    )  # fmt: skip
    for batch in private.batches(data(), steps=2, transform=scaled):
        private.step(losses, batch)
    assert private.steps == 2
