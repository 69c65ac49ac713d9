"""The replay check: one more record moves the noisy sum by at most the clip norm.

Two trainers with the same seed take the same steps, one of them on one more record (the probe).
Until a step includes the probe, both runs are equal. The first step that includes it shows what the
probe adds. After that step the parameters differ, so later steps are not compared here.

The noisy sums have the same noise, so their difference is exact up to rounding. In findings, C is
the clip norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from msgspec.structs import replace
from scipy import stats

from dpaudit.attacks.conformance.causes import find_cause
from dpaudit.attacks.conformance.clipping_coverage import (
    ClippingCoverage,
    ProbeMovement,
    check_coverage,
    check_later_steps,
    last_tested_step,
    replay_later_steps,
)
from dpaudit.attacks.conformance.clipping_search import ClippingSearch
from dpaudit.attacks.conformance.gradient_randomness import (
    REMEDY,
    find_gradient_randomness,
)
from dpaudit.attacks.conformance.paired_replays import (
    SMALL_BASE_SIZE,
    ReplayedRun,
    ReplayPair,
    TrainerReplays,
    explain,
)
from dpaudit.attacks.conformance.probes import (
    Probe,
    ProbeStep,
    early_probe_step,
    late_probe_step,
    probe_step_beside_nan_record,
)
from dpaudit.attacks.conformance.statistical_tests import Effort, inconclusive_finding
from dpaudit.attacks.conformance.trainer_protocol import Array, MakeTrainer, Record, derive_seeds
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim
from dpaudit.vocabulary.verdict import Outcome

CHECK = "replay"
TRIAL_SEEDS, REPLAY_SEEDS = 10, 11
SEARCH_FINDING, SEARCH_SEEDS, LATE_SHARE = "searched records", 50, 3
# In clip norms. A record that adds more than 3, in the place of one that adds at most 1, moves the
# sum by more than the 2 that replace-one adjacency allows.
MIN_ADDED_NOT_REPLACED = 3.0
OPPOSED_FINDING, OPPOSED_SEEDS, MOST_OPPOSED, MOST_TRIED = "opposed records", 20, 3, 30
TRIALS, TRIAL_STEPS = 40, 3  # first steps, and steps of a repeated run, before the replays
NOT_SAMPLED_LEVEL = 1e-6  # of the test that a probe joins more first steps than sampling explains
# Sums with different noise have a cosine below the first and a ratio of norms below the second; on
# fewer coordinates than the third, directions of the noise may agree by chance.
SAME_COSINE, SAME_RATIO, LEAST_COORDINATES = 0.5, 1.6, 16

NO_REASON = ""
NO_OPPOSED_RECORDS = (
    "fewer than two different records moved the sum, so whether records are clipped together is "
    "not known: give more records with probes= or --probes FILE"
)
NEVER_JOINED = (
    "no step included it: take more steps, or let the trainer accept step(include=indices)"
)
NO_STEP_ALONE = (
    "no step included this record alone, and other steps cannot be compared (see the finding "
    "randomness of gradients)"
)
REPLAY_DIFFERS = (
    "the same records and the same seed give another run, although the global generators of "
    "Python, NumPy and torch have the same seeds: set every seed; for dropout or augmentation, "
    f"{REMEDY}"
)
INCLUSION_MOVES = (
    "the records that a step includes change with the number of records: they must depend only on "
    "the seed, the step and the record's index, or be given by step(include=indices)"
)
NOISE_MOVES = (
    "the noise changes with the records: it must depend only on the seed and the step, and needs a "
    "separate generator"
)


@dataclass(frozen=True)
class RejectedProbe:
    """A probe that the trainer raised an error for, or that no step included.

    Attributes:
        probe: Name of the probe.
        why: The reason; empty if no step included the probe.
    """

    probe: str
    why: str


def check_replay(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    probes: Sequence[Probe],
    effort: Effort,
    seed: int,
) -> list[ConformanceFinding]:
    """Test that one more record moves the noisy sum by at most the clip norm.

    Under replace-one adjacency, test that replacing a record moves it by at most twice the clip
    norm. Also test whether any record reached the clip norm, without which nothing is shown.

    Args:
        make_trainer: Makes the trainer.
        claim: The claim.
        records: Ordinary records, at least two.
        probes: Records to add, the ordinary one first.
        effort: Number of replays and of steps.
        seed: Seed of the audit.

    Returns:
        One finding per probe, and findings for opposed records, clipping and later steps. A single
        INCONCLUSIVE finding if runs of this trainer cannot be compared.
    """
    replays = TrainerReplays.of(make_trainer, claim, records, effort)
    tested = f"a step with and without one record, {replays.inclusion_method}"
    reason = _why_not_replayable(replays, probes[0], seed)
    if reason:
        return [inconclusive_finding(CHECK, "reproducible", tested, reason)]
    randomness = find_gradient_randomness(replays, seed)
    replayed = list(_replay_all(replays, probes, seed))
    replayed += _replay_opposed(replays, probes, _pairs_of(replayed), seed)
    pairs = _pairs_of(replayed)
    beyond = any(pair.others != 0 and not _excess(pair, claim) <= 0 for pair in pairs)
    # If records share random numbers, only steps of a single record are compared. A mere suspicion
    # has this effect only where a step with other records would otherwise be a violation.
    shared = randomness.why or (randomness.suspected if beyond else "")
    kept = [pair for pair in pairs if pair.others == 0] if shared else pairs
    reason = _why_pairs_not_comparable(pairs, kept, probes[0])
    if reason:
        return [inconclusive_finding(CHECK, "reproducible", tested, reason)]
    rejected = {one.probe: one.why for one in replayed if isinstance(one, RejectedProbe)}
    if not any(one.probe == OPPOSED_FINDING for one in replayed):
        rejected[OPPOSED_FINDING] = NO_OPPOSED_RECORDS
    if shared:  # opposed records need steps with other records, which cannot be compared
        rejected[OPPOSED_FINDING] = NO_STEP_ALONE
        rejected |= {p.name: NO_STEP_ALONE for p in probes if not _has_probe(kept, p.name)}
    names = [*(probe.name for probe in probes), OPPOSED_FINDING]
    found = [_probe_finding(name, kept, rejected, claim, tested) for name in names]
    if shared:
        found.append(inconclusive_finding(CHECK, "randomness of gradients", tested, shared))
    alone = bool(shared or randomness.suspected)
    every = found + _clipping(replays, probes, kept, found, seed, tested, alone=alone)
    if shared or not any(_is_excess(one) for one in every):
        return every
    cause = find_cause(replays, probes, kept, seed)
    return [_with_cause(one, cause) if _is_excess(one) else one for one in every]


def _is_excess(finding: ConformanceFinding) -> bool:
    """Return whether a finite movement exceeded its limit."""
    return finding.outcome is Outcome.FAIL and finding.norm is not None


def _with_cause(finding: ConformanceFinding, cause: str) -> ConformanceFinding:
    """Put a cause that copies of a record showed in the place of the likely one."""
    if not cause:
        return finding
    return replace(finding, why=f"{cause} (one record moved the sum by {finding.norm:.4g} C)")


def _has_probe(pairs: Sequence[ReplayPair], name: str) -> bool:
    return any(pair.probe == name for pair in pairs)


def _pairs_of(replayed: Sequence[ReplayPair | RejectedProbe]) -> list[ReplayPair]:
    return [one for one in replayed if isinstance(one, ReplayPair)]


def _clipping(
    replays: TrainerReplays,
    probes: Sequence[Probe],
    pairs: Sequence[ReplayPair],
    found: Sequence[ConformanceFinding],
    seed: int,
    tested: str,
    *,
    alone: bool,
) -> list[ConformanceFinding]:
    """Report whether the probes tested clipping; if not, search for records that do.

    A probe that moved the sum too far has answered the question: then there are no findings.

    Args:
        replays: Replays of the trainer.
        probes: The usual probes.
        pairs: Their comparable replays.
        found: Their findings.
        seed: Seed of the audit.
        tested: What was tested, for the report.
        alone: Whether only steps of a single record can be compared.

    Returns:
        Findings of the search, of later steps and of the coverage of clipping.
    """
    if any(one.outcome is Outcome.FAIL and one.norm is not None for one in found):
        return []
    norm = replays.claim.clip_norm
    coverage = ClippingCoverage.of(
        ProbeMovement.of(pair, norm) for pair in pairs if pair.joined is not False
    )
    candidates, findings = _probes_at_clip_norm(probes, pairs, norm), list[ConformanceFinding]()
    if not coverage.complete:
        searches = _run_searches(replays, probes, coverage, seed, alone=alone)
        coverage = searches[-1].coverage if searches else coverage
        findings = list(_search_findings(replays, probes, searches, seed, tested))
        if any(one.outcome is Outcome.FAIL for one in findings):
            return findings
        pairs = [*pairs, *(one.worst for one in searches if one.worst is not None)]
        candidates = candidates or _records_at_clip_norm(searches, norm)
    later = replay_later_steps(replays, candidates, seed, alone=alone)
    late = check_later_steps(later, replays, CHECK, tested)
    if any(one.outcome is Outcome.FAIL for one in late):
        return [*findings, *late]
    until = last_tested_step(later, pairs, norm)
    return [*findings, *late, check_coverage(coverage, tested, CHECK, until)]


def _probes_at_clip_norm(
    probes: Sequence[Probe], pairs: Sequence[ReplayPair], norm: float
) -> list[Probe]:
    """Return the probes that moved the sum by the clip norm."""
    names = {pair.probe for pair in pairs if pair.joined is not False}
    reached_clip_norm = {
        pair.probe for pair in pairs if ProbeMovement.of(pair, norm).reached_clip_norm
    }
    return [probe for probe in probes if probe.name in names & reached_clip_norm]


def _records_at_clip_norm(searches: Sequence[ClippingSearch], norm: float) -> list[Probe]:
    """Return the records that a search found to move the sum by the clip norm."""
    return [
        Probe(SEARCH_FINDING, one.worst_record)
        for one in searches
        if one.worst is not None
        and one.worst_record is not None
        and ProbeMovement.of(one.worst, norm).reached_clip_norm
    ]


def _run_searches(
    replays: TrainerReplays,
    probes: Sequence[Probe],
    coverage: ClippingCoverage,
    seed: int,
    *,
    alone: bool,
) -> list[ClippingSearch]:
    """Search at an early step, and at a later one if that is not enough.

    The later search, with trained weights, has the steps that the early one left.
    """
    records = [*replays.records, *(probe.record for probe in probes[:1])]
    (one,) = derive_seeds(seed, SEARCH_SEEDS, 1)
    searches: list[ClippingSearch] = []
    left = replays.effort.search_steps
    beside_nan = _search_beside_nan_record(replays, probes, records, one, seed)
    if beside_nan is not None and not (alone and not beside_nan.probe_step.alone):
        return [beside_nan]
    for find, share in ((early_probe_step, LATE_SHARE - 1), (late_probe_step, LATE_SHARE)):
        probe_step: ProbeStep | None = find(replays, probes[0].record, seed)
        if (
            probe_step is None
            or (alone and not probe_step.alone)
            or (searches and searches[-1].done)
        ):
            continue
        steps = left * share // LATE_SHARE
        search = ClippingSearch(
            probe_step, replays.claim.clip_norm, records, np.random.default_rng(one), steps,
            coverage,
            MIN_ADDED_NOT_REPLACED if replays.replaces and not probe_step.replaces else 1.0,
        )  # fmt: skip
        search.run(probes)
        coverage = search.coverage
        left -= steps - search.steps
        searches.append(search)
    return searches


def _search_beside_nan_record(
    replays: TrainerReplays, probes: Sequence[Probe], records: Sequence[Record], one: int, seed: int
) -> ClippingSearch | None:
    """Search in the place of a NaN record; None if that does not cover clipping or has a violation.

    The NaN record is assumed to add nothing, and the search confirms this: if it added something,
    the differences to other records, whose gradients have other directions, would not all have a
    norm of at most C.
    """
    probe_step = probe_step_beside_nan_record(replays, probes[0].record, seed)
    if probe_step is None:
        return None
    search = ClippingSearch(
        probe_step, replays.claim.clip_norm, records, np.random.default_rng(one),
        replays.effort.search_steps // LATE_SHARE, ClippingCoverage(),
    )  # fmt: skip
    search.run(probes)
    return search if search.done and not search.violated else None


def _search_findings(
    replays: TrainerReplays,
    probes: Sequence[Probe],
    searches: Sequence[ClippingSearch],
    seed: int,
    tested: str,
) -> Iterator[ConformanceFinding]:
    """Test the record that moved the sum the farthest.

    Under replace-one adjacency the record is replayed in another record's place, because that
    claim does not bound what a record adds.
    """
    found = [search for search in searches if search.worst is not None]
    if not found:
        return
    claim, tested = (
        replays.claim,
        f"{tested}: {SEARCH_FINDING}; {sum(s.tried for s in found)} replays",
    )
    best = max(found, key=lambda search: _movement(search.worst))
    if replays.replaces:
        probe = Probe(SEARCH_FINDING, best.worst_record or probes[0].record)
        pairs = _pairs_of(list(_replay_all(replays, [probes[0], probe], seed)))
        yield _probe_finding(SEARCH_FINDING, pairs, {}, claim, tested)
    elif best.worst is not None:
        yield _sensitivity_finding(SEARCH_FINDING, best.worst, claim, tested)


def _movement(pair: ReplayPair | None) -> float:
    """Return the norm of a difference; infinite if it is NaN, 0 without a pair."""
    norm = 0.0 if pair is None else float(np.linalg.norm(pair.difference))
    return norm if np.isfinite(norm) else np.inf


# Replays of the probes.


def _replay_all(
    replays: TrainerReplays, probes: Sequence[Probe], seed: int
) -> Iterator[ReplayPair | RejectedProbe]:
    for number, base in enumerate(replays.bases()):
        for one in derive_seeds(seed, REPLAY_SEEDS + number, replays.effort.replays):
            without = replays.run(base, probes[0].record if replays.replaces else None, one)
            for probe in probes:
                yield _replay_one(replays, without, base, probe, one)


def _replay_opposed(
    replays: TrainerReplays, probes: Sequence[Probe], pairs: Sequence[ReplayPair], seed: int
) -> list[ReplayPair | RejectedProbe]:
    """Replay records beside copies of other records with opposed gradients.

    Two gradients that are clipped as one sum of norm C give a vector of norm C. Adding the second
    record then moves the sum by more than C if their directions differ by more than 60 degrees.
    """
    found: list[ReplayPair | RejectedProbe] = []
    orders = most_opposed(pairs, probes)
    for run_seed in seeds_of_shared_steps(replays, probes[0], seed) if orders else []:
        for one, other in orders:
            base = (one.record,) * replays.copies
            without = replays.run(base, probes[0].record if replays.replaces else None, run_seed)
            found.append(
                _replay_one(replays, without, base, Probe(OPPOSED_FINDING, other.record), run_seed)
            )
    return found


def seeds_of_shared_steps(replays: TrainerReplays, ordinary: Probe, seed: int) -> list[int]:
    """Find seeds under which the first step of a probe includes just one copy of the base.

    Inclusion does not depend on the contents of records, so one search serves all probes.

    Args:
        replays: Replays of the trainer.
        ordinary: The ordinary probe.
        seed: Seed of the audit.

    Returns:
        At most ``effort.replays`` seeds; any seeds if no such step was found.
    """
    tried = derive_seeds(seed, OPPOSED_SEEDS, MOST_TRIED)
    shared = (
        one
        for one in tried
        if replays.joins_with_one_other((ordinary.record,) * (replays.copies + 1), one)
    )
    return list(islice(shared, replays.effort.replays)) or tried[: replays.effort.replays]


def most_opposed(pairs: Sequence[ReplayPair], probes: Sequence[Probe]) -> list[tuple[Probe, Probe]]:
    """Select the pairs of probes whose movements have the smallest cosines.

    Args:
        pairs: Replays of the probes.
        probes: The probes.

    Returns:
        At most ``MOST_OPPOSED`` pairs of probes, each in both orders.
    """
    unit = {}
    for pair in pairs:
        length = float(np.linalg.norm(pair.difference))
        if pair.joined is not False and 0 < length < np.inf:
            unit[pair.probe] = pair.difference / length
    known = [probe for probe in probes if probe.name in unit]
    ranked = sorted(combinations(known, 2), key=lambda two: unit[two[0].name] @ unit[two[1].name])
    return [order for two in ranked[:MOST_OPPOSED] for order in (two, two[::-1])]


def _replay_one(
    replays: TrainerReplays, without: ReplayedRun, base: Sequence[Record], probe: Probe, seed: int
) -> ReplayPair | RejectedProbe:
    try:
        with_probe = replays.run(base, probe.record, seed)
        pair = replays.first_difference(without, with_probe, probe.name)
    except Exception as error:  # a trainer may fail in any way on an unusual record
        return RejectedProbe(
            probe.name, f"the trainer raises an error for it ({type(error).__name__}: {error})"
        )
    return pair or RejectedProbe(probe.name, NO_REASON)


# Findings.


def _probe_finding(
    name: str,
    pairs: Sequence[ReplayPair],
    rejected: dict[str, str],
    claim: StepClaim,
    tested: str,
) -> ConformanceFinding:
    """Report the worst replay of one probe."""
    tested = f"{tested}: {name}"
    if rejected.get(name):
        return inconclusive_finding(CHECK, name, tested, rejected[name])
    own = [pair for pair in pairs if pair.probe == name]
    if any(not np.isfinite(pair.without).all() for pair in own):
        return inconclusive_finding(
            CHECK,
            name,
            tested,
            "without the record, the sum is not finite either: give records with finite gradients",
        )
    # A NaN difference is the worst: it exceeds every limit.
    worst = max(own, key=lambda pair: _excess(pair, claim), default=None)
    if worst is None:
        # Inclusion does not depend on a record's contents: this probe was in the steps in which
        # other probes, in its place, moved the sum.
        joined = any(pair.joined is None for pair in pairs)
        return (
            _unmoved_finding(name, tested)
            if joined
            else inconclusive_finding(CHECK, name, tested, NEVER_JOINED)
        )
    return _sensitivity_finding(name, worst, claim, f"{tested}; {len(own)} replays")


def _sensitivity_finding(
    name: str, worst: ReplayPair, claim: StepClaim, tested: str
) -> ConformanceFinding:
    """Test the norm of a difference against its limit. NaN is a violation."""
    norm, limit = float(np.linalg.norm(worst.difference)), _limit(worst, claim)
    holds = norm <= limit
    why = f"one record moved the sum by at most {norm / claim.clip_norm:.6g} C"
    return ConformanceFinding(
        check=CHECK,
        name=name,
        outcome=Outcome.PASS if holds else Outcome.FAIL,
        tested=tested,
        why=why if holds else explain(worst, claim.clip_norm, limit),
        power=_power(norm, limit, worst, claim),
        norm=norm / claim.clip_norm if np.isfinite(norm) else None,
        limit=limit / claim.clip_norm,
        detectable=limit / claim.clip_norm,
    )


def _power(norm: float, limit: float, worst: ReplayPair, claim: StepClaim) -> str:
    detectable = f"a movement above {limit / claim.clip_norm:.6g} C is detectable"
    if (
        worst.joined is False
        or norm > limit
        or ProbeMovement.of(worst, claim.clip_norm).reached_clip_norm
    ):
        return detectable
    return f"{detectable}; this record does not reach the clip norm, so it does not test clipping"


def _unmoved_finding(name: str, tested: str) -> ConformanceFinding:
    return ConformanceFinding(
        check=CHECK,
        name=name,
        outcome=Outcome.PASS,
        tested=tested,
        why="the record adds nothing to the sum",
        power="a movement above rounding is detectable; this record does not test clipping",
        norm=0.0,
        limit=1.0,
    )


def _limit(pair: ReplayPair, claim: StepClaim) -> float:
    """Return the largest allowed norm: rounding only, if the step did not include the probe."""
    return pair.slack if pair.joined is False else pair.allowed(claim.clip_norm)


def _excess(pair: ReplayPair, claim: StepClaim) -> float:
    """Return the norm of the difference minus its limit; infinite if it is NaN."""
    excess = float(np.linalg.norm(pair.difference)) - _limit(pair, claim)
    return excess if np.isfinite(excess) else np.inf


# Whether replays are comparable at all: the noise and the inclusion must not change with the
# records.


def _why_not_replayable(replays: TrainerReplays, ordinary: Probe, seed: int) -> str:
    """Return why runs of this trainer cannot be compared; empty if no reason was found."""
    first, *others = derive_seeds(seed, TRIAL_SEEDS, TRIALS + 1)
    once, again = (np.array(_few_steps(replays, first)) for _ in range(2))
    if not np.array_equal(once, again, equal_nan=True):
        return REPLAY_DIFFERS
    trial = _first_step(replays, ordinary, others[0])
    if replays.included or trial.sampled is not None:
        return ""
    # The trainer does not report its records. How often the first steps differ shows whether the
    # probe is sampled, and how they differ shows whether the noise changes.
    trials = [trial, *(_first_step(replays, ordinary, one) for one in others[1:])]
    apart = [pair for pair in trials if pair.moved]
    if _other_noise(apart, always=len(apart) == len(trials)):
        return NOISE_MOVES
    return _why_inclusion_moves(apart, trials, replays)


def _why_pairs_not_comparable(
    pairs: Sequence[ReplayPair], kept: Sequence[ReplayPair], ordinary: Probe
) -> str:
    """Return why differences of replays do not show what a probe adds.

    Args:
        pairs: All replays.
        kept: The replays whose gradients can be compared.
        ordinary: The ordinary probe.

    Returns:
        The reason: other records included, or other noise; empty if there is none.
    """
    if not all(pair.same_others for pair in pairs if pair.moved):
        return INCLUSION_MOVES
    moved = [pair for pair in kept if pair.moved]
    own = [pair for pair in moved if pair.probe == ordinary.name]
    not_drawn = [pair for pair in moved if pair.joined is False]
    return NOISE_MOVES if _other_noise(own, always=len(not_drawn) == len(moved)) else ""


def _few_steps(replays: TrainerReplays, seed: int) -> list[Array]:
    run = replays.run(replays.records[:SMALL_BASE_SIZE], None, seed)
    return [run.at(step)[0] for step in range(TRIAL_STEPS)]


def _first_step(replays: TrainerReplays, probe: Probe, seed: int) -> ReplayPair:
    base = replays.bases()[-1]  # the largest, where other records can join in the probe's place
    without, more = replays.run(base, None, seed), replays.run(base, probe.record, seed)
    return replays.pair(without, more, probe.name, 0)


def _other_noise(apart: Sequence[ReplayPair], *, always: bool) -> bool:
    """Return whether all pairs look like sums with different noise.

    Sums with the same noise are similar. Sums with different noise have similar norms and
    different directions. A record that is not clipped may also turn a sum, but makes it longer.

    Args:
        apart: Pairs of sums that differ.
        always: Whether the sums differ in every replay, with or without the probe in the step.
            On few coordinates, directions are evidence only then.

    Returns:
        True if the noise seems to differ between the runs.
    """
    if len(apart) < 2 or not all(_points_elsewhere(pair) for pair in apart):
        return False
    return always or apart[0].without.size >= LEAST_COORDINATES


def _points_elsewhere(pair: ReplayPair) -> bool:
    """Return whether the two sums have similar norms and a small cosine."""
    one, other = (float(np.linalg.norm(each)) for each in (pair.without, pair.with_probe))
    if not (0 < one < np.inf and 0 < other < np.inf):
        return False
    cosine = float(pair.without @ pair.with_probe) / (one * other)
    return cosine < SAME_COSINE and 1 / SAME_RATIO < other / one < SAME_RATIO


def _why_inclusion_moves(
    apart: Sequence[ReplayPair], trials: Sequence[ReplayPair], replays: TrainerReplays
) -> str:
    """Return ``INCLUSION_MOVES`` if first steps differ more often than the sampling rate explains.

    For trainers that do not report their records. If all pairs differ only by a factor on the whole
    sum, inclusion did not change: the result is empty, and the replays of the probes test that.
    """
    rate = replays.claim.sampling_rate
    if not stats.binom.sf(len(apart) - 1, len(trials), rate) <= NOT_SAMPLED_LEVEL:
        return ""
    return "" if all(_only_longer(pair) for pair in apart) else INCLUSION_MOVES


def _only_longer(pair: ReplayPair) -> bool:
    """Return whether the two sums have the same direction, up to a cosine of 0.999."""
    one, other = (float(np.linalg.norm(each)) for each in (pair.without, pair.with_probe))
    return one > 0 and float(pair.without @ pair.with_probe) > (1 - 1e-3) * one * other
