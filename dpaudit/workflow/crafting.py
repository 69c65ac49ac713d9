"""Canaries that are crafted against a model in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpaudit.attacks.canaries import Records, mislabelled
from dpaudit.attacks.canaries.crafted import crafted
from dpaudit.attacks.membership.models.module import Module
from dpaudit.attacks.membership.models.opening import open_model
from dpaudit.attacks.membership.models.program import Program
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.planting import Make


def crafted_against(
    checkpoint: Path, factory: str | None, *, trust_model_code: bool = False
) -> Make:
    """Return what makes mislabelled records that the model in ``checkpoint`` finds hardest.

    Raises:
        InvalidArgument: no model that torch can differentiate.
    """

    def make(records: Records, classes: int, rng: np.random.Generator) -> Records:
        shape = records.features.shape[1:]
        model = open_model(
            checkpoint,
            factory=factory,
            shape=shape,
            classes=classes,
            trust_model_code=trust_model_code,
        )
        if not isinstance(model, Module | Program):
            raise InvalidArgument("checkpoint", str(checkpoint), "a model of torch")
        return crafted(mislabelled(records, classes, rng), model.call)

    return make
