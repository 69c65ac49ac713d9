"""Black-box conformance tests of DP-SGD trainers.

A trainer claims a mechanism: clipped sums of sampled records plus Gaussian noise. ``check`` tests
each part of that claim with a separate test:

- replay: one more record moves the noisy sum by at most the clip norm;
- noise: the noise is normal, with the claimed standard deviation;
- correlation: noise is independent between steps, runs, coordinates and ranks;
- sampler: records are included as claimed.

``trainer_protocol`` describes what ``make_trainer(records, seed)`` must return. A trainer that does
what it claims is rejected with probability at most ``LEVEL``. A trainer that cannot be tested is
INCONCLUSIVE, and never PASS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice

import numpy as np
from msgspec.structs import replace

from dpaudit.attacks.conformance.clipping import check_replay
from dpaudit.attacks.conformance.correlation import (
    RANK_ROW_TOLERANCE,
    RankRowsKind,
    check_correlation,
    check_rank_noise,
    check_resume,
    why_unclear,
)
from dpaudit.attacks.conformance.garbage_collection import exempt_existing_objects
from dpaudit.attacks.conformance.noise_distribution import check_batch_noise, check_noise
from dpaudit.attacks.conformance.noise_only_runs import (
    NoiseOnlyRuns,
    find_noise_only_mode,
    run_without_records,
)
from dpaudit.attacks.conformance.probes import Probe, has_nan, make_probes
from dpaudit.attacks.conformance.sampler import (
    SampledBatches,
    check_sampler,
    record_sampled_batches,
)
from dpaudit.attacks.conformance.statistical_tests import (
    LEVEL,
    Effort,
    failed_finding,
    inconclusive_finding,
)
from dpaudit.attacks.conformance.trainer_protocol import (
    MakeTrainer,
    Record,
    Trainer,
    assumptions_of,
    derive_seeds,
    for_records,
    public_constants_of,
    repeat_to_dataset_size,
    required_dataset_size,
    seed_global_generators,
)
from dpaudit.attacks.conformance.update_scale import measure_update_scale
from dpaudit.attacks.conformance.wrappers import WrappedFactory, wrap
from dpaudit.attacks.conformance.wrappers.parts import JaxLoop, TorchLoop
from dpaudit.vocabulary import public_names
from dpaudit.vocabulary.conformance import (
    Assumption,
    ConformanceFinding,
    ConformanceResult,
    StepClaim,
    outcome_of_findings,
)
from dpaudit.vocabulary.errors import InvalidArgument, require_count
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.settings import NoProgress, Progress
from dpaudit.vocabulary.verdict import Outcome

__all__ = [
    "LEVEL",
    "Assumption",
    "ConformanceFinding",
    "ConformanceResult",
    "Effort",
    "JaxLoop",
    "MakeTrainer",
    "Record",
    "StepClaim",
    "TorchLoop",
    "Trainer",
    "WrappedFactory",
    "check",
    "conformance_result",
    "wrap",
]

__dir__ = public_names(__name__)


# Public constants: whether they are equal on neighboring data sets.
#
# A sampling rate or a divisor that is derived from the number of records changes with one record.
# Under add-or-remove-one adjacency it is then not a constant of the mechanism. The whole noisy sum
# is
# multiplied by another number, or all records are included with another probability. Under
# replace-one adjacency the number of records is public.

CHECK, PUBLIC_CONSTANTS_FINDING = "replay", "public constants"
SAMPLING_RATE_CONSTANT = "the sampling rate"
CONSTANT_SEEDS = 60


def check_public_constants(
    make_trainer: MakeTrainer, claim: StepClaim, records: Sequence[Record], seed: int
) -> list[ConformanceFinding]:
    """Compare the trainer's ``constants`` on neighboring data sets, and with the claim.

    Args:
        make_trainer: Makes the trainer.
        claim: The claim; its adjacency determines the sizes of the neighbors.
        records: Ordinary records, repeated to each size.
        seed: Seed of the audit.

    Returns:
        One finding; none if the trainer lists no constants.
    """
    size = required_dataset_size(make_trainer) or len(records)
    (one,) = derive_seeds(seed, CONSTANT_SEEDS, 1)
    sizes = [size] if claim.adjacency is Adjacency.REPLACE_ONE else [size - 1, size, size + 1]
    found = {
        count: public_constants_of(make_trainer(tuple(islice(cycle(records), count)), one))
        for count in sizes
    }
    own = found[size]
    if not any(found.values()):
        return []
    tested = f"{', '.join(own) or 'constants'} for {_listed(sizes)} records"
    wrong = [*_changed_constants(found), *_unclaimed_constants(own, claim)]
    if wrong:
        return [failed_finding(CHECK, PUBLIC_CONSTANTS_FINDING, tested, "; ".join(wrong))]
    return [
        ConformanceFinding(
            check=CHECK,
            name=PUBLIC_CONSTANTS_FINDING,
            outcome=Outcome.PASS,
            tested=tested,
            why=", ".join(f"{name} is {value:g}" for name, value in own.items()),
            power="exact for these numbers of records; only constants that the trainer lists are "
            "tested",
        )
    ]


def _changed_constants(found: dict[int, dict[str, float]]) -> list[str]:
    """Describe the constants that differ between the numbers of records. A missing one differs."""
    names = dict.fromkeys(name for values in found.values() for name in values)
    moved = []
    for name in names:
        values = [values.get(name, math.nan) for values in found.values()]
        if not all(value == values[0] for value in values):
            what = ", ".join(f"{value:g}" for value in values)
            moved.append(
                f"{name} is {what} for {_listed(list(found))} records: it depends on the data set, "
                "so neighboring data sets differ by more than one record's clipped gradient"
            )
    return moved


def _unclaimed_constants(own: dict[str, float], claim: StepClaim) -> list[str]:
    rate = own.get(SAMPLING_RATE_CONSTANT)
    if rate is None or math.isclose(rate, claim.sampling_rate, rel_tol=1e-9):
        return []
    return [f"{SAMPLING_RATE_CONSTANT} is {rate:g}; the claim is {claim.sampling_rate:g}"]


def _listed(sizes: list[int]) -> str:
    return ", ".join(str(size) for size in sizes)


# Run all conformance tests of a trainer, at one false-alarm level, and combine their findings.

PREPARATIONS, CHECKS = 2, 8
"""Units of progress: runs without records and sampled batches; then one for each check."""


def check(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    *,
    records: Sequence[Record],
    probes: Sequence[Record] | int | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    assumptions: Sequence[Assumption] = (),
) -> ConformanceResult:
    """Test whether a trainer's steps are those that ``claim`` describes.

    If the trainer conforms, the verdict is FAIL with probability at most ``LEVEL``.

    Args:
        make_trainer: Makes a trainer from records and a seed; see ``trainer_protocol``.
        claim: The mechanism that each step is claimed to be. Without an ``update_scale``, it is
            measured up to its sign, and the claim of the result has the measured one.
        records: Ordinary records ``(x, y)``, at least two. Probes are derived from them.
        probes: Records to replay in place of the derived probes; None to derive them; a number to
            replay so many of ``records`` as well.
        effort: How much to run. None is enough to detect 2% less noise than claimed.
        seed: Seed of the audit, at least 0. It determines the seeds of all trainers, so the
            audit is reproducible.
        progress: Receives each finished check.
        assumptions: What is assumed instead of tested; the result states it. Under
            ``Assumption.NO_NAN``, records with NaN are not replayed.

    Returns:
        All findings, with their verdict: FAIL if any finding is FAIL, INCONCLUSIVE if any other
        is INCONCLUSIVE, PASS if all pass.

    Raises:
        InvalidArgument: If there are fewer than two records, or if the trainer or ``seed`` does
            not meet the protocol.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks import conformance
        >>> class VectorTrainer:  # records are pairs of a vector and an unused label
        ...     def __init__(self, records, seed):
        ...         self.rows = np.array([x for x, _ in records]).reshape(-1, 8)
        ...         self.seed, self.number = seed, 0
        ...     def step(self):
        ...         self.number += 1
        ...         rng = np.random.default_rng([self.seed, self.number])
        ...         noise = 2.0 * rng.standard_normal(8)
        ...         self.sampled = np.flatnonzero(rng.random(100)[: len(self.rows)] < 0.5)
        ...         rows = self.rows[self.sampled]
        ...         rows = rows[np.isfinite(rows).all(axis=1)]
        ...         norms = np.linalg.norm(rows, axis=1, keepdims=True)
        ...         return (rows / np.maximum(norms, 1.0)).sum(axis=0) + noise
        >>> claim = conformance.StepClaim(
        ...     noise_multiplier=2.0, clip_norm=1.0, sampling_rate=0.5, steps=10, update_scale=1.0
        ... )
        >>> records = [(np.full(8, float(i)), 0) for i in range(1, 5)]
        >>> effort = conformance.Effort(
        ...     noise_samples=2_000, sampler_steps=20, longest_run=10, replays=1,
        ...     longest_replay=20, search_steps=100,
        ... )
        >>> conformance.check(VectorTrainer, claim, records=records, effort=effort).verdict.value
        'PASS'

        A claim of more noise than the trainer adds fails:

        >>> import msgspec
        >>> claim = msgspec.structs.replace(claim, noise_multiplier=4.0)
        >>> conformance.check(VectorTrainer, claim, records=records, effort=effort).verdict.value
        'FAIL'
    """
    require_count("seed", seed, least=0)
    if isinstance(probes, int):
        require_count("probes", probes)
    if len(records) < 2:
        raise InvalidArgument("records", len(records), "at least two (x, y) pairs")
    effort = effort or Effort()
    progress = progress or NoProgress()
    # The noise of a trainer may be drawn from the global generators.
    with seed_global_generators(seed), exempt_existing_objects():
        sized = for_records(make_trainer, records)
        replayed = _allowed_probes(make_probes(records, probes), assumptions)
        stated = [one.statement for one in assumptions]
        stated += assumptions_of(sized, repeat_to_dataset_size(sized, records))
        if claim.update_scale is None:
            measured = measure_update_scale(sized, claim, records, replayed, effort, seed)
            if measured.value is None:
                finding = inconclusive_finding(
                    CHECK, "update scale", "what a step returns", measured.why
                )
                found = [*measured.violations, finding]
                return conformance_result(claim, found, assumptions=tuple(stated))
            claim = replace(claim, update_scale=measured.value)
            stated.append(measured.why)
        findings = _run_checks(sized, claim, records, replayed, effort, seed, progress)
        # Only steps show some of them, such as a schedule of learning rates.
        stated += assumptions_of(sized, repeat_to_dataset_size(sized, records))
    return conformance_result(claim, findings, assumptions=tuple(dict.fromkeys(stated)))


def _allowed_probes(probes: list[Probe], assumptions: Sequence[Assumption]) -> list[Probe]:
    """Return the probes that the assumptions do not exclude."""
    if Assumption.NO_NAN not in assumptions:
        return probes
    return [probe for probe in probes if not has_nan(probe.record)]


def _run_checks(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    records: Sequence[Record],
    probes: Sequence[Probe],
    effort: Effort,
    seed: int,
    progress: Progress,
) -> list[ConformanceFinding]:
    """Run all checks of a trainer."""
    data = repeat_to_dataset_size(make_trainer, records)
    progress.start("conformance checks", PREPARATIONS + CHECKS)
    noise_runs = run_without_records(
        make_trainer, claim, find_noise_only_mode(make_trainer, claim, data, seed), effort, seed
    )
    progress.advance()
    draws = record_sampled_batches(make_trainer, claim, data, effort, seed)
    progress.advance()
    checks: tuple[Callable[[], Iterable[ConformanceFinding]], ...] = (
        lambda: check_replay(make_trainer, claim, records, probes, effort, seed),
        lambda: check_public_constants(make_trainer, claim, records, seed),
        lambda: check_noise(noise_runs, claim),
        lambda: check_batch_noise(make_trainer, claim, data, noise_runs, draws, effort, seed),
        lambda: check_correlation(noise_runs, claim),
        lambda: _check_rank_updates(noise_runs, draws),
        lambda: check_resume(make_trainer, claim, noise_runs, effort, seed),
        lambda: check_sampler(draws, claim),
    )
    findings: list[ConformanceFinding] = []
    for run_check in checks:
        findings += run_check()
        progress.advance()
    return findings


def conformance_result(
    claim: StepClaim,
    findings: Sequence[ConformanceFinding],
    ledger_head: str | None = None,
    assumptions: tuple[str, ...] = (),
) -> ConformanceResult:
    """Combine findings into a result with one verdict.

    Args:
        claim: The claim that was tested.
        findings: The findings of all tests; none at all is INCONCLUSIVE.
        ledger_head: Hash of the last ledger entry of the run that was compared; None if no run
            was.
        assumptions: What was assumed instead of tested, as sentences.

    Returns:
        The result. Its ``level`` is ``LEVEL``.

    Example:
        >>> from dpaudit.attacks.conformance import StepClaim, conformance_result
        >>> claim = StepClaim(
        ...     noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.1, steps=5, update_scale=1.0
        ... )
        >>> conformance_result(claim, []).verdict.value
        'INCONCLUSIVE'
    """
    return ConformanceResult(
        claim=claim,
        findings=tuple(findings),
        level=LEVEL,
        verdict=outcome_of_findings(tuple(findings)),
        ledger_head=ledger_head,
        assumptions=assumptions,
    )


ROWS_WITHOUT_RECORDS = (
    "the sum of rank_updates is the update in steps without records only: a row must contain its "
    "rank's clipped sum besides its noise"
)


def _rows_are_noise(noise_runs: NoiseOnlyRuns) -> bool:
    """Return whether the ranks' rows add up to the update in steps without records."""
    if noise_runs.ranks is None or not noise_runs.empty.any():
        return False
    rows, noise = noise_runs.ranks[noise_runs.empty], noise_runs.noise[noise_runs.empty]
    whole = rows.sum(axis=1)
    room = RANK_ROW_TOLERANCE * (1 + float(np.abs(rows).max()))
    return any(bool((np.abs(one - noise) <= room).all()) for one in (whole, whole / rows.shape[1]))


def _check_rank_updates(
    noise_runs: NoiseOnlyRuns, draws: SampledBatches | None
) -> list[ConformanceFinding]:
    """Test the ranks' noise, once a step with records shows what their rows contain."""
    if noise_runs.ranks is None:
        return []
    if draws is None or not draws.rows:
        why = (
            "whether rank_updates are shares or replicas is not known: no step with records was "
            "found (the trainer may lack the attribute sampled)"
        )
        return [inconclusive_finding("correlation", "ranks", "rank_updates", why)]
    tested = "rank_updates against the update"
    diverged = next((rows.why for rows in draws.rows if rows.kind is RankRowsKind.DIVERGED), "")
    if diverged:
        return [failed_finding("correlation", "ranks", tested, diverged)]
    unclear = why_unclear(draws.rows)
    if unclear and _rows_are_noise(noise_runs):
        unclear = ROWS_WITHOUT_RECORDS
    if unclear:
        return [inconclusive_finding("correlation", "ranks", tested, unclear)]
    return check_rank_noise(
        noise_runs, all(rows.kind is RankRowsKind.REPLICAS for rows in draws.rows)
    )
