"""How often bounds from score files exceed the true epsilon: ties, labels, rounded scores.

    python benchmarks/validity.py                             # 2,000 repetitions, minutes
    python benchmarks/validity.py --repetitions 200 --json results.json

Each file is a random split with fixed numbers of members and non-members, members first, or a
list of canaries with fair coins. The scores are those of mechanisms whose epsilon is known. A
false claim is a lower bound, at 95% confidence and delta 1e-5, above that epsilon. The column
"fair coins" shows what the one-run bound would say of the same split, which it is not valid for.

Three more tables are of adaptive guesses in one run, pairs of models and whole black-box audits.
Their mechanisms are in ``sequential_validity.py``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sequential_validity import sequential_rows
from side_by_side.tables import table, titled

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.fixed_class_sizes import is_rejected
from dpaudit.attacks.one_run import audit_random_split, audit_scores
from dpaudit.attacks.one_run.registration import Guesses
from dpaudit.attacks.one_run.score_file_audit import (
    centred_ranks,
    guess_classes,
    register_class_share,
    register_guess_count,
)
from dpaudit.vocabulary.audit import AuditResult, BoundKind

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

DELTA, CONFIDENCE = 1e-5, 0.95
SIZES = ((1000, 500), (5000, 1000), (10000, 200))
CANARIES, COIN_CLAIMS = (300, 1500), (None, 1.3)
CLAIMS = (None, 1.3, 4.0)
WHOLE_AUDITS = 50  # repetitions in which the bound is computed, not its test at the truth alone


@dataclass(frozen=True)
class Scores:
    """Scores of a mechanism: ``draw`` takes a generator and who is a member."""

    name: str
    epsilon: float
    draw: Callable[[np.random.Generator, Bits], Array]


def tied(rng: np.random.Generator, member: Bits) -> Array:
    """Independent of membership: one in ten from (0, 1), the others 0."""
    return np.where(rng.random(len(member)) < 0.1, rng.random(len(member)), 0.0)


def labels(rng: np.random.Generator, member: Bits) -> Array:
    """Independent of membership: whether the label is predicted, 0 or 1."""
    return (rng.random(len(member)) < 0.9).astype(np.float64)


def rounded(rng: np.random.Generator, member: Bits) -> Array:
    """Independent of membership: losses to one decimal, a third of them exactly 0."""
    return -np.round(np.maximum(rng.exponential(0.5, len(member)) - 0.2, 0), 1)


def response(rng: np.random.Generator, member: Bits) -> Array:
    """Randomized response at epsilon 1: the sharpest 0/1 scores."""
    truth = rng.random(len(member)) < math.e / (1 + math.e)
    return np.where(truth == member, 1.0, 0.0)


def laplace(rng: np.random.Generator, member: Bits) -> Array:
    """The membership with Laplace noise at epsilon 1, to one decimal."""
    return np.round(member + rng.laplace(0, 1, len(member)), 1)


SCORES = (
    Scores("ties", 0.0, tied),
    Scores("0/1 labels", 0.0, labels),
    Scores("rounded losses", 0.0, rounded),
    Scores("randomized response", 1.0, response),
    Scores("Laplace, rounded", 1.0, laplace),
)


def split(scores: Scores, sizes: tuple[int, int], claim: float | None, repetitions: int) -> dict:
    """Return how often the bound of a random split exceeds the truth."""
    rng = np.random.default_rng([*sizes, repetitions])
    member = np.arange(sum(sizes)) < sizes[0]
    share = 1.0
    if claim is not None:
        share = register_class_share(
            members=sizes[0], nonmembers=sizes[1], epsilon=claim, delta=DELTA,
            confidence=CONFIDENCE,
        )  # fmt: skip
    false, coins_false, found = [], [], []
    for _ in range(repetitions):
        drawn = scores.draw(rng, member)
        false.append(
            is_rejected(
                guess_classes(drawn, member, share), epsilon=scores.epsilon, delta=DELTA,
                confidence=CONFIDENCE,
            )
        )  # fmt: skip
        coins_false.append(_refuted_by_coins(drawn, member, claim, scores.epsilon))
        if len(found) < WHOLE_AUDITS:
            found.append(
                audit_random_split(
                    drawn, member, delta=DELTA, confidence=CONFIDENCE, claimed_epsilon=claim
                )
            )
    return {
        "scores": scores.name, "split": f"{sizes[0]} / {sizes[1]}", "claim": claim,
        **_summary(scores, false, found), "fair coins": float(np.mean(coins_false)),
    }  # fmt: skip


def coins(scores: Scores, canaries: int, claim: float | None, repetitions: int) -> dict:
    """Return how often the one-run bound exceeds the truth where fair coins did choose."""
    rng = np.random.default_rng([canaries, repetitions])
    false, found = [], []
    for _ in range(repetitions):
        member = rng.random(canaries) < 0.5
        drawn = scores.draw(rng, member)
        false.append(_refuted_by_coins(drawn, member, claim, scores.epsilon))
        if len(found) < WHOLE_AUDITS:
            found.append(
                audit_scores(
                    drawn, member, delta=DELTA, confidence=CONFIDENCE, claimed_epsilon=claim,
                    fair_coins=BoundKind.CERTIFIED,
                )
            )  # fmt: skip
    return {
        "scores": scores.name, "split": f"{canaries} coins", "claim": claim,
        **_summary(scores, false, found),
    }  # fmt: skip


def _refuted_by_coins(drawn: Array, member: Bits, claim: float | None, epsilon: float) -> bool:
    canaries = guesses = len(drawn)
    if claim is not None:
        guesses = register_guess_count(
            canaries=canaries, epsilon=claim, delta=DELTA, confidence=CONFIDENCE
        )
    correct = Guesses(guesses).correct(centred_ranks(drawn), member)
    p_value = bounds.one_run_p_value(
        epsilon=epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=DELTA
    )
    return p_value <= 1 - CONFIDENCE


def _summary(scores: Scores, false: list[bool], found: list[AuditResult]) -> dict[str, Any]:
    """Return the share of false claims, and averages of the first whole audits.

    A bound is above the truth exactly where its test rejects the truth; the whole audits are
    held against this.
    """
    lower = np.array([one.epsilon_lower for one in found])
    if (lower > scores.epsilon).tolist() != false[: len(found)]:
        raise AssertionError(f"the audits of {scores.name} are not the tests of their bounds")
    greatest = [one.greatest_epsilon for one in found if one.greatest_epsilon is not None]
    return {
        "epsilon": scores.epsilon, "false": float(np.mean(false)), "mean": float(lower.mean()),
        "greatest": float(np.mean(greatest)), "repetitions": len(false),
    }  # fmt: skip


def perfect(sizes: tuple[int, int], claim: float | None) -> dict[str, Any]:
    """Return what scores without an error show."""
    member = np.arange(sum(sizes)) < sizes[0]
    scores = member * 100.0 + np.random.default_rng(0).standard_normal(len(member))
    found = audit_random_split(
        scores, member, delta=DELTA, confidence=CONFIDENCE, claimed_epsilon=claim
    )
    return {
        "split": f"{sizes[0]} / {sizes[1]}", "claim": claim, "lower": found.epsilon_lower,
        "greatest": found.greatest_epsilon, "guesses": found.guesses,
    }  # fmt: skip


def measure(repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of all tables."""
    return {
        "split": [split(s, n, c, repetitions) for s in SCORES for n in SIZES for c in CLAIMS],
        "coins": [
            coins(s, m, c, repetitions) for s in SCORES for m in CANARIES for c in COIN_CLAIMS
        ],
        "perfect": [perfect(n, c) for n in SIZES for c in (None, 1.0, 3.0, 5.0)],
        **sequential_rows(repetitions),
    }


def show(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return the tables."""
    head = ("scores", "true epsilon", "members / others", "claim", "false claims", "mean bound",
            "greatest")  # fmt: skip
    separate = [
        (row["split"], _claim(row), f"{row['lower']:.3f}", f"{row['greatest']:.3f}",
         str(row["guesses"]))
        for row in rows["perfect"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            titled(
                "False claims on random splits of fixed sizes (nominal 5%)",
                table(
                    (*head, "fair coins"),
                    [(*_row(row), f"{row['fair coins']:.1%}") for row in rows["split"]],
                ),
            ),
            titled(
                "False claims on canaries with fair coins (nominal 5%)",
                table(head, [_row(row) for row in rows["coins"]]),
            ),
            titled(
                "Members and others told apart without an error",
                table(("members / others", "claim", "bound", "greatest", "guesses"), separate),
            ),
            titled(
                "False claims of adaptive guesses in one run (nominal 5%)",
                table(
                    ("mechanism", "epsilon", "delta", "guesses", "false claims", "mean bound"),
                    [_ordered(row, "mechanism", "guesses") for row in rows["adaptive"]],
                ),
            ),
            titled(
                "False claims of pairs of models, at any stopping time (nominal 5%)",
                table(
                    ("scores", "epsilon", "delta", "pairs", "false claims", "mean bound"),
                    [_ordered(row, "scores", "pairs") for row in rows["pairs"]],
                ),
            ),
            titled(
                "False claims of whole black-box audits (nominal 5%)",
                table(
                    ("outputs", "epsilon", "delta", "pairs", "false claims", "mean of the largest"),
                    [_ordered(row, "outputs", "pairs") for row in rows["models"]],
                ),
            ),
        ]
    )


def _ordered(row: dict[str, Any], name: str, count: str) -> tuple[str, ...]:
    return (
        row[name], f"{row['epsilon']:g}", f"{row['delta']:g}", str(row[count]),
        f"{row['false']:.2%}", f"{row['mean']:.3f}",
    )  # fmt: skip


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["scores"], f"{row['epsilon']:g}", row["split"], _claim(row), f"{row['false']:.2%}",
        f"{row['mean']:.3f}", f"{row['greatest']:.2f}",
    )  # fmt: skip


def _claim(row: dict[str, Any]) -> str:
    return "-" if row["claim"] is None else f"{row['claim']:g}"


def main() -> None:
    """Measure, print the tables and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    start = time.process_time()
    rows = measure(asked.repetitions)
    print(show(rows))
    if asked.json is not None:
        facts = {
            "date": datetime.date.today().isoformat(), "repetitions": asked.repetitions,
            "delta": DELTA, "confidence": CONFIDENCE,
            "cpu_seconds": time.process_time() - start,
        }  # fmt: skip
        asked.json.write_text(json.dumps({"facts": facts, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
