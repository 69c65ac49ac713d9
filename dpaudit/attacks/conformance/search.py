"""Search for records that move the sum by the clip norm, by what they are seen to move it.

The trainer is a black box: a record is put into one step, and the change of the sum is
measured. Saturated units hide gradients from huge records, so several things are tried:

- every label, at scales from 1e-4 to 1e6, of both signs, along the record and at random;
- input directions that the trainer names (``input_directions``): those that its first layer
  does not see, and those orthogonal to one of its units;
- great circles: on a circle of input directions, each unit of a first layer is at its centre
  at two angles. There its gradient grows with the scale, for ever. At a moderate scale those
  angles are wide enough to be met by a grid; they are followed as the scale doubles;
- ascent on the input, by differences along coordinates or random directions;
- token ids: every label, repeated tokens, and changes that move the sum further;
- the same at a later step, with weights that have been trained.

The search ends as soon as the clip norm is reached by every group of parameters, a record
moves the sum further than it may, or the steps it may take are spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpaudit.attacks.conformance.coverage import Coverage, Reach
from dpaudit.attacks.conformance.pairs import Pair
from dpaudit.attacks.conformance.probes import Probe
from dpaudit.attacks.conformance.record_space import Features, Tokens, is_real, labels_of
from dpaudit.attacks.conformance.stage import Stage
from dpaudit.attacks.conformance.trainers import Array, Record

SCALES = (1.0, 10.0, 0.1, 100.0, 0.01, 1e3, 1e-3, 1e4, 1e-4, 1e5, 1e6)
CIRCLES, ANGLES, PEAKS, CIRCLE_SCALE, DOUBLINGS, NARROWER = 3, 64, 3, 8.0, 18, 0.6
GROWS, MOST_STUCK = 1.05, 1  # of a movement whose scale was doubled; doublings without that
ASCENTS, COORDINATES, STEP_SIZES = 12, 48, (2.0, 0.7, 0.2, 0.05)
SMALL = 1e-3  # of a point's norm: how far apart the points of a difference are
MUTATIONS = 150
FINE_SCALES = tuple(2.0 ** (k / 2) for k in range(-8, 13) if k)
MOST_GROUPS = 4
ENOUGH = 3  # records that must reach the clip norm: one may have a gradient of just that norm

Value = Callable[[Reach], float]


@dataclass
class Search:
    """A search at one stage, and what it has found so far.

    Attributes:
        stage: Where records are put.
        clip_norm: That is claimed.
        records: To start from.
        rng: Of the search: the same seed, the same search.
        steps: How many steps it may still take.
        coverage: What all records have shown, those from before included.
        beyond: How many times as far as it may a record must move the sum to end the search.
        worst: The pair that is the farthest beyond what is allowed; None: nothing was measured.
        worst_record: The record of that pair.
        tried: How many records were measured.
    """

    stage: Stage
    clip_norm: float
    records: Sequence[Record]
    rng: np.random.Generator
    steps: int
    coverage: Coverage
    beyond: float = 1.0
    worst: Pair | None = None
    worst_record: Record | None = None
    tried: int = 0
    _for_groups: bool = False
    _best: tuple[float, Record] | None = None
    _by_group: dict[str, tuple[float, Record]] = field(default_factory=dict)

    def run(self, probes: Sequence[Probe]) -> None:
        """Try everything until it is known whether records are clipped."""
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
        """Whether it is known whether records are clipped."""
        return self.violated or (self.coverage.complete and self.coverage.capped >= ENOUGH)

    @property
    def over(self) -> bool:
        """Whether nothing more is to be tried, at least of what moves the whole sum."""
        reached = self.coverage.capped >= ENOUGH and not self._for_groups
        return self.done or reached or self.steps < self.stage.cost

    @property
    def violated(self) -> bool:
        """Whether a record moved the sum further than it may."""
        return self.worst is not None and not self._excess(self.worst) <= 0

    def measure(self, name: str, record: Record) -> Reach | None:
        """Return how far a record moves the sum, and keep what that shows."""
        if self.over:
            return None
        self.steps -= self.stage.cost
        pair = self.stage.measure(f"{name}, at step {self.stage.step}", record)
        if pair is None:
            return None
        self.tried += 1
        reach = Reach.of(pair, self.clip_norm)
        self.coverage = self.coverage.adding(reach)
        if self.worst is None or self._excess(pair) > self._excess(self.worst):
            self.worst, self.worst_record = pair, record
        self._keep(reach, record)
        return reach

    def _excess(self, pair: Pair) -> float:
        allowed = self.beyond * pair.allowed(self.clip_norm)
        excess = float(np.linalg.norm(pair.difference)) - allowed
        return excess if math.isfinite(excess) else math.inf

    def _keep(self, reach: Reach, record: Record) -> None:
        if not math.isfinite(reach.movement):
            return
        if self._best is None or reach.movement > self._best[0]:
            self._best = reach.movement, record
        for name, share in reach.shares.items():
            if name not in self._by_group or share > self._by_group[name][0]:
                self._by_group[name] = share, record

    def _probes(self, probes: Sequence[Probe]) -> Iterator[tuple[str, Record]]:
        for probe in probes:
            yield probe.name, probe.record

    def _varied(self) -> Iterator[tuple[str, Record]]:
        x, label = self.records[-1]
        labels = labels_of(self.records)
        if is_real(x):
            space = Features(x)
            yield from self._scaled(space, [space.flat, space.direction(self.rng)], labels)
            yield from self._named_directions(space, labels)
            self._circles(space, labels)
            self._ascend(space, lambda reach: reach.movement, self._best)
            self._circles(space, labels)
        elif (tokens := Tokens.of_records(self.records)) is not None:
            yield from (("repeated token", (one, y)) for one in tokens.repeated() for y in labels)
            yield from (("other label", (x, y)) for x, _ in self.records for y in labels)
            self._mutate(tokens, lambda reach: reach.movement, self._best)
        else:
            yield from (("other label", (x, y)) for x, _ in self.records for y in labels)
        if is_real(label):
            for scale in SCALES:
                yield "scaled label", (x, label * scale + scale)
                yield "scaled label", (x, label * -scale - scale)

    def _rescaled(self) -> Iterator[tuple[str, Record]]:
        x, _ = self.records[-1]
        if is_real(x):
            space = Features(x)
            directions = [space.flat, space.direction(self.rng)]
            yield from self._scaled(space, directions, labels_of(self.records))

    def _scaled(
        self, space: Features, directions: Sequence[Array], labels: Sequence[Any]
    ) -> Iterator[tuple[str, Record]]:
        for scale in SCALES:
            for sign in (1, -1):
                for direction in directions:
                    point = space.of(sign * scale * direction)
                    yield from ((f"features at {sign * scale:g}", (point, y)) for y in labels)

    def _named_directions(
        self, space: Features, labels: Sequence[Any]
    ) -> Iterator[tuple[str, Record]]:
        """Yield records along the directions that the trainer names, all of the usual norm."""
        for direction in self.stage.input_directions():
            flat = np.asarray(direction, dtype=np.float64).ravel()
            length = float(np.linalg.norm(flat))
            if flat.size == space.size and 0 < length < np.inf:
                flat = flat * (space.length / length)
                yield from self._scaled(space, [flat], labels)

    def _circles(self, space: Features, labels: Sequence[Any]) -> None:
        """Follow the angles of great circles at which the movement grows with the scale."""
        for number in range(CIRCLES):
            one, other = space.direction(self.rng), space.direction(self.rng)
            label = labels[number % len(labels)]

            def at(angle: float, scale: float, one: Any = one, other: Any = other) -> Array:
                return np.asarray(scale * (math.cos(angle) * one + math.sin(angle) * other))

            angles = np.linspace(0, 2 * math.pi, ANGLES, endpoint=False)
            grid = [self._value(space.of(at(angle, CIRCLE_SCALE)), label) for angle in angles]
            for place in _peaks(grid):
                self._follow(space, at, float(angles[place]), label)

    def _follow(
        self, space: Features, at: Callable[[float, float], Array], angle: float, label: Any
    ) -> None:
        width, scale, last, stuck = 2 * math.pi / ANGLES, CIRCLE_SCALE, 0.0, 0
        for _ in range(DOUBLINGS):
            angles = angle + width * np.array([-1, -0.5, 0, 0.5, 1])
            values = [self._value(space.of(at(one, scale)), label) for one in angles]
            angle, best = float(angles[int(np.argmax(values))]), max(values)
            stuck += not best > GROWS * last
            if self.over or stuck > MOST_STUCK:
                return
            width, scale, last = width * NARROWER, scale * 2, best

    def _value(self, features: Any, label: Any) -> float:
        reach = self.measure("searched features", (features, label))
        return -1.0 if reach is None or not math.isfinite(reach.movement) else reach.movement

    def _ascend(self, space: Features, value: Value, start: tuple[float, Record] | None) -> None:
        """Climb from a record: a difference along each direction, then steps of some sizes."""
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
                reach = self.measure("searched features", (space.of(other), label))
                if reach is not None and best < value(reach) < math.inf:
                    best, point, moved = value(reach), other, True
                    break
            if not moved:
                return

    def _uphill(
        self, space: Features, value: Value, point: Array, label: Any, length: float
    ) -> Array:
        """Return the direction in which the movement grows, of norm 1, or zeros."""
        directions = _directions(space.size, self.rng)
        slopes = np.zeros(len(directions))
        for i, direction in enumerate(directions):
            around = []
            for sign in (1, -1):
                there = space.of(point + sign * SMALL * length * direction)
                reach = self.measure("searched features", (there, label))
                around.append(0.0 if reach is None else value(reach))
            slopes[i] = around[0] - around[1] if np.isfinite(around).all() else 0.0
        uphill = slopes @ directions
        norm = float(np.linalg.norm(uphill))
        return np.asarray(uphill / norm if norm > 0 else np.zeros(space.size))

    def _mutate(self, tokens: Tokens, value: Value, start: tuple[float, Record] | None) -> None:
        if start is None:
            return
        best, (x, label) = start
        ids = np.asarray(x, dtype=np.int64).ravel()
        for _ in range(MUTATIONS):
            other = tokens.changed(ids, self.rng)
            reach = self.measure("searched tokens", (tokens.of(other), label))
            if reach is not None and best < value(reach) < math.inf:
                best, ids = value(reach), other

    def _groups(self) -> Iterator[tuple[str, Record]]:
        """Yield records for the groups that move notably, but not where the sum reaches C."""
        x, _ = self.records[-1]
        for name in list(self.coverage.untested)[:MOST_GROUPS]:
            start = self._by_group.get(name)
            if start is None or name not in self.coverage.untested:
                continue
            if is_real(x):
                point, label = np.asarray(start[1][0], dtype=np.float64).ravel(), start[1][1]
                for scale in FINE_SCALES:
                    yield "scaled features", (Features(x).of(scale * point), label)
                self._ascend(Features(x), _share_of(name), start)
            elif (tokens := Tokens.of_records(self.records)) is not None:
                self._mutate(tokens, _share_of(name), start)


def _share_of(name: str) -> Value:
    """Return what a record is worth for a group: its share, where the sum reaches C."""
    return lambda reach: reach.shares.get(name, 0.0) * min(1.0, reach.movement) ** 2


def _peaks(values: Sequence[float]) -> list[int]:
    """Return the places of the largest values that no neighbour on the circle exceeds."""
    count = len(values)
    tops = [i for i in range(count) if values[i] >= max(values[i - 1], values[(i + 1) % count])]
    return sorted(tops, key=lambda i: -values[i])[:PEAKS]


def _directions(size: int, rng: np.random.Generator) -> Array:
    """Return orthonormal directions: the coordinates if they are few, else random ones."""
    if size <= COORDINATES:
        return np.eye(size)
    drawn = rng.standard_normal((COORDINATES, size))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
