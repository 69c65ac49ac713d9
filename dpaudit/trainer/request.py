"""What is asked of a training session: checked before anything is drawn or written."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

import dpaudit
from dpaudit.trainer.added_noise import AddedNoise
from dpaudit.trainer.clip_rules import ClipRule
from dpaudit.trainer.randomness import Keystream
from dpaudit.trainer.recipe import NoisyCount, Recipe, Schedule, described
from dpaudit.trainer.sampling import Poisson, Sampler
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit
from dpaudit.vocabulary.ledger import LedgerHeader
from dpaudit.vocabulary.unit import Unit


@dataclass(frozen=True)
class Request:
    """What is asked of a session, each part checked on its own.

    Attributes:
        sampler: Draws the records, or the users.
        noise_multiplier: Of each step.
        noise: What is added.
        rule: How gradients are clipped, over the steps.
        expected_batch_size: A public constant, or a count that is still to be released.
        physical_batch_size: Records in memory at once; None: as many as fit.
        unit: What one neighbour more or less is.
        leaves_out: What no claim of the run covers.
        average_decay: Of the average of weights that ships, if one does.
        takes_as_public: What the ledger's header names as public beside hyper-parameters.
    """

    sampler: Sampler
    noise_multiplier: Schedule
    noise: AddedNoise
    rule: ClipRule
    expected_batch_size: float | NoisyCount
    physical_batch_size: int | None = None
    unit: Unit | str = Unit.RECORD
    leaves_out: Sequence[str] = ()
    average_decay: float | None = None
    takes_as_public: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        words = self.leaves_out
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise InvalidArgument("leaves_out", words, "a list of words, as ['tuning']")
        object.__setattr__(self, "leaves_out", tuple(words))
        object.__setattr__(self, "unit", _unit(self.unit))
        self.recipe(1.0)  # what it refuses, it refuses before anything is written
        if isinstance(self.expected_batch_size, NoisyCount):
            if not isinstance(self.sampler, Poisson):
                raise InvalidArgument(
                    "expected_batch_size",
                    "a noisy count",
                    "a number, unless the sampler is Poisson",
                )
        else:
            self.recipe(self.expected_batch_size)
        self.rule.sensitivity(0, self.noise_multiplier(0))
        if self.average_decay is not None:
            require_open_unit("average_decay", self.average_decay)

    def recipe(self, expected_batch_size: float) -> Recipe:
        """Return what every step does, once the expected batch size is known."""
        return Recipe(
            sampler=self.sampler,
            noise_multiplier=self.noise_multiplier,
            noise=self.noise,
            expected_batch_size=expected_batch_size,
            physical_batch_size=self.physical_batch_size,
            unit=Unit(self.unit),
        )

    def settings_with(self, model: nn.Module, optimizer: Optimizer) -> dict[str, str]:
        """Return every setting that privacy depends on, in words that are equal where it is."""
        own = described(
            self.sampler, self.noise_multiplier, self.noise, self.rule, self.expected_batch_size
        )
        return {
            **own,
            "unit": str(self.unit),
            "leaves_out": repr(tuple(self.leaves_out)),
            "average_decay": repr(self.average_decay),
            "model": _model_words(model),
            "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        }

    def header(self, stream: Keystream) -> LedgerHeader:
        """Return the header of a new ledger."""
        batch = () if isinstance(self.expected_batch_size, NoisyCount) else ("expected batch size",)
        return LedgerHeader(
            adjacency=self.sampler.adjacency,
            sampling=self.sampler.kind,
            randomness=stream.randomness,
            schedule_fixed_in_advance=True,
            clip_norm=self.rule.at(0).sensitivity,
            versions={
                "dpaudit": dpaudit.__version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
            },
            run=os.urandom(16).hex(),
            leaves_out=tuple(self.leaves_out),
            takes_as_public=(*self.takes_as_public, *batch, "hyper-parameters"),
            unit=Unit(self.unit),
        )


def _unit(unit: Unit | str) -> Unit:
    allowed = [one.value for one in Unit]
    if unit not in allowed:
        raise InvalidArgument("unit", unit, f"one of {', '.join(allowed)}")
    return Unit(unit)


def _model_words(model: nn.Module) -> str:
    """Return how many parameters a model has, and a digest of their names, shapes and types."""
    parts = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in model.named_parameters()]
    digest = hashlib.sha256("; ".join(parts).encode()).hexdigest()
    return f"{len(parts)} parameters, SHA-256 of names, shapes and types {digest}"
