"""Activation checkpointing: the same sums, by rule, without holding what checkpointing frees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from dpaudit.trainer.engine import Engine, Flat, PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch
from tests.trainer.engine.oracle import per_record, relative_gap

WIDTH, RECORDS = 8, 6


class Blocks(nn.Module):
    """Residual blocks, each checkpointed in one of several ways."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.head, self.run = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3), run
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(dropout),
                nn.Linear(WIDTH, WIDTH),
            )
            for _ in range(3)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + self.run(block, h)
        return self.head(h)


class Scaled(nn.Module):
    """A block with a gamma, a shared use of its weight, and a weight that is normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.inner = nn.Parameter(torch.full((WIDTH,), 0.5)), nn.Linear(WIDTH, WIDTH)
        self.direction = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return self.gamma * torch.tanh(self.inner(self.inner(h))) + self.direction(h)


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def plain(block: nn.Module, h: Tensor) -> Tensor:
    return block(h)


def not_reentrant(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint(block, h, use_reentrant=False)


def reentrant(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint(block, h, use_reentrant=True)


def whole(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint(block, h, use_reentrant=False, early_stop=False)


def in_parts(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint_sequential(block, 2, h, use_reentrant=False)


def nested(block: nn.Module, h: Tensor) -> Tensor:
    def inner(h: Tensor) -> Tensor:
        return checkpoint(block, h, use_reentrant=True)

    return checkpoint(inner, h, use_reentrant=False)


def moved_away(block: nn.Module, h: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return block(h)


WAYS = {
    "not reentrant": not_reentrant,
    "reentrant": reentrant,
    "without early stop": whole,
    "in parts": in_parts,
    "nested": nested,
    "saved on the CPU": moved_away,
}


def some_records(records: int = RECORDS) -> tuple[Tensor, Tensor]:
    return torch.randn(records, 5), torch.arange(records) % 3


def require_fast_and_right(model: nn.Module, loss: PerSampleLoss, batch: Any) -> Engine:
    engine, clipping = Engine(model, loss), Flat(0.7)
    expected = per_record(model, loss, batch).clipped_sum(clipping)
    for chunk in (None, 4):
        found = engine.clipped_sum(batch, clipping, chunk)
        assert relative_gap(found.sums, expected) < 1e-5
    assert engine.record_by_record == ()
    return engine


@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_blocks_have_rules(way: str) -> None:
    torch.manual_seed(0)
    model, batch = Blocks(plain), some_records()
    engine, clipping = Engine(model, losses), Flat(0.7)
    expected = per_record(model, losses, batch).clipped_sum(clipping)
    model.run = WAYS[way]
    for chunk in (None, 4):
        assert relative_gap(engine.clipped_sum(batch, clipping, chunk).sums, expected) < 1e-5
    assert engine.record_by_record == ()


@pytest.mark.parametrize("way", ["not reentrant", "reentrant"])
def test_checkpointed_broadcasts_and_weight_norms_have_their_sums(way: str) -> None:
    torch.manual_seed(0)
    model, batch = Blocks(plain), some_records()
    model.blocks = nn.ModuleList(Scaled() for _ in range(2))
    expected = per_record(model, losses, batch).clipped_sum(Flat(0.7))
    model.run = WAYS[way]
    engine = Engine(model, losses)
    assert relative_gap(engine.clipped_sum(batch, Flat(0.7)).sums, expected) < 1e-5
    assert relative_gap(engine.clipped_sum(batch, Flat(0.7)).sums, expected) < 1e-5
    assert engine.record_by_record == ()


def test_recomputed_dropout_draws_what_the_forward_pass_drew() -> None:
    torch.manual_seed(0)
    model, batch = Blocks(not_reentrant, dropout=0.4), some_records()
    engine = Engine(model, losses)
    engine.clipped_sum(batch, Flat(1e9))
    torch.manual_seed(5)
    found = engine.clipped_sum(batch, Flat(1e9)).sums
    torch.manual_seed(5)
    total = losses(model, batch).sum()
    names = dict(model.named_parameters())
    truth = dict(zip(names, torch.autograd.grad(total, list(names.values())), strict=True))
    assert relative_gap(found, truth) < 1e-5
    assert engine.record_by_record == ()


def test_reentrant_checkpointing_of_an_input_without_gradient_gives_none() -> None:
    torch.manual_seed(0)
    inner = nn.Linear(5, WIDTH)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = inner, nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(reentrant(self.inner, x))

    model, batch = First(), some_records()
    with pytest.warns(UserWarning, match="None of the inputs"):
        losses(model, batch).sum().backward()
    assert inner.weight.grad is None
    found = Engine(model, losses).clipped_sum(batch, Flat(1.0)).sums
    assert not found["inner.weight"].any()
    assert found["head.weight"].any()


def test_torch_is_left_as_it_was() -> None:
    before = torch.utils.checkpoint.CheckpointFunction
    Engine(Blocks(reentrant), losses).clipped_sum(some_records(), Flat(1.0))
    assert torch.utils.checkpoint.CheckpointFunction is before


@pytest.mark.parametrize("way", [True, False])
def test_hugging_face_models_are_checkpointed_by_rule(way: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=13, n_positions=12, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )
    )  # fmt: skip

    def next_tokens(model: nn.Module, tokens: Tensor) -> Tensor:
        scores = model(input_ids=tokens).logits[:, :-1].transpose(1, 2)
        return functional.cross_entropy(scores, tokens[:, 1:], reduction="none").mean(dim=1)

    tokens = torch.randint(0, 13, (5, 6))
    expected = per_record(model, next_tokens, tokens).clipped_sum(Flat(0.7))
    model.gradient_checkpointing_enable({"use_reentrant": way})
    model.train()
    engine = Engine(model, next_tokens)
    for _ in range(2):
        assert relative_gap(engine.clipped_sum(tokens, Flat(0.7)).sums, expected) < 1e-5
    assert engine.record_by_record == ()


def test_many_freed_entries_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, batch = Blocks(not_reentrant), some_records(64)
    expected = per_record(model, losses, batch).clipped_sum(Flat(0.7))
    engine = Engine(model, losses)
    engine.clipped_sum(batch, Flat(0.7))
    assert engine._gradients.chunk_size(batch) == 64
    monkeypatch.setattr("dpaudit.trainer.engine.planned_gradients.MAX_KEPT_OF_FREED", 0)
    # 603 parameters; each record has 3 blocks with 2 linear layers and a norm: 144 entries.
    assert engine._gradients.chunk_size(batch) == 4
    assert relative_gap(engine.clipped_sum(batch, Flat(0.7)).sums, expected) < 1e-5


PEAK = """
import resource, sys, torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from dpaudit.trainer.engine import Engine, Flat

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 256), nn.Linear(256, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(256, 64), *(nn.Tanh() for _ in range(10)), nn.Linear(64, 256))
            for _ in range(24))

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + checkpoint(lambda h: block(torch.sin(torch.exp(torch.sin(h)))), h,
                               use_reentrant=False)
        return self.head(h)

def losses(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).mean(1), batch[1], reduction="none")

torch.set_num_threads(1)
torch.manual_seed(0)
model, batch = Deep(), (torch.randn(256, 16, 64), torch.randint(0, 10, (256,)))
if sys.argv[1] == "plain":
    step = lambda: losses(model, batch).mean().backward()
else:
    engine = Engine(model, losses)
    step = lambda: engine.clipped_sum(batch, Flat(1.0))
losses(model, (batch[0][:2], batch[1][:2])).mean().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_peak_memory_is_that_of_checkpointed_training() -> None:
    def grown(what: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, what], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    # Plain training without checkpointing would hold 24 blocks of activations: 24 times as much.
    assert grown("private") < 2 * grown("plain")
