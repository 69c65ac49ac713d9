"""What private steps take from ``TrainingArguments`` of Hugging Face, and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpaudit.trainer.integrations.loop_parts import planned_length
from dpaudit.trainer.integrations.refused_settings import (
    OFF,
    Allowed,
    require_not_overridden,
    require_other_records,
    require_settings,
)
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import InvalidArgument

TRAINING_ARGUMENTS: Allowed = {
    "fp16": (OFF, "loss scaling skips steps by the size of gradients; use bf16"),
    "auto_find_batch_size": (OFF, "it repeats steps; the physical batch size bounds the memory"),
    "neftune_noise_alpha": (OFF, "its noise depends on the padding, that is, on other records"),
    "load_best_model_at_end": (OFF, "the released model is that of the last recorded step"),
    "train_sampling_strategy": (("random",), "the private sampler draws the records"),
    "group_by_length": (OFF, "the private sampler draws the records"),
    "include_num_input_tokens_seen": (("no", *OFF), "the size of a drawn batch is secret"),
    "torch_compile": (OFF, "the private step follows the operations of the model"),
    "use_liger_kernel": (OFF, "its loss has no logits, which per-record losses are computed from"),
    "deepspeed": (OFF, "it steps the optimizer itself"),
    "fsdp": (OFF, "shard by fully_shard, with private.step in your own loop"),
    "n_gpu": ((1, 0), "start one process per device, by torchrun"),
}
"""``TrainingArguments`` of Hugging Face."""

TRAINER: Allowed = {"model_init": (OFF, "each trial is a run of its own, with its own ledger")}
"""``Trainer`` of Hugging Face."""

SAMPLER = {"_get_train_sampler": "the private sampler draws the records"}
MEAN_LOSS = {"compute_loss": "losses are per record; give per_record_loss="}
"""Methods of ``Trainer`` that private steps do not call."""

UNRELEASED = ("loss", "train_loss", "grad_norm")
"""What ``Trainer`` logs of training records, without noise."""


def private_logs(logs: Mapping[str, float], private: Private | None) -> dict[str, float]:
    """Return what may be logged, and epsilon.

    Args:
        logs: What ``Trainer`` logs.
        private: The private trainer, if there is one yet.

    Returns:
        The logs without values of training records that have no noise.
    """
    kept = {name: value for name, value in logs.items() if name not in UNRELEASED}
    return kept if private is None else {**kept, "epsilon": private.epsilon().upper}


def require_private_trainer(trainer: Any, base: type, *, has_loss: bool) -> None:
    """Refuse a Trainer that private steps would change silently, or that evaluates what it trains.

    Args:
        trainer: The Trainer, built.
        base: ``transformers.Trainer``.
        has_loss: Whether the user gave the per-record loss.

    Raises:
        InvalidArgument: If a setting, an overridden method or a data set does not fit.
    """
    require_settings("trainer", trainer, TRAINER)
    require_not_overridden(trainer, base, SAMPLER if has_loss else {**SAMPLER, **MEAN_LOSS})
    require_other_records(trainer.eval_dataset, trainer.train_dataset)


def privacy_settings(arguments: Any, privacy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``make_private``; those not given follow from the Trainer's.

    Args:
        arguments: ``TrainingArguments``. What has no use with private steps is switched off.
        privacy: What the user gave.

    Returns:
        Arguments by name.

    Raises:
        InvalidArgument: If a setting does not fit private steps.
    """
    if not isinstance(privacy, Mapping) or "delta" not in privacy:
        raise InvalidArgument("privacy", privacy, "a dict with delta and other arguments of "
                              "make_private, as target_epsilon and dataset_size")  # fmt: skip
    require_settings("args", arguments, TRAINING_ARGUMENTS)
    each, times = arguments.train_batch_size, arguments.gradient_accumulation_steps
    if arguments.max_grad_norm or times > 1:
        warnings.warn(
            "gradients are clipped per record, and batches split into physical ones: "
            "max_grad_norm and gradient_accumulation_steps have no other effect",
            stacklevel=3,  # where the Trainer is made
        )
    arguments.max_grad_norm, arguments.gradient_accumulation_steps = 0.0, 1
    arguments.logging_nan_inf_filter = False  # NaN stands for the loss, which is not logged
    arguments.ignore_data_skip = True  # the private loader knows where to continue
    return {
        **planned_length(arguments.num_train_epochs, arguments.max_steps, privacy),
        "expected_batch_size": each * times * arguments.world_size,
        "physical_batch_size": each,
        "workers": arguments.dataloader_num_workers,
        "ledger": Path(arguments.output_dir, "private", "ledger.jsonl"),
        **privacy,
    }
