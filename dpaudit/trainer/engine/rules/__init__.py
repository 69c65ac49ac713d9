"""Rules by operation; importing a file registers its rules."""

from dpaudit.trainer.engine.rules import convolution, embedding, linear, normalisation
from dpaudit.trainer.engine.rules.registry import RULES, Operation

__all__ = ["RULES", "Operation", "convolution", "embedding", "linear", "normalisation"]
