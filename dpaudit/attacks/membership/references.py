"""Names of version 0.1 for ``reference_models``; new code uses that module."""

from dpaudit.attacks.membership.reference_models import ReferenceConfidences as References
from dpaudit.attacks.membership.reference_models import random_halves

__all__ = ["References", "random_halves"]
