"""What cannot be trained is refused in one line, before anything is drawn or recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer import Flat, OnGrid, Poisson, Quantile
from dpaudit.trainer.argument_hints import FOREIGN_NAMES
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists, RunLocked

DATA = (torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3)
GIVEN: dict[str, Any] = {"noise_multiplier": 1.0, "sampling_rate": 0.5, "expected_batch_size": 10}


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def private(model: nn.Module | None = None, **options: Any) -> Private:
    model = model or nn.Linear(4, 3)
    return make_private(model, SGD(model.parameters(), lr=0.1), DATA, **(GIVEN | options))


class AssertsClosure(SGD):
    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "this optimizer evaluates the loss twice"
        return super().step(closure)


class RaisesWithoutClosure(SGD):
    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("closure")
        return super().step(closure)


def frozen() -> nn.Module:
    return nn.Linear(4, 3).requires_grad_(False)


def linear() -> nn.Module:
    return nn.Linear(4, 3)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Optimizer], str]] = {
    "LBFGS": (linear, torch.optim.LBFGS, "LBFGS"),
    "asserted closure": (linear, lambda p: AssertsClosure(p, lr=0.1), "AssertsClosure"),
    "closure or error": (linear, lambda p: RaisesWithoutClosure(p, lr=0.1), "needs no closure"),
    "SparseAdam": (linear, lambda p: torch.optim.SparseAdam(list(p)), "SparseAdam"),
    "sparse embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 4, sparse=True)),
        lambda p: SGD(p, lr=0.1),
        "'0 with sparse=True'",
    ),
    "sparse bag": (
        lambda: nn.EmbeddingBag(5, 4, sparse=True),
        lambda p: SGD(p, lr=0.1),
        "EmbeddingBag with sparse=True",
    ),
    "all frozen": (frozen, lambda p: SGD(p, lr=0.1), "without trainable parameters"),
    "no parameters": (
        nn.Tanh, lambda p: SGD([torch.zeros(1)], lr=0.1), "without trainable parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, optimizer, why = REFUSED[name]
    model = make()
    with pytest.raises(InvalidArgument, match=why) as caught:
        make_private(
            model, optimizer(model.parameters()), DATA, ledger=tmp_path / "run" / "ledger.jsonl",
            **GIVEN,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_sparse_embedding_is_trained_around() -> None:
    embedding = nn.Embedding(5, 4, sparse=True).requires_grad_(False)
    model = nn.ModuleDict({"embedding": embedding, "head": nn.Linear(4, 3)})
    make_private(model, SGD(model["head"].parameters(), lr=0.1), DATA, **GIVEN)


def test_freezing_everything_later_is_refused_before_the_step_is_recorded() -> None:
    trainer = private()
    batch = next(trainer.batches())
    trainer.model.requires_grad_(False)
    with pytest.raises(InvalidArgument, match="without trainable parameters"):
        trainer.step(losses, batch)
    assert trainer.steps == 0


# Arguments.


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_names_of_other_libraries_get_a_hint(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        private(**{name: 1.0})
    assert str(caught.value) == f"{name} must be left out; {FOREIGN_NAMES[name]}, got 1.0"


def test_hints_name_arguments_that_exist() -> None:
    import inspect

    own = inspect.signature(make_private).parameters
    for hint in FOREIGN_NAMES.values():
        if hint.startswith("use "):
            assert hint.split()[1].strip(":,") in own


def test_a_misspelled_argument_gets_the_closest_name() -> None:
    with pytest.raises(InvalidArgument, match="did you mean sampling_rate"):
        private(sampling_rat=0.5)


def test_arguments_of_opacus_get_a_hint() -> None:
    model = linear()
    with pytest.raises(InvalidArgument, match="module must be left out; use model"):
        make_private(module=model, optimizer=SGD(model.parameters(), lr=0.1), data_loader=[])  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("noise", OnGrid), ("sampler", Poisson), ("clipping", Flat), ("clipping", Quantile)],
)
def test_a_class_in_place_of_its_object_is_refused(name: str, kind: type) -> None:
    given: dict[str, Any] = {"noise_multiplier": 1.0, "expected_batch_size": 10, name: kind}
    given |= {} if name == "sampler" else {"sampling_rate": 0.5}
    model = linear()
    with pytest.raises(InvalidArgument, match=rf"{name} must be an object, as .*{kind.__name__}"):
        make_private(model, SGD(model.parameters(), lr=0.1), DATA, **given)


def test_missing_arguments_are_named() -> None:
    with pytest.raises(InvalidArgument, match="missing a required argument: 'optimizer'"):
        make_private(linear(), noise_multiplier=1.0)  # type: ignore[call-arg]


# The ledger.


def begun(ledger: Path, steps: int, **options: Any) -> Private:
    trainer = private(ledger=ledger, **options)
    for batch in trainer.batches(steps=steps):
        trainer.step(losses, batch)
    return trainer


def ledger_of(tmp_path: Path, name: str = "ledger.jsonl") -> Path:
    return tmp_path / "run" / name


def test_refused_first_step_leaves_no_release(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    trainer = private(ledger=ledger)
    with pytest.raises(InvalidArgument):
        trainer.step(lambda model, batch: losses(model, batch).mean(), next(trainer.batches()))
    assert begun(ledger, 2).steps == 2  # the first trainer is still referenced
    assert len(read_ledger(ledger).releases) == 2


@pytest.mark.parametrize("name", ["ledger.jsonl", "other.jsonl"])
def test_unfinished_run_is_replaced_on_request(tmp_path: Path, name: str) -> None:
    ledger = ledger_of(tmp_path, name)
    earlier = begun(ledger, 3)
    earlier.checkpoint(tmp_path / "run" / "checkpoints")
    mine = tmp_path / "run" / "checkpoints" / "notes.txt"
    mine.write_text("keep me")
    (tmp_path / "run" / "mine.csv").write_text("1,2")
    with pytest.raises((RunExists, RunLocked)):
        private(ledger=ledger)
    assert begun(ledger, 1, overwrite=True).steps == 1  # also of a session of this process
    assert len(read_ledger(ledger).releases) == 1
    assert mine.read_text() == "keep me"
    assert (tmp_path / "run" / "mine.csv").exists()


def test_finished_run_is_never_replaced(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    run = begun(ledger, 2).finish(delta=1e-5)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(RunExists, match="finished"):
        private(ledger=ledger, overwrite=True)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_bad_arguments_remove_nothing(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    begun(ledger, 2).close()
    before = ledger.read_bytes()
    for wrong in ({"clip_norm": -1.0}, {"unit": "house"}, {"resume": tmp_path}, {"workers": -1}):
        with pytest.raises(InvalidArgument):
            private(ledger=ledger, overwrite=True, **wrong)
    assert ledger.read_bytes() == before


@pytest.mark.parametrize("content", [b"my notes", b'{"kind": "seal"}\n'])
def test_another_file_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    ledger = ledger_of(tmp_path)
    ledger.parent.mkdir()
    ledger.write_bytes(content)
    with pytest.raises(RunExists):
        private(ledger=ledger, overwrite=True)
    assert ledger.read_bytes() == content


def test_damaged_ledger_is_not_replaced(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    begun(ledger, 2).close()
    damaged = ledger.read_bytes().replace(b"noise_multiplier", b"noise_multiplies", 1)
    ledger.write_bytes(damaged)
    with pytest.raises((IntegrityError, RunExists)):
        private(ledger=ledger, overwrite=True)
    assert ledger.read_bytes() == damaged


def test_ledger_of_another_process_is_not_replaced(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    begun(ledger, 1).close()
    from dpaudit.runs.ledger_file import ledger_lock

    with ledger_lock(ledger), pytest.raises(RunLocked):
        private(ledger=ledger, overwrite=True)
    assert len(read_ledger(ledger).releases) == 1


def test_overwrite_of_nothing_is_a_new_run(tmp_path: Path) -> None:
    assert begun(ledger_of(tmp_path), 1, overwrite=True).steps == 1
