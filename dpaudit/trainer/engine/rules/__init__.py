"""Rules: per-record gradients of the parameters of one operation, by subject."""

from dpaudit.trainer.engine.rules import (  # noqa: F401  (each module registers its rules)
    convolution,
    embedding,
    linear,
    normalization,
)
from dpaudit.trainer.engine.rules.registry import RULES, Operation

__all__ = ["RULES", "Operation"]
