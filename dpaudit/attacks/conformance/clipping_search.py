"""Black-box search for records that move the noisy sum by the clip norm.

The search puts a record into one step and measures the change of the sum. Huge records saturate
some activations, whose gradients then vanish. So the search tries several families of records:

- every label, at scales from 1e-4 to 1e6 with both signs, along the record and a random direction;
- the input directions that the trainer lists (``input_directions``): those in the null space of
  its first layer, and those orthogonal to one of its units;
- great circles: along a circle of input directions, the pre-activation of each first-layer unit is
  zero at two angles. There its gradient grows with the scale without bound. At a moderate scale
  the neighborhoods of these angles are wide enough for a grid; they are followed as the scale
  doubles;
- gradient ascent on the input, by finite differences along coordinates or random directions;
- token ids: every label, repeated tokens, and changes that increase the movement;
- the same at a later step, with trained weights.

The search ends when every parameter group reached the clip norm, when a record violates the limit,
or when its step budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpaudit.attacks.conformance.clipping_coverage import ClippingCoverage, ProbeMovement
from dpaudit.attacks.conformance.paired_replays import ReplayPair
from dpaudit.attacks.conformance.probes import (
    FeatureSpace,
    Probe,
    ProbeStep,
    TokenSpace,
    has_real_features,
    labels_of,
)
from dpaudit.attacks.conformance.trainer_protocol import Array, Record

SCALES = (1.0, 10.0, 0.1, 100.0, 0.01, 1e3, 1e-3, 1e4, 1e-4, 1e5, 1e6)
CIRCLES, ANGLES, PEAKS = 3, 64, 3  # great circles; angles of each grid; angles that are followed
CIRCLE_SCALE, DOUBLINGS = 8.0, 18  # scale of the grid; doublings of the scale along an angle
NARROWER = 0.6  # factor of the width of the tried angles per doubling
GROWTH_RATIO = 1.05  # smallest growth of the movement per doubling of the scale
MAX_STUCK_DOUBLINGS = 1  # doublings without that growth before an angle is given up
ASCENTS, COORDINATES = 12, 48  # steps of one ascent; directions of its finite differences
STEP_SIZES = (2.0, 0.7, 0.2, 0.05)  # of a point's norm: tried in this order, first success taken
DIFFERENCE_STEP = 1e-3  # of a point's norm: half the distance of a central difference
MUTATIONS = 150
FINE_SCALES = tuple(2.0 ** (k / 2) for k in range(-8, 13) if k)
MAX_SEARCHED_GROUPS = 4
ENOUGH_RECORDS = 3  # that must reach C: a single unclipped gradient may have norm C by chance

MovementValue = Callable[[ProbeMovement], float]


@dataclass
class ClippingSearch:
    """The state of a search at one step.

    Attributes:
        probe_step: The step that records are put into.
        clip_norm: The claimed clip norm.
        records: Records to start from.
        rng: Generator of the search; the same seed gives the same search.
        steps: Remaining step budget.
        coverage: Coverage of all records so far, including those before this search.
        beyond: Multiple of the allowed movement at which a record ends the search.
        worst: The pair with the largest excess over its limit; None before the first measurement.
        worst_record: The record of that pair.
        tried: Number of records that were measured.
    """

    probe_step: ProbeStep
    clip_norm: float
    records: Sequence[Record]
    rng: np.random.Generator
    steps: int
    coverage: ClippingCoverage
    beyond: float = 1.0
    worst: ReplayPair | None = None
    worst_record: Record | None = None
    tried: int = 0
    _for_groups: bool = False
    _best: tuple[float, Record] | None = None
    _by_group: dict[str, tuple[float, Record]] = field(default_factory=dict)

    def run(self, probes: Sequence[Probe]) -> None:
        """Run the whole search, until it is done or its budget is spent.

        Args:
            probes: Records to try first.
        """
        for attempt in (self._probes(probes), self._varied()):
            self._try(attempt)
        self._for_groups = True
        for attempt in (self._probes(probes), self._rescaled(), self._groups()):
            self._try(attempt)

    def _try(self, attempt: Iterator[tuple[str, Record]]) -> None:
        for name, record in attempt:
            if self.over:
                return
            self.measure(name, record)

    @property
    def done(self) -> bool:
        """Whether clipping is fully covered, or a record violates the limit."""
        return self.violated or (
            self.coverage.complete and self.coverage.reached_clip_norm >= ENOUGH_RECORDS
        )

    @property
    def over(self) -> bool:
        """Whether the current phase is over: done, the clip norm reached, or no budget left."""
        reached = self.coverage.reached_clip_norm >= ENOUGH_RECORDS and not self._for_groups
        return self.done or reached or self.steps < self.probe_step.cost

    @property
    def violated(self) -> bool:
        """Whether a record moved the sum beyond its limit; NaN is beyond every limit."""
        return self.worst is not None and not self._excess(self.worst) <= 0

    def measure(self, name: str, record: Record) -> ProbeMovement | None:
        """Measure how far a record moves the sum, and update the state of the search.

        Args:
            name: Name of the record, for the report.
            record: The record.

        Returns:
            The movement; None if the search is over or the trainer rejects the record.
        """
        if self.over:
            return None
        self.steps -= self.probe_step.cost
        pair = self.probe_step.measure(f"{name}, at step {self.probe_step.step}", record)
        if pair is None:
            return None
        self.tried += 1
        movement = ProbeMovement.of(pair, self.clip_norm)
        self.coverage = self.coverage.adding(movement)
        if self.worst is None or self._excess(pair) > self._excess(self.worst):
            self.worst, self.worst_record = pair, record
        self._keep(movement, record)
        return movement

    def _excess(self, pair: ReplayPair) -> float:
        allowed = self.beyond * pair.allowed(self.clip_norm)
        excess = float(np.linalg.norm(pair.difference)) - allowed
        return excess if math.isfinite(excess) else math.inf

    def _keep(self, movement: ProbeMovement, record: Record) -> None:
        if not math.isfinite(movement.relative_norm):
            return
        if self._best is None or movement.relative_norm > self._best[0]:
            self._best = movement.relative_norm, record
        for name, share in movement.shares.items():
            if name not in self._by_group or share > self._by_group[name][0]:
                self._by_group[name] = share, record

    def _probes(self, probes: Sequence[Probe]) -> Iterator[tuple[str, Record]]:
        for probe in probes:
            yield probe.name, probe.record

    def _varied(self) -> Iterator[tuple[str, Record]]:
        x, label = self.records[-1]
        labels = labels_of(self.records)
        if has_real_features(x):
            space = FeatureSpace(x)
            yield from self._scaled(space, [space.flat, space.direction(self.rng)], labels)
            yield from self._named_directions(space, labels)
            self._circles(space, labels)
            self._ascend(space, lambda movement: movement.relative_norm, self._best)
            self._circles(space, labels)
        elif (tokens := TokenSpace.of_records(self.records)) is not None:
            yield from (("repeated token", (one, y)) for one in tokens.repeated() for y in labels)
            yield from (("other label", (x, y)) for x, _ in self.records for y in labels)
            self._mutate(tokens, lambda movement: movement.relative_norm, self._best)
        else:
            yield from (("other label", (x, y)) for x, _ in self.records for y in labels)
        if has_real_features(label):
            for scale in SCALES:
                yield "scaled label", (x, label * scale + scale)
                yield "scaled label", (x, label * -scale - scale)

    def _rescaled(self) -> Iterator[tuple[str, Record]]:
        x, _ = self.records[-1]
        if has_real_features(x):
            space = FeatureSpace(x)
            directions = [space.flat, space.direction(self.rng)]
            yield from self._scaled(space, directions, labels_of(self.records))

    def _scaled(
        self, space: FeatureSpace, directions: Sequence[Array], labels: Sequence[Any]
    ) -> Iterator[tuple[str, Record]]:
        for scale in SCALES:
            for sign in (1, -1):
                for direction in directions:
                    point = space.of(sign * scale * direction)
                    yield from ((f"features at {sign * scale:g}", (point, y)) for y in labels)

    def _named_directions(
        self, space: FeatureSpace, labels: Sequence[Any]
    ) -> Iterator[tuple[str, Record]]:
        """Yield records along the trainer's ``input_directions``, at scales of a typical norm."""
        for direction in self.probe_step.input_directions():
            flat = np.asarray(direction, dtype=np.float64).ravel()
            length = float(np.linalg.norm(flat))
            if flat.size == space.size and 0 < length < np.inf:
                flat = flat * (space.length / length)
                yield from self._scaled(space, [flat], labels)

    def _circles(self, space: FeatureSpace, labels: Sequence[Any]) -> None:
        """Follow the angles of great circles at which the movement grows with the scale.

        A point is scale * (cos(angle) * one + sin(angle) * other), for two random directions.
        """
        for number in range(CIRCLES):
            one, other = space.direction(self.rng), space.direction(self.rng)
            label = labels[number % len(labels)]

            def at(angle: float, scale: float, one: Any = one, other: Any = other) -> Array:
                return np.asarray(scale * (math.cos(angle) * one + math.sin(angle) * other))

            angles = np.linspace(0, 2 * math.pi, ANGLES, endpoint=False)
            grid = [self._value(space.of(at(angle, CIRCLE_SCALE)), label) for angle in angles]
            for place in _circular_peaks(grid):
                self._follow(space, at, float(angles[place]), label)

    def _follow(
        self, space: FeatureSpace, at: Callable[[float, float], Array], angle: float, label: Any
    ) -> None:
        """Refine an angle while the scale doubles, until the movement stops growing."""
        width, scale, last, stuck = 2 * math.pi / ANGLES, CIRCLE_SCALE, 0.0, 0
        for _ in range(DOUBLINGS):
            angles = angle + width * np.array([-1, -0.5, 0, 0.5, 1])
            values = [self._value(space.of(at(one, scale)), label) for one in angles]
            angle, best = float(angles[int(np.argmax(values))]), max(values)
            stuck += not best > GROWTH_RATIO * last
            if self.over or stuck > MAX_STUCK_DOUBLINGS:
                return
            width, scale, last = width * NARROWER, scale * 2, best

    def _value(self, features: Any, label: Any) -> float:
        movement = self.measure("searched features", (features, label))
        if movement is None or not math.isfinite(movement.relative_norm):
            return -1.0
        return movement.relative_norm

    def _ascend(
        self, space: FeatureSpace, value: MovementValue, start: tuple[float, Record] | None
    ) -> None:
        """Ascend from a record by finite differences and a line search over ``STEP_SIZES``."""
        if start is None:
            return
        best, (x, label) = start
        point = np.asarray(x, dtype=np.float64).ravel()
        for _ in range(ASCENTS):
            if self.over:
                return
            length = float(np.linalg.norm(point)) or space.length
            uphill = self._uphill(space, value, point, label, length)
            moved = False
            for size in STEP_SIZES:
                other = point + size * length * uphill
                movement = self.measure("searched features", (space.of(other), label))
                if movement is not None and best < value(movement) < math.inf:
                    best, point, moved = value(movement), other, True
                    break
            if not moved:
                return

    def _uphill(
        self, space: FeatureSpace, value: MovementValue, point: Array, label: Any, length: float
    ) -> Array:
        """Estimate the unit direction of steepest ascent; zeros if the movement is flat."""
        directions = _directions(space.size, self.rng)
        slopes = np.zeros(len(directions))
        for i, direction in enumerate(directions):
            around = []
            for sign in (1, -1):
                there = space.of(point + sign * DIFFERENCE_STEP * length * direction)
                movement = self.measure("searched features", (there, label))
                around.append(0.0 if movement is None else value(movement))
            slopes[i] = around[0] - around[1] if np.isfinite(around).all() else 0.0
        uphill = slopes @ directions
        norm = float(np.linalg.norm(uphill))
        return np.asarray(uphill / norm if norm > 0 else np.zeros(space.size))

    def _mutate(
        self, tokens: TokenSpace, value: MovementValue, start: tuple[float, Record] | None
    ) -> None:
        """Ascend from a record by random changes of its tokens."""
        if start is None:
            return
        best, (x, label) = start
        ids = np.asarray(x, dtype=np.int64).ravel()
        for _ in range(MUTATIONS):
            other = tokens.changed(ids, self.rng)
            movement = self.measure("searched tokens", (tokens.of(other), label))
            if movement is not None and best < value(movement) < math.inf:
                best, ids = value(movement), other

    def _groups(self) -> Iterator[tuple[str, Record]]:
        """Search for records that test the untested parameter groups, one group at a time."""
        x, _ = self.records[-1]
        for name in list(self.coverage.untested)[:MAX_SEARCHED_GROUPS]:
            start = self._by_group.get(name)
            if start is None or name not in self.coverage.untested:
                continue
            if has_real_features(x):
                point, label = np.asarray(start[1][0], dtype=np.float64).ravel(), start[1][1]
                for scale in FINE_SCALES:
                    yield "scaled features", (FeatureSpace(x).of(scale * point), label)
                self._ascend(FeatureSpace(x), _group_share_value(name), start)
            elif (tokens := TokenSpace.of_records(self.records)) is not None:
                self._mutate(tokens, _group_share_value(name), start)


def _group_share_value(name: str) -> MovementValue:
    """Return an objective for one group: its share, weighted down if the sum is below C."""
    return lambda movement: movement.shares.get(name, 0.0) * min(1.0, movement.relative_norm) ** 2


def _circular_peaks(values: Sequence[float]) -> list[int]:
    """Return the positions of the largest local maxima on a circle."""
    count = len(values)
    tops = [i for i in range(count) if values[i] >= max(values[i - 1], values[(i + 1) % count])]
    return sorted(tops, key=lambda i: -values[i])[:PEAKS]


def _directions(size: int, rng: np.random.Generator) -> Array:
    """Return unit directions: the coordinate axes if there are few, otherwise random ones."""
    if size <= COORDINATES:
        return np.eye(size)
    drawn = rng.standard_normal((COORDINATES, size))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
