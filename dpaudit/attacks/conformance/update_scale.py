"""The measured update scale of a claim that does not state it.

The update scale is the public factor from the noisy sum to what a step returns. Two quantities show
it, up to its sign: the noise, which has the claimed deviation times the factor; and records at the
clip norm, which move a step by the clip norm times the factor. What privacy depends on is the ratio
of both, which the audit then tests:

- If both agree, up to the error of the noise, the records give the factor. The audit then tests the
  noise in this unit, with full power.
- If a record moves a step farther than the noise allows, the noise gives the factor, and the replay
  of that record is a violation.
- If records move a step less, nothing shows whether they reach the clip norm: INCONCLUSIVE.
- If the noise changes from step to step, as under a schedule of learning rates, there is no single
  factor: INCONCLUSIVE.

Noise that is the same in two steps is a violation in any unit, also where no factor is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from scipy import stats

from dpaudit.attacks.conformance.correlation import repeated_noise
from dpaudit.attacks.conformance.noise_only_runs import (
    NoiseOnlyRuns,
    find_noise_only_mode,
    run_without_records,
)
from dpaudit.attacks.conformance.paired_replays import ReplayPair, TrainerReplays
from dpaudit.attacks.conformance.probes import Probe
from dpaudit.attacks.conformance.statistical_tests import LEVEL_PER_FINDING, Effort
from dpaudit.attacks.conformance.trainer_protocol import (
    MakeTrainer,
    Record,
    derive_seeds,
    repeat_to_dataset_size,
)
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim

SCALE_SEEDS, MOVEMENT_SEEDS = 80, 81
SAME_MOVEMENT = 1e-4  # relative: movements this close are those of records at the clip norm
FEWEST_RECORDS = 2  # records that must move a step equally far
REMEDY = "state update_scale in the claim"
SCHEDULED = (
    "update_scale cannot be measured: the scale of the noise changes from step to step, as under a "
    'schedule of learning rates; give TorchLoop its optimizer, and wrap with observe="gradients" '
    "if that is not enough"
)


@dataclass(frozen=True)
class MeasuredScale:
    """A measured update scale.

    Attributes:
        value: The factor, positive; None if it could not be measured.
        why: How it was measured, or why it could not be, as a sentence.
        violations: Violations that were found on the way, if it could not be measured.
    """

    value: float | None
    why: str
    violations: tuple[ConformanceFinding, ...] = ()


def measure_update_scale(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    probes: Sequence[Probe],
    effort: Effort,
    seed: int,
) -> MeasuredScale:
    """Measure the factor from the noisy sum to what a step returns.

    Args:
        make_trainer: Makes the trainer.
        claim: The claim; its ``update_scale`` is not read.
        records: Ordinary records.
        probes: The usual probes.
        effort: Number of noise samples.
        seed: Seed of the audit.

    Returns:
        The factor. It is independent of the noise that the audit tests.
    """
    (one,) = derive_seeds(seed, SCALE_SEEDS, 1)
    unit = replace(claim, update_scale=1.0)
    data = repeat_to_dataset_size(make_trainer, records)
    mode = find_noise_only_mode(make_trainer, unit, data, one)
    runs = run_without_records(make_trainer, unit, mode, effort, one)
    noise = runs.noise[runs.empty]
    if mode.known and noise.size and not noise.any():
        return MeasuredScale(1.0, "update_scale is not known: steps without records have no noise")
    if not mode.known or not runs.finite or not noise.size:
        return MeasuredScale(
            None, f"update_scale cannot be measured without noise-only steps: {REMEDY}"
        )
    repeated = tuple(repeated_noise(runs))
    if repeated or _changes_by_step(runs):
        why = f"update_scale cannot be measured: steps repeat their noise; {REMEDY}"
        return MeasuredScale(None, why if repeated else SCHEDULED, repeated)
    from_noise = math.sqrt(float(np.square(noise).mean()))
    error = _relative_error(noise.size)
    moved = _movements(
        make_trainer, replace(claim, update_scale=from_noise), records, probes, effort, one
    )
    largest = max(moved, default=0.0) / claim.clip_norm
    same = [one for one in moved if one >= (1 - SAME_MOVEMENT) * max(moved)]
    if largest > 1 + error:
        return MeasuredScale(
            from_noise,
            f"update_scale was measured: {from_noise:.6g}, at which the noise is as claimed",
        )
    if largest >= 1 - error and len(same) >= FEWEST_RECORDS:
        value = from_noise * largest
        return MeasuredScale(
            value,
            f"update_scale was measured: {value:.6g}, at which records move a step by clip_norm",
        )
    return MeasuredScale(
        None,
        f"update_scale cannot be measured: records move a step by at most {largest:.3g} C where "
        f"the noise is as claimed, so none is known to reach the clip norm; {REMEDY}",
    )


def _changes_by_step(runs: NoiseOnlyRuns) -> bool:
    """Return whether the scale of the noise changes from step to step, but is nowhere 0.

    For one scale, the share of some steps in the sum of squares has a beta distribution. Each step
    is tested, and the first half of them.
    """
    sums = np.square(runs.noise).sum(axis=(0, 2))
    samples = runs.empty.sum(axis=0) * runs.noise.shape[2]
    sums, samples = sums[samples > 0], samples[samples > 0]
    if len(sums) < 2 or not sums.all():
        return False
    half = len(sums) // 2
    own = np.append(sums, sums[:half].sum()) / sums.sum()
    first, rest = (np.append(samples, samples[:half].sum()) / 2, samples.sum() / 2)
    law = stats.beta(first, rest - first)
    p_values = 2 * np.minimum(law.cdf(own), law.sf(own))
    return bool(len(p_values) * p_values.min() <= LEVEL_PER_FINDING)


def _relative_error(samples: int) -> float:
    """Return the error of a root mean square that is exceeded at the level of one finding."""
    low, high = stats.chi2.ppf([LEVEL_PER_FINDING / 2, 1 - LEVEL_PER_FINDING / 2], samples)
    return float(max(math.sqrt(samples / low) - 1, 1 - math.sqrt(samples / high)))


def _movements(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    probes: Sequence[Probe],
    effort: Effort,
    seed: int,
) -> list[float]:
    """Return how far each probe moves a step that adds it; none where records are replaced."""
    replays = TrainerReplays.of(make_trainer, claim, records, effort)
    if replays.replaces and not replays.included:
        return []
    (one,) = derive_seeds(seed, MOVEMENT_SEEDS, 1)
    found = []
    for probe in probes:
        try:
            pair = _added(replays, probe, one)
        except Exception:  # a trainer may fail in any way on an unusual record
            continue
        norm = 0.0 if pair is None else float(np.linalg.norm(pair.difference))
        if pair is not None and pair.joined is not False and np.isfinite(norm):
            found.append(norm)
    return found


def _added(replays: TrainerReplays, probe: Probe, seed: int) -> ReplayPair | None:
    """Return a step with and without a probe, on the same data set where records are chosen."""
    base = replays.bases()[-1]
    if not replays.included:
        return replays.first_difference(
            replays.run(base, None, seed), replays.run(base, probe.record, seed), probe.name
        )
    without = replays.run(base, probe.record, seed, lambda step, records: [0])
    with_probe = replays.run(base, probe.record, seed, lambda step, records: [0, records - 1])
    return replays.pair(without, with_probe, probe.name, 0)
