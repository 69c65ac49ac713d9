"""Which noise a session adds: the given one, that of the resumed run, or the default."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from dpaudit.trainer.clip_rules import ClipRule
from dpaudit.trainer.noise.gradient_noise import (
    GradientNoise,
    Independent,
    OnGrid,
    default_noise,
)
from dpaudit.trainer.session.resumed_run import read_unfinished_run
from dpaudit.trainer.session.settings import Schedule
from dpaudit.vocabulary.errors import InvalidArgument, require_object
from dpaudit.vocabulary.ledger import NoiseKind


def recorded_noise(ledger: Path | str | None) -> GradientNoise | None:
    """Return the noise of the run that is resumed, if its kind alone determines it.

    Args:
        ledger: The run's ledger; None: it is in memory.

    Returns:
        The noise; None if the ledger does not determine it.

    Raises:
        RunExists: If the run is finished.
        IntegrityError: If the ledger is missing or damaged.
    """
    if ledger is None:
        return None
    recorded = read_unfinished_run(Path(ledger)).header.noise
    # Earlier versions recorded no kind, and had independent noise by default.
    kinds: dict[NoiseKind | None, GradientNoise] = {
        None: Independent(), NoiseKind.NORMAL: Independent(), NoiseKind.GRID: OnGrid()
    }  # fmt: skip
    return kinds.get(recorded)


def choose_noise(
    noise: object,
    model: nn.Module,
    noise_multiplier: Schedule,
    rule: ClipRule,
    recorded: GradientNoise | None,
) -> GradientNoise:
    """Return the given noise, that of the run that is resumed, or the default one.

    Args:
        noise: What the user gave; None: nothing.
        model: The model, for its device and the number of its trainable parameters.
        noise_multiplier: Noise multiplier of each step.
        rule: The clip rule.
        recorded: The noise of the resumed run; None: there is none, or it is not determined.

    Returns:
        The noise. By default it is exact noise on a grid where that is fast.

    Raises:
        InvalidArgument: If what was given is no noise.
    """
    if noise is None:
        return recorded or _default(model, noise_multiplier, rule)
    require_object("noise", noise, "OnGrid()")
    if not hasattr(noise, "add_noise") or not hasattr(noise, "deviation"):
        raise InvalidArgument("noise", noise, "a kind of noise, as OnGrid()")
    return cast(GradientNoise, noise)


def _default(model: nn.Module, noise_multiplier: Schedule, rule: ClipRule) -> GradientNoise:
    """Return exact noise on a grid where it is fast, or independent noise."""
    trained = [p for p in model.parameters() if p.requires_grad]
    device = trained[0].device if trained else torch.device("cpu")
    first = noise_multiplier(0)
    dimension = max(sum(p.numel() for p in trained), 1)
    return default_noise(device, first, rule.sensitivity(0, first), dimension)
