"""Are the records of a step drawn as is claimed?

Under Poisson sampling every record of every step has a coin of its own: sums over disjoint
pairs of coins are binomial, exactly. So are counts of steps whose batch has a usual size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpaudit.attacks.conformance.correlation import disjoint_pairs
from dpaudit.attacks.conformance.effort import EACH, Effort
from dpaudit.attacks.conformance.rank_rows import Rows
from dpaudit.attacks.conformance.tails import binomial_p_values, detectable_rate, squared_norm
from dpaudit.attacks.conformance.trainers import (
    MakeTrainer,
    Record,
    noisy_sum,
    sampled_of,
    seeds,
)
from dpaudit.attacks.conformance.words import statistical, undecided, violated
from dpaudit.vocabulary.conformance import Finding, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import Sampling

CHECK = "sampler"
SAMPLER_SEEDS = 3
MOST_RECORD_LAGS = 32


@dataclass(frozen=True)
class Draws:
    """Which records were in which steps.

    Attributes:
        joined: Shape ``(runs, steps, records)``.
        twice: A record that was in one step more than once, and that step; None: there is none.
        rows: What the ranks' rows were to the update, of each step with records.
        squares: Of each step, the squared norm of the noisy sum over the claimed variance, shape
            ``(runs, steps)``.
        dimension: How many coordinates an update has.
    """

    joined: NDArray[np.bool_]
    twice: tuple[int, int] | None
    rows: tuple[Rows, ...]
    squares: NDArray[np.float64]
    dimension: int


@dataclass(frozen=True)
class Counts:
    """Binomial counts.

    Attributes:
        successes: Shape ``(tests,)``.
        trials: Of each.
        probabilities: Of each, under the claim.
        names: What each counts, in words.
    """

    successes: NDArray[np.int64]
    trials: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    names: Sequence[str]


def draw(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    effort: Effort,
    seed: int,
) -> Draws | None:
    """Run on the records and note who joined; None: the trainer does not say.

    Raises:
        InvalidArgument: it names a record that does not exist.
    """
    steps = min(claim.steps, effort.longest_run)
    runs = max(2, -(-effort.sampler_steps // steps))
    joined = np.zeros((runs, steps, len(records)), dtype=np.bool_)
    squares, dimension = np.zeros((runs, steps)), 0
    deviation = claim.noise_multiplier * claim.clip_norm
    twice, rows = None, []
    for run, one in enumerate(seeds(seed, SAMPLER_SEEDS, runs)):
        trainer = make_trainer(records, one)
        for step in range(steps):
            update = trainer.step()
            sampled = sampled_of(trainer)
            if sampled is None:
                return None
            if len(sampled) and not 0 <= sampled[0] <= sampled[-1] < len(records):
                raise InvalidArgument("sampled", sampled.tolist(), f"below {len(records)}")
            joined[run, step, sampled] = True
            noise = noisy_sum(update, claim) / deviation
            squares[run, step], dimension = squared_norm(noise), noise.size
            if len(sampled) and (again := np.flatnonzero(np.diff(sampled) == 0)).size:
                twice = int(sampled[again[0]]), step
            ranks = getattr(trainer, "rank_updates", None)
            if ranks is not None and len(sampled):
                rows.append(Rows.of(noisy_sum(update, claim), np.array(ranks), claim))
    return Draws(joined, twice, tuple(rows), squares, dimension)


def check_sampler(draws: Draws | None, claim: StepClaim) -> list[Finding]:
    """Return whether the records were drawn as is claimed."""
    tested = "who was in which step"
    if draws is None:
        return [undecided(CHECK, "inclusion", tested, "the trainer has no attribute sampled")]
    found = []
    if draws.twice is not None:
        record, step = draws.twice
        why = (
            f"record {record} was in step {step} more than once: it adds up to the clip norm twice"
        )
        found.append(violated(CHECK, "repeats", tested, why))
    match claim.sampling:
        case Sampling.POISSON | Sampling.FULL_BATCH:
            return found + _independent(draws.joined, claim)
        case Sampling.FIXED_SIZE:
            return found + _fixed_size(draws.joined, claim)
        case other:
            why = f"there is no exact test of {other.value} sampling here"
            return [*found, undecided(CHECK, "inclusion", tested, why)]


def _independent(joined: NDArray[np.bool_], claim: StepClaim) -> list[Finding]:
    rate = 1.0 if claim.sampling is Sampling.FULL_BATCH else claim.sampling_rate
    if joined.shape[2] < 2:
        return [undecided(CHECK, "inclusion", "who was in which step", "fewer than two records")]
    found = [
        _finding("rate", "inclusions of all records", _rate(joined, rate), "record and step"),
        _finding("records", "inclusions of each record", _by_record(joined, rate), "step"),
    ]
    if rate == 1:
        return found
    return [
        *found,
        _finding("batch sizes", "steps with a usual size of batch", _sizes(joined, rate), "step"),
        _finding(
            "steps", "records that are in two steps", _joint(joined, 1, rate), "pair of steps"
        ),
        _finding(
            "pairs", "steps that two records are in", _joint(joined, 2, rate), "pair of records"
        ),
        _finding(
            "runs", "records in the same step of two runs", _joint(joined, 0, rate), "pair of runs"
        ),
    ]  # fmt: skip


def _fixed_size(joined: NDArray[np.bool_], claim: StepClaim) -> list[Finding]:
    sizes = np.unique(joined.sum(axis=2))
    tested = "the size of every batch"
    wanted = round(claim.sampling_rate * joined.shape[2])
    if sizes.tolist() != [wanted]:
        why = f"batches have from {sizes[0]} to {sizes[-1]} records; claimed are {wanted} in each"
        return [violated(CHECK, "batch sizes", tested, why)]
    rate = wanted / joined.shape[2]
    counts = _by_record(joined, rate)
    return [_finding("records", "inclusions of each record", counts, "step")]


def _finding(name: str, counted: str, counts: Counts, per: str) -> Finding:
    tests = len(counts.successes)
    p_values = binomial_p_values(counts.successes, counts.trials, counts.probabilities)
    worst = int(p_values.argmin())
    trials, claimed = int(counts.trials[worst]), float(counts.probabilities[worst])
    rate = counts.successes[worst] / trials
    least = detectable_rate(trials, claimed, EACH / tests)
    seen = (
        f"{counts.names[worst]} came to {rate:.4g} a {per}; claimed is {claimed:.4g} "
        f"({rate / claimed:.3g} times as much)"
    )
    return statistical(
        check=CHECK,
        name=name,
        tested=f"{counted}: {tests} exact binomial tests, {int(counts.trials.min())} trials or "
        "more in each",
        p_value=min(1.0, tests * float(p_values[worst])),
        seen=f"the least likely of all: {seen}",
        wrong=f"records are not drawn as is claimed: {seen}",
        power=f"a probability of {least:.4g} in place of {claimed:.4g} would be seen 95 times "
        "in 100",
        detectable=least,
    )


def _rate(joined: NDArray[np.bool_], rate: float) -> Counts:
    return Counts(
        np.array([joined.sum()]), np.array([joined.size]), np.array([rate]), ["inclusions"]
    )


def _by_record(joined: NDArray[np.bool_], rate: float) -> Counts:
    counts = joined.sum(axis=(0, 1))
    steps = joined.shape[0] * joined.shape[1]
    names = [f"inclusions of record {i}" for i in range(len(counts))]
    return Counts(counts, np.full(len(counts), steps), np.full(len(counts), rate), names)


def _sizes(joined: NDArray[np.bool_], rate: float) -> Counts:
    """Count the batches of a usual size, that is, between the quartiles, and of a rare one."""
    sizes, records = joined.sum(axis=2).ravel(), joined.shape[2]
    law = stats.binom(records, rate)
    successes, chances, names = [], [], []
    for share, kind in ((0.5, "batches of about the mean size"), (0.95, "batches of no rare size")):
        low, high = law.ppf((1 - share) / 2), law.ppf((1 + share) / 2)
        successes.append(int(((sizes >= low) & (sizes <= high)).sum()))
        chances.append(float(law.cdf(high) - law.cdf(low - 1)))
        names.append(f"{kind} ({low:.0f} to {high:.0f} records)")
    return Counts(np.array(successes), np.full(2, sizes.size), np.array(chances), names)


def _joint(joined: NDArray[np.bool_], axis: int, rate: float) -> Counts:
    """Count joint inclusions along an axis, of disjoint pairs of coins at each lag."""
    length = joined.shape[axis]
    longest = {0: 1, 1: length // 2, 2: min(length // 2, MOST_RECORD_LAGS)}[axis]
    what = {0: "runs", 1: "steps", 2: "records"}[axis]
    successes, trials, names = [], [], []
    for lag in range(1, longest + 1):
        for firsts in disjoint_pairs(length, lag):
            both = joined.take(firsts, axis) & joined.take(firsts + lag, axis)
            successes.append(int(both.sum()))
            trials.append(both.size)
            names.append(f"joint inclusions in {what} {lag} apart")
    probabilities = np.full(len(trials), rate**2)
    return Counts(np.array(successes), np.array(trials), probabilities, names)
