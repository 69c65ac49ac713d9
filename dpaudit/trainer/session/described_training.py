"""Texts of everything that ranks must have in common before the first step."""

from __future__ import annotations

import hashlib

from torch import nn
from torch.optim import Optimizer

from dpaudit.trainer.canaries.run_canaries import GradientCanaries, RunCanaries
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.trainer.session.settings import AttachSettings, NoisyCount
from dpaudit.trainer.session.training_plan import TrainingPlan


def describe_training(
    model: nn.Module,
    optimizer: Optimizer,
    settings: AttachSettings,
    canaries: RunCanaries | GradientCanaries | None,
    stream: Keystream,
    plan: TrainingPlan | None,
) -> dict[str, str]:
    """Return everything that ranks compare before the first step, as one text per setting.

    Args:
        model: The model; names, shapes and types of its parameters count.
        optimizer: The optimizer; its type and the settings of its groups count.
        settings: The settings of the session.
        canaries: The canaries, if any.
        stream: The keystream, which is the same on every rank.
        plan: Steps, delta and budget, if there is a plan.

    Returns:
        Texts that are equal where the settings are.
    """
    return {
        **settings.settings_with(model, optimizer),
        "seed": stream.randomness.value,
        "optimizer settings": _describe_optimizer(optimizer),
        "trainable": ", ".join(name for name, p in model.named_parameters() if p.requires_grad),
        "records": _record_count_digest(settings, stream),
        "canaries": repr(canaries) if isinstance(canaries, GradientCanaries) else "",
        "plan": "" if plan is None else f"{plan.steps} steps, delta {plan.delta}, {plan.budget}",
    }


def _describe_optimizer(optimizer: Optimizer) -> str:
    """Return an optimizer's class and the settings of its groups."""
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__} {groups!r}"


def _record_count_digest(settings: AttachSettings, stream: Keystream) -> str:
    """Return a keyed digest of the number of records that is counted, as it is secret."""
    count = settings.expected_batch_size
    if not isinstance(count, NoisyCount):
        return ""
    return hashlib.sha256(stream.key + str(count.records).encode()).hexdigest()
