"""Planted updates: one participant moves the noisy sum by at most the clip norm.

Two servers under one seed take the same rounds, but for the reply of one participant in the last
round. The noise is the same, so the difference of the sums is what that reply adds, up to rounding.
The reply is a planted update of 100 clip norms. It is compared with a negligible one, and with no
reply at all. Rounds without dropouts and with dropouts are compared, the first and later ones.

A server that divides by the number of replies passes the first comparison while all reply. It
fails once replies are lost, since each remaining one then counts more. It fails the comparison
with no reply at once: whether one participant is there changes what all others add.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpaudit.attacks.conformance.federated.reply_patterns import ALL, HALF, ONE, ReplyPattern
from dpaudit.attacks.conformance.federated.server_protocol import (
    MakeServer,
    RoundResult,
    ServerRun,
)
from dpaudit.attacks.conformance.paired_replays import ReplayPair, explain, rounding_slack
from dpaudit.attacks.conformance.statistical_tests import inconclusive_finding
from dpaudit.attacks.conformance.trainer_protocol import Array, derive_seeds
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome

CHECK = "replay"
PLANTED_SEEDS = 70
PLANTED_NORM = 100.0  # clip norms
BASE_NORM, NEGLIGIBLE_NORM = 0.5, 1e-6  # clip norms of the other updates; of one that adds nothing
REACHED = 0.99  # clip norms that a planted update must move the sum by, or clipping is not tested
LATER_ROUNDS = (2, 5)
MOST_PROBED = 3  # participants whose updates have every direction; the others have one
MOST_PARTICIPANTS = 64
REPLIES_TOLERANCE = 1e-3  # relative: a movement this close to W over the replies is that


@dataclass(frozen=True)
class Comparison:
    """Two rounds that differ by the reply of one participant.

    Attributes:
        participant: The participant.
        direction: Name of the planted update.
        pattern: The replies of the round.
        number: Number of the round, from 0.
        without: The round with a negligible reply, or without a reply.
        planted: The round with the planted update.
        replaced: Whether ``without`` has a reply of the participant.
        groups: Slices of the parameters, by name.
        scale: The claim's ``update_scale``.
        participants: Public number of participants.
    """

    participant: int
    direction: str
    pattern: ReplyPattern
    number: int
    without: RoundResult
    planted: RoundResult
    replaced: bool
    groups: Mapping[str, slice] = field(default_factory=dict)
    scale: float = 1.0
    participants: int = 0

    @property
    def pair(self) -> ReplayPair | None:
        """Both noisy sums over the round's clip norm; None if a round released nothing."""
        if self.without.noisy_sum is None or self.planted.noisy_sum is None:
            return None
        norm = self.planted.clip_norm
        one, other = self.without.noisy_sum / norm, self.planted.noisy_sum / norm
        replies = 1 + len(self.groups)
        slack = rounding_slack(one, other, replies, 1.0, self.scale * norm)
        slack += NEGLIGIBLE_NORM * self.replaced
        return ReplayPair(
            self.direction, self.participant, self.number, one, other, None, slack,
            dict(self.groups),
        )  # fmt: skip

    @property
    def where(self) -> str:
        """The place of the comparison, for the report."""
        return (
            f"participant {self.participant}, {self.direction}, round {self.number}, "
            f"{self.pattern.name}"
        )


def check_planted_updates(
    make_server: MakeServer, claim: StepClaim, seed: int
) -> list[ConformanceFinding]:
    """Test that a planted update moves the noisy sum by at most the clip norm.

    Args:
        make_server: Makes the server.
        claim: The claim on each round.
        seed: Seed of the audit.

    Returns:
        Findings for updates while all reply, after dropouts, and, under add-or-remove-one
        adjacency, for a participant that is not there. A single INCONCLUSIVE finding if two runs
        of the same rounds differ.
    """
    (one,) = derive_seeds(seed, PLANTED_SEEDS, 1)
    tested = f"the sum with a planted update of {PLANTED_NORM:g} clip norms"
    planter = _Planter(make_server, claim, one)
    reason = planter.why_not_replayable()
    if reason:
        return [inconclusive_finding(CHECK, "reproducible", tested, reason)]
    found = list(planter.comparisons())
    replaced = [comparison for comparison in found if comparison.replaced]
    whole = [comparison for comparison in replaced if comparison.pattern is ALL]
    fewer = [comparison for comparison in replaced if comparison.pattern is not ALL]
    absent = [comparison for comparison in found if not comparison.replaced]
    beside = "against a negligible one"
    findings = [
        _finding("planted updates", f"{tested} {beside}", whole),
        _finding("planted updates after dropouts", f"{tested} {beside}, replies lost", fewer),
    ]
    if claim.adjacency is Adjacency.ADD_OR_REMOVE_ONE:
        findings.append(_finding("absent participants", f"{tested} against no reply", absent))
    return findings


class _Planter:
    """Plays the participants of pairs of servers under one seed."""

    def __init__(self, make_server: MakeServer, claim: StepClaim, seed: int) -> None:
        self._make_server, self._claim, self._seed = make_server, claim, seed
        run = ServerRun(make_server, claim, seed)
        self._participants, self._dimension, self._groups = (
            run.participants, run.dimension, run.groups,
        )  # fmt: skip
        rng = np.random.default_rng([seed, 0])
        self._base = np.array([_unit(rng, self._dimension) for _ in self._participants])
        self._planted = dict(self._planted_updates(rng))

    def why_not_replayable(self) -> str:
        """Return why two runs of the same rounds cannot be compared; empty if they can be."""
        pairs = [self._round(0, ALL, 0, self._others(0, ALL), {}) for _ in range(2)]
        one, other = (result.noisy_sum for result in pairs)
        if one is None or other is None:
            return f"the first round, to which all participants reply, failed: {pairs[0].ending}"
        if not np.array_equal(one, other):
            return (
                "the same seed and the same updates give another sum, although the global "
                "generators of Python, NumPy and torch have the same seeds: set every seed"
            )
        return ""

    def comparisons(self) -> Iterator[Comparison]:
        """Yield all pairs of rounds."""
        probed = set(np.linspace(0, len(self._participants) - 1, MOST_PROBED).round().astype(int))
        numbers = [0, *(number for number in LATER_ROUNDS if number < self._claim.steps)]
        for participant in self._participants[:MOST_PARTICIPANTS]:
            everywhere = participant in probed
            patterns = (ALL, HALF, ONE) if everywhere else (ALL,)
            names = list(self._planted) if everywhere else list(self._planted)[:1]
            for number in numbers if everywhere else numbers[:1]:
                for pattern in patterns:
                    yield from self._compared(participant, number, pattern, names)

    def _compared(
        self, participant: int, number: int, pattern: ReplyPattern, names: Sequence[str]
    ) -> Iterator[Comparison]:
        others = self._others(participant, pattern)
        nothing = {participant: NEGLIGIBLE_NORM * self._base[participant]}
        rest = [other for other in others if other != participant]
        given = {other: others[other] for other in rest}
        negligible = self._round(number, pattern, participant, given, nothing)
        absent = self._round(number, pattern, participant, given, {})
        for name in names:
            update = {participant: self._planted[name]}
            planted = self._round(number, pattern, participant, given, update)
            for without, replaced in ((negligible, True), (absent, False)):
                yield Comparison(
                    participant, name, pattern, number, without, planted, replaced,
                    self._groups, self._claim.scale, len(self._participants),
                )  # fmt: skip

    def _round(
        self,
        number: int,
        pattern: ReplyPattern,
        participant: int,
        others: Mapping[int, Array],
        own: Mapping[int, Array],
    ) -> RoundResult:
        """Play all rounds up to ``number``; the replies of the earlier ones are all the base's."""
        run = ServerRun(self._make_server, self._claim, self._seed)
        every = dict(enumerate(BASE_NORM * run.clip_norm * self._base))
        for _ in range(number):
            run.play({i: run.update_of(u) for i, u in every.items()}, self._participants)
        norm = run.clip_norm
        replies = {**others, **own}
        expected = [
            one
            for one in self._participants
            if one != participant or own or self._claim.adjacency is Adjacency.REPLACE_ONE
        ]
        planted = {i: run.update_of(norm * u) for i, u in sorted(replies.items())}
        return run.play(planted, expected)

    def _others(self, participant: int, pattern: ReplyPattern) -> dict[int, Array]:
        """Return the updates of all repliers, over the clip norm."""
        repliers = pattern.repliers(self._participants, participant)
        return {one: BASE_NORM * self._base[one] for one in repliers}

    def _planted_updates(self, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
        """Yield updates in clip norms: at random, along the others, one coordinate, each group."""
        yield "a random direction", PLANTED_NORM * _unit(rng, self._dimension)
        yield "a random direction at 2 clip norms", 2.0 * _unit(rng, self._dimension)
        total = self._base.sum(axis=0)
        along = PLANTED_NORM * total / np.linalg.norm(total)
        yield "the direction of the other updates", along
        yield "the direction against the other updates", -along
        single = np.zeros(self._dimension)
        single[-1] = PLANTED_NORM
        yield "the last coordinate", single
        for name, own in self._groups.items():
            part = np.zeros(self._dimension)
            part[own] = PLANTED_NORM * _unit(rng, own.stop - own.start)
            yield f"parameter {name}", part


def _unit(rng: np.random.Generator, size: int) -> Array:
    """Return a uniformly random direction."""
    drawn = rng.standard_normal(size)
    return np.asarray(drawn / np.linalg.norm(drawn))


def _finding(name: str, tested: str, found: Sequence[Comparison]) -> ConformanceFinding:
    """Report the pair of rounds whose sums differ most, beyond what is allowed."""
    failed = [one for one in found if one.planted.error is not None]
    if failed and len(failed) == len(found):
        why = f"every planted update was refused: {failed[0].planted.ending}"
        return inconclusive_finding(CHECK, name, tested, why)
    pairs = [(one, pair) for one in found if (pair := one.pair) is not None]
    if not pairs and found and all(one.pattern is not ALL for one in found):
        return ConformanceFinding(
            check=CHECK, name=name, outcome=Outcome.PASS, tested=tested,
            why="nothing is released in a round whose replies are lost",
            power="exact for these rounds",
        )  # fmt: skip
    if not pairs:
        why = "no round with a planted update and the same round without it were both released"
        return inconclusive_finding(CHECK, name, tested, why)
    largest = max(_excess(one) for _, one in pairs)
    # The first of the about equal ones: a random direction shows more than a single parameter.
    worst, pair = next(both for both in pairs if _excess(both[1]) >= min(largest, 0.9 * largest))
    norm, limit = float(np.linalg.norm(pair.difference)), pair.allowed(1.0)
    reached = max(float(np.linalg.norm(one.difference)) for _, one in pairs)
    tested = f"{tested}: {len(pairs)} pairs of rounds"
    outcome = Outcome.PASS if norm <= limit else Outcome.FAIL
    why = f"an update moved the sum by at most {norm:.4g} C; {worst.where}"
    if outcome is Outcome.FAIL:
        why = f"one update exceeds the clip norm C: {_why(pair, worst)}; {worst.where}"
    elif not reached >= REACHED:
        outcome = Outcome.INCONCLUSIVE
        why = (
            f"no planted update moved the sum by {REACHED:g} C, so clipping was not tested: the "
            f"largest movement is {reached:.3g} C"
        )
    return ConformanceFinding(
        check=CHECK, name=name, outcome=outcome, tested=tested, why=why,
        power="exact for these updates, up to rounding; other updates are not tested",
        norm=norm if np.isfinite(norm) else None,
        limit=limit,
    )  # fmt: skip


def _excess(pair: ReplayPair) -> float:
    """Return by how much a difference exceeds what is allowed; infinite for NaN."""
    excess = float(np.linalg.norm(pair.difference)) - pair.allowed(1.0)
    return np.inf if np.isnan(excess) else excess


def _why(pair: ReplayPair, comparison: Comparison) -> str:
    """Explain a movement that exceeds the clip norm."""
    norm = float(np.linalg.norm(pair.difference))
    counted = comparison.participants / comparison.pattern.replies(comparison.participants)
    if comparison.replaced and counted > 1 and abs(norm / counted - 1) < REPLIES_TOLERANCE:
        return (
            f"it moved the sum by {norm:.4g} C, as if the sum were divided by the number of "
            f"replies: this needs {norm:.4g} times the noise"
        )
    said = explain(pair, 1.0, pair.allowed(1.0)).replace("one record", "one update")
    return said.replace("(its copies are clipped separately, or several ranks include it)", "")
