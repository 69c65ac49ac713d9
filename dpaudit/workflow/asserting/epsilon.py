"""Whether what was spent, or will be, is at most some epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from dpaudit.accountants.answers import ACCOUNTANTS, claim_of, epsilon_by
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, require_delta, require_positive
from dpaudit.vocabulary.ledger import LedgerHeader, Randomness
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.workflow.asserting.words import at_most, told

PRIVATE_ACCOUNTANT = "pld"
SEEDED = (
    "the run's noise comes from a seed: whoever knows it knows the noise, and nothing is "
    "claimed (train without a seed)"
)


@runtime_checkable
class Steps(Protocol):
    """What ``make_private`` returns, as it is read here: no torch is imported to know it."""

    steps: int
    header: LedgerHeader

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of what was spent so far."""


Spender = str | Path | RunDirectory | Mechanism | Steps


class Spent(NamedTuple):
    """What was spent; ``but`` says why it does not count, if it does not."""

    what: str
    epsilon: Bound
    but: str = ""


def why_not_at_most(spender: Spender, epsilon: float, delta: float, accountant: str) -> str:
    """Return why not; empty: the upper end of what was spent is at most ``epsilon``.

    Raises:
        InvalidArgument: an argument is out of range, or of no known kind.
        IntegrityError: a run is unfinished, or was altered.
    """
    require_positive("epsilon", epsilon)
    require_delta("delta", delta)
    if accountant not in ACCOUNTANTS:
        raise InvalidArgument("accountant", accountant, f"one of {', '.join(ACCOUNTANTS)}")
    spent = _spent(spender, delta, accountant)
    given = f"{spent.what}, at most {at_most(spent.epsilon.upper)} at delta {delta:g}"
    if spent.but:
        return told(spent.but, ("given", given), ("allowed", f"at most {epsilon:g}"))
    if spent.epsilon.upper <= epsilon:
        return ""
    return told(
        "epsilon is above what is allowed",
        ("given", f"{given} ({accountant})"),
        ("allowed", f"at most {epsilon:g} at delta {delta:g}"),
        ("to do", "more noise, fewer steps or a lower sampling rate; dpaudit noise finds the "
         "noise, and dpaudit compare what changed between two runs"),
    )  # fmt: skip


def _spent(spender: Spender, delta: float, accountant: str) -> Spent:
    match spender:
        case str() | Path():
            return _of_run(open_run(Path(spender)), delta, accountant)
        case RunDirectory():
            return _of_run(spender, delta, accountant)
        case Steps():
            return _of_steps(spender, delta, accountant)
        case _ if isinstance(spender, Mechanism):
            adjacency = Adjacency.ADD_OR_REMOVE_ONE
            answer = epsilon_by(accountant, spender, delta, adjacency, None)
            return Spent(type(spender).__name__, answer.epsilon)
    raise InvalidArgument(
        "run", type(spender).__name__, "a run directory, a mechanism, or what make_private returns"
    )


def _of_run(run: RunDirectory, delta: float, accountant: str) -> Spent:
    claim = claim_of(run.read_finished(), delta, accountant)
    what = f"{run.path}: {claim.releases} releases, {claim.sampling.value} sampling"
    but = SEEDED if claim.randomness is Randomness.SEEDED else ""
    return Spent(what, claim.epsilon, but)


def _of_steps(private: Steps, delta: float, accountant: str) -> Spent:
    if accountant != PRIVATE_ACCOUNTANT:
        allowed = f"{PRIVATE_ACCOUNTANT} for what make_private returns: finish the run for others"
        raise InvalidArgument("accountant", accountant, allowed)
    what, epsilon = f"{private.steps} private steps", private.epsilon(delta=delta)
    if private.header.randomness is Randomness.SEEDED:
        return Spent(what, epsilon, SEEDED)
    but = "" if private.steps > 0 else "no step was taken: nothing was spent that could be tested"
    return Spent(what, epsilon, but)
