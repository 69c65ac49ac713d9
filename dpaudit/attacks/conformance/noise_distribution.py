"""Scale and distribution of the noise, in steps without records and in steps with records.

In a step without records, every coordinate is noise. Sums of squares over the claimed variance are
then chi-square distributed: overall, and for each parameter group, step and coordinate. Too much
noise is a violation like too little. It is not the claimed mechanism, although the claimed epsilon
may hold. Normality is tested independently of the scale.

In a step with records, the clipped gradients add to the noise. Sums of squares are then at least
chi-square distributed, so only noise that is too low can be detected. Two kinds of steps are used:
those that the sampler tests recorded, and first steps on copies of one record, whose contribution
is measured and subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpaudit.attacks.conformance.correlation import SEED_IGNORED
from dpaudit.attacks.conformance.noise_only_runs import NoiseOnlyRuns
from dpaudit.attacks.conformance.paired_replays import TrainerReplays
from dpaudit.attacks.conformance.sampler import SampledBatches
from dpaudit.attacks.conformance.statistical_tests import (
    LEVEL_PER_FINDING,
    Array,
    Effort,
    detectable_low_scale,
    detectable_scale,
    failed_finding,
    inconclusive_finding,
    low_variance_p_values,
    squared_norm,
    statistical_finding,
    uniform_p_value,
    variance_p_values,
)
from dpaudit.attacks.conformance.trainer_protocol import (
    MakeTrainer,
    Record,
    derive_seeds,
    noisy_sum,
    sampled_indices,
)
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim

NOISE_CHECK = "noise"
MAX_NAMED_GROUPS = 4
STUDENT_BLOCK_SIZE = 4
SCALE_ONLY = (
    "a record may be in every step, so only the scale is tested: accept an empty data set or "
    "step(include=[]), or report the records of each step in the attribute sampled"
)
FEW_SAMPLES = "there are too few samples: raise noise_samples of Effort, or the steps of the claim"


@dataclass(frozen=True)
class SquareSums:
    """Sums of squares of noise over the claimed standard deviation.

    Attributes:
        sums: Sums of squares, shape ``(tests,)``.
        samples: Number of squares in each sum, shape ``(tests,)``.
        shifts: Upper bound of the noncentrality that records add to each sum, shape ``(tests,)``.
        names: The part of the noise that each sum is over, for the report.
    """

    sums: Array
    samples: NDArray[np.int64]
    shifts: Array
    names: tuple[str, ...]


def check_noise(noise_runs: NoiseOnlyRuns, claim: StepClaim) -> list[ConformanceFinding]:
    """Test the scale and the normality of the noise in steps without records.

    Args:
        noise_runs: Steps without records, over the claimed standard deviation.
        claim: The claim; its noise multiplier bounds what a record may add.

    Returns:
        A finding for the overall scale, the scale of each group, step and coordinate, and the
        distribution. A single FAIL finding if a step without records is not finite; a single
        INCONCLUSIVE one if every step had records.
    """
    where = f"noise {noise_runs.mode.description}"
    if not noise_runs.finite:
        inside = f" in {', '.join(noise_runs.not_finite)}" if noise_runs.not_finite else ""
        why = (
            f"a step without records is not finite{inside}, which reveals that the batch was "
            "empty (the step may divide by the actual number of records)"
        )
        return [failed_finding(NOISE_CHECK, "finite", where, why)]
    if not noise_runs.empty.any():
        return [
            inconclusive_finding(NOISE_CHECK, "scale", where, noise_runs.mode.why_none_is_empty)
        ]
    return [
        scale_finding("scale", where, _squares_overall(noise_runs, claim), noise_runs),
        scale_finding(
            "scale of each group", where, _squares_by_group(noise_runs, claim), noise_runs
        ),
        scale_finding("scale of each step", where, _squares_by_step(noise_runs, claim), noise_runs),
        scale_finding(
            "scale of each coordinate", where, _squares_by_coordinate(noise_runs, claim), noise_runs
        ),
        _normality_finding(where, noise_runs),
    ]


def scale_finding(
    name: str, where: str, squares: SquareSums, noise_runs: NoiseOnlyRuns
) -> ConformanceFinding:
    """Test each sum of squares, at the level of one finding over the number of sums.

    Args:
        name: Name of the test.
        where: The noise, for the report.
        squares: The sums of squares.
        noise_runs: The runs that they are from.

    Returns:
        The finding.
    """
    tests = len(squares.sums)
    p_values = variance_p_values(squares.sums, squares.samples, squares.shifts)
    p_value = min(1.0, tests * float(p_values.min()))
    factors = np.sqrt(squares.sums / squares.samples)
    worst = int(p_values.argmin())
    rejected = np.flatnonzero(tests * p_values <= LEVEL_PER_FINDING)
    least = detectable_scale(float(squares.samples.min()), LEVEL_PER_FINDING / tests)
    violation = "; ".join(
        f"the noise {squares.names[i]} has {factors[i]:.3g} times the claimed standard deviation"
        for i in rejected[:MAX_NAMED_GROUPS]
    )
    more = (
        f"; and {len(rejected) - MAX_NAMED_GROUPS} more" if len(rejected) > MAX_NAMED_GROUPS else ""
    )
    return statistical_finding(
        check=NOISE_CHECK,
        name=name,
        tested=f"{where}: {int(squares.sums.size)} chi-square tests of at least "
        f"{int(squares.samples.min())} samples each",
        p_value=p_value,
        observed=f"the smallest p-value is that of the noise {squares.names[worst]}, with "
        f"{factors[worst]:.4g} times the claimed standard deviation",
        violation=violation + more + _noiseless_ranks_text(noise_runs),
        power=f"a standard deviation {least:.2%} below the claimed one is detectable at 95% power",
        detectable=least,
    )


def _noiseless_ranks_text(noise_runs: NoiseOnlyRuns) -> str:
    if noise_runs.ranks is None:
        return ""
    noiseless = [
        str(r) for r in range(noise_runs.ranks.shape[2]) if not noise_runs.ranks[:, :, r].any()
    ]
    return f"; rank {', '.join(noiseless)} adds no noise" if noiseless else ""


def _squares_overall(noise_runs: NoiseOnlyRuns, claim: StepClaim) -> SquareSums:
    return _squares(
        noise_runs,
        claim,
        np.square(noise_runs.noise).sum(keepdims=True).ravel(),
        ("as a whole",),
        1,
    )


def _squares_by_group(noise_runs: NoiseOnlyRuns, claim: StepClaim) -> SquareSums:
    by_coordinate = np.square(noise_runs.noise).sum(axis=(0, 1))
    sums = np.array([by_coordinate[own].sum() for own in noise_runs.groups.values()])
    sizes = np.array([len(own) for own in noise_runs.groups.values()])
    names = tuple(f"of {name}" for name in noise_runs.groups)
    steps = int(noise_runs.empty.sum())
    return SquareSums(
        sums, sizes * steps, np.full(len(sums), _record_shift(noise_runs, claim, steps)), names
    )


def _squares_by_step(noise_runs: NoiseOnlyRuns, claim: StepClaim) -> SquareSums:
    runs = noise_runs.empty.sum(axis=0)
    steps = np.flatnonzero(runs)  # those that are empty in at least one run
    sums = np.square(noise_runs.noise).sum(axis=(0, 2))[steps]
    names = tuple(f"at step {step}" for step in steps)
    shifts = np.array([_record_shift(noise_runs, claim, int(count)) for count in runs[steps]])
    return SquareSums(sums, runs[steps] * noise_runs.noise.shape[2], shifts, names)


def _squares_by_coordinate(noise_runs: NoiseOnlyRuns, claim: StepClaim) -> SquareSums:
    sums = np.square(noise_runs.noise).sum(axis=(0, 1))
    group_of = {int(i): name for name, own in noise_runs.groups.items() for i in own}
    names = tuple(f"of one coordinate of {group_of[i]}" for i in range(len(sums)))
    return _squares(noise_runs, claim, sums, names, len(sums))


def _squares(
    noise_runs: NoiseOnlyRuns, claim: StepClaim, sums: Array, names: tuple[str, ...], tests: int
) -> SquareSums:
    steps = int(noise_runs.empty.sum())
    samples = np.full(tests, steps * noise_runs.noise.shape[2] // tests)
    return SquareSums(sums, samples, np.full(tests, _record_shift(noise_runs, claim, steps)), names)


def _record_shift(noise_runs: NoiseOnlyRuns, claim: StepClaim, steps: int) -> float:
    """Return the largest noncentrality that one clipped record adds to the squares of ``steps``.

    In units of the claimed standard deviation, a record of norm C adds 1 / noise_multiplier.
    """
    return 0.0 if noise_runs.mode.known else steps / claim.noise_multiplier**2


def _normality_finding(where: str, noise_runs: NoiseOnlyRuns) -> ConformanceFinding:
    """Test normality by ratios of coordinates, whose distribution is independent of the scale."""
    tested = (
        f"{where}: each coordinate over the root mean square of its neighbors, against Student's t "
        "distribution"
    )
    if not noise_runs.mode.known:
        return inconclusive_finding(NOISE_CHECK, "law", tested, SCALE_ONLY)
    # Of STUDENT_BLOCK_SIZE independent normals, one over the root mean square of the others has
    # Student's t distribution with STUDENT_BLOCK_SIZE - 1 degrees of freedom. Blocks are disjoint.
    rows = noise_runs.noise[noise_runs.empty]
    blocks = rows.ravel()[: rows.size // STUDENT_BLOCK_SIZE * STUDENT_BLOCK_SIZE].reshape(
        -1, STUDENT_BLOCK_SIZE
    )
    if len(blocks) == 0:
        return inconclusive_finding(NOISE_CHECK, "law", tested, FEW_SAMPLES)
    lengths = np.sqrt(np.square(blocks[:, 1:]).mean(axis=1))
    ratios = blocks[:, 0] / np.maximum(lengths, 1e-300)
    gap, p_value = uniform_p_value(stats.t.cdf(ratios, STUDENT_BLOCK_SIZE - 1))
    least = float(np.sqrt(np.log(2 / LEVEL_PER_FINDING) / (2 * len(blocks))))
    return statistical_finding(
        check=NOISE_CHECK,
        name="law",
        tested=tested,
        p_value=p_value,
        observed=f"the distribution functions differ by at most {gap:.3g}, on {len(blocks)} blocks",
        violation=f"the noise is not independent normals: the distribution functions differ by "
        f"{gap:.3g}",
        power=f"a difference of {least:.3g} between the distribution functions is rejected "
        "(uniform noise has 0.04)",
        detectable=least,
    )


# Scale of the noise in steps with records, at the expected batch size and above.

SAMPLED_FINDING, COPIES_FINDING = "scale beside records", "scale beside copies"
COPY_SEEDS, ONE_COPY_SEEDS, MOST_TRIED = 61, 62, 20
EFFORT_DIVISOR, LEAST_RUNS, RUNS_OF_STEPS = 10, 2, 8  # of the samples and steps that an audit takes
BATCH_SIZE_MULTIPLES = (1, 2)  # expected batch sizes


@dataclass(frozen=True)
class StepsWithRecords:
    """Steps with records.

    Attributes:
        squares: Sums of squares over the claimed noise variance, shape ``(steps,)``.
        sizes: Number of records of each step, shape ``(steps,)``.
        shifts: Upper bound, under the claim, of the squared norm that the records add, over the
            claimed noise variance, shape ``(steps,)``.
        dimension: Number of squares in each sum.
    """

    squares: Array
    sizes: NDArray[np.int64]
    shifts: Array
    dimension: int


def check_batch_noise(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    noise_runs: NoiseOnlyRuns,
    draws: SampledBatches | None,
    effort: Effort,
    seed: int,
) -> list[ConformanceFinding]:
    """Test whether steps with records have at least the claimed noise.

    Args:
        make_trainer: Makes the trainer.
        claim: The claim.
        records: The records of the data set, as many as the claim's data set has.
        noise_runs: Steps without records, which show whether runs have independent noise.
        draws: Recorded steps on these records; None if their records are not known.
        effort: Number of samples and steps.
        seed: Seed of the audit.

    Returns:
        Findings for the recorded steps and for steps on copies of one record; a single
        INCONCLUSIVE finding if the records of no step are known, or if seeds are ignored.
    """
    where = "noise of steps with records"
    if noise_runs.seed_is_ignored:
        why = f"{SEED_IGNORED}: its samples are not independent"
        return [inconclusive_finding(NOISE_CHECK, SAMPLED_FINDING, where, why)]
    found = []
    if draws is not None and draws.joined.any():
        found.append(
            _batch_noise_finding(
                SAMPLED_FINDING, "steps on the records", _sampled_steps(draws, claim)
            )
        )
    copies = _steps_on_copies(make_trainer, claim, records, effort, seed)
    if copies is not None:
        found.append(
            _batch_noise_finding(COPIES_FINDING, "first steps on copies of a record", copies)
        )
    if found:
        return found
    why = (
        "no step is known to have records, so only steps without records are tested: set the "
        "trainer's attribute sampled to the indices of the records of each step"
    )
    return [inconclusive_finding(NOISE_CHECK, SAMPLED_FINDING, where, why)]


def _sampled_steps(draws: SampledBatches, claim: StepClaim) -> StepsWithRecords:
    sizes = draws.joined.sum(axis=2).ravel()
    shifts = np.square(sizes / claim.noise_multiplier)
    return _nonempty_steps(StepsWithRecords(draws.squares.ravel(), sizes, shifts, draws.dimension))


def _nonempty_steps(steps: StepsWithRecords) -> StepsWithRecords:
    own = steps.sizes > 0
    return StepsWithRecords(
        steps.squares[own], steps.sizes[own], steps.shifts[own], steps.dimension
    )


def _batch_noise_finding(name: str, where: str, steps: StepsWithRecords) -> ConformanceFinding:
    """Test the steps of small, typical and large batches, each class by one sum of squares."""
    masks = _size_classes(steps.sizes)
    sums = np.array([steps.squares[own].sum() for own in masks])
    samples = np.array([own.sum() * steps.dimension for own in masks])
    ranges = [_size_range_text(steps.sizes[own]) for own in masks]
    p_values = low_variance_p_values(sums, samples)
    worst = int(p_values.argmin())
    level, factors = LEVEL_PER_FINDING / len(masks), np.sqrt(sums / samples)
    shifts = [float(steps.shifts[own].sum()) for own in masks]
    least = [
        detectable_low_scale(float(n), level, shift)
        for n, shift in zip(samples, shifts, strict=True)
    ]
    # The records add to the sum of squares, so the factor is an upper bound of that of the noise.
    observed = f"at most {factors[worst]:.4g} times the claimed standard deviation"
    return statistical_finding(
        check=NOISE_CHECK,
        name=name,
        tested=f"noise in {where}: one-sided chi-square tests of steps of {', '.join(ranges)}, "
        f"at least {int(samples.min())} samples each",
        p_value=min(1.0, len(masks) * float(p_values[worst])),
        observed=f"the smallest p-value is that of the noise in steps of {ranges[worst]}, with "
        f"{observed}",
        violation=f"the noise in steps of {ranges[worst]} has {observed}",
        power=_batch_noise_power(ranges, least, steps),
        detectable=max(least),
    )


def _size_range_text(sizes: NDArray[np.int64]) -> str:
    least, most = int(sizes.min()), int(sizes.max())
    return f"{least} records" if least == most else f"{least} to {most} records"


def _size_classes(sizes: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Return masks of the steps below the median size, of the others, and of the largest sixth.

    Masks without a step are left out.
    """
    middle, large = np.median(sizes), np.quantile(sizes, 5 / 6)
    masks = [sizes < middle, sizes >= middle, sizes >= max(large, middle + 1)]
    return [own for own in masks if own.any()]


def _batch_noise_power(
    ranges: Sequence[str], least: Sequence[float], steps: StepsWithRecords
) -> str:
    each = [
        f"{size}: " + (f"{amount:.2%} below" if amount < 1 else "none (gradients may hide it)")
        for size, amount in zip(ranges, least, strict=True)
    ]
    given = "" if steps.shifts.any() else " if every copy adds the same"
    return (
        f"standard deviations below the claimed one that are detectable at 95% power{given}: "
        f"{'; '.join(each)}"
    )


def _steps_on_copies(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    effort: Effort,
    seed: int,
) -> StepsWithRecords | None:
    """Return first steps on copies of a record, minus what the copies add; None if impossible."""
    replays = TrainerReplays.of(make_trainer, claim, records, effort)
    first = _one_copy(replays, records[-1], seed)
    if first is None:
        return None
    one, known = first
    runs, deviation = _copy_run_count(one.size, effort), claim.noise_multiplier * claim.clip_norm
    squares, sizes = [], []
    for number, times in enumerate(BATCH_SIZE_MULTIPLES):
        for own in derive_seeds(seed, COPY_SEEDS + number * EFFORT_DIVISOR, runs):
            try:
                noise, size = _step_on_copies(replays, records, times, own)
            except Exception:  # a trainer may fail in any way on so many records
                break
            squares.append(squared_norm((noise - size * one) / deviation))
            sizes.append(size)
    counts = np.array(sizes, dtype=np.int64)
    shifts = np.square(counts / claim.noise_multiplier) * (not known)
    found = _nonempty_steps(StepsWithRecords(np.array(squares), counts, shifts, one.size))
    return found if len(found.sizes) else None


def _copy_run_count(dimension: int, effort: Effort) -> int:
    wanted = -(-effort.noise_samples // (EFFORT_DIVISOR * dimension))
    return max(LEAST_RUNS, min(wanted, effort.sampler_steps // RUNS_OF_STEPS))


def _step_on_copies(
    replays: TrainerReplays, records: Sequence[Record], times: int, seed: int
) -> tuple[Array, int]:
    """Return the noisy sum of a first step on copies, and their number; 0 if it is not known."""
    if replays.included:
        rows = replays.dataset_size or times * len(records)
        size = min(rows, times * max(1, round(replays.claim.sampling_rate * len(records))))
        trainer = replays.make_trainer((records[-1],) * rows, seed)
        return noisy_sum(trainer.step(include=list(range(size))), replays.claim), size
    rows = times * max(len(records), replays.copies)
    trainer = replays.make_trainer((records[-1],) * rows, seed)
    noise, sampled = noisy_sum(trainer.step(), replays.claim), sampled_indices(trainer)
    return noise, 0 if sampled is None else len(sampled)


def _one_copy(replays: TrainerReplays, record: Record, seed: int) -> tuple[Array, bool] | None:
    """Measure what one copy of a record adds to a first step, and whether that succeeded.

    The contribution has shape ``(d,)``; it is zeros, with False, if no pair of steps shows it. None
    if a step fails, or if its records are not known.
    """
    base = () if not replays.included and replays.accepts_empty_batch() else (record,)
    size = None
    for one in derive_seeds(seed, ONE_COPY_SEEDS, MOST_TRIED):
        try:
            without = replays.run(base, None, one)
            copies = () if replays.included else (record,) * (replays.copies - 1)
            run = replays.run((*base, *copies), record, one)
            pair = replays.pair(without, run, COPIES_FINDING, 0)
        except Exception:  # a trainer may fail in any way on such data sets
            return None
        if pair.sampled is None and not replays.included:
            return None
        size = pair.without.size
        added = _added_copies(pair.sampled, len(base)) if not replays.included else 1
        if added and float(np.linalg.norm(pair.difference)) <= added * pair.allowed(
            replays.claim.clip_norm
        ):
            return pair.difference / added, True
    return None if size is None else (np.zeros(size), False)


def _added_copies(sampled: tuple[NDArray[np.int64], NDArray[np.int64]] | None, base: int) -> int:
    """Return how many more copies the second step has; 0 if other records differ as well."""
    if sampled is None:
        return 0
    one, other = (set(indices.tolist()) for indices in sampled)
    return len(other - one) if {i for i in other if i < base} == one else 0
