"""What lower bounds say of mechanisms whose epsilon is known: how tight, and how often wrong.

    python benchmarks/auditing.py                       # every table, 200 repetitions
    python benchmarks/auditing.py --repetitions 2000 --json results.json

Each bound holds with 95% by itself. The laws of the canaries' scores are those of exact
mechanisms: Gaussian noise on every record, and Poisson-subsampled Gaussian steps, whose
log-likelihood ratios are added up on a grid. Figures to compare with, of independent
prototypes, stand in the tables as "floor".
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from side_by_side.tables import table, titled

from dpaudit.accountants import calibrate
from dpaudit.attacks import bounds
from dpaudit.attacks.one_run.registration import GUESS_SHARES, Guesses
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from dpaudit.workflow.audit.audit_plan import claimed_family

Array = NDArray[np.float64]

DELTA, CONFIDENCE = 1e-5, 0.95
CELLS = 1 << 16
FLOORS = {
    ("1", 8.0, 5000): {"Steinke": 3.3, "f-DP": 4.8, "GDP band": 7.0, "pivot": 7.5},
    ("0.1 x 200", 4.0, 1000): {"Steinke": 1.38, "curve": 1.9, "tv_rank": 3.0, "tv_visible": 3.7},
    ("0.1 x 200", 4.0, 5000): {"Steinke": 1.79, "curve": 2.1, "tv_rank": 3.5, "tv_visible": 3.85},
    ("0.01 x 2000", 4.0, 1000): {"Steinke": 1.26, "curve": 1.9, "tv_rank": 3.0, "tv_visible": 3.7},
    ("0.01 x 2000", 4.0, 5000): {"Steinke": 1.65, "curve": 2.1, "tv_rank": 3.5, "tv_visible": 3.85},
}


@dataclass(frozen=True)
class Steps:
    """Poisson-sampled Gaussian steps, at the noise multiplier that a target epsilon takes."""

    sampling_rate: float
    steps: int
    epsilon: float

    @property
    def name(self) -> str:
        return f"{self.sampling_rate:g} x {self.steps}" if self.sampling_rate < 1 else "1"

    @property
    def noise_multiplier(self) -> float:
        return _calibrated(self.sampling_rate, self.steps, self.epsilon)


@cache
def _calibrated(sampling_rate: float, steps: int, epsilon: float) -> float:
    def mechanism(noise: float) -> Repeated:
        return Repeated(PoissonSampled(Gaussian(noise), sampling_rate), steps)

    return calibrate.noise_multiplier(mechanism, target_epsilon=epsilon, delta=DELTA).value


@cache
def score_law(claim: Steps, true_factor: float, scored_factor: float) -> tuple[Array, Array, Array]:
    """Return values of a canary's score and its distribution functions, out and in.

    One step's log-likelihood ratio is put on a grid, its mean kept, and added up by the
    Fourier transform.
    """
    noise, q = true_factor * claim.noise_multiplier, claim.sampling_rate
    scored = scored_factor * claim.noise_multiplier
    x = np.linspace(-9 * noise, 9 * noise + 1, 40_001)
    out = np.exp(-((x / noise) ** 2) / 2)
    inside = (1 - q) * out + q * np.exp(-(((x - 1) / noise) ** 2) / 2)
    exponent = (2 * x - 1) / (2 * scored**2)
    ratio = np.logaddexp(math.log1p(-q), math.log(q) + exponent) if q < 1 else exponent
    laws = [density / density.sum() for density in (out, inside)]
    means = [float(law @ ratio) for law in laws]
    spreads = [math.sqrt(float(law @ (ratio - m) ** 2)) for law, m in zip(laws, means, strict=True)]
    low = (
        min(
            claim.steps * m - 14 * math.sqrt(claim.steps) * s
            for m, s in zip(means, spreads, strict=True)
        )
        - 2
    )
    high = (
        max(
            claim.steps * m + 14 * math.sqrt(claim.steps) * s
            for m, s in zip(means, spreads, strict=True)
        )
        + 6
    )
    width = (high - low) / CELLS
    cell, share = np.divmod(ratio / width, 1.0)
    values = low + width * np.arange(CELLS)
    cumulative = []
    for law in laws:
        grid = np.zeros(CELLS)
        np.add.at(grid, cell.astype(int) % CELLS, law * (1 - share))
        np.add.at(grid, (cell.astype(int) + 1) % CELLS, law * share)
        total = np.fft.irfft(np.fft.rfft(grid) ** claim.steps, CELLS)
        cumulative.append(np.cumsum(np.maximum(np.roll(total, -round(low / width)), 0)))
    return values, cumulative[0] / cumulative[0][-1], cumulative[1] / cumulative[1][-1]


def draw_scores(
    claim: Steps, m: int, rng: np.random.Generator, true_factor: float = 1.0, scored: float = 1.0
) -> tuple[Array, NDArray[np.bool_]]:
    """Return scores and bits of m canaries."""
    values, out, inside = score_law(claim, true_factor, scored)
    bits = rng.random(m) < 0.5
    uniform = rng.random(m)
    found = np.where(bits, np.searchsorted(inside, uniform), np.searchsorted(out, uniform))
    jitter = (values[1] - values[0]) * (rng.random(m) - 0.5)
    return values[np.minimum(found, CELLS - 1)] + jitter, bits


def cells(claim: Steps, m: int, rng: np.random.Generator, true_factor: float) -> dict[str, int]:
    """Return the counts that ``tv_known_batches`` takes, which are binomial."""
    inside = int(rng.binomial(int(rng.binomial(m, 0.5)) * claim.steps, claim.sampling_rate))
    outside = m * claim.steps - inside
    alarm = float(ndtr(-1 / (true_factor * claim.noise_multiplier)))
    return {
        "hits": int(rng.binomial(inside, 0.5)), "in_batch": inside,
        "false_alarms": int(rng.binomial(outside, alarm)), "out_of_batch": outside,
    }  # fmt: skip


class Bounds:
    """Every bound on one claim and number of canaries; equal counts are answered once."""

    def __init__(self, claim: Steps, m: int) -> None:
        self.claim, self.m = claim, m
        steps = [(claim.sampling_rate, claim.noise_multiplier)] * claim.steps
        self.family = claimed_family(steps, DELTA)
        self.guesses = {
            "Steinke": self._best(self.steinke),
            ("f-DP" if claim.sampling_rate == 1 else "curve"): self._best(self.gaussian_curve),
        }

    def _best(self, bound: Callable[[int, int], float]) -> Guesses:
        """Choose how many are guessed by simulating the claim, before a score is read."""
        rng = np.random.default_rng(0)
        audits = [draw_scores(self.claim, self.m, rng) for _ in range(20)]
        choices = [Guesses(max(1, int(share * self.m))) for share in GUESS_SHARES]
        average = {g: int(np.mean([g.correct(*a) for a in audits])) for g in choices}
        return max(choices, key=lambda guesses: bound(guesses.count, average[guesses]))

    @cache  # noqa: B019
    def steinke(self, guesses: int, correct: int) -> float:
        return bounds.one_run(
            canaries=self.m, guesses=guesses, correct=correct, delta=DELTA, confidence=CONFIDENCE
        ).epsilon

    @cache  # noqa: B019
    def gaussian_curve(self, guesses: int, correct: int) -> float:
        return bounds.one_run_gaussian(
            canaries=self.m, guesses=guesses, correct=correct, delta=DELTA, confidence=CONFIDENCE
        ).epsilon

    def curve(self, guesses: int, correct: int) -> float:
        """Return the bound of a few right guesses less: one inversion takes seconds."""
        step = max(1, round(math.sqrt(guesses) / 16))
        found = self._curve(guesses, step * (correct // step))
        refuted = bounds.curve_is_refuted(
            canaries=self.m, guesses=guesses, correct=correct, level=1 - CONFIDENCE,
            tradeoff=self.family.tradeoff(1.0),
        )  # fmt: skip
        # On which side of the truth it lies is told by the right count.
        return max(found, np.nextafter(self.claim.epsilon, 100)) if refuted else found

    @cache  # noqa: B019
    def _curve(self, guesses: int, correct: int) -> float:
        return bounds.one_run_family(
            canaries=self.m, guesses=guesses, correct=correct, confidence=CONFIDENCE,
            family=self.family,
        ).epsilon  # fmt: skip

    @cache  # noqa: B019
    def tv_rank(self, correct: int) -> float:
        return bounds.tv_all_guesses(
            canaries=self.m, correct=correct, confidence=CONFIDENCE, family=self.family
        ).epsilon

    def tv_visible(self, counts: dict[str, int]) -> float:
        return bounds.tv_known_batches(
            **counts, noise_multiplier=self.claim.noise_multiplier, confidence=CONFIDENCE,
            family=self.family,
        ).epsilon  # fmt: skip

    def full_batch(self, rng: np.random.Generator) -> dict[str, float]:
        """Return what one audit at a sampling rate of 1 says, by every bound."""
        scores, bits = draw_scores(self.claim, self.m, rng)
        by_sign = {name: (g.count, g.correct(scores, bits)) for name, g in self.guesses.items()}
        arguments: dict[str, Any] = {
            "members": scores[bits], "nonmembers": scores[~bits], "delta": DELTA,
            "confidence": CONFIDENCE,
        }  # fmt: skip
        band = {"thresholds": bounds.ConfidenceBand()}
        return {
            "Steinke": self.steinke(*by_sign["Steinke"]),
            "f-DP": self.gaussian_curve(*by_sign["f-DP"]),
            "CP band": bounds.from_scores(**arguments, **band).epsilon,
            "GDP band": bounds.gaussian_from_scores(**arguments, **band).epsilon,
            "pivot": bounds.gaussian_pivot(**arguments).epsilon,
        }

    def sampled(self, rng: np.random.Generator) -> dict[str, float]:
        """Return what one audit of sampled steps says, by every bound."""
        scores, bits = draw_scores(self.claim, self.m, rng)
        by_sign = {name: (g.count, g.correct(scores, bits)) for name, g in self.guesses.items()}
        return {
            "Steinke": self.steinke(*by_sign["Steinke"]),
            "curve": self.curve(*by_sign["curve"]),
            "tv_rank": self.tv_rank(Guesses(self.m).correct(scores, bits)),
            "tv_visible": self.tv_visible(cells(self.claim, self.m, rng, 1.0)),
        }


def tightness(claim: Steps, m: int, repetitions: int) -> dict[str, Any]:
    """Return mean bound, share of misses and seconds of one audit, by bound."""
    every = Bounds(claim, m)
    audit = every.full_batch if claim.sampling_rate == 1 else every.sampled
    rng = np.random.default_rng([1, m])
    found: dict[str, list[float]] = {}
    start = time.process_time()
    for _ in range(repetitions):
        for name, epsilon in audit(rng).items():
            found.setdefault(name, []).append(epsilon)
    seconds = (time.process_time() - start) / repetitions
    floors = FLOORS.get((claim.name, claim.epsilon, m), {})
    return {
        "rate and steps": claim.name, "epsilon": claim.epsilon, "canaries": m, "seconds": seconds,
        "bounds": {
            name: {
                "mean": float(np.mean(epsilons)),
                "misses": float(np.mean(np.array(epsilons) > claim.epsilon)),
                "floor": floors.get(name),
            }
            for name, epsilons in found.items()
        },
    }  # fmt: skip


def refuted(claim: Steps, m: int, repetitions: int) -> dict[str, float]:
    """Return how often noise at 0.8 of the claim is refuted."""
    every, rng = Bounds(claim, m), np.random.default_rng([2, m])
    audits = [draw_scores(claim, m, rng, 0.8, 0.8) for _ in range(repetitions)]
    ranks = [every.tv_rank(Guesses(m).correct(*audit)) > claim.epsilon for audit in audits]
    visible = [
        every.tv_visible(cells(claim, m, rng, 0.8)) > claim.epsilon for _ in range(repetitions)
    ]
    return {"tv_rank": float(np.mean(ranks)), "tv_visible": float(np.mean(visible))}


def show(rows: list[dict[str, Any]]) -> str:
    """Return tightness as a table."""
    heading = ("rate x steps", "epsilon", "canaries", "bound", "mean", "floor", "misses")
    lines = [
        (row["rate and steps"], f"{row['epsilon']:g}", str(row["canaries"]), name,
         f"{one['mean']:.2f}", "" if one["floor"] is None else f"{one['floor']:g}",
         f"{one['misses']:.2%}")
        for row in rows for name, one in row["bounds"].items()
    ]  # fmt: skip
    return titled(
        "lower bounds at 95%, mean over audits of the exact mechanism", table(heading, lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    claims = [Steps(1.0, 1, e) for e in (1.0, 4.0, 8.0)]
    claims += [Steps(0.1, 200, e) for e in (1.0, 4.0, 8.0)] + [Steps(0.01, 2000, 4.0)]
    rows = [tightness(claim, m, given.repetitions) for claim in claims for m in (1000, 5000)]
    print(show(rows))
    claim = Steps(0.1, 200, 4.0)
    power = {m: refuted(claim, m, given.repetitions) for m in (128, 150, 1582, 1700)}
    heading = ("canaries", "tv_rank", "tv_visible")
    lines = [(str(m), *(f"{share:.1%}" for share in one.values())) for m, one in power.items()]
    print(
        titled(
            "noise at 0.8 of the claim (epsilon 4, 0.1 x 200): how often refuted",
            table(heading, lines),
        )
    )
    if given.json:
        facts = {"date": datetime.date.today().isoformat(), "repetitions": given.repetitions}
        given.json.write_text(
            json.dumps(facts | {"tightness": rows, "refuted": power}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
