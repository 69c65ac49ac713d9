"""Whether the records of a step are sampled as claimed.

Under Poisson sampling the inclusions of all records in all steps are independent Bernoulli trials.
Counts of inclusions, of joint inclusions over disjoint pairs, and of steps whose batch size is
within some range are then exactly binomial. Under sampling of a fixed size, the batch sizes and
each record's inclusions are tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpaudit.attacks.conformance.correlation import RankRows, disjoint_pairs
from dpaudit.attacks.conformance.statistical_tests import (
    LEVEL_PER_FINDING,
    Effort,
    binomial_p_values,
    detectable_rate,
    failed_finding,
    inconclusive_finding,
    squared_norm,
    statistical_finding,
)
from dpaudit.attacks.conformance.trainer_protocol import (
    MakeTrainer,
    Record,
    derive_seeds,
    noisy_sum,
    sampled_indices,
)
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import Sampling

CHECK = "sampler"
SAMPLER_SEEDS = 3
CHANCE = 1e-12  # probability that two runs under different seeds include the same records
NOT_REPORTED = (
    "the trainer has no attribute sampled: set it to the indices of the records of each step"
)
SEED_IGNORED = (
    "every seed that make_trainer gets gives the same records in each step: seed the sampler "
    "from it"
)
MAX_RECORD_LAGS = 32


@dataclass(frozen=True)
class SampledBatches:
    """The records that each step included, with the step's squared norm.

    Attributes:
        joined: Whether a record was included, shape ``(runs, steps, records)``.
        twice: The index of a record that one step included more than once, and that step; None
            if there is none.
        rows: How the ranks' rows relate to the update, for each step with records.
        squares: Squared norm of the noisy sum over the claimed noise variance, shape
            ``(runs, steps)``.
        dimension: Number of coordinates of an update.
    """

    joined: NDArray[np.bool_]
    twice: tuple[int, int] | None
    rows: tuple[RankRows, ...]
    squares: NDArray[np.float64]
    dimension: int

    def seed_is_ignored(self, claim: StepClaim) -> bool:
        """Return whether all runs drew the same records, which independent seeds do not give.

        Args:
            claim: The claim, for the probability that two runs agree by chance.

        Returns:
            True if all runs agree, and would do so with a probability of at most ``CHANCE``.
        """
        rate = claim.sampling_rate
        agreement = math.log(max(rate**2 + (1 - rate) ** 2, 1e-300)) * self.joined[0].size
        if claim.sampling is not Sampling.POISSON or agreement > math.log(CHANCE):
            return False
        return bool((self.joined == self.joined[:1]).all())


@dataclass(frozen=True)
class BinomialCounts:
    """Counts that are binomial under the claim.

    Attributes:
        successes: Number of successes, shape ``(tests,)``.
        trials: Number of trials, shape ``(tests,)``.
        probabilities: Claimed probability of a success, shape ``(tests,)``.
        names: What each test counts, for the report.
    """

    successes: NDArray[np.int64]
    trials: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    names: Sequence[str]


def record_sampled_batches(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    effort: Effort,
    seed: int,
) -> SampledBatches | None:
    """Run a trainer on the records and record which of them each step includes.

    Args:
        make_trainer: Makes the trainer.
        claim: The claim, for the number of steps and the scale of the update.
        records: The records of the data set.
        effort: Number of steps, and the longest run.
        seed: Seed of the audit.

    Returns:
        The inclusions of at least two runs; None if the trainer has no attribute ``sampled``.

    Raises:
        InvalidArgument: If ``sampled`` contains an index that no record has.
    """
    steps = min(claim.steps, effort.longest_run)
    runs = max(2, -(-effort.sampler_steps // steps))
    joined = np.zeros((runs, steps, len(records)), dtype=np.bool_)
    squares, dimension = np.zeros((runs, steps)), 0
    deviation = claim.noise_multiplier * claim.clip_norm
    twice, rows = None, []
    for run, one in enumerate(derive_seeds(seed, SAMPLER_SEEDS, runs)):
        trainer = make_trainer(records, one)
        for step in range(steps):
            update = trainer.step()
            sampled = sampled_indices(trainer)
            if sampled is None:
                return None
            if len(sampled) and not 0 <= sampled[0] <= sampled[-1] < len(records):
                raise InvalidArgument(
                    "sampled", sampled.tolist(), f"indices from 0 to {len(records) - 1}"
                )
            joined[run, step, sampled] = True
            noise = noisy_sum(update, claim) / deviation
            squares[run, step], dimension = squared_norm(noise), noise.size
            if len(sampled) and (again := np.flatnonzero(np.diff(sampled) == 0)).size:
                twice = int(sampled[again[0]]), step
            ranks = getattr(trainer, "rank_updates", None)
            if ranks is not None and len(sampled):
                rows.append(RankRows.of(noisy_sum(update, claim), np.array(ranks), claim))
    return SampledBatches(joined, twice, tuple(rows), squares, dimension)


def check_sampler(draws: SampledBatches | None, claim: StepClaim) -> list[ConformanceFinding]:
    """Test whether the records were sampled as claimed.

    Args:
        draws: The recorded inclusions; None if the trainer has no attribute ``sampled``.
        claim: The claim, with the kind of sampling and its rate.

    Returns:
        Findings; an INCONCLUSIVE one if the inclusions are not known, or if there is no exact test
        for the kind of sampling.
    """
    tested = "the records of each step"
    if draws is None:
        return [inconclusive_finding(CHECK, "inclusion", tested, NOT_REPORTED)]
    found = []
    if draws.twice is not None:
        record, step = draws.twice
        why = (
            f"record {record} was in step {step} more than once: each copy adds up to the clip norm"
        )
        found.append(failed_finding(CHECK, "repeats", tested, why))
    if draws.seed_is_ignored(claim):
        return [*found, inconclusive_finding(CHECK, "inclusion", tested, SEED_IGNORED)]
    match claim.sampling:
        case Sampling.POISSON | Sampling.FULL_BATCH:
            return found + _poisson_findings(draws.joined, claim)
        case Sampling.FIXED_SIZE:
            return found + _fixed_size_findings(draws.joined, claim)
        case other:
            why = (
                f"there is no exact test of {other.value} sampling: review the sampler, or use "
                "Poisson sampling or batches of a fixed size"
            )
            return [*found, inconclusive_finding(CHECK, "inclusion", tested, why)]


def _poisson_findings(joined: NDArray[np.bool_], claim: StepClaim) -> list[ConformanceFinding]:
    rate = 1.0 if claim.sampling is Sampling.FULL_BATCH else claim.sampling_rate
    if joined.shape[2] < 2:
        return [
            inconclusive_finding(
                CHECK,
                "inclusion",
                "the records of each step",
                "there are fewer than two records: give more",
            )
        ]
    found = [
        _finding(
            "rate",
            "inclusions of all records",
            _overall_inclusions(joined, rate),
            "record and step",
        ),
        _finding(
            "records", "inclusions of each record", _inclusions_by_record(joined, rate), "step"
        ),
    ]
    if rate == 1:
        return found
    return [
        *found,
        _finding("batch sizes", "steps with a typical batch size", _sizes(joined, rate), "step"),
        *_step_findings(joined, rate),
        _finding(
            "pairs", "inclusions of two records in a step", _joint(joined, 2, rate),
            "pair of records",
        ),
        _finding(
            "runs", "inclusions of a record in the same step of two runs", _joint(joined, 0, rate),
            "pair of runs",
        ),
    ]  # fmt: skip


def _step_findings(joined: NDArray[np.bool_], rate: float) -> list[ConformanceFinding]:
    """Test that two steps of a run are independent; a run of one step has no such pair."""
    if joined.shape[1] < 2:
        return []
    counts = _joint(joined, 1, rate)
    return [_finding("steps", "inclusions of a record in two steps", counts, "pair of steps")]


def _fixed_size_findings(joined: NDArray[np.bool_], claim: StepClaim) -> list[ConformanceFinding]:
    sizes = np.unique(joined.sum(axis=2))
    tested = "the size of every batch"
    wanted = round(claim.sampling_rate * joined.shape[2])
    if sizes.tolist() != [wanted]:
        why = f"batches have {sizes[0]} to {sizes[-1]} records; the claim is {wanted} in each"
        return [failed_finding(CHECK, "batch sizes", tested, why)]
    rate = wanted / joined.shape[2]
    counts = _inclusions_by_record(joined, rate)
    return [_finding("records", "inclusions of each record", counts, "step")]


def _finding(name: str, counted: str, counts: BinomialCounts, per: str) -> ConformanceFinding:
    """Report the count of the smallest p-value, times the number of tests (Bonferroni)."""
    tests = len(counts.successes)
    p_values = binomial_p_values(counts.successes, counts.trials, counts.probabilities)
    worst = int(p_values.argmin())
    trials, claimed = int(counts.trials[worst]), float(counts.probabilities[worst])
    rate = counts.successes[worst] / trials
    least = detectable_rate(trials, claimed, LEVEL_PER_FINDING / tests)
    observed = (
        f"{counts.names[worst]}: {rate:.4g} per {per}, {rate / claimed:.3g} times the claimed "
        f"{claimed:.4g}"
    )
    return statistical_finding(
        check=CHECK,
        name=name,
        tested=f"{counted}: {tests} exact binomial tests of at least {int(counts.trials.min())} "
        "trials each",
        p_value=min(1.0, tests * float(p_values[worst])),
        observed=f"the smallest p-value is that of {observed}",
        violation=f"records are not sampled as claimed: {observed}",
        power=f"a probability of {least:.4g} instead of {claimed:.4g} is detectable at 95% power",
        detectable=least,
    )


def _overall_inclusions(joined: NDArray[np.bool_], rate: float) -> BinomialCounts:
    return BinomialCounts(
        np.array([joined.sum()]), np.array([joined.size]), np.array([rate]), ["inclusions"]
    )


def _inclusions_by_record(joined: NDArray[np.bool_], rate: float) -> BinomialCounts:
    counts = joined.sum(axis=(0, 1))
    steps = joined.shape[0] * joined.shape[1]
    names = [f"inclusions of record {i}" for i in range(len(counts))]
    return BinomialCounts(counts, np.full(len(counts), steps), np.full(len(counts), rate), names)


def _sizes(joined: NDArray[np.bool_], rate: float) -> BinomialCounts:
    """Count the batches whose size is between the quartiles, and within the central 95%."""
    sizes, records = joined.sum(axis=2).ravel(), joined.shape[2]
    law = stats.binom(records, rate)
    successes, chances, names = [], [], []
    for share, kind in ((0.5, "batches near the mean size"), (0.95, "batches of a common size")):
        low, high = law.ppf((1 - share) / 2), law.ppf((1 + share) / 2)
        successes.append(int(((sizes >= low) & (sizes <= high)).sum()))
        chances.append(float(law.cdf(high) - law.cdf(low - 1)))
        names.append(f"{kind} ({low:.0f} to {high:.0f} records)")
    return BinomialCounts(np.array(successes), np.full(2, sizes.size), np.array(chances), names)


def _joint(joined: NDArray[np.bool_], axis: int, rate: float) -> BinomialCounts:
    """Count joint inclusions in disjoint pairs at each lag along an axis of ``joined``.

    A trial is a pair of inclusions, of which both happen with probability rate^2.
    """
    length = joined.shape[axis]
    longest = {0: 1, 1: length // 2, 2: min(length // 2, MAX_RECORD_LAGS)}[axis]
    what = {0: "runs", 1: "steps", 2: "records"}[axis]
    successes, trials, names = [], [], []
    for lag in range(1, longest + 1):
        for firsts in disjoint_pairs(length, lag):
            both = joined.take(firsts, axis) & joined.take(firsts + lag, axis)
            successes.append(int(both.sum()))
            trials.append(both.size)
            names.append(f"joint inclusions in {what} {lag} apart")
    probabilities = np.full(len(trials), rate**2)
    return BinomialCounts(np.array(successes), np.array(trials), probabilities, names)
