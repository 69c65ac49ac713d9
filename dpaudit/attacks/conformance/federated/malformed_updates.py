"""Malformed updates: they are rejected, and the round continues without them.

One participant replies with an update that is not finite, or has another name, shape or type than
the reference. The round's sum must be the same as if that reply had been lost. An update of exactly
zero is well-formed: the round must accept it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpaudit.attacks.conformance.federated.planted_updates import BASE_NORM
from dpaudit.attacks.conformance.federated.server_protocol import (
    MakeServer,
    RoundResult,
    ServerRun,
    Update,
)
from dpaudit.attacks.conformance.paired_replays import NORM_ROUNDING, rounding_slack
from dpaudit.attacks.conformance.statistical_tests import failed_finding, inconclusive_finding
from dpaudit.attacks.conformance.trainer_protocol import derive_seeds
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim
from dpaudit.vocabulary.verdict import Outcome

CHECK, MALFORMED_FINDING = "replay", "malformed updates"
MALFORMED_SEEDS = 74
SENDER = 1
POWER = "exact for these updates, up to rounding"


@dataclass(frozen=True)
class Malformed:
    """A way in which an update is malformed.

    Attributes:
        name: What is wrong with it, for the report.
        make: From a well-formed update to the malformed one.
    """

    name: str
    make: Callable[[Update], Update]


def _with_first(update: Update, change: Callable[[Any], Any]) -> Update:
    """Return an update whose first array is changed."""
    first = next(iter(update))
    return {**update, first: change(np.array(update[first]))}


def _filled(value: float) -> Callable[[Update], Update]:
    """Return a function that sets one coordinate of an update."""

    def fill(array: Any) -> Any:
        array.ravel()[:1] = value
        return array

    return lambda update: _with_first(update, fill)


MALFORMED = (
    Malformed("a NaN", _filled(float("nan"))),
    Malformed("an infinite number", _filled(float("inf"))),
    Malformed("a missing parameter", lambda update: dict(list(update.items())[1:])),
    Malformed(
        "an unknown parameter",
        lambda update: {**update, "unknown_": np.ones(3, dtype=np.float32)},
    ),
    Malformed(
        "a wrong shape",
        lambda update: _with_first(update, lambda a: np.concatenate([a.ravel(), a.ravel()])),
    ),
    Malformed("complex numbers", lambda update: _with_first(update, lambda a: a * (1 + 1j))),
    Malformed("text", lambda update: _with_first(update, lambda a: a.astype(str))),
)


def check_malformed_updates(
    make_server: MakeServer, claim: StepClaim, seed: int
) -> list[ConformanceFinding]:
    """Test what a malformed update and one of exactly zero do to a round.

    Args:
        make_server: Makes the server.
        claim: The claim on each round.
        seed: Seed of the audit.

    Returns:
        A finding on malformed updates and one on the update of exactly zero.
    """
    (one,) = derive_seeds(seed, MALFORMED_SEEDS, 1)
    lost = _round(make_server, claim, one, None)
    tested = f"the sum with {', '.join(kind.name for kind in MALFORMED)} in one update"
    zero = _zero_finding(_round(make_server, claim, one, lambda update: _scaled(update, 0.0)))
    if lost.noisy_sum is None:
        why = f"a round in which that reply is lost cannot be compared: {lost.ending}"
        return [inconclusive_finding(CHECK, MALFORMED_FINDING, tested, why), zero]
    wrong, refused = [], []
    for kind in MALFORMED:
        result = _round(make_server, claim, one, kind.make)
        if result.error is not None:
            refused.append(kind.name)
        elif (changed := _difference(lost, result, claim)) is not None:
            wrong.append(f"{kind.name}: {changed}")
    again = _round(make_server, claim, one, None).noisy_sum
    if again is None or not np.array_equal(lost.noisy_sum, again):
        why = "the same seed and the same updates give another sum: set every seed"
        return [inconclusive_finding(CHECK, MALFORMED_FINDING, tested, why), zero]
    return [_malformed_finding(tested, wrong, refused), zero]


def _malformed_finding(tested: str, wrong: list[str], refused: list[str]) -> ConformanceFinding:
    name = MALFORMED_FINDING
    if wrong:
        return failed_finding(CHECK, name, tested, "; ".join(wrong))
    why = "the sum is that without the malformed update"
    if refused:
        why = (
            f"nothing is released with {', '.join(refused)}: the whole round is lost, so one "
            "participant can stop the run"
        )
    return ConformanceFinding(
        check=CHECK, name=name, outcome=Outcome.PASS, tested=tested, why=why, power=POWER
    )


def _zero_finding(result: RoundResult) -> ConformanceFinding:
    name, tested = "zero updates", "a round in which one update is exactly zero"
    if result.noisy_sum is None or not np.isfinite(result.noisy_sum).all():
        ending = result.ending if result.noisy_sum is None else "the sum is not finite"
        why = f"{ending}, which reveals that an update is zero, and lets one participant stop it"
        return failed_finding(CHECK, name, tested, why)
    return ConformanceFinding(
        check=CHECK, name=name, outcome=Outcome.PASS, tested=tested,
        why="the round was released", power=POWER,
    )  # fmt: skip


def _round(
    make_server: MakeServer,
    claim: StepClaim,
    seed: int,
    change: Callable[[Update], Update] | None,
) -> RoundResult:
    """Play a first round in which one update is changed, or lost."""
    run = ServerRun(make_server, claim, seed)
    rng = np.random.default_rng([seed, 1])
    updates: dict[int, Update] = {}
    for participant in run.participants:
        drawn = rng.standard_normal(run.dimension)
        vector = BASE_NORM * run.clip_norm * drawn / np.linalg.norm(drawn)
        updates[participant] = run.update_of(vector)
    own = updates.pop(SENDER)
    if change is not None:
        updates[SENDER] = change(own)
    return run.play(updates, run.participants)


def _scaled(update: Update, factor: float) -> Update:
    return {name: np.asarray(factor * part, dtype=part.dtype) for name, part in update.items()}


def _difference(lost: RoundResult, result: RoundResult, claim: StepClaim) -> str | None:
    """Return how a malformed update changed what is released; None if it did not."""
    if lost.noisy_sum is None or result.noisy_sum is None:
        return None
    if not np.isfinite(result.noisy_sum).all():
        return "it makes the noisy sum NaN or infinite, for all participants"
    slack = rounding_slack(lost.noisy_sum, result.noisy_sum, 1, lost.clip_norm, claim.scale)
    moved = float(np.linalg.norm(result.noisy_sum - lost.noisy_sum)) - slack
    if moved <= NORM_ROUNDING * lost.clip_norm:
        return None
    if moved <= lost.clip_norm * (1 + NORM_ROUNDING):
        return None if SENDER in result.rejected else _accepted(moved / lost.clip_norm)
    return f"it moves the noisy sum by {moved / lost.clip_norm:.4g} clip norms"


def _accepted(moved: float) -> str:
    return f"it is accepted, and moves the noisy sum by {moved:.4g} clip norms"
