"""Whether what was spent, or will be, is at most some epsilon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from dpaudit.accountants.answers import ACCOUNTANTS, claim_of, epsilon_by
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, require_delta, require_positive
from dpaudit.vocabulary.ledger import LedgerHeader, Randomness
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.unit import Released, Unit
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
    unit: Unit = Unit.RECORD
    released: Released = Released.EVERY_STEP
    but: str = ""


@dataclass(frozen=True)
class Promise:
    """What a claim must say.

    Attributes:
        epsilon: Its upper bound may be this large, in nats.
        delta: At which it counts.
        accountant: Whose upper bound counts.
        unit: What neighbours must differ by.
        released: Which releases it must cover.
    """

    epsilon: float
    delta: float
    accountant: str
    unit: str
    released: str

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta("delta", self.delta)
        choices: tuple[tuple[str, str, Iterable[str]], ...] = (
            ("accountant", self.accountant, ACCOUNTANTS),
            ("unit", self.unit, Unit),
            ("released", self.released, Released),
        )
        for name, value, allowed in choices:
            if value not in list(allowed):
                raise InvalidArgument(name, value, f"one of {', '.join(allowed)}")


def why_not_at_most(spender: Spender, promise: Promise) -> str:
    """Return why not; empty: what was spent keeps ``promise``.

    Raises:
        InvalidArgument: an argument is out of range, or of no known kind.
        IntegrityError: a run is unfinished, or was altered.
    """
    delta = promise.delta
    spent = _spent(spender, promise)
    given = (
        f"{spent.what}, at most {at_most(spent.epsilon.upper)} at delta {delta:g} for one "
        f"{spent.unit.value} ({spent.released.value})"
    )
    allowed = f"at most {promise.epsilon:g} at delta {delta:g}"
    if spent.but:
        return told(spent.but, ("given", given), ("allowed", allowed))
    if spent.unit != promise.unit or not spent.released.covers(Released(promise.released)):
        demanded = f"{allowed} for one {promise.unit} ({promise.released})"
        return told("the claim is for something else", ("given", given), ("allowed", demanded))
    if spent.epsilon.upper <= promise.epsilon:
        return ""
    return told(
        "epsilon is above what is allowed",
        ("given", f"{given} ({promise.accountant})"),
        ("allowed", allowed),
        ("to do", "more noise, fewer steps or a lower sampling rate; dpaudit noise finds the "
         "noise, and dpaudit compare what changed between two runs"),
    )  # fmt: skip


def _spent(spender: Spender, promise: Promise) -> Spent:
    delta, accountant = promise.delta, promise.accountant
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
            # A mechanism does not say what neighbours differ by: its user does.
            return Spent(type(spender).__name__, answer.epsilon, Unit(promise.unit))
    raise InvalidArgument(
        "run", type(spender).__name__, "a run directory, a mechanism, or what make_private returns"
    )


def _of_run(run: RunDirectory, delta: float, accountant: str) -> Spent:
    claim = claim_of(run.read_finished(), delta, accountant)
    what = f"{run.path}: {claim.releases} releases, {claim.sampling.value} sampling"
    but = SEEDED if claim.randomness is Randomness.SEEDED else ""
    return Spent(what, claim.epsilon, claim.unit, claim.released, but)


def _of_steps(private: Steps, delta: float, accountant: str) -> Spent:
    if accountant != PRIVATE_ACCOUNTANT:
        allowed = f"{PRIVATE_ACCOUNTANT} for what make_private returns: finish the run for others"
        raise InvalidArgument("accountant", accountant, allowed)
    what, epsilon = f"{private.steps} private steps", private.epsilon(delta=delta)
    if private.header.randomness is Randomness.SEEDED:
        return Spent(what, epsilon, private.header.unit, but=SEEDED)
    but = "" if private.steps > 0 else "no step was taken: nothing was spent that could be tested"
    return Spent(what, epsilon, private.header.unit, but=but)
