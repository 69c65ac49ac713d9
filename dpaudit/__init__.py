"""dpaudit: train under differential privacy, account for it, attack it, and gate on the result.

Importing this package loads nothing heavy: numpy, scipy and torch come with the
subpackages that need them.
"""

__version__ = "0.1.0"
