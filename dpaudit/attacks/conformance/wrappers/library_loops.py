"""Steps of the training loops of Hugging Face and Lightning.

The libraries' own loops run, with their callbacks, schedules and wrappers. Only the batches come
from the audit: of the same data set, and collated by the same function, as those of the library.
"""

from __future__ import annotations

from typing import Any

from dpaudit.attacks.conformance.wrappers.parts import TorchLoop
from dpaudit.attacks.conformance.wrappers.paused_training import PausedTraining
from dpaudit.vocabulary.errors import InvalidArgument


def loop_of_hugging_face(trainer: Any) -> TorchLoop:
    """Start ``trainer.train()`` and return its loop.

    Args:
        trainer: A ``transformers.Trainer``.

    Returns:
        The loop, which waits for the batch of the first step.
    """
    loader = trainer.get_train_dataloader()
    _require_data_set(loader, "PrivateTrainerFactory of dpaudit.trainer.conformance_trainers")

    def begin(batches: Any) -> None:
        trainer.get_train_dataloader = lambda: batches
        trainer.train()

    paused = PausedTraining(begin)
    return TorchLoop(trainer.model, loader, paused.step, trainer.optimizer)


def loop_of_lightning(trainer: Any, module: Any, loader: Any) -> TorchLoop:
    """Start ``trainer.fit(module, loader)`` and return its loop.

    Args:
        trainer: A Lightning trainer.
        module: The module to train, with one optimizer.
        loader: The data loader.

    Returns:
        The loop, which waits for the batch of the first step.
    """
    _require_data_set(loader, "PrivateTrainerFactory of dpaudit.trainer.conformance_trainers")
    paused = PausedTraining(lambda batches: trainer.fit(module, batches))
    if len(trainer.optimizers) != 1:
        raise InvalidArgument("optimizers", len(trainer.optimizers), "one optimizer")
    return TorchLoop(module, loader, paused.step, trainer.optimizers[0])


def _require_data_set(loader: Any, instead: str) -> None:
    if not hasattr(loader, "collate_fn"):
        raise InvalidArgument(
            "loader", type(loader).__name__,
            f"a DataLoader; a trainer that draws its own batches is tested by {instead}",
        )  # fmt: skip
