"""delta(epsilon) and epsilon(delta) of a mechanism: chooses the form that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from dpaudit.accountants import gaussian, rdp
from dpaudit.accountants.pld import one_release, solve, solve_delta
from dpaudit.accountants.pld.answer import Answer, worst
from dpaudit.accountants.pld.compose import Question, Role
from dpaudit.accountants.pld.cumulants import Ledger
from dpaudit.accountants.pld.losses import Way
from dpaudit.accountants.pld.two_answers import two_answers_of
from dpaudit.accountants.releases import (
    Releases,
    count_releases,
    require_meaning,
    shift_over_noise,
)
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, Unresolvable, require_delta
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    Repeated,
    TruncatedPoisson,
)

# Sampled without a record being replaced, the two directions differ.
ONE_SIDED = (PoissonSampled, TruncatedPoisson, RandomAllocation)
NUDGE = 1 + 1e-12
UNSAMPLED = "the same without sampling"
TRUNCATION_ROUNDS = 40


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> PldProfile:
    """Return the privacy profile of ``mechanism``.

    Args:
        mechanism: A release or a composition whose schedule was fixed in advance.
        adjacency: Which data sets are neighbours.

    Raises:
        UnsupportedMechanism: a part has no worst pair of laws under ``adjacency``.
    """
    releases = count_releases(mechanism)
    require_meaning(releases, adjacency)
    return PldProfile(releases, adjacency)


@dataclass(frozen=True)
class PldProfile:
    """The worst delta(epsilon) over both directions of a neighbouring pair."""

    releases: Releases
    adjacency: Adjacency

    def __post_init__(self) -> None:
        # Refuses what has no pair before anything is asked of it.
        with suppress(Unresolvable):
            Question(self.releases, self.adjacency, Way.REMOVED, Role.ABOVE).ledger(1e-5)

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of the least epsilon at ``delta``, ``1e-300 <= delta < 1``.

        Raises:
            InvalidArgument: ``delta`` is out of range.
            Unresolvable: nothing can be certified here.
        """
        return worst(self._epsilons(delta, _largest_lower))

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of the least delta at ``epsilon``, finite and at least 0.

        Raises:
            InvalidArgument: ``epsilon`` is out of range.
            Unresolvable: nothing can be certified here.
        """
        return worst(self.explain_delta(epsilon=epsilon))

    def explain_epsilon(self, *, delta: float) -> tuple[Answer, ...]:
        """Return the interval of each direction, how it was come by, and its error budget."""
        return self._epsilons(delta, lambda answers: 0.0)

    def _epsilons(
        self, delta: float, enough: Callable[[Sequence[Answer]], float]
    ) -> tuple[Answer, ...]:
        """Ask both directions; ``enough`` says what further answers may be as large as."""
        require_delta("delta", delta)
        if (mu := self._gaussian_mu()) is not None:
            return (Answer.closed(gaussian.epsilon(delta, mu=mu), "one Gaussian, closed form"),)
        if (pair := two_answers_of(self.releases)) is not None:
            return (Answer.closed(pair.epsilon(delta), "binomial sum"),)
        if self._ever_joins() <= delta:
            return (Answer.closed(Bound(0.0, 0.0), "the record hardly ever takes part"),)
        answers: list[Answer] = []
        for way in self._ways():
            ask = partial(_epsilon_altered, delta=delta, enough=enough(answers))
            answers.append(self._answer(way, ask))
        renyi = self._renyi()
        most = math.inf if renyi is None else renyi.epsilon(delta=delta).upper
        return tuple(answer.at_most(most) for answer in answers)

    def explain_delta(self, *, epsilon: float) -> tuple[Answer, ...]:
        """Return the interval of each direction, how it was come by, and its error budget."""
        if not 0 <= epsilon < math.inf:
            raise InvalidArgument("epsilon", epsilon, "at least 0 and finite")
        if (mu := self._gaussian_mu()) is not None:
            return (Answer.closed(gaussian.delta(epsilon, mu=mu), "one Gaussian, closed form"),)
        if (pair := two_answers_of(self.releases)) is not None:
            return (Answer.closed(pair.delta(epsilon), "binomial sum"),)
        ask = partial(_delta_altered, epsilon=epsilon)
        ways = (self._answer(way, ask) for way in self._ways())
        return tuple(answer.at_most(self._ever_joins()) for answer in ways)

    def _gaussian_mu(self) -> float | None:
        if all(isinstance(release, Gaussian) for release in self.releases):
            shifts = (
                math.sqrt(times) * shift_over_noise(release, self.adjacency)
                for release, times in self.releases.items()
                if isinstance(release, Gaussian)
            )
            return math.hypot(*shifts)
        return None

    def _ever_joins(self) -> float:
        """Return at least the probability that a record takes part in anything at all.

        Where it does not, both neighbours give the same outputs: (0, that)-DP.
        """
        rates = (
            times * (release.sampling_rate if isinstance(release, PoissonSampled) else 1.0)
            for release, times in self.releases.items()
        )
        return min(1.0, sum(rates) * NUDGE)

    def _ways(self) -> tuple[Way, ...]:
        if any(isinstance(release, ONE_SIDED) for release in self.releases):
            return Way.REMOVED, Way.ADDED
        return (Way.REMOVED,)  # every other pair is its own mirror image

    def _answer(self, way: Way, ask: Ask) -> Answer:
        """Ask for the upper end, and anew for the lower one where other laws attain it."""
        above = Question(self.releases, self.adjacency, way, Role.ABOVE)
        answer = ask(above)
        if not above.exact:
            below = ask(Question(self.releases, self.adjacency, way, Role.BELOW))
            answer = answer.with_lower(below)
        return replace(answer, direction=way.name.lower() if len(self._ways()) > 1 else "")

    def _renyi(self) -> rdp.RdpProfile | None:
        """Where no worst pair of a pass is known, Renyi divergences may know more."""
        if any(isinstance(release, RandomAllocation) for release in self.releases):
            parts = tuple(Repeated(release, times) for release, times in self.releases.items())
            return rdp.profile(Composed(parts), adjacency=self.adjacency)
        return None


Ask = Callable[[Question], Answer]


def _largest_lower(answers: Sequence[Answer]) -> float:
    return max((answer.lower for answer in answers), default=0.0)


def _epsilon(question: Question, delta: float, enough: float = 0.0) -> Answer:
    """Answer; an upper end of at most ``enough`` need not be any narrower."""
    try:
        return _epsilon_resolved(question, delta, enough)
    except Unresolvable:
        if (mu := question.unsampled) is None:
            raise
        return Answer(0.0, gaussian.epsilon(delta, mu=mu).upper, UNSAMPLED)


def _delta(question: Question, epsilon: float) -> Answer:
    try:
        return _delta_resolved(question, epsilon)
    except Unresolvable:
        if (mu := question.unsampled) is None:
            raise
        return Answer(0.0, gaussian.delta(epsilon, mu=mu).upper, UNSAMPLED)


def _epsilon_resolved(question: Question, delta: float, enough: float) -> Answer:
    ledger = question.ledger(delta)
    if ledger.infinite / NUDGE > delta:
        raise Unresolvable(
            f"no epsilon is enough: with probability {ledger.infinite:g} the output tells all, "
            f"which is more than delta {delta:g}; ask for a larger delta"
        )
    match ledger:
        case Ledger(laws=((law, 1),), gaussian=0.0):
            return one_release.epsilon(law, delta)
        case Ledger(laws=()):
            found = gaussian.epsilon(delta, mu=math.sqrt(ledger.gaussian))
            return Answer.closed(found, "one Gaussian, closed form")
        case _:
            return solve.epsilon(ledger, delta, enough)


def _delta_resolved(question: Question, epsilon: float) -> Answer:
    ledger = question.ledger(1e-30)
    match ledger:
        case Ledger(laws=((_, 1),), gaussian=0.0):
            rough = one_release.delta(ledger.laws[0][0], epsilon).upper
            law = question.ledger(max(rough, 1e-290)).laws[0][0]
            return one_release.delta(law, epsilon)
        case Ledger(laws=()):
            found = gaussian.delta(epsilon, mu=math.sqrt(ledger.gaussian))
            return Answer.closed(found, "one Gaussian, closed form")
        case _:
            return solve_delta.delta(question.ledger, epsilon)


def _epsilon_altered(question: Question, delta: float, enough: float) -> Answer:
    """Steps that were altered with probability t in all add t (1 + e^epsilon) to delta.

    So epsilon is enough if the unaltered steps have it at delta - t (1 + e^epsilon).

    Raises:
        Unresolvable: batches are cut too often for this delta.
    """
    altered = question.altered
    if not altered:
        return _epsilon(question, delta, enough)
    answer = _epsilon(question, delta)
    for _ in range(TRUNCATION_ROUNDS):
        upper = answer.upper * NUDGE
        left = delta - altered * (1 + math.exp(min(upper, 700.0))) * NUDGE
        if not left > 0:
            break
        answer = _epsilon(question, left)
        if answer.upper <= upper:
            more = altered * (1 + math.exp(upper)) * NUDGE
            below = _epsilon(question, min(delta + more, 0.5))
            lower = below.lower if delta + more < 0.5 else 0.0
            return replace(answer, lower=min(lower, upper), upper=upper)
    raise Unresolvable(
        f"batches are cut with probability {altered:g} over the run, too often for delta "
        f"{delta:g}: raise largest_batch"
    )


def _delta_altered(question: Question, epsilon: float) -> Answer:
    answer = _delta(question, epsilon)
    more = question.altered * (1 + math.exp(min(epsilon, 700.0))) * NUDGE
    lower, upper = max(0.0, answer.lower - more), min(1.0, answer.upper + more)
    return replace(answer, lower=lower, upper=upper)
