"""What a claim protects, and which releases it covers."""

from __future__ import annotations

from enum import StrEnum


class Unit(StrEnum):
    """What two neighbouring data sets differ by."""

    RECORD = "record"
    """One record, that is, one example."""

    USER = "user"
    """One user with all of their records."""


class Released(StrEnum):
    """Which releases a claim covers."""

    EVERY_STEP = "every-step"
    """Every noisy sum, so every intermediate model, too."""

    FINAL_MODEL = "final-model"
    """The final model alone: intermediate models must stay secret."""

    def covers(self, promised: Released) -> bool:
        """Return whether a claim for these releases keeps a promise for ``promised``.

        The final model is computed from the steps, so a claim for every step covers it
        (post-processing).
        """
        return self is promised or self is Released.EVERY_STEP
