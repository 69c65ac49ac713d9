"""Random ledgers of every kind of release, sampling and adjacency, each with equal weight."""

from __future__ import annotations

import math
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import msgspec
import numpy as np

from dpaudit.accountants.registry import REGISTRY
from dpaudit.vocabulary import mechanism as kinds
from dpaudit.vocabulary.errors import DpauditError, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency

SLACK = 1e-9  # relative; two bounds of one value may cross by rounding
NAMING = re.compile(r"\b(rdp|naive|pld)\b.*:|truncated|infinite|dominating pair")
"""What a refusal says where it names an analysis, or the event that it cannot bound."""
SECONDS = 60  # of CPU time, after which a ledger counts as unanswered


class Draw:
    """Random parameters of one ledger."""

    def __init__(self, seed: tuple[int, int]) -> None:
        self.rng = np.random.default_rng(seed)

    def between(self, low: float, high: float) -> float:
        """Return a number, even in its logarithm."""
        return float(math.exp(self.rng.uniform(math.log(low), math.log(high))))

    def count(self, low: int, high: int) -> int:
        """Return a whole number, even in its logarithm."""
        return max(low, min(high, round(self.between(low, high))))

    def one_of(self, choices: Any) -> Any:
        """Return one of several, each equally likely."""
        return choices[int(self.rng.integers(len(choices)))]

    def gaussian(self) -> Gaussian:
        """Return a Gaussian, one in six set for replaced records."""
        adjacency = Adjacency.ADD_OR_REMOVE_ONE
        if self.rng.random() < 1 / 6:
            adjacency = Adjacency.REPLACE_ONE
        return Gaussian(self.between(0.3, 50), adjacency)


def _vector(draw: Draw) -> dict[str, Any]:
    l2, dimension = draw.between(1, 30), draw.one_of((1, 3, 100, 10_000))
    return {
        "l2_sensitivity": l2,
        "l1_sensitivity": min(l2 * l2, max(1.0, l2 * math.sqrt(dimension))),
        "dimension": dimension,
    }


def _distributed(draw: Draw) -> Mechanism:
    shares, vector = draw.count(1, 1000), _vector(draw)
    scale = draw.between(0.5, 30) * vector["l2_sensitivity"] / math.sqrt(shares)
    return kinds.DistributedDiscreteGaussian(max(scale, 0.3), shares, **vector)


def _discrete(draw: Draw) -> tuple[float, int]:
    sensitivity = draw.count(1, 1000)
    return draw.between(0.3, 30) * sensitivity, sensitivity


def _vector_gaussian(draw: Draw) -> Mechanism:
    vector = _vector(draw)
    return kinds.VectorDiscreteGaussian(draw.between(0.5, 30) * vector["l2_sensitivity"], **vector)


def _skellam(draw: Draw) -> Mechanism:
    vector = _vector(draw)
    return kinds.Skellam((draw.between(0.5, 30) * vector["l2_sensitivity"]) ** 2, **vector)


def _response(draw: Draw) -> Mechanism:
    categories = draw.count(2, 20)
    truth = 1 / categories + (1 - 1 / categories) * draw.between(1e-3, 0.99)
    return kinds.RandomizedResponse(truth, categories)


def _truncated(draw: Draw) -> Mechanism:
    size, rate = draw.count(10, 100_000), draw.between(1e-3, 1)
    largest = max(1, min(size, round(size * rate * draw.between(1, 3))))
    return kinds.TruncatedPoisson(draw.gaussian(), rate, size, largest)


ELEMENTARY: dict[str, Callable[[Draw], Any]] = {
    "Gaussian": lambda d: d.gaussian(),
    "Laplace": lambda d: kinds.Laplace(d.between(0.3, 100), d.between(0.5, 2)),
    "DiscreteGaussian": lambda d: kinds.DiscreteGaussian(*_discrete(d)),
    "DiscreteLaplace": lambda d: kinds.DiscreteLaplace(*_discrete(d)),
    "VectorDiscreteGaussian": _vector_gaussian,
    "DistributedDiscreteGaussian": _distributed,
    "Skellam": _skellam,
    "RandomizedResponse": _response,
    "Exponential": lambda d: kinds.Exponential(d.between(1e-3, 5)),
    "PureDP": lambda d: kinds.PureDP(d.between(1e-3, 5)),
    "ApproximateDP": lambda d: kinds.ApproximateDP(d.between(1e-3, 5), d.between(1e-12, 1e-4)),
    "ZCDP": lambda d: kinds.ZCDP(d.between(1e-5, 3)),
}


def _sparse(kind: type) -> Callable[[Draw], Any]:
    return lambda d: kind(d.between(1, 300), d.between(1, 300), d.count(1, 50))


COMPARISONS = (
    kinds.SparseVector, kinds.MonotoneSparseVector, kinds.FixedThresholdSparseVector,
)  # fmt: skip
WHOLE: dict[str, Callable[[Draw], Any]] = {
    "RandomAllocation": lambda d: kinds.RandomAllocation(d.gaussian(), d.count(1, 10_000)),
    "TruncatedPoisson": _truncated,
    "TreeAggregation": lambda d: kinds.TreeAggregation(d.gaussian(), d.count(1, 10_000)),
    "BandedMatrixFactorization": lambda d: kinds.BandedMatrixFactorization(
        d.gaussian(), d.count(1, 3000), d.count(1, 100), d.one_of((1.0, d.between(1e-3, 1)))
    ),
    **{kind.__name__: _sparse(kind) for kind in COMPARISONS},
    "NumericSparseVector": lambda d: kinds.NumericSparseVector(
        _sparse(d.one_of(COMPARISONS))(d), d.between(1, 300)
    ),
    "Selected": lambda d: kinds.Selected(
        ELEMENTARY[d.one_of(list(ELEMENTARY))](d),
        d.one_of(
            (
                kinds.NegativeBinomialTrials(d.between(0.1, 3), d.between(0.01, 0.5)),
                kinds.PoissonTrials(d.between(0.5, 100)),
            )
        ),
    ),
}
SAMPLINGS = ("whole data set", "Poisson", "without replacement")


@dataclass(frozen=True)
class LedgerQuestion:
    """A ledger, an adjacency and a delta."""

    mechanism: Mechanism
    adjacency: Adjacency
    delta: float


def question(place: int, *, seed: int) -> LedgerQuestion:
    """Return the ledger number ``place`` of a seed: one to three releases, each repeated."""
    draw = Draw((seed, place))
    parts = tuple(
        Repeated(_release(draw), draw.count(1, 3000)) for _ in range(draw.one_of((1, 1, 1, 2, 3)))
    )
    mechanism = parts[0] if len(parts) == 1 else Composed(parts)
    return LedgerQuestion(mechanism, draw.one_of(list(Adjacency)), draw.between(1e-12, 0.1))


def _release(draw: Draw) -> Any:
    """Return a release: every kind, and every sampling of an elementary one, equally likely."""
    name = draw.one_of([*ELEMENTARY, *WHOLE])
    if name in WHOLE:
        return WHOLE[name](draw)
    release = ELEMENTARY[name](draw)
    match draw.one_of(SAMPLINGS):
        case "Poisson":
            return kinds.PoissonSampled(release, draw.between(1e-4, 1))
        case "without replacement":
            size = draw.count(2, 100_000)
            return kinds.SampledWithoutReplacement(release, draw.count(1, size), size)
        case _:
            return release


def answers(asked: LedgerQuestion) -> dict[str, Any]:
    """Return what every accountant says of a ledger, and what is wrong about it."""
    row: dict[str, Any] = {"uppers": {}, "lowers": {}, "refusals": {}, "wrong": []}
    started = time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name, accountant in REGISTRY.items():
            try:
                with _at_most(SECONDS):
                    bounds = accountant.bounds(
                        asked.mechanism, asked.delta, asked.adjacency
                    ).values()
                row["uppers"][name] = min(bound.upper for bound in bounds)
                row["lowers"][name] = max(bound.lower for bound in bounds)
            except DpauditError as error:
                named = isinstance(error, UnsupportedMechanism) or bool(NAMING.search(str(error)))
                text = f"{type(error).__name__}: {error}"
                row["refusals"][name] = {"names": named, "text": text[:300]}
            except TimeoutError:
                row["wrong"].append(f"{name}: no answer within {SECONDS} s of CPU time")
            except Exception as error:
                row["wrong"].append(f"{name}: untyped {type(error).__name__}: {error}"[:300])
    row["ms"] = 1e3 * (time.process_time() - started)
    row["wrong"] += [f"warning: {one.message}"[:200] for one in warned]
    row["wrong"] += list(_contradictions(row["uppers"], row["lowers"]))
    return row


def _contradictions(uppers: dict[str, float], lowers: dict[str, float]) -> Iterator[str]:
    """Yield a line for each upper bound below pld's, and for each lower bound above an upper."""
    for name, upper in uppers.items():
        if math.isnan(upper) or math.isnan(lowers[name]):
            yield f"{name}: NaN"
        if "pld" in uppers and not uppers["pld"] <= upper * (1 + SLACK):
            yield f"pld's upper bound {uppers['pld']!r} exceeds that of {name}, {upper!r}"
        for other, lower in lowers.items():
            if not lower <= upper * (1 + SLACK):
                yield f"{other}'s lower bound {lower!r} exceeds {name}'s upper bound {upper!r}"


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise ``TimeoutError`` after some CPU time; in the main thread of Unix alone."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    if not hasattr(signal, "SIGPROF"):
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def row_of(place: int, *, seed: int) -> dict[str, Any]:
    """Return the ledger number ``place`` of a seed as JSON values, with all answers."""
    asked = question(place, seed=seed)
    return {
        "place": place,
        "mechanism": msgspec.json.encode(asked.mechanism).decode(),
        "adjacency": asked.adjacency.value,
        "delta": asked.delta,
        **answers(asked),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that have targets."""
    refused = [row["refusals"].get("pld") for row in rows]
    unnamed = [one["text"] for one in refused if one is not None and not one["names"]]
    return {
        "ledgers": len(rows),
        "answered by pld": sum("pld" in row["uppers"] for row in rows),
        "refused, missing analysis named": sum(one is not None and one["names"] for one in refused),
        "refused by pld, bounded by another": sum(
            "pld" not in row["uppers"] and bool(row["uppers"]) for row in rows
        ),
        "refused otherwise": len(unnamed),
        "refused otherwise, by message": dict(Counter(map(without_numbers, unnamed)).most_common()),
        "wrong": sum(bool(row["wrong"]) for row in rows),
        "wrong, by message": dict(
            Counter(without_numbers(text) for row in rows for text in row["wrong"]).most_common(40)
        ),
        "cpu_seconds": sum(row["ms"] for row in rows) / 1e3,
    }


def without_numbers(text: str) -> str:
    """Return a message with all numbers replaced, so that equal causes count together."""
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text)[:160]
