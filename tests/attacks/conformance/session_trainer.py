"""A training loop with ``make_private`` and its conformance trainer, as a user would write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.conformance_trainers import PrivateTrainerFactory

WIDTH, SIZE, STEPS, RATE, NOISE, CLIP, LEARNING_RATE, BATCH = 8, 60, 12, 0.1, 4.0, 1.0, 0.1, 6

CLAIM = f"""
noise_multiplier = {NOISE}
clip_norm = {CLIP}
sampling_rate = {RATE}
steps = {STEPS}
update_scale = {-LEARNING_RATE / BATCH!r}
"""


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 2))


def loss(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(SIZE, WIDTH)).astype(np.float32)
LABELS = rng.integers(0, 2, SIZE)
records = [(x, int(y)) for x, y in zip(FEATURES, LABELS, strict=True)]

make = PrivateTrainerFactory(
    model, loss, records[0], learning_rate=LEARNING_RATE, noise_multiplier=NOISE, clip_norm=CLIP,
    sampling_rate=RATE, expected_batch_size=BATCH,
)  # fmt: skip


def train(run: Path, steps: int = STEPS) -> None:
    """Train in a plain loop with a ledger, and finish the run."""
    net = model()
    private = make_private(
        net, torch.optim.SGD(net.parameters(), lr=LEARNING_RATE), noise_multiplier=NOISE,
        clip_norm=CLIP, sampling_rate=RATE, expected_batch_size=BATCH, ledger=run / "ledger.jsonl",
    )  # fmt: skip
    for batch in private.batches((torch.tensor(FEATURES), torch.tensor(LABELS)), steps=steps):
        private.step(loss, batch)
    private.finish(delta=1e-5)
