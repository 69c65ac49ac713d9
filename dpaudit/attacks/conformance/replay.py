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
from dpaudit.attacks.conformance.effort import Effort
from dpaudit.attacks.conformance.pairs import FEW, Course, Pair, Replays
from dpaudit.attacks.conformance.probes import Probe
from dpaudit.attacks.conformance.rounding import RELATIVE
from dpaudit.attacks.conformance.trainers import Array, MakeTrainer, Record, seeds
from dpaudit.attacks.conformance.words import undecided
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.conformance import Finding, StepClaim
from dpaudit.vocabulary.verdict import Outcome

CHECK = "replay"
TRIAL_SEEDS, REPLAY_SEEDS = 10, 11
OPPOSED, OPPOSED_SEEDS, MOST_OPPOSED, MOST_TRIED = "opposed records", 20, 3, 30
TRIALS, TRIAL_STEPS = 40, 3
SURELY_NOT = 1e-6  # probability of a probe that joins so many first steps by its own coin
SAME_COSINE, SAME_RATIO, LEAST_COORDINATES = 0.5, 1.6, 16

NOTHING_SEEN = ""
NEVER_JOINED = (
    "it never joined a step: take more steps, or name the records by step(include=indices)"
)
NOT_THE_SAME = "the same records and the same seed give another run: set every seed"
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
    seen = [] if reason else list(_all(replays, probes, seed))
    pairs = [one for one in seen if isinstance(one, Pair)]
    seen += _opposed(replays, probes, pairs, seed)
    pairs = [one for one in seen if isinstance(one, Pair)]
    reason = reason or _why_not_these([pair for pair in pairs if pair.moved], probes[0])
    if reason:
        return [undecided(CHECK, "reproducible", tested, reason)]
    refused = {one.probe: one.why for one in seen if isinstance(one, Refused)}
    names = [*(probe.name for probe in probes), OPPOSED]
    return [_of_probe(name, pairs, refused, claim, tested) for name in names]


def _all(replays: Replays, probes: Sequence[Probe], seed: int) -> Iterator[Pair | Refused]:
    replaces = replays.claim.adjacency is Adjacency.REPLACE_ONE
    for number, base in enumerate(replays.bases()):
        for one in seeds(seed, REPLAY_SEEDS + number, replays.effort.replays):
            without = replays.course((*base, probes[0].record) if replaces else base, one)
            for probe in probes:
                yield _one(replays, without, (*base, probe.record), probe.name, one)


def _opposed(
    replays: Replays, probes: Sequence[Probe], pairs: Sequence[Pair], seed: int
) -> list[Pair | Refused]:
    """Replay records among copies of others whose gradients point away from theirs.

    A sum of records that is clipped as a whole turns as far as they do: by more than the
    clip norm where they are more than 60 degrees apart.
    """
    replaces = replays.claim.adjacency is Adjacency.REPLACE_ONE
    found: list[Pair | Refused] = []
    orders = most_opposed(pairs, probes)
    for run in meetings(replays, probes[0], seed) if orders else []:
        for one, other in orders:
            base = (one.record,) * replays.copies
            without = replays.course((*base, probes[0].record) if replaces else base, run)
            found.append(_one(replays, without, (*base, other.record), OPPOSED, run))
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
    replays: Replays, without: Course, records: Sequence[Record], probe: str, seed: int
) -> Pair | Refused:
    try:
        pair = replays.first_difference(without, replays.course(records, seed), probe)
    except Exception as error:  # whatever a trainer does with a record that it does not take
        return Refused(probe, f"the trainer stops at it ({type(error).__name__}: {error})")
    return pair or Refused(probe, NOTHING_SEEN)


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
    norm, limit = float(np.linalg.norm(worst.difference)), _limit(worst, claim)
    holds = norm <= limit
    why = f"one record moved the sum by {norm / claim.clip_norm:.6g} C at most"
    return Finding(
        check=CHECK,
        name=name,
        outcome=Outcome.HOLDS if holds else Outcome.VIOLATED,
        tested=f"{tested}; {len(own)} replays",
        why=why if holds else blame(worst, claim.clip_norm, limit),
        power=f"anything above {limit / claim.clip_norm:.6g} C would be seen",
        norm=norm / claim.clip_norm if np.isfinite(norm) else None,
        limit=limit / claim.clip_norm,
        detectable=limit / claim.clip_norm,
    )


def _unmoved(name: str, tested: str) -> Finding:
    return Finding(
        check=CHECK,
        name=name,
        outcome=Outcome.HOLDS,
        tested=tested,
        why="the record adds nothing to the sum",
        power="anything above rounding would be seen",
        norm=0.0,
        limit=1.0,
    )


def _limit(pair: Pair, claim: StepClaim) -> float:
    """Return the largest norm that is allowed: nothing, if the probe was not even drawn."""
    if pair.joined is False:
        return pair.slack
    times = 2 if claim.adjacency is Adjacency.REPLACE_ONE else 1
    return times * claim.clip_norm * (1 + RELATIVE) + pair.slack


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


def _why_not_these(moved: Sequence[Pair], ordinary: Probe) -> str:
    """Return what replays that differ show of the trainer: others drawn, or other noise."""
    if not all(pair.same_others for pair in moved):
        return INCLUSION_MOVES
    own = [pair for pair in moved if pair.probe == ordinary.name]
    not_drawn = [pair for pair in moved if pair.joined is False]
    return NOISE_MOVES if _other_noise(own, always=len(not_drawn) == len(moved)) else ""


def _few_steps(replays: Replays, seed: int) -> list[Array]:
    base = replays.records[:FEW]
    trainer = replays.make_trainer(base, seed)
    return [replays.step_of(trainer, len(base)) for _ in range(TRIAL_STEPS)]


def _first_step(replays: Replays, probe: Probe, seed: int) -> Pair:
    base = replays.bases()[-1]  # the largest: where others may join in its place, they do
    without, more = replays.course(base, seed), replays.course((*base, probe.record), seed)
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
