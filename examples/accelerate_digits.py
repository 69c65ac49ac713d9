"""Train on handwritten digits with Accelerate, privately, on one or more processes.

    pip install 'dpaudit[accelerate]'
    python examples/accelerate_digits.py
    accelerate launch --cpu --num_processes 2 examples/accelerate_digits.py

Each process takes its part of every batch. The noise enters the sum of all processes once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dpaudit.trainer.integrations import prepare_private
from dpaudit.vocabulary.rounding import round_up

TRAINED = 1500

Batch = tuple[Tensor, Tensor]


def digits() -> tuple[Batch, Batch]:
    """Return images and classes of the training and of the other records."""
    images, classes = load_digits(return_X_y=True)
    rows, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)
    return (rows[:TRAINED], labels[:TRAINED]), (rows[TRAINED:], labels[TRAINED:])


def cross_entropies(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of each record."""
    images, classes = batch
    return nn.functional.cross_entropy(model(images), classes, reduction="none")


def main(folder: str, epochs: int) -> None:
    """Train, and print what it cost and how well it does."""
    torch.manual_seed(0)
    train, test = digits()
    accelerator = Accelerator()
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.5)
    private = prepare_private(
        accelerator,
        model,
        optimizer,
        train,
        target_epsilon=3.0,
        delta=1e-5,
        epochs=epochs,
        dataset_size=TRAINED,
        expected_batch_size=150,
        ledger=Path(folder, "ledger.jsonl"),
    )
    for batch in private.batches():
        private.step(cross_entropies, batch)
    spent = private.log()  # to the accelerator's trackers, if there are any
    images, classes = (part.to(accelerator.device) for part in test)
    with torch.no_grad():
        right = (private.model(images).argmax(dim=1) == classes).float().mean().item()
    private.private.finish()
    accelerator.print(
        f"epsilon at most {round_up(spent)}; {right:.1%} of other digits are right; "
        f"{accelerator.num_processes} processes"
    )
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="runs/digits-accelerate", help="folder of the run")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    main(given.output, given.epochs)
