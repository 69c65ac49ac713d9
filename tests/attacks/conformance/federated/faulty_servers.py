"""Servers with one fault each, and the check, the finding and the words that must detect it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpaudit.attacks.conformance.federated.server_protocol import Update
from tests.attacks.conformance.federated.reference_server import (
    CLIP_NORM,
    DIMENSION,
    NOISE_MULTIPLIER,
    PARTICIPANTS,
    RATE,
    ReferenceServer,
)


class NoClipping(ReferenceServer):
    def factor(self, vector: np.ndarray) -> float:
        return 1.0


class ClipsEachParameter(ReferenceServer):
    def flat(self, update: Update) -> np.ndarray:
        parts = [
            super(ClipsEachParameter, self).flat(update)[own]
            for own in (slice(60), slice(60, None))
        ]
        return np.concatenate([min(1.0, CLIP_NORM / np.linalg.norm(p)) * p for p in parts])

    def factor(self, vector: np.ndarray) -> float:
        return 1.0


class ClipsTheSum(ReferenceServer):
    def total(self, updates: Mapping[int, Update], expected: Sequence[int]) -> np.ndarray:
        if not updates:
            return np.zeros(DIMENSION)
        total = np.sum([self.flat(update) for update in updates.values()], axis=0)
        limit = len(updates) * CLIP_NORM
        return np.asarray(min(1.0, limit / np.linalg.norm(total)) * total)


class ClipsFirstRoundsOnly(ReferenceServer):
    def factor(self, vector: np.ndarray) -> float:
        return super().factor(vector) if self.number < 4 else 1.0


class SparesOneParticipant(ReferenceServer):
    def total(self, updates: Mapping[int, Update], expected: Sequence[int]) -> np.ndarray:
        rest = {who: update for who, update in updates.items() if who != 5}
        own = self.flat(updates[5]) if 5 in updates else 0.0
        return super().total(rest, expected) + own


class DividesByReplies(ReferenceServer):
    def divisor(self, replies: int) -> float:
        return max(1, replies) * RATE


class NoiseDividedTwice(ReferenceServer):
    def noise(self, rng: np.random.Generator, replies: int, expected: int) -> np.ndarray:
        return super().noise(rng, replies, expected) / (RATE * PARTICIPANTS)


class NoiseSharesOfReplies(ReferenceServer):
    """Each reply brings its share of the noise: less noise after a dropout."""

    def noise(self, rng: np.random.Generator, replies: int, expected: int) -> np.ndarray:
        share = NOISE_MULTIPLIER * CLIP_NORM / np.sqrt(expected)
        return np.asarray(share * rng.standard_normal((replies, DIMENSION)).sum(axis=0))


class NoiseInFirstRoundOnly(ReferenceServer):
    def noise(self, rng: np.random.Generator, replies: int, expected: int) -> np.ndarray:
        return super().noise(rng, replies, expected) * (self.number == 1)


class SameNoiseInEveryRound(ReferenceServer):
    def aggregate(self, updates: Mapping[int, Update], expected: Sequence[int]) -> Update | None:
        number, self.number = self.number, 0
        found = super().aggregate(updates, expected)
        self.number = number + 1
        return found


class SeedIgnored(ReferenceServer):
    def noise_key(self) -> Sequence[int]:
        return [7]


class GlobalGenerator(ReferenceServer):
    def noise(self, rng: np.random.Generator, replies: int, expected: int) -> np.ndarray:
        return NOISE_MULTIPLIER * CLIP_NORM * np.random.standard_normal(DIMENSION)  # noqa: NPY002


class SameNoiseOnEveryParameter(ReferenceServer):
    def noise(self, rng: np.random.Generator, replies: int, expected: int) -> np.ndarray:
        return np.resize(super().noise(rng, replies, expected)[:60], DIMENSION)


class ForgetsAtRestart(ReferenceServer):
    def resumed(self) -> ReferenceServer:
        return type(self)(self.seed)


class NaNPasses(ReferenceServer):
    def accepts(self, update: Update) -> bool:
        return set(update) == set(self.reference) and all(
            np.asarray(update[name]).dtype == like.dtype and update[name].shape == like.shape
            for name, like in self.reference.items()
        )


class DividesByTheNorm(ReferenceServer):
    def factor(self, vector: np.ndarray) -> float:
        norm = float(np.linalg.norm(vector))
        if norm == 0:
            raise ZeroDivisionError("float division by zero")
        return min(1.0, CLIP_NORM / norm)


class DrawsTooMany(ReferenceServer):
    def draw(self) -> Sequence[int]:
        coins = np.random.default_rng([self.seed, 1, self.number]).random(self.participants)
        return [int(one) for one in np.flatnonzero(coins < 0.75)]


class DrawsAFixedNumber(ReferenceServer):
    def draw(self) -> Sequence[int]:
        rng = np.random.default_rng([self.seed, 1, self.number])
        chosen = rng.choice(self.participants, round(RATE * PARTICIPANTS), replace=False)
        return sorted(int(one) for one in chosen)


class DrawsTheSameTwice(ReferenceServer):
    def draw(self) -> Sequence[int]:
        coins = np.random.default_rng([self.seed, 1, self.number // 2]).random(self.participants)
        return [int(one) for one in np.flatnonzero(coins < RATE)]


@dataclass(frozen=True)
class Fault:
    """A faulty server, and what must detect it."""

    server: type[ReferenceServer]
    check: str
    name: str
    word: str


FAULTS = {
    "no clipping": Fault(NoClipping, "replay", "planted updates", "moved the sum by"),
    "each parameter clipped": Fault(
        ClipsEachParameter, "replay", "planted updates", "clipped separately"
    ),
    "the sum clipped": Fault(ClipsTheSum, "replay", "planted updates", "moved the sum by"),
    "clipping stops": Fault(ClipsFirstRoundsOnly, "replay", "planted updates", "round 5"),
    "one participant spared": Fault(
        SparesOneParticipant, "replay", "planted updates", "participant 5"
    ),
    "divided by the replies": Fault(
        DividesByReplies, "replay", "absent participants", "was multiplied by"
    ),
    "divided by the replies, after dropouts": Fault(
        DividesByReplies, "replay", "planted updates after dropouts", "moved the sum by 8 C"
    ),
    "noise divided twice": Fault(
        NoiseDividedTwice, "noise", "scale", "the noise as a whole has 0.2"
    ),
    "noise in shares of the replies": Fault(
        NoiseSharesOfReplies, "noise", "scale by number of replies", "half of the replies are lost"
    ),
    "noise in the first round only": Fault(
        NoiseInFirstRoundOnly, "noise", "scale of each round", "the noise at round 1 has"
    ),
    "the same noise in every round": Fault(
        SameNoiseInEveryRound, "correlation", "rounds", "noise is reused"
    ),
    "a seed that is ignored": Fault(SeedIgnored, "correlation", "runs", "whose seeds differ"),
    "a global generator": Fault(
        GlobalGenerator, "correlation", "global generators", "noise is reused"
    ),
    "the same noise on every parameter": Fault(
        SameNoiseOnEveryParameter, "correlation", "coordinates", "weight and bias"
    ),
    "noise reused after a restart": Fault(
        ForgetsAtRestart, "correlation", "resume", "noise is reused"
    ),
    "releases forgotten at a restart": Fault(
        ForgetsAtRestart, "provenance", "recorded releases", "starts again"
    ),
    "NaN passes": Fault(NaNPasses, "replay", "malformed updates", "NaN or infinite"),
    "an update of zero stops the round": Fault(
        DividesByTheNorm, "replay", "zero updates", "ZeroDivisionError"
    ),
    "too many drawn": Fault(DrawsTooMany, "sampler", "rate", "times the claimed"),
    "a fixed number drawn": Fault(DrawsAFixedNumber, "sampler", "round sizes", "times the claimed"),
    "the same drawn twice": Fault(DrawsTheSameTwice, "sampler", "rounds", "rounds 1 apart"),
}
