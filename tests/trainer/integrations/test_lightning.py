"""``PrivateModule`` against the real trainer of Lightning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer import make_private
from dpaudit.trainer.integrations import PrivateModule
from dpaudit.trainer.integrations.loop_parts import SteppedOptimizer, rounded_up
from dpaudit.trainer.integrations.refused_settings import LIGHTNING_TRAINER, require_settings
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS = 40
PRIVACY = {"noise_multiplier": 1.0, "dataset_size": RECORDS, "expected_batch_size": 10, "seed": 3}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def records() -> tuple[Tensor, Tensor]:
    rows = torch.randn(RECORDS, 5, generator=torch.Generator().manual_seed(1))
    return rows, (rows[:, 0] > 0).long()


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


class Classifier(PrivateModule):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=0.1)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(dim=1) == batch[1]).float().mean())


def module(kind: type[PrivateModule] = Classifier, **options: Any) -> PrivateModule:
    return kind(network(), loss, **{"delta": 1e-5, **PRIVACY, **options})


def lightning(folder: Path, **options: Any) -> Trainer:
    usual = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False}
    usual |= {"enable_progress_bar": False, "enable_model_summary": False}
    usual |= {"enable_checkpointing": "callbacks" in options}
    return Trainer(default_root_dir=folder, **{**usual, **options})


def fit(trainer: Trainer, own: PrivateModule, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning suggests workers, loggers and more
        trainer.fit(own, own.batches(records()), **options)


def weights(own: nn.Module) -> Tensor:
    return torch.cat([part.detach().flatten() for part in own.parameters()])


def test_steps_are_those_of_a_loop_of_your_own(tmp_path: Path) -> None:
    own, trainer = module(), lightning(tmp_path)
    fit(trainer, own, val_dataloaders=DataLoader(TensorDataset(*records()), batch_size=20))
    net = network()
    private = make_private(
        net, torch.optim.Adam(net.parameters(), lr=0.1), records(), epochs=3, **PRIVACY
    )
    for batch in private.batches():
        private.step(loss, batch)
    assert private.steps == own.private.steps == trainer.global_step == 12
    assert torch.equal(weights(own.network), weights(net))
    spent = own.private.epsilon().upper
    assert spent <= float(trainer.callback_metrics["epsilon"]) < spent + 1e-5
    run = own.private.finish()
    assert run.path == tmp_path / "private"
    assert len(read_ledger(run.ledger).releases) == 12


@pytest.mark.parametrize(
    ("options", "limit", "steps"),
    [
        ({"max_epsilon": 3.5}, 3.5, None),
        ({"noise_multiplier": None, "target_epsilon": 1.5}, 1.5, 12),
    ],
)
def test_training_stops_at_the_budget(
    tmp_path: Path, options: dict[str, Any], limit: float, steps: int | None
) -> None:
    own, trainer = module(**options), lightning(tmp_path)
    fit(trainer, own)
    assert 0.6 * limit < own.private.epsilon().upper <= limit
    if steps is None:
        assert trainer.should_stop
        assert 0 < trainer.global_step == own.private.steps < 12
    else:
        assert own.private.steps == steps


class Interrupt(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == 8:
            raise InterruptedError


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Resumed within a pass, from the checkpoint of Lightning."""
    whole = module()
    fit(lightning(tmp_path / "whole"), whole)
    saves = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=6, save_top_k=-1)
    broken = module()
    with pytest.raises(InterruptedError):
        fit(lightning(tmp_path / "run", callbacks=[saves, Interrupt()]), broken)
    broken.private.close()
    (path,) = (tmp_path / "saved").iterdir()
    resumed, trainer = module(), lightning(tmp_path / "run")
    fit(trainer, resumed, ckpt_path=path)
    assert resumed.private.steps == trainer.global_step == 12
    assert torch.equal(weights(resumed.network), weights(whole.network))
    ledger = read_ledger(tmp_path / "run" / "private" / "ledger.jsonl")
    assert [line.step for line in ledger.releases] == [*range(8), *range(6, 12)]


def test_a_checkpoint_without_a_private_one_is_not_resumed_from(tmp_path: Path) -> None:
    trainer = lightning(tmp_path / "plain")
    own = module()
    fit(trainer, own)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    checkpoint = torch.load(tmp_path / "plain.ckpt", weights_only=True)
    del checkpoint["dpaudit"]
    torch.save(checkpoint, tmp_path / "plain.ckpt")
    with pytest.raises(InvalidArgument, match="checkpoint must be a checkpoint of a private run"):
        fit(lightning(tmp_path / "other"), module(), ckpt_path=tmp_path / "plain.ckpt")


def test_a_limit_of_steps_is_the_plan(tmp_path: Path) -> None:
    own = module(noise_multiplier=None, target_epsilon=2.0)
    fit(lightning(tmp_path, max_epochs=None, max_steps=5), own)
    assert own.private.steps == own.private.plan.steps == 5
    assert 1.5 < own.private.epsilon().upper <= 2.0


# What is refused.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("accumulate_grad_batches", {"accumulate_grad_batches": 2}),
        ("gradient_clip_val", {"gradient_clip_val": 1.0}),
        ("precision", {"precision": "transformer-engine"}),
        ("world_size", {"devices": 2}),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "precision":  # needs another machine
        trainer = lightning(tmp_path)
        monkeypatch.setattr(Trainer, "precision", property(lambda _: "16-mixed"))
    else:
        trainer = lightning(tmp_path, **options)
    with pytest.raises(InvalidArgument, match=rf"trainer\.{name} must be"):
        require_settings("trainer", trainer, LIGHTNING_TRAINER)


class TwoOptimizers(Classifier):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.network[::2]]


class Outside(Classifier):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.temperature = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("kind", "named"), [(TwoOptimizers, "optimizers must be one"), (Outside, "temperature")]
)
def test_what_private_steps_would_not_train_is_refused(
    tmp_path: Path, kind: type[PrivateModule], named: str
) -> None:
    with pytest.raises(InvalidArgument, match=named):
        fit(lightning(tmp_path), module(kind))


def test_a_loader_that_is_not_private_is_refused(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(*records()), batch_size=20)
    with pytest.raises(InvalidArgument, match=r"must be module\.batches\(data\)"):
        lightning(tmp_path).fit(module(), loader)


def test_batches_outside_of_a_fit_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="given to the trainer's fit"):
        next(iter(module().batches(records())))


# Parts.


def test_an_upper_bound_is_rounded_up() -> None:
    for bound in (0.1, 1 / 3, 0.5, 7.123456789):
        assert bound <= float(rounded_up(bound)) < bound * (1 + 2e-7)


def test_an_optimizer_that_was_stepped_is_not_stepped_again() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    stepped = SteppedOptimizer(optimizer)
    before = weights(net)
    for part in net.parameters():
        part.grad = torch.ones_like(part)
    stepped.step()
    stepped.zero_grad()
    assert stepped.step(lambda: 7) == 7
    assert torch.equal(weights(net), before)
    assert next(net.parameters()).grad is not None
    scheduler = torch.optim.lr_scheduler.StepLR(stepped, 1, 0.5)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    saved = stepped.state_dict()
    saved["param_groups"][0]["lr"] = 0.3
    stepped.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["params"][0] is next(net.parameters())
