"""The same step, with and without one record: the noisy sums differ by the clip norm at most.

Two trainers with one seed take the same steps, one of them on one record more. Until that
record joins, they do the same; the step that it joins shows what it adds. Past that step
the parameters differ, and nothing can be compared any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from scipy import stats

from dpaudit.attacks.conformance.blame import blame
from dpaudit.attacks.conformance.coverage import Coverage, Reach, check_coverage
from dpaudit.attacks.conformance.effort import Effort
from dpaudit.attacks.conformance.gradient_randomness import (
    REMEDY,
    gradient_randomness,
)
from dpaudit.attacks.conformance.late import check_later, last_tested, look_later
from dpaudit.attacks.conformance.pairs import FEW, Course, Pair, Replays
from dpaudit.attacks.conformance.probes import Probe
from dpaudit.attacks.conformance.search import Search
from dpaudit.attacks.conformance.stage import Stage, first_stage, late_stage, silent_stage
from dpaudit.attacks.conformance.trainers import Array, MakeTrainer, Record, seeds
from dpaudit.attacks.conformance.words import undecided
from dpaudit.vocabulary.conformance import Finding, StepClaim
from dpaudit.vocabulary.verdict import Outcome

CHECK = "replay"
TRIAL_SEEDS, REPLAY_SEEDS = 10, 11
SEARCHED, SEARCH_SEEDS, LATE_SHARE = "searched records", 50, 3
ADDED_IS_NOT_REPLACED = 3.0  # clip norms: what adds more than that replaces none by two or fewer
OPPOSED, OPPOSED_SEEDS, MOST_OPPOSED, MOST_TRIED = "opposed records", 20, 3, 30
TRIALS, TRIAL_STEPS = 40, 3
SURELY_NOT = 1e-6  # probability of a probe that joins so many first steps by its own coin
SAME_COSINE, SAME_RATIO, LEAST_COORDINATES = 0.5, 1.6, 16

NOTHING_SEEN = ""
NOTHING_OPPOSED = (
    "fewer than two different records moved the sum, so whether records are clipped together is "
    "not known: give more records by probes= or --probes FILE"
)
NEVER_JOINED = (
    "it never joined a step: take more steps, or name the records by step(include=indices)"
)
NOT_ALONE = "no step took it alone; of others, see the randomness of gradients"
NOT_THE_SAME = (
    "the same records and the same seed give another run, with the global generators of Python, "
    f"NumPy and torch seeded alike: set every seed; where a model drops out or augments, {REMEDY}"
)
INCLUSION_MOVES = (
    "which records join a step changes with the number of records: it must depend on the seed, "
    "the step and the record's index alone, or be given by step(include=indices)"
)
NOISE_MOVES = (
    "the noise changes with the records: it must depend on the seed and the step alone, drawn "
    "from a generator of its own"
)


@dataclass(frozen=True)
class Refused:
    """A probe that the trainer does not take, or that never joined."""

    probe: str
    why: str


def check_replay(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    probes: Sequence[Probe],
    effort: Effort,
    seed: int,
) -> list[Finding]:
    """Return whether one record more moves the noisy sum by the clip norm at most.

    Under replace-one adjacency, whether another record in its place moves it by twice that.
    """
    replays = Replays.of(make_trainer, claim, records, effort)
    tested = f"a step with and without one record, {replays.way}"
    reason = _why_not(replays, probes[0], seed)
    if reason:
        return [undecided(CHECK, "reproducible", tested, reason)]
    randomness = gradient_randomness(replays, seed)
    seen = list(_all(replays, probes, seed))
    seen += _opposed(replays, probes, _pairs_of(seen), seed)
    pairs = _pairs_of(seen)
    beyond = any(pair.others != 0 and not _excess(pair, claim) <= 0 for pair in pairs)
    shared = randomness.why or (randomness.suspected if beyond else "")
    kept = [pair for pair in pairs if pair.others == 0] if shared else pairs
    reason = _why_not_these(pairs, kept, probes[0])
    if reason:
        return [undecided(CHECK, "reproducible", tested, reason)]
    refused = {one.probe: one.why for one in seen if isinstance(one, Refused)}
    if not any(one.probe == OPPOSED for one in seen):
        refused[OPPOSED] = NOTHING_OPPOSED
    if shared:  # records among others: none of these steps can be compared
        refused[OPPOSED] = NOT_ALONE
        refused |= {p.name: NOT_ALONE for p in probes if not _has(kept, p.name)}
    names = [*(probe.name for probe in probes), OPPOSED]
    found = [_of_probe(name, kept, refused, claim, tested) for name in names]
    if shared:
        found.append(undecided(CHECK, "randomness of gradients", tested, shared))
    alone = bool(shared or randomness.suspected)
    return found + _clipping(replays, probes, kept, found, seed, tested, alone=alone)


def _has(pairs: Sequence[Pair], name: str) -> bool:
    return any(pair.probe == name for pair in pairs)


def _pairs_of(seen: Sequence[Pair | Refused]) -> list[Pair]:
    return [one for one in seen if isinstance(one, Pair)]


def _clipping(
    replays: Replays,
    probes: Sequence[Probe],
    pairs: Sequence[Pair],
    found: Sequence[Finding],
    seed: int,
    tested: str,
    *,
    alone: bool,
) -> list[Finding]:
    """Return whether clipping was tested; where it was not, search for records that test it.

    Where a record moved the sum further than it may, that is the answer.
    """
    if any(one.outcome is Outcome.VIOLATED and one.norm is not None for one in found):
        return []
    norm = replays.claim.clip_norm
    coverage = Coverage.of(Reach.of(pair, norm) for pair in pairs if pair.joined is not False)
    candidates, findings = _capped(probes, pairs, norm), list[Finding]()
    if not coverage.complete:
        searches = _searches(replays, probes, coverage, seed, alone=alone)
        coverage = searches[-1].coverage if searches else coverage
        findings = list(_searched(replays, probes, searches, seed, tested))
        if any(one.outcome is Outcome.VIOLATED for one in findings):
            return findings
        pairs = [*pairs, *(one.worst for one in searches if one.worst is not None)]
        candidates = candidates or _found(searches, norm)
    later = look_later(replays, candidates, seed, alone=alone)
    late = check_later(later, replays, CHECK, tested)
    if any(one.outcome is Outcome.VIOLATED for one in late):
        return [*findings, *late]
    until = last_tested(later, pairs, norm)
    return [*findings, *late, check_coverage(coverage, tested, CHECK, until)]


def _capped(probes: Sequence[Probe], pairs: Sequence[Pair], norm: float) -> list[Probe]:
    """Return the probes that moved the sum by the clip norm."""
    names = {pair.probe for pair in pairs if pair.joined is not False}
    capped = {pair.probe for pair in pairs if Reach.of(pair, norm).capped}
    return [probe for probe in probes if probe.name in names & capped]


def _found(searches: Sequence[Search], norm: float) -> list[Probe]:
    """Return the records that a search found to move the sum by the clip norm."""
    return [
        Probe(SEARCHED, one.worst_record)
        for one in searches
        if one.worst is not None
        and one.worst_record is not None
        and Reach.of(one.worst, norm).capped
    ]


def _searches(
    replays: Replays, probes: Sequence[Probe], coverage: Coverage, seed: int, *, alone: bool
) -> list[Search]:
    """Search near the first step, and where that is not enough after some more steps."""
    records = [*replays.records, *(probe.record for probe in probes[:1])]
    (one,) = seeds(seed, SEARCH_SEEDS, 1)
    searches: list[Search] = []
    left = replays.effort.search_steps
    quiet = _beside_nothing(replays, probes, records, one, seed)
    if quiet is not None and not (alone and not quiet.stage.alone):
        return [quiet]
    for find, share in ((first_stage, LATE_SHARE - 1), (late_stage, LATE_SHARE)):
        stage: Stage | None = find(replays, probes[0].record, seed)
        if stage is None or (alone and not stage.alone) or (searches and searches[-1].done):
            continue
        steps = left * share // LATE_SHARE
        search = Search(
            stage, replays.claim.clip_norm, records, np.random.default_rng(one), steps, coverage,
            ADDED_IS_NOT_REPLACED if replays.replaces and not stage.replaces else 1.0,
        )  # fmt: skip
        search.run(probes)
        coverage = search.coverage
        left -= steps - search.steps
        searches.append(search)
    return searches


def _beside_nothing(
    replays: Replays, probes: Sequence[Probe], records: Sequence[Record], one: int, seed: int
) -> Search | None:
    """Return a search in the place of a record that adds nothing; None: there is none.

    That the record adds nothing is assumed, and shown: else the movements of others, which point
    elsewhere, would not end at C, all of them.
    """
    stage = silent_stage(replays, probes[0].record, seed)
    if stage is None:
        return None
    search = Search(
        stage, replays.claim.clip_norm, records, np.random.default_rng(one),
        replays.effort.search_steps // LATE_SHARE, Coverage(),
    )  # fmt: skip
    search.run(probes)
    return search if search.done and not search.violated else None


def _searched(
    replays: Replays, probes: Sequence[Probe], searches: Sequence[Search], seed: int, tested: str
) -> Iterator[Finding]:
    """Judge the record that moved the sum the farthest.

    Under replace-one adjacency it is judged in another record's place: what it adds to a step
    is not limited by that claim.
    """
    found = [search for search in searches if search.worst is not None]
    if not found:
        return
    claim, tested = replays.claim, f"{tested}: {SEARCHED}; {sum(s.tried for s in found)} replays"
    best = max(found, key=lambda search: _movement(search.worst))
    if replays.replaces:
        probe = Probe(SEARCHED, best.worst_record or probes[0].record)
        pairs = _pairs_of(list(_all(replays, [probes[0], probe], seed)))
        yield _of_probe(SEARCHED, pairs, {}, claim, tested)
    elif best.worst is not None:
        yield _judged(SEARCHED, best.worst, claim, tested)


def _movement(pair: Pair | None) -> float:
    norm = 0.0 if pair is None else float(np.linalg.norm(pair.difference))
    return norm if np.isfinite(norm) else np.inf


def _all(replays: Replays, probes: Sequence[Probe], seed: int) -> Iterator[Pair | Refused]:
    for number, base in enumerate(replays.bases()):
        for one in seeds(seed, REPLAY_SEEDS + number, replays.effort.replays):
            without = replays.course(base, probes[0].record if replays.replaces else None, one)
            for probe in probes:
                yield _one(replays, without, base, probe, one)


def _opposed(
    replays: Replays, probes: Sequence[Probe], pairs: Sequence[Pair], seed: int
) -> list[Pair | Refused]:
    """Replay records among copies of others whose gradients point away from theirs.

    A sum of records that is clipped as a whole turns as far as they do: by more than the
    clip norm where they are more than 60 degrees apart.
    """
    found: list[Pair | Refused] = []
    orders = most_opposed(pairs, probes)
    for run in meetings(replays, probes[0], seed) if orders else []:
        for one, other in orders:
            base = (one.record,) * replays.copies
            without = replays.course(base, probes[0].record if replays.replaces else None, run)
            found.append(_one(replays, without, base, Probe(OPPOSED, other.record), run))
    return found


def meetings(replays: Replays, ordinary: Probe, seed: int) -> list[int]:
    """Return seeds under which a probe first joins a step that one copy of the base is in.

    Who joins does not depend on what the records are, so it is found out once for all.
    """
    tried = seeds(seed, OPPOSED_SEEDS, MOST_TRIED)
    met = (one for one in tried if replays.meets((ordinary.record,) * (replays.copies + 1), one))
    return list(islice(met, replays.effort.replays)) or tried[: replays.effort.replays]


def most_opposed(pairs: Sequence[Pair], probes: Sequence[Probe]) -> list[tuple[Probe, Probe]]:
    """Return the probes that moved the sum in the most different directions, both ways round."""
    unit = {}
    for pair in pairs:
        length = float(np.linalg.norm(pair.difference))
        if pair.joined is not False and 0 < length < np.inf:
            unit[pair.probe] = pair.difference / length
    known = [probe for probe in probes if probe.name in unit]
    ranked = sorted(combinations(known, 2), key=lambda two: unit[two[0].name] @ unit[two[1].name])
    return [order for two in ranked[:MOST_OPPOSED] for order in (two, two[::-1])]


def _one(
    replays: Replays, without: Course, base: Sequence[Record], probe: Probe, seed: int
) -> Pair | Refused:
    try:
        with_probe = replays.course(base, probe.record, seed)
        pair = replays.first_difference(without, with_probe, probe.name)
    except Exception as error:  # whatever a trainer does with a record that it does not take
        return Refused(probe.name, f"the trainer stops at it ({type(error).__name__}: {error})")
    return pair or Refused(probe.name, NOTHING_SEEN)


def _of_probe(
    name: str,
    pairs: Sequence[Pair],
    refused: dict[str, str],
    claim: StepClaim,
    tested: str,
) -> Finding:
    tested = f"{tested}: {name}"
    if refused.get(name):
        return undecided(CHECK, name, tested, refused[name])
    own = [pair for pair in pairs if pair.probe == name]
    if any(not np.isfinite(pair.without).all() for pair in own):
        return undecided(CHECK, name, tested, "the sum is not finite even without the record")
    # NaN counts as the worst: it is above every limit.
    worst = max(own, key=lambda pair: _excess(pair, claim), default=None)
    if worst is None:
        # Who joins does not depend on what a record is: where others moved the sum, it joined.
        joined = any(pair.joined is None for pair in pairs)
        return _unmoved(name, tested) if joined else undecided(CHECK, name, tested, NEVER_JOINED)
    return _judged(name, worst, claim, f"{tested}; {len(own)} replays")


def _judged(name: str, worst: Pair, claim: StepClaim, tested: str) -> Finding:
    """Return whether a record moved the sum further than it may."""
    norm, limit = float(np.linalg.norm(worst.difference)), _limit(worst, claim)
    holds = norm <= limit
    why = f"one record moved the sum by {norm / claim.clip_norm:.6g} C at most"
    return Finding(
        check=CHECK,
        name=name,
        outcome=Outcome.HOLDS if holds else Outcome.VIOLATED,
        tested=tested,
        why=why if holds else blame(worst, claim.clip_norm, limit),
        power=_power(norm, limit, worst, claim),
        norm=norm / claim.clip_norm if np.isfinite(norm) else None,
        limit=limit / claim.clip_norm,
        detectable=limit / claim.clip_norm,
    )


def _power(norm: float, limit: float, worst: Pair, claim: StepClaim) -> str:
    seen = f"anything above {limit / claim.clip_norm:.6g} C would be seen"
    if worst.joined is False or norm > limit or Reach.of(worst, claim.clip_norm).capped:
        return seen
    return f"{seen}; this record does not reach the clip norm, so it shows nothing of clipping"


def _unmoved(name: str, tested: str) -> Finding:
    return Finding(
        check=CHECK,
        name=name,
        outcome=Outcome.HOLDS,
        tested=tested,
        why="the record adds nothing to the sum",
        power="anything above rounding would be seen; it shows nothing of clipping",
        norm=0.0,
        limit=1.0,
    )


def _limit(pair: Pair, claim: StepClaim) -> float:
    """Return the largest norm that is allowed: nothing, if the probe was not even drawn."""
    return pair.slack if pair.joined is False else pair.allowed(claim.clip_norm)


def _excess(pair: Pair, claim: StepClaim) -> float:
    excess = float(np.linalg.norm(pair.difference)) - _limit(pair, claim)
    return excess if np.isfinite(excess) else np.inf


def _why_not(replays: Replays, ordinary: Probe, seed: int) -> str:
    """Return why this trainer cannot be replayed; empty: nothing yet says so."""
    first, *others = seeds(seed, TRIAL_SEEDS, TRIALS + 1)
    once, again = (np.array(_few_steps(replays, first)) for _ in range(2))
    if not np.array_equal(once, again, equal_nan=True):
        return NOT_THE_SAME
    trial = _first_step(replays, ordinary, others[0])
    if replays.included or trial.sampled is not None:
        return ""
    # Who is in is not said: it must be found out, by how often the first steps differ.
    trials = [trial, *(_first_step(replays, ordinary, one) for one in others[1:])]
    apart = [pair for pair in trials if pair.moved]
    if _other_noise(apart, always=len(apart) == len(trials)):
        return NOISE_MOVES
    return _why_inclusion_moves(apart, trials, replays)


def _why_not_these(pairs: Sequence[Pair], kept: Sequence[Pair], ordinary: Probe) -> str:
    """Return what replays that differ show of the trainer: others drawn, or other noise.

    Args:
        pairs: All of them.
        kept: Those whose gradients can be compared.
        ordinary: The probe that has nothing special.
    """
    if not all(pair.same_others for pair in pairs if pair.moved):
        return INCLUSION_MOVES
    moved = [pair for pair in kept if pair.moved]
    own = [pair for pair in moved if pair.probe == ordinary.name]
    not_drawn = [pair for pair in moved if pair.joined is False]
    return NOISE_MOVES if _other_noise(own, always=len(not_drawn) == len(moved)) else ""


def _few_steps(replays: Replays, seed: int) -> list[Array]:
    course = replays.course(replays.records[:FEW], None, seed)
    return [course.at(step)[0] for step in range(TRIAL_STEPS)]


def _first_step(replays: Replays, probe: Probe, seed: int) -> Pair:
    base = replays.bases()[-1]  # the largest: where others may join in its place, they do
    without, more = replays.course(base, None, seed), replays.course(base, probe.record, seed)
    return replays.pair(without, more, probe.name, 0)


def _other_noise(apart: Sequence[Pair], *, always: bool) -> bool:
    """Return whether sums that differ do so as sums with other noise do.

    Two sums with the same noise are alike; those with other noise are as long, and point
    elsewhere. A record that is not clipped may turn a sum too, but makes it longer. On few
    coordinates that is only said where sums differ ``always``, whoever is in.
    """
    if len(apart) < 2 or not all(_points_elsewhere(pair) for pair in apart):
        return False
    return always or apart[0].without.size >= LEAST_COORDINATES


def _points_elsewhere(pair: Pair) -> bool:
    one, other = (float(np.linalg.norm(each)) for each in (pair.without, pair.with_probe))
    if not (0 < one < np.inf and 0 < other < np.inf):
        return False
    cosine = float(pair.without @ pair.with_probe) / (one * other)
    return cosine < SAME_COSINE and 1 / SAME_RATIO < other / one < SAME_RATIO


def _why_inclusion_moves(apart: Sequence[Pair], trials: Sequence[Pair], replays: Replays) -> str:
    """Tell who joins by chance from who is joined by everyone, where it is not said who is in.

    A factor on the whole sum is no change of who is in: it is left to the replays.
    """
    rate = replays.claim.sampling_rate
    if not stats.binom.sf(len(apart) - 1, len(trials), rate) <= SURELY_NOT:
        return ""
    return "" if all(_only_longer(pair) for pair in apart) else INCLUSION_MOVES


def _only_longer(pair: Pair) -> bool:
    one, other = (float(np.linalg.norm(each)) for each in (pair.without, pair.with_probe))
    return one > 0 and float(pair.without @ pair.with_probe) > (1 - 1e-3) * one * other
