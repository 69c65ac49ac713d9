"""What the benchmark needs to know of one model: how it is made, its records and its loss."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch

RECORDS, CLASSES = 16, 5
VOCABULARY, LENGTH, WIDTH, LAYERS, HEADS = 1000, 32, 128, 2, 4
IMAGE = 32


@dataclass(frozen=True)
class Subject:
    """One model of the benchmark.

    Attributes:
        library: The package that defines it.
        make: Returns the model in training mode.
        batch: Returns that many records.
        loss: One loss per record.
        draws: Whether a pass draws random numbers, as dropout does.
        mixes: Whether the loss mixes records, so that it must be refused.
    """

    library: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss: PerSampleLoss
    draws: bool = False
    mixes: bool = False


def named(module: str, name: str) -> Any:
    """Return a name of a library, which is imported now."""
    _load_torchvision()
    return getattr(importlib.import_module(module), name)


@cache
def _load_torchvision() -> None:
    """Import torchvision, which other libraries import, even where its operators do not load.

    Its wheel on package indexes is compiled for CUDA, and does not load beside a CPU build of
    torch. The import then fails in one module, which registers output shapes of these operators
    (as box suppression). No model here needs them, so an empty module takes its place.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        for each in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[each]
        name = "torchvision._meta_registrations"
        sys.modules[name] = types.ModuleType(name)
        importlib.import_module("torchvision")


def from_transformers(name: str, **settings: Any) -> nn.Module:
    """Return a model of transformers in training mode; its attention is eager unless given.

    Args:
        name: Family and task, as ``Bert ForSequenceClassification``.
        **settings: Settings of the family's configuration.
    """
    family, task = name.split()
    settings.setdefault("attn_implementation", "eager")
    config = named("transformers", f"{family}Config")(**settings)
    return named("transformers", family + task)(config).train()


def token_batch(records: int, *, length: int = LENGTH) -> dict[str, Tensor]:
    """Return records of tokens with masks of different lengths, and classes."""
    lengths = torch.randint(length // 2, length + 1, (records, 1))
    return {
        "input_ids": torch.randint(4, VOCABULARY, (records, length)),
        "attention_mask": (torch.arange(length) < lengths).long(),
        "labels": torch.randint(0, CLASSES, (records,)),
    }


def image_batch(records: int) -> tuple[Tensor, Tensor]:
    """Return square images of three channels, and their classes."""
    return torch.randn(records, 3, IMAGE, IMAGE), torch.randint(0, CLASSES, (records,))


def token_losses(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return each record's mean cross-entropy; scores have shape (records, tokens, vocabulary)."""
    return functional.cross_entropy(scores.mT, tokens, reduction="none").mean(dim=1)


def next_tokens(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return each record's mean loss of predicting its next tokens."""
    tokens = batch["input_ids"]
    return token_losses(model(input_ids=tokens).logits[:, :-1], tokens[:, 1:])


def text_classes(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return each record's classification loss, with padding masked."""
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(scores, batch["labels"], reduction="none")


def image_classes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return each image's classification loss, of models that return logits or hold them."""
    found = model(batch[0])
    return functional.cross_entropy(getattr(found, "logits", found), batch[1], reduction="none")
