"""Train on handwritten digits with Lightning, privately.

    pip install 'dpaudit[lightning]'
    python examples/lightning_digits.py

``PrivateModule`` takes the network and the loss of each record. The rest is a module of Lightning.
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpaudit.trainer.integrations import PrivateModule
from dpaudit.vocabulary.rounding import round_up

TRAINED = 1500

Batch = tuple[Tensor, Tensor]


def cross_entropies(network: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of each record."""
    images, classes = batch
    return nn.functional.cross_entropy(network(images), classes, reduction="none")


class Digits(PrivateModule):
    """A classifier of digits."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer that private steps use."""
        return torch.optim.SGD(self.network.parameters(), lr=2.0, momentum=0.5)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the accuracy on records that do not train."""
        images, classes = batch
        self.log("accuracy", (self(images).argmax(dim=1) == classes).float().mean())


def main(folder: str, epochs: int) -> None:
    """Train, and print what it cost and how well it does."""
    torch.manual_seed(0)
    images, classes = load_digits(return_X_y=True)
    rows, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)
    others = TensorDataset(rows[TRAINED:], labels[TRAINED:])
    module = Digits(
        nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)),
        cross_entropies,
        target_epsilon=3.0,
        delta=1e-5,
        dataset_size=TRAINED,
        expected_batch_size=150,
    )
    trainer = Trainer(max_epochs=epochs, default_root_dir=folder, logger=False, accelerator="cpu")
    batches = module.batches((rows[:TRAINED], labels[:TRAINED]))
    trainer.fit(module, batches, DataLoader(others, batch_size=297))
    run = module.private.finish()
    right = float(trainer.callback_metrics["accuracy"])
    spent = module.private.epsilon().upper
    print(f"epsilon at most {round_up(spent)}; {right:.1%} of other digits are right")
    print(f"run in {run.path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", default="runs/digits-lightning", help="folder of checkpoints and run"
    )
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    main(given.output, given.epochs)
