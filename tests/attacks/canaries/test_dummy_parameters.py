"""Dummy parameters in a loop of one's own: they show the clip norm, and touch nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit.attacks.canaries.torch_canaries import (
    ModelWithCanaries,
    add_canary_parameters,
    canary_losses,
)
from dpaudit.trainer.attach import make_private
from dpaudit.vocabulary.errors import InvalidArgument

CANARIES, RECORDS, CLIP, NOISE, LR, BATCH = 40, 20, 0.5, 0.7, 0.1, 8.0


def losses(model: ModelWithCanaries, batch: tuple[Tensor, ...]) -> Tensor:
    x, y, canary = batch
    own = nn.functional.cross_entropy(model(x), y, reduction="none")
    return canary_losses(model, own, canary)


def test_a_canary_moves_its_own_number_by_the_clip_norm_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = add_canary_parameters(nn.Linear(6, 3), count=CANARIES)
    included = np.arange(CANARIES) % 2 == 0
    numbers = torch.from_numpy(np.flatnonzero(included))
    x = torch.randn(RECORDS + len(numbers), 6)
    y = torch.randint(0, 3, (len(x),))
    canary = torch.cat([torch.full((RECORDS,), -1), numbers])
    private = make_private(
        model, torch.optim.SGD(model.parameters(), lr=LR), noise_multiplier=NOISE,
        clip_norm=CLIP, sampling_rate=1.0, expected_batch_size=BATCH, ledger=None, seed=1,
    )  # fmt: skip
    shown = []
    before = model.canaries.detach().clone()
    passes = (private.batches((x, y, canary)) for _ in range(60))
    for batch in itertools.chain.from_iterable(passes):
        private.step(losses, batch)
        shown.append(((model.canaries.detach() - before) / (-LR / BATCH * CLIP)).numpy())
        before = model.canaries.detach().clone()
    seen = np.array(shown)
    assert seen[:, included].mean() == pytest.approx(1.0, abs=4 * NOISE / np.sqrt(60 * 20))
    assert seen[:, ~included].mean() == pytest.approx(0.0, abs=4 * NOISE / np.sqrt(60 * 20))
    assert seen[:, ~included].std() == pytest.approx(NOISE, rel=0.1)


def test_a_record_has_the_loss_that_it_had() -> None:
    model = add_canary_parameters(nn.Linear(2, 2), count=3)
    own = torch.tensor([0.5, 0.25, 4.0])
    found = canary_losses(model, own, torch.tensor([-1, 2, -1]))
    assert found.tolist() == [0.5, 0.0, 4.0]


def test_a_number_without_a_canary_is_refused() -> None:
    model = add_canary_parameters(nn.Linear(2, 2), count=3)
    with pytest.raises(InvalidArgument, match="from -1 to 2"):
        canary_losses(model, torch.zeros(2), torch.tensor([0, 3]))
    with pytest.raises(InvalidArgument, match="one number for each"):
        canary_losses(model, torch.zeros(2), torch.tensor([0]))
