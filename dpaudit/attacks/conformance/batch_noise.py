"""Is the noise as wide as is claimed where records take part: at the usual batch size, and above?

Whatever clipped gradients add to a step, they make the sum of squares larger, never smaller, as
long as they do not depend on the noise of that step: a sum that is too small for a chi-square
convicts. Two kinds of steps are looked at:

- those on which the sampler is tested, at all steps of a run. Records may hide low noise there:
  the power allows for the clip norm of each of them;
- first steps on copies of one record, of which each adds the same. What one copy adds is measured
  by a replay, and taken off as many times as there are copies: what is left is the noise. Should
  copies add other numbers, the sum is larger, and no correct trainer is rejected for that.

Noise that is too wide at such steps is not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.effort import EACH, Effort
from dpaudit.attacks.conformance.noise import CHECK
from dpaudit.attacks.conformance.pairs import Replays
from dpaudit.attacks.conformance.sampler import Draws
from dpaudit.attacks.conformance.tails import (
    Array,
    detectable_low_scale,
    low_scale_p_values,
    squared_norm,
)
from dpaudit.attacks.conformance.trainers import (
    MakeTrainer,
    Record,
    noisy_sum,
    sampled_of,
    seeds,
)
from dpaudit.attacks.conformance.words import statistical, undecided
from dpaudit.vocabulary.conformance import Finding, StepClaim

DRAWN, COPIES = "scale beside records", "scale beside copies"
COPY_SEEDS, ONE_COPY_SEEDS, MOST_TRIED = 61, 62, 20
SHARE, LEAST_RUNS, RUNS_OF_STEPS = 10, 2, 8  # of the samples and steps that an audit takes
TIMES = (1, 2)  # expected batch sizes


@dataclass(frozen=True)
class Noisy:
    """Steps with records.

    Attributes:
        squares: Sums of squares over the claimed variance, shape ``(steps,)``.
        sizes: How many records each step had.
        shifts: The most that they may have added to each sum, by the claim.
        dimension: Squares in each sum.
    """

    squares: Array
    sizes: NDArray[np.int64]
    shifts: Array
    dimension: int


def check_batch_noise(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    draws: Draws | None,
    effort: Effort,
    seed: int,
) -> list[Finding]:
    """Return whether steps with records have at least the claimed noise.

    Args:
        make_trainer: Makes the trainer.
        claim: What is claimed of it.
        records: Of the data set, as many as the claim's has.
        draws: Steps on these records; None: who was in them is not known.
        effort: How many steps are taken.
        seed: Of the audit.
    """
    found = []
    if draws is not None and draws.joined.any():
        found.append(_finding(DRAWN, "steps on the records", _drawn(draws, claim)))
    copies = _copies(make_trainer, claim, records, effort, seed)
    if copies is not None:
        found.append(_finding(COPIES, "first steps on copies of a record", copies))
    if found:
        return found
    why = "no step is known to have records (sampled): only steps without records are tested"
    return [undecided(CHECK, DRAWN, "noise of steps with records", why)]


def _drawn(draws: Draws, claim: StepClaim) -> Noisy:
    sizes = draws.joined.sum(axis=2).ravel()
    shifts = np.square(sizes / claim.noise_multiplier)
    return _with_records(Noisy(draws.squares.ravel(), sizes, shifts, draws.dimension))


def _with_records(steps: Noisy) -> Noisy:
    own = steps.sizes > 0
    return Noisy(steps.squares[own], steps.sizes[own], steps.shifts[own], steps.dimension)


def _finding(name: str, where: str, steps: Noisy) -> Finding:
    """Test the steps of a usual size, of a larger and of a smaller one."""
    masks = _classes(steps.sizes)
    sums = np.array([steps.squares[own].sum() for own in masks])
    samples = np.array([own.sum() * steps.dimension for own in masks])
    ranges = [_range(steps.sizes[own]) for own in masks]
    p_values = low_scale_p_values(sums, samples)
    worst = int(p_values.argmin())
    level, factors = EACH / len(masks), np.sqrt(sums / samples)
    shifts = [float(steps.shifts[own].sum()) for own in masks]
    least = [
        detectable_low_scale(float(n), level, shift)
        for n, shift in zip(samples, shifts, strict=True)
    ]
    seen = f"{factors[worst]:.4g} times the claimed standard deviation or less"
    return statistical(
        check=CHECK,
        name=name,
        tested=f"noise in {where}: sums of squares in steps of {', '.join(ranges)}, each "
        f"at least a chi-square; {int(samples.min())} samples or more in each",
        p_value=min(1.0, len(masks) * float(p_values[worst])),
        seen=f"{seen} in steps of {ranges[worst]}, the least likely of all",
        wrong=f"the noise in steps of {ranges[worst]} has {seen}",
        power=_power(ranges, least, steps),
        detectable=max(least),
    )


def _range(sizes: NDArray[np.int64]) -> str:
    least, most = int(sizes.min()), int(sizes.max())
    return f"{least} records" if least == most else f"{least} to {most} records"


def _classes(sizes: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Return steps below the median size, from it on, and of the largest sixth; none empty."""
    middle, large = np.median(sizes), np.quantile(sizes, 5 / 6)
    masks = [sizes < middle, sizes >= middle, sizes >= max(large, middle + 1)]
    return [own for own in masks if own.any()]


def _power(ranges: Sequence[str], least: Sequence[float], steps: Noisy) -> str:
    each = [
        f"{size}: " + (f"{amount:.2%} too low" if amount < 1 else "none, as they may hide it")
        for size, amount in zip(ranges, least, strict=True)
    ]
    given = "" if steps.shifts.any() else ", where each copy adds the same"
    return f"noise that is so low would be seen 95 times in 100{given}, with {'; '.join(each)}"


def _copies(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    effort: Effort,
    seed: int,
) -> Noisy | None:
    """Return first steps on copies of a record, less what these add; None: there are none."""
    replays = Replays.of(make_trainer, claim, records, effort)
    first = _one_copy(replays, records[-1], seed)
    if first is None:
        return None
    one, known = first
    runs, deviation = _runs(one.size, effort), claim.noise_multiplier * claim.clip_norm
    squares, sizes = [], []
    for number, times in enumerate(TIMES):
        for own in seeds(seed, COPY_SEEDS + number * SHARE, runs):
            try:
                noise, size = _step(replays, records, times, own)
            except Exception:  # a trainer that does not take so many raises whatever it likes
                break
            squares.append(squared_norm((noise - size * one) / deviation))
            sizes.append(size)
    counts = np.array(sizes, dtype=np.int64)
    shifts = np.square(counts / claim.noise_multiplier) * (not known)
    found = _with_records(Noisy(np.array(squares), counts, shifts, one.size))
    return found if len(found.sizes) else None


def _runs(dimension: int, effort: Effort) -> int:
    wanted = -(-effort.noise_samples // (SHARE * dimension))
    return max(LEAST_RUNS, min(wanted, effort.sampler_steps // RUNS_OF_STEPS))


def _step(replays: Replays, records: Sequence[Record], times: int, seed: int) -> tuple[Array, int]:
    """Return the noisy sum of a first step on copies, and how many they are; 0: not known."""
    if replays.included:
        rows = replays.dataset_size or times * len(records)
        size = min(rows, times * max(1, round(replays.claim.sampling_rate * len(records))))
        trainer = replays.make_trainer((records[-1],) * rows, seed)
        return noisy_sum(trainer.step(include=list(range(size))), replays.claim), size
    rows = times * max(len(records), replays.copies)
    trainer = replays.make_trainer((records[-1],) * rows, seed)
    noise, sampled = noisy_sum(trainer.step(), replays.claim), sampled_of(trainer)
    return noise, 0 if sampled is None else len(sampled)


def _one_copy(replays: Replays, record: Record, seed: int) -> tuple[Array, bool] | None:
    """Return what one copy of a record adds to a first step, and whether that is known.

    None: no step can be taken, or nobody says who is in. Zeros, where it is not known.
    """
    base = () if not replays.included and replays.takes_nothing() else (record,)
    size = None
    for one in seeds(seed, ONE_COPY_SEEDS, MOST_TRIED):
        try:
            without = replays.course(base, None, one)
            copies = () if replays.included else (record,) * (replays.copies - 1)
            course = replays.course((*base, *copies), record, one)
            pair = replays.pair(without, course, COPIES, 0)
        except Exception:  # a trainer that cannot do that raises whatever it likes
            return None
        if pair.sampled is None and not replays.included:
            return None
        size = pair.without.size
        added = _added(pair.sampled, len(base)) if not replays.included else 1
        if added and float(np.linalg.norm(pair.difference)) <= added * pair.allowed(
            replays.claim.clip_norm
        ):
            return pair.difference / added, True
    return None if size is None else (np.zeros(size), False)


def _added(sampled: tuple[NDArray[np.int64], NDArray[np.int64]] | None, base: int) -> int:
    """Return how many copies a step has more than the other; 0: others differ as well."""
    if sampled is None:
        return 0
    one, other = (set(seen.tolist()) for seen in sampled)
    return len(other - one) if {i for i in other if i < base} == one else 0
