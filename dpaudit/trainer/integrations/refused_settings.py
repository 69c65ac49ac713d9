"""Settings of other libraries under which steps are not private, or not what is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dpaudit.vocabulary.errors import InvalidArgument

Allowed = Mapping[str, tuple[tuple[object, ...], str]]
"""For each setting, its allowed values and the reason why others are refused."""

OFF: tuple[object, ...] = (False, None, "", [], 0)
"""Values of a setting that is not used."""

ACCELERATOR: Allowed = {
    "mixed_precision": (("no", "bf16", *OFF), "loss scaling skips steps by the size of gradients"),
    "gradient_accumulation_steps": ((1,), "physical_batch_size splits a batch"),
    "distributed_type": (
        ("NO", "MULTI_CPU", "MULTI_GPU"),
        "data-parallel processes; shard by fully_shard, with private.step in your own loop",
    ),
}
"""``Accelerator`` of Accelerate."""

LIGHTNING_TRAINER: Allowed = {
    "precision": (
        ("32-true", "bf16-mixed", "bf16-true", "64-true"),
        "loss scaling skips steps by the size of gradients",
    ),
    "accumulate_grad_batches": ((1,), "physical_batch_size splits a batch"),
    "gradient_clip_val": (OFF, "private steps clip the gradient of each record"),
    "world_size": ((1,), "one process; for more, use Accelerate, or torchrun with your own loop"),
}
"""``Trainer`` of Lightning."""


def require_settings(owner: str, settings: object, allowed: Allowed) -> None:
    """Refuse settings of a library under which steps are not private, or not what is recorded.

    Args:
        owner: The object that has the settings, for the message.
        settings: The object; a setting that its version lacks is skipped.
        allowed: For each name, the allowed values and the reason why others are refused.

    Raises:
        InvalidArgument: If a setting has another value; the first one is named.
    """
    for name, (values, reason) in allowed.items():
        given = getattr(settings, name, values[0])
        if given not in values:
            raise InvalidArgument(f"{owner}.{name}", given, f"{values[0]!r}: {reason}")


def require_not_overridden(trainer: object, base: type, reasons: Mapping[str, str]) -> None:
    """Refuse a subclass that overrides what private steps do not call.

    Args:
        trainer: The object.
        base: The class of the library.
        reasons: For each method, why it is not called.

    Raises:
        InvalidArgument: If a method is overridden; the first one is named.
    """
    for name, reason in reasons.items():
        if getattr(type(trainer), name) is not getattr(base, name):
            raise InvalidArgument(name, "overridden", f"that of {base.__name__}: {reason}")


def require_other_records(evaluated: Any, trained: Any) -> None:
    """Refuse an evaluation on training records, whose metrics would be releases without noise.

    Args:
        evaluated: A data set, a dict of data sets, or None.
        trained: The data set that is trained on.

    Raises:
        InvalidArgument: If they are the same object.
    """
    for one in evaluated.values() if isinstance(evaluated, dict) else (evaluated,):
        if one is not None and one is trained:
            raise InvalidArgument("eval_dataset", "train_dataset", "records that do not train")


def require_one_optimizer(
    module: nn.Module, network: nn.Module, optimizers: Sequence[Optimizer]
) -> Optimizer:
    """Refuse several optimizers, and trainable parameters that private steps do not train.

    Args:
        module: A module that holds the network.
        network: The network that private steps train.
        optimizers: The optimizers of the module.

    Returns:
        The only optimizer.

    Raises:
        InvalidArgument: If there is another number of them, or a parameter outside of the network.
    """
    if len(optimizers) != 1:
        allowed = "one optimizer returned by configure_optimizers"
        raise InvalidArgument("optimizers", len(optimizers), allowed)
    inside = {id(parameter) for parameter in network.parameters()}
    outside = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside:
        raise InvalidArgument("parameters", outside, "frozen, or in the network")
    return optimizers[0]


def require_private_loader(data: Any) -> None:
    """Refuse a loader of Lightning that does not draw private batches.

    Args:
        data: What the module's ``batches`` was given; None: it was not called.

    Raises:
        InvalidArgument: If it was not called.
    """
    if data is None:
        allowed = "module.batches(data), which draws private batches"
        raise InvalidArgument("train_dataloaders", "another loader", allowed)
