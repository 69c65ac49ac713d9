"""What is claimed of the steps, for an audit of one run."""

from __future__ import annotations

from dataclasses import dataclass

from dpaudit.attacks.bounds import Family
from dpaudit.attacks.one_run.likelihood import ClaimedSteps


@dataclass(frozen=True)
class Claimed:
    """What is claimed of the steps, and what follows from it by an accountant.

    Attributes:
        steps: The claimed steps.
        epsilon: The claimed epsilon, its upper end.
        delta: The claimed delta.
        family: The claimed steps with all noise scaled by a factor: handed in, as attacks
            share no code with the accountants that they may contradict.
    """

    steps: ClaimedSteps
    epsilon: float
    delta: float
    family: Family
