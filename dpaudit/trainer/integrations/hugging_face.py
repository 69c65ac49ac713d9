"""Hugging Face ``Trainer`` with private steps; needs the extra ``hugging-face``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.integrations.head_losses import ModelLoss, loss_of_model
from dpaudit.trainer.integrations.loop_parts import (
    FOLDER,
    PrivateLoader,
    SteppedOptimizer,
    private_checkpoint,
)
from dpaudit.trainer.integrations.refused_settings import require_other_records
from dpaudit.trainer.integrations.training_arguments import (
    privacy_settings,
    private_logs,
    require_private_trainer,
)
from dpaudit.trainer.private import Private


class PrivateTrainer(Trainer):
    """Hugging Face ``Trainer`` whose steps are private.

    The private sampler draws the records, and losses are per record. ``epsilon`` is logged in
    place of the training loss, which would be a release without noise. The expected batch size is
    ``per_device_train_batch_size``, which is the physical one, times
    ``gradient_accumulation_steps``, times the number of processes. Checkpoints work as usual.

    Args:
        *args: As for ``Trainer``.
        privacy: Arguments of ``make_private``, among them ``delta``. Number of passes, batch
            sizes and ledger (``private/ledger.jsonl`` in the output folder) have defaults.
        max_epsilon: Training stops before the step that would exceed it; None: ``target_epsilon``.
        per_record_loss: (model, inputs) to losses of shape ``(records,)``; None: the loss of the
            model's head, or ``compute_loss_func`` of one record at a time.
        **kwargs: As for ``Trainer``.

    Attributes:
        private: The private trainer, once ``train`` was called; its ``finish`` ends the run.

    Raises:
        InvalidArgument: If a setting does not fit private steps, or the loss is not known.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
        >>> trainer = PrivateTrainer(
        ...     model, TrainingArguments("out", max_grad_norm=0.0, report_to=[]),
        ...     privacy={"target_epsilon": 3.0, "delta": 1e-5, "dataset_size": 100})
        >>> trainer.private is None
        True
    """

    private: Private | None = None
    _resumed: str | None = None
    _unchecked: ModelLoss | None = None  # to be compared with the model's own loss

    def __init__(
        self,
        *args: Any,
        privacy: dict[str, Any],
        max_epsilon: float | None = None,
        per_record_loss: PerSampleLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        require_private_trainer(self, Trainer, has_loss=per_record_loss is not None)
        self._privacy, self._max_epsilon = privacy_settings(self.args, privacy), max_epsilon
        self._loss: Any = per_record_loss
        if per_record_loss is None:
            model = self.accelerator.unwrap_model(self.model)
            smoothing, compute = self.args.label_smoothing_factor, self.compute_loss_func
            self._loss = self._unchecked = loss_of_model(model, smoothing, compute)
        # The private step adds the sums of all processes: no wrapper of the model does it again.
        own = self.accelerator
        own.prepare_model = partial(own.prepare_model, evaluation_mode=True)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as ``Trainer`` does; see there."""
        newest = resume_from_checkpoint is True and get_last_checkpoint(self.args.output_dir)
        self._resumed = newest or resume_from_checkpoint or None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """Return a loader of private batches; the first call makes the private trainer."""
        self.private = self.private or self._make_private()
        return PrivateLoader(
            lambda: self.private, lambda: setattr(self.control, "should_training_stop", True)
        )

    def _make_private(self) -> Private:
        """Attach privacy to model and optimizer, and set the number of steps."""
        data, collate = self.train_dataset, self.data_collator
        if hasattr(data, "column_names"):
            data = self._remove_unused_columns(data, "training")
        else:
            collate = self._get_collator_with_removed_columns(collate, "training")
        optimizer = self.create_optimizer()
        folder = private_checkpoint(self._resumed)
        private = make_private(
            self.model, optimizer, data, collate_fn=collate, resume=folder, **self._privacy
        )
        self.optimizer = SteppedOptimizer(optimizer)
        if self._max_epsilon is not None:
            private.stop_at(epsilon=self._max_epsilon, delta=self._privacy["delta"])
        if private.plan is not None and private.plan.steps is not None:
            self.args.max_steps = private.plan.steps
        return private

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Take one private step; return NaN in place of the loss."""
        assert self.private is not None
        self.model.train()
        inputs = self._prepare_inputs(inputs)
        if self._unchecked is not None and self._unchecked.agrees_with(self.model, inputs):
            self._unchecked = None
        self.private.step(self._loss, inputs)
        return torch.tensor(float("nan"), device=self.args.device)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the loader of ``Trainer``; refuse the training records."""
        require_other_records(eval_dataset, self.train_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log epsilon, and nothing about training records that is not private."""
        super().log(private_logs(logs, self.private), *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write the private trainer's checkpoint beside that of ``Trainer``."""
        super()._save_checkpoint(*args, **kwargs)
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}", FOLDER)
        if self.private is not None and not self.args.save_only_model:
            self.private.checkpoint(folder)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the number of operations would reveal how many records were drawn."""
        return 0
