"""A target model together with the truth about its records."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.attack_registry import AttackTarget


@dataclass(frozen=True)
class AttackedTarget:
    """A target model, and the membership of its records.

    Attributes:
        target: What the attacks read.
        member: Whether the model was trained on each record, shape ``(records,)``.
        classes: True class of each record, shape ``(records,)``; None for regression.
        slices: Value that a record is sliced by, shape ``(records,)``; None for no slices.
    """

    target: AttackTarget
    member: NDArray[np.bool_]
    classes: NDArray[np.int64] | None = None
    slices: NDArray[np.generic] | None = None

    def with_references(self, models: int) -> AttackedTarget:
        """Restrict the attack to the first reference models.

        Args:
            models: Number of reference models.

        Returns:
            The same target, attacked with these references only.
        """
        shadows = self.target.require_references().first(models)
        return replace(self, target=replace(self.target, reference_signals=shadows))
