"""A composition's delta as a sum over contours, and how to make them smoothed ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpaudit.accountants.pld import planning
from dpaudit.accountants.pld.contour import Contour
from dpaudit.accountants.pld.cumulants import Ledger, rough_deviation
from dpaudit.accountants.pld.kernel import Kernel
from dpaudit.accountants.pld.planning import Jumps, Source, Target, Whole
from dpaudit.accountants.pld.splitting import Split

NUDGE = 1 + 1e-12
DROPPED_MASS = 1e-6  # of delta: large losses that rare are given up
BETA = 24.0
MOST_SLACK = 40.0
WIDEST = 1.0  # nats: smoothing keeps the mean of e^epsilon, not that of epsilon
NEARLY_ONE = -3.0  # log delta
SMOOTHING, ABSOLUTE_SMOOTHING = 1.5e-4, 4e-7  # of an answer, and of epsilon: a first width


@dataclass(frozen=True)
class Evaluator:
    """delta at any epsilon, as a sum over parts, and what no part holds."""

    parts: tuple[Contour, ...]
    ledger: Ledger
    dropped: float = 0.0

    def estimate(self, epsilon: float) -> float:
        """Return about delta: for searching."""
        return sum(part.estimate(epsilon) for part in self.parts) + self.ledger.infinite

    def upper(self, epsilon: float) -> float:
        """Return a delta at which the composition is certainly (epsilon, delta)-DP."""
        held = sum(part.upper(epsilon) for part in self.parts)
        return min(1.0, held + (self.ledger.beyond + self.dropped) * NUDGE)

    def lower(self, epsilon: float) -> float:
        """Return a delta below which the composition is certainly not (epsilon, delta)-DP."""
        return sum(part.lower(epsilon) for part in self.parts) + self.ledger.infinite / NUDGE

    def budget(self, epsilon: float) -> dict[str, float]:
        """Return what each kind of error may be at ``epsilon``, over delta."""
        delta = max(self.upper(epsilon), 1e-300)
        errors = {
            "tails that were cut off": self.ledger.cut / delta,
            "large losses that were given up": self.dropped / delta,
        }
        for part in self.parts:
            for name, size in part.budget(epsilon).items():
                errors[name] = errors.get(name, 0.0) + size / delta
        if any(part.kernel is not None for part in self.parts):
            width = (self.upper(epsilon) - self.lower(epsilon)) / delta
            errors["smoothing"] = max(0.0, width - sum(errors.values()))
        return errors


def share_for(width: float) -> float:
    """Return the share of a nat whose smoothing is about as wide: h^2 / beta."""
    return math.sqrt(BETA * width)


def narrower(width: float, wanted: float) -> float:
    """Return by what to shrink the smoothing: the width goes with its square."""
    return min(0.7, max(0.05, math.sqrt(0.5 * wanted / max(width, wanted))))


def smoothed(ledger: Ledger, split: Split, target: Target, share: float) -> Evaluator | None:
    """Return delta by smoothed contours, each as wide as ``share`` of a nat of delta."""
    sources: list[Source] = [Whole(ledger)]
    dropped = 0.0
    if split.cap is not None:
        below, above = ledger.split(split.cap)
        sources = [Whole(below)]
        if (mass := above.mass) <= DROPPED_MASS * math.exp(target.log_delta):
            dropped = mass
        else:
            sources.append(Jumps(below, above))
    parts = []
    # Near delta 1 it is the spread of the losses that matters, not the order.
    steepest = 1 / rough_deviation(ledger) if target.log_delta > NEARLY_ONE else 0.0
    for source, order in zip(sources, split.orders, strict=False):
        cumulants = source.table(order)
        slack = float(cumulants.log_chernoff(target.epsilon).min()) - target.log_delta
        half_width = min(share / max(order, steepest), WIDEST)
        kernel = Kernel(half_width, BETA + min(max(slack, 0.0), MOST_SLACK))
        part = source.plain(cumulants, order, target) if split.cap is not None else None
        if part is None:
            part = planning.smooth(source, cumulants, order, target, kernel)
        if part is None:
            return None
        parts.append(part)
    return Evaluator(tuple(parts), ledger, dropped)
