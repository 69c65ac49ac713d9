"""Constants of double precision, and the outward margins of upper and lower bounds.

Attacks have constants of their own: an upper and a lower bound share no code.
"""

UNIT_ROUNDOFF = 2.0**-53
"""Largest relative error of one rounding to the nearest double."""

DOUBLE_EPSILON = 2.0**-52
"""Relative distance of 1 to the next double."""

UNDERFLOW_ERROR = 2.0**-1070
"""What a few operations lose where the result is below the normal doubles, or becomes 0."""

ROUND_UP = 1 + 1e-12
"""Factor that covers the rounding of a few operations of a positive upper bound."""

ROUND_DOWN = 1 - 1e-12
"""Factor that covers the rounding of a few operations of a positive lower bound."""
