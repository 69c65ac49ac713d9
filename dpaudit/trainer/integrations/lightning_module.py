"""Lightning modules with private steps; needs the extra ``lightning``."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning.pytorch import LightningModule
from torch import nn

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.integrations.loop_parts import (
    FOLDER,
    PrivateLoader,
    SteppedOptimizer,
    planned_length,
    private_checkpoint,
    rounded_up,
)
from dpaudit.trainer.integrations.refused_settings import (
    LIGHTNING_TRAINER,
    require_one_optimizer,
    require_private_loader,
    require_settings,
)
from dpaudit.trainer.private import Private

KEY = "dpaudit"  # of a checkpoint of Lightning: the folder of the private one


class PrivateModule(LightningModule):
    """A Lightning module whose training steps are private.

    A subclass defines ``configure_optimizers``, which returns one optimizer of the parameters of
    ``network``, and validation steps if it needs them. ``trainer.fit(module,
    module.batches(data))`` trains it. ``epsilon`` is logged after every epoch.

    The ledger is ``private/ledger.jsonl`` in the ``default_root_dir`` of the Lightning trainer.
    Checkpoints of Lightning can be resumed from, as long as the folder ``private`` is there.

    Args:
        network: The network to train; all trainable parameters are in it.
        per_sample_loss: (network, batch) to losses of shape ``(records,)``.
        delta: Delta of the epsilon that is logged, in [1e-300, 1).
        max_epsilon: Training stops before the step that would exceed it; None: no limit.
        **privacy: Arguments of ``make_private``, as ``noise_multiplier`` and ``sampling_rate``.

    Attributes:
        network: The network.
        private: The private trainer, once ``fit`` was called; its ``finish`` ends the run.

    Example:
        >>> import torch
        >>> module = PrivateModule(
        ...     torch.nn.Linear(3, 1), lambda network, batch: network(batch)[:, 0], delta=1e-5,
        ...     noise_multiplier=1.0, dataset_size=100, expected_batch_size=10)
        >>> module.automatic_optimization
        False
    """

    private: Private | None = None

    def __init__(
        self,
        network: nn.Module,
        per_sample_loss: PerSampleLoss,
        *,
        delta: float,
        max_epsilon: float | None = None,
        **privacy: Any,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self._loss, self._privacy = network, per_sample_loss, privacy
        self._delta, self._max_epsilon = delta, max_epsilon
        self._data: Any = None
        self._resumed: str | None = None
        self._saved = (0, "")  # number of steps and folder of the newest private checkpoint

    def forward(self, *inputs: Any) -> Any:
        """Return the outputs of the network."""
        return self.network(*inputs)

    def batches(self, data: Any) -> PrivateLoader:
        """Return a loader of private batches for ``trainer.fit``, one pass per epoch.

        Args:
            data: The records, as ``make_private`` takes them.

        Returns:
            The loader.
        """
        self._data = data
        return PrivateLoader(
            lambda: self.private, lambda: setattr(self.trainer, "should_stop", True)
        )

    @property
    def _folder(self) -> Path:
        """The folder of the ledger and the private checkpoints."""
        return Path(self.trainer.default_root_dir, "private")

    def on_fit_start(self) -> None:
        """Make the private trainer, on the device that Lightning chose."""
        require_settings("trainer", self.trainer, LIGHTNING_TRAINER)
        require_private_loader(self._data)
        optimizer = require_one_optimizer(self, self.network, self.trainer.optimizers)
        if self.private is None:
            kept = private_checkpoint(self._resumed and self._folder / self._resumed)
            settings = {
                "ledger": self._folder / "ledger.jsonl",
                **planned_length(self.trainer.max_epochs, self.trainer.max_steps, self._privacy),
                **self._privacy,
            }
            self.private = make_private(
                self.network, optimizer, self._data, delta=self._delta, resume=kept, **settings
            )
        if self._max_epsilon is not None:
            self.private.stop_at(epsilon=self._max_epsilon, delta=self._delta)
        self.trainer.optimizers = [SteppedOptimizer(self.private.optimizer)]

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """Take one private step, on the drawn records."""
        private = self.private
        assert private is not None
        # The step of Lightning's optimizer runs the closure, and counts it.
        self.optimizers().step(closure=lambda: private.step(self._loss, batch))

    def on_train_epoch_end(self) -> None:
        """Log epsilon, rounded up to the float32 that Lightning keeps."""
        assert self.private is not None
        epsilon = rounded_up(self.private.epsilon().upper)
        self.log("epsilon", epsilon, prog_bar=True, reduce_fx="max")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the private trainer's checkpoint, and name its folder in that of Lightning."""
        if self.private is None:
            return
        if self._saved[0] != self.private.steps:
            self._saved = (self.private.steps, f"step-{self.private.steps}-{uuid4().hex[:8]}")
            self.private.checkpoint(self._folder / self._saved[1] / FOLDER)
        checkpoint[KEY] = self._saved[1]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember from which private checkpoint to continue."""
        self._resumed = checkpoint.get(KEY, "of a run that is not private")
