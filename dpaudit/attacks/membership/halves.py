"""Which records each reference model trains on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import require_count


def halves(models: int, records: int, *, seed: int) -> NDArray[np.bool_]:
    """Return a random half of the records for each model, shape ``(models, records)``.

    Every second model has the half that the one before it left out, so that an even number of
    models has each record in one half of them.
    """
    require_count("models", models)
    require_count("records", records, least=2)
    generator = np.random.default_rng(seed)
    member = np.zeros((models, records), dtype=bool)
    for first in range(0, models, 2):
        member[first, generator.permutation(records)[: records // 2]] = True
        member[first + 1 : first + 2] = ~member[first]
    return member
