"""How far apart rounding alone may bring two noisy sums that differ by one record.

Everything is derived for float32, whose unit roundoff u is 2^-24, even where a trainer
returns float64: what it computed in cannot be seen. A coordinate y of an update is rounded
at most four times (noise added, divided by the batch size, multiplied by the learning rate,
added to the parameter), each time by u |y| at most. The sum of B clipped gradients, in any
order, is off by (B - 1) u times the sum of their sizes, which in norm is (B - 1) u B C.
A parameter change also loses what the parameter itself rounds off: the change is a multiple
of the parameter's last bit, so the lowest bit that is set in it bounds that from above.
"""

from __future__ import annotations

import numpy as np

from dpaudit.attacks.conformance.trainers import Array

UNIT = 2.0**-24
ROUNDINGS = 4
RELATIVE = 1e-5  # of the clip norm: what a norm in float32 is off by
COARSEST = 2.0**-12  # of the update: numbers that are rounder than that are so by chance


def slack(one: Array, other: Array, batch: int, clip_norm: float, scale: float) -> float:
    """Return by how much rounding may move the difference of two noisy sums, in norm.

    Args:
        one: A noisy sum, shape ``(d,)``.
        other: That with one record more.
        batch: How many records were in the step, at most.
        clip_norm: Of each.
        scale: From the noisy sum to what the trainer returned.
    """
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 0.0  # rounding explains nothing of that
    of_values = ROUNDINGS * UNIT * (np.abs(one) + np.abs(other))
    of_parameters = _last_bits(one * scale) + _last_bits(other * scale)
    of_sums = 2 * batch**2 * UNIT * clip_norm
    each = of_values + of_parameters / abs(scale)
    return float(np.linalg.norm(each)) + of_sums


def _last_bits(updates: Array) -> Array:
    """Return the value of the lowest bit that is set in each number, as float32; at most so much.

    Numbers that were not computed as float32 have it far below their rounding.
    """
    mantissas, exponents = np.frexp(np.abs(updates))
    whole = np.rint(np.ldexp(mantissas, 24)).astype(np.int64)
    lowest = np.ldexp((whole & -whole).astype(np.float64), exponents - 24)
    coarsest = COARSEST * float(np.sqrt(np.square(updates).mean()))
    return np.minimum(np.where(updates == 0, 0.0, lowest), coarsest)
