"""Train a model with differential privacy into a run directory: python train.py runs/ci"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from data import CLASSES, FEATURES, heldout_records, training_records
from settings import SETTINGS
from torch import Tensor, nn

from dpaudit.trainer import Private, make_private

Batch = tuple[Tensor, ...]
"""Features, labels, and any further arrays with one row per record."""


def make_model() -> nn.Module:
    """Return the model, the same one every time."""
    torch.manual_seed(0)
    hidden = SETTINGS.hidden_units
    return nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))


def per_sample_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of each record, shape ``(records,)``."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def begin(ledger: Path | None = None, seed: int | None = None) -> Private:
    """Return the private trainer; a seed is for tests only."""
    model = make_model()
    return make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=SETTINGS.learning_rate),
        noise_multiplier=SETTINGS.noise_multiplier,
        clip_norm=SETTINGS.clip_norm,
        sampling_rate=SETTINGS.sampling_rate,
        expected_batch_size=SETTINGS.expected_batch_size,
        ledger=ledger,
        seed=seed,
    )


def batches(private: Private, dataset: Batch) -> Iterator[Batch]:
    """Yield the batch of each step."""
    yield from private.batches(dataset, steps=SETTINGS.steps)


def take_step(private: Private, batch: Batch) -> dict[str, Tensor]:
    """Take a step on a batch; return, by name, every value computed from its records.

    Only these values are logged. test_privacy.py checks that each has the claimed noise.
    """
    before = weights(private.model)
    private.step(per_sample_loss, batch)
    return {"update": weights(private.model) - before}


def weights(model: nn.Module) -> Tensor:
    """Return all parameters in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def accuracy(model: nn.Module) -> float:
    """Return the accuracy on held-out records, which are public here."""
    features, labels = heldout_records()
    with torch.no_grad():
        return float((model(features).argmax(1) == labels).float().mean())


def main(run: Path) -> None:
    """Train, log one row per step, and write a finished run."""
    private = begin(run / "ledger.jsonl")
    with (run / "metrics.csv").open("w", newline="") as file:
        for number, batch in enumerate(batches(private, training_records())):
            released = take_step(private, batch)
            if number == 0:
                csv.writer(file).writerow(["step", *released])
            csv.writer(file).writerow([number, *(float(v.norm()) for v in released.values())])
    private.finish(delta=SETTINGS.delta)
    epsilon = private.epsilon(delta=SETTINGS.delta).upper
    print(f"epsilon at most {epsilon:.4f}, held-out accuracy {accuracy(private.model):.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
