"""dpaudit, through its public face."""

from __future__ import annotations

from dpaudit.accountants import (
    Bound,
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    Repeated,
    calibrate,
    pld,
)
from side_by_side.plans import Entry, Plan


def mechanism_of(plan: Plan) -> Mechanism:
    """Return the plan as a mechanism."""
    parts = tuple(_steps(entry) for entry in plan.entries)
    return parts[0] if len(parts) == 1 else Composed(parts)


def _steps(entry: Entry) -> Mechanism:
    one = PoissonSampled(Gaussian(entry.noise_multiplier), entry.sampling_rate)
    return Repeated(one, entry.steps)


def epsilon(plan: Plan, delta: float) -> Bound:
    """Return the certified interval of epsilon, the larger of both directions."""
    return pld.profile(mechanism_of(plan)).epsilon(delta=delta)


def noise_multiplier(entry: Entry, target_epsilon: float, delta: float) -> float:
    """Return the noise multiplier that dpaudit calibrates; that of ``entry`` is not looked at."""

    def build(noise: float) -> Mechanism:
        return _steps(Entry(entry.sampling_rate, noise, entry.steps))

    found = calibrate.noise_multiplier(build, target_epsilon=target_epsilon, delta=delta)
    return float(found.value)
